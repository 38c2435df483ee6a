//! `testbed exec`: runs a command inside a namespace of the testbed, in this very process, so that signals, terminal
//! and exit code pass through untouched.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::{Context, Result};

use crate::testbed::addresses::Node;
use crate::testbed::state::Owner;
use crate::testbed::user_view::{self, TEST_USER, User};
use crate::testbed::{cgroups, net};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Run as this user (stead-dev when no name follows), with devices and directories as a desktop would give it
    #[arg(long, num_args = 0..=1, default_missing_value = TEST_USER)]
    user: Option<String>,
    /// Where
    #[arg(long, default_value = "laptop", value_parser = ["laptop", "node1", "node2", "lan", "outside"])]
    node: String,
    /// The command and its arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<OsString>,
}

pub(crate) fn run(args: Args) -> Result<()> {
    let owner = Owner::running()?;
    let state = owner.dir();
    let user = args.user.as_deref().map(User::find).transpose()?;
    cgroups::join("exec")?; // so that `down` finds it and all its descendants
    net::enter(&args.node)?;
    let mut command = Command::new(&args.command[0]);
    command.args(&args.command[1..]);
    command.env("KUBECONFIG", state.kubeconfig("admin")).env("PATH", path(&state.bin())?);
    if let Some(node) = Node::all(owner.nodes).find(|node| node.name() == args.node) {
        command.env("CONTAINERD_ADDRESS", node.containerd(&state)).env("CONTAINERD_NAMESPACE", "k8s.io");
    }
    if args.node == "laptop" {
        let user = user.as_ref();
        user_view::arrange(&owner, user)?;
    }
    if let Some(user) = &user {
        user.set_environment(&mut command);
        user.become_it()?;
    }
    let error = command.exec();
    eprintln!("cannot run {:?}: {error}", args.command[0]);
    std::process::exit(if error.kind() == std::io::ErrorKind::NotFound { 127 } else { 126 });
}

/// PATH led by the folder that holds the embedded kubectl. Set for this process too: `exec` looks the command up by it.
pub(crate) fn path(first: &std::path::Path) -> Result<OsString> {
    let rest = std::env::var_os("PATH").unwrap_or_default();
    let dirs = std::iter::once(first.to_owned()).chain(std::env::split_paths(&rest).filter(|dir| dir != first));
    std::env::join_paths(dirs).context("PATH holds a directory that no PATH can hold")
}
