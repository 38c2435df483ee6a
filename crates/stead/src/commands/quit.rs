use std::process::ExitCode;

use session::socket::Request;

use super::sessions;
use crate::error::Failure;
use crate::output::{self, OutputArgs};

/// End running sessions
///
/// Their commands are asked to end (SIGTERM), and ended after 10 s. Returns when they have ended.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Beginning of a session's id (default: all)
    session: Option<String>,
    #[command(flatten)]
    output: OutputArgs,
}

pub(crate) fn run(args: &Args) -> ExitCode {
    match sessions::block_on(quit(args.session.as_deref())) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.show(args.output.output),
    }
}

async fn quit(wanted: Option<&str>) -> Result<(), Failure> {
    let sessions = sessions::matching(wanted).await?;
    if sessions.is_empty() {
        output::talk("no session");
    }
    for (path, status) in sessions {
        sessions::done(&path, &Request::Quit, &status.session).await?;
    }
    Ok(())
}
