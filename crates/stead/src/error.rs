//! Errors as the user sees them: what failed and why, what to do next, and an exit code per class.
#![expect(clippy::print_stderr, reason = "the one place that writes errors")]

use std::process::ExitCode;

use serde::Serialize;

use crate::output::Format;

/// Classes of failure and their exit codes; `help exit-codes` prints this table.
pub(crate) const EXIT_CODES: [(u8, &str, &str); 17] = [
    (64, "usage", "wrong arguments"),
    (65, "config", "no kubeconfig, or no such context"),
    (66, "not-found", "no such workload, pod or container"),
    (67, "not-ready", "the workload has no ready pod"),
    (68, "agent-image", "the agent's image cannot be pulled, or the agent did not start"),
    (69, "unreachable", "the API server cannot be reached"),
    (70, "internal", "a bug in stead"),
    (71, "machine", "this machine forbids what the sandbox needs"),
    (72, "session", "there is no such session, or it was lost"),
    (73, "refused", "the cluster refused the agent (Pod Security, quota, a webhook)"),
    (74, "io", "reading or writing failed"),
    (75, "timed-out", "something took too long"),
    (76, "agent", "the agent cannot be spoken with"),
    (77, "forbidden", "a right is missing"),
    (78, "settings", "a setting is wrong"),
    (126, "not-executable", "the command was found but cannot be run"),
    (127, "command-not-found", "the command was not found"),
];

/// A failure ready to be shown.
#[derive(Debug, Serialize)]
pub(crate) struct Failure {
    pub(crate) exit_code: u8,
    /// Word for the class, as in `help exit-codes`.
    pub(crate) class: &'static str,
    pub(crate) error: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) next: Option<String>,
}

impl Failure {
    pub(crate) fn new(exit_code: u8, error: impl Into<String>, next: Option<String>) -> Self {
        let class =
            EXIT_CODES.iter().find(|(code, ..)| *code == exit_code).map_or("interrupted", |(_, class, _)| class);
        Failure { exit_code, class, error: error.into(), next }
    }

    pub(crate) fn io(what: &str, error: &std::io::Error) -> Self {
        Failure::new(74, format!("{what}: {error}"), None)
    }

    /// Writes the error to stderr, in JSON when asked for.
    pub(crate) fn show(&self, format: Format) -> ExitCode {
        match format {
            Format::Json => eprintln!("{}", serde_json::to_string(self).unwrap_or_default()),
            Format::Text => {
                eprintln!("error: {}", self.error);
                if let Some(next) = &self.next {
                    eprintln!("  next: {}", next.replace('\n', "\n        "));
                }
            }
        }
        ExitCode::from(self.exit_code)
    }
}

impl From<session::Error> for Failure {
    fn from(error: session::Error) -> Self {
        Failure::new(error.exit_code(), error.to_string(), error.hint())
    }
}

impl From<sandbox::Error> for Failure {
    fn from(error: sandbox::Error) -> Self {
        session::Error::from(error).into()
    }
}

/// Help and version go to stdout and succeed; wrong usage is 64.
pub(crate) fn usage(error: &clap::Error) -> ExitCode {
    let _ = error.print();
    if error.use_stderr() { ExitCode::from(64) } else { ExitCode::SUCCESS }
}
