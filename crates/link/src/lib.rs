//! Links: authenticated, multiplexed pipes between client and agent.
//!
//! [`frame`] and [`mux`] are pure: they do no I/O, know no clock and draw no random numbers. [`tls`] authenticates a
//! byte pipe by pinned keys, and [`endpoint`] is the tokio shell that carries flows between sockets and links. Nothing
//! here knows Kubernetes, protobuf or the sandbox: the payloads of HELLO, OPEN and the control flow are bytes.
//!
//! The format is decided in `docs/decisions/0001-wire.md`.

#[cfg(feature = "shell")]
pub mod endpoint;
pub mod frame;
pub mod mux;
#[cfg(feature = "shell")]
pub mod tls;

#[cfg(feature = "shell")]
pub use endpoint::{
    ControlStream, Endpoint, Flow, FlowEnd, FlowStream, Incoming, LinkEnd, LinkStats, Offer, Spliced, Stats, Way,
    runtime,
};
pub use frame::{FlowId, Reset};
pub use mux::{Config, ProtocolError, Role};
