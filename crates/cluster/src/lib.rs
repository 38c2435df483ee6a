//! Everything the client does with the Kubernetes API: the kubeconfig, finding a workload and a pod of it, placing an
//! agent there, admitting a session to it, and the byte pipe through the API server.
//!
//! It speaks no frames and no TLS with the agent (`link` does), knows nothing of the sandbox, and leaves nothing behind
//! but the agent's container. No name is resolved by the C library: the binaries are static (see `dial`).

mod admit;
mod certificate;
mod connect;
mod dial;
mod error;
mod evidence;
mod facts;
mod gone;
mod image;
mod kubeconfig;
mod near;
mod neighbours;
mod next;
mod observe;
mod outline;
mod pipe;
mod place;
mod ranges;
mod ready;
mod renew;
mod rights;
mod role;
mod stand_in;
mod workload;

pub use connect::Cluster;
pub use error::{Error, Kind};
pub use evidence::Evidence;
pub use facts::{Greeting, NamespaceFacts, Version};
pub use gone::Gone;
pub use image::{default_image, normalized};
pub use kubeconfig::ConnectOptions;
pub use neighbours::Neighbours;
pub use outline::{Context, Credential, Outline, outline};
pub use pipe::{Pipe, Rung};
pub use place::{AgentContainer, Progress, RELEASE, placement};
pub use ranges::Ranges;
pub use ready::Target;
pub use rights::{ATTACH, EPHEMERAL, NEEDS, Need};
pub use role::role_yaml;
pub use stand_in::StandIn;
pub use workload::{Workload, WorkloadKind};
