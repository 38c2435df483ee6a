use std::process::ExitCode;

use super::run::{self, SessionArgs};

/// Open a shell as if it ran in a pod of WORKLOAD
///
/// Your own shell ($SHELL, or /bin/sh) with your files, as `stead run WORKLOAD -- $SHELL`: names and addresses of the cluster
/// are reached through the pod, and the container's environment is laid over yours. Leaving it ends the session.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    session: SessionArgs,
}

pub(crate) fn run(args: Args) -> ExitCode {
    let shell = std::env::var_os("SHELL").filter(|shell| !shell.is_empty()).unwrap_or_else(|| "/bin/sh".into());
    run::session(args.session, vec![shell])
}
