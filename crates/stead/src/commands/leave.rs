use std::process::ExitCode;

use session::socket::Request;

use super::sessions;
use crate::error::Failure;
use crate::output::OutputArgs;

/// End the attachment to a workload
///
/// A session whose last attachment ends is ended: its command is asked to end (SIGTERM), and ended after 10 s.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Workload as `stead list` shows it; the kind may be left out
    workload: String,
    #[command(flatten)]
    output: OutputArgs,
}

pub(crate) fn run(args: &Args) -> ExitCode {
    match sessions::block_on(leave(&args.workload)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.show(args.output.output),
    }
}

async fn leave(workload: &str) -> Result<(), Failure> {
    let mut sessions = sessions::all().await?;
    sessions.retain(|(_, status)| status.attachments.iter().any(|a| a.is_called(workload)));
    if sessions.is_empty() {
        let next = "`stead list` shows the attachments".to_owned();
        return Err(Failure::new(72, format!("no session is attached to {workload}"), Some(next)));
    }
    for (path, status) in sessions {
        let request = Request::Leave { workload: workload.to_owned() };
        sessions::done(&path, &request, &status.session).await?;
    }
    Ok(())
}
