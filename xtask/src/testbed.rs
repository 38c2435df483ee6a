//! `cargo xtask testbed`: two Kubernetes nodes, a developer's machine and a world outside, each a network namespace.
//!
//! One per machine. State lies in the cache, never in the checkout. Everything long-lived runs below three small inits
//! (node1, node2, outside) in namespaces of their own, so that ending an init ends its processes and mounts with it.

use anyhow::Result;
use clap::Subcommand;

pub(crate) mod addresses;
mod cgroups;
mod cleanup;
mod control_plane;
mod coredns;
mod exec;
pub(crate) mod gobuild;
mod machine;
mod machine_init;
mod net;
mod node;
mod packages;
mod pki;
mod process;
mod reach;
mod state;
mod status;
mod up;
mod user_view;
mod wan;

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Start it, or keep it if it is up and healthy
    Up(up::Args),
    /// End it and check that nothing is left
    Down,
    /// What runs; exit code 0 ready, 1 not
    Status(status::Args),
    /// Shell lines that set KUBECONFIG and PATH; or a kubeconfig for another user
    Env(reach::EnvArgs),
    /// Run a command on the developer's machine (or a node) of the testbed
    Exec(exec::Args),
    /// Import OCI archives into every node
    Load(reach::LoadArgs),
    /// A delay and loss between the developer's machine and the nodes
    Wan(wan::Args),
    /// Whether the developer's machine reaches pod addresses
    Route(reach::RouteArgs),
    /// Show the log of one component, or list them
    Logs(status::LogsArgs),
    /// End one component and start it anew (an API server restart, say)
    Restart(reach::RestartArgs),
    /// For the testbed's own use
    #[command(hide = true, subcommand)]
    Internal(Internal),
}

#[derive(Subcommand)]
enum Internal {
    Machine(machine_init::MachineArgs),
    Init(machine_init::InitArgs),
    Wan(wan::LineArgs),
}

pub(crate) const PAUSE_IMAGE: &str = node::PAUSE;
pub(crate) const COREDNS_IMAGE: &str = coredns::IMAGE;

/// Imports an OCI archive into every node of the testbed that is up.
pub(crate) fn load(archive: &std::path::Path) -> Result<()> {
    reach::load_into(&state::Owner::running()?, archive)
}

pub(crate) fn run(args: Args) -> Result<()> {
    match args.verb {
        Verb::Up(args) => up::run(args),
        Verb::Down => cleanup::run(),
        Verb::Status(args) => status::run(args),
        Verb::Env(args) => reach::env(args),
        Verb::Exec(args) => exec::run(args),
        Verb::Load(args) => reach::load(args),
        Verb::Wan(args) => wan::run(args),
        Verb::Route(args) => reach::route(args),
        Verb::Logs(args) => status::logs(args),
        Verb::Restart(args) => reach::restart(args),
        Verb::Internal(Internal::Machine(args)) => machine_init::machine(args),
        Verb::Internal(Internal::Init(args)) => machine_init::init(args),
        Verb::Internal(Internal::Wan(args)) => wan::line_main(args),
    }
}
