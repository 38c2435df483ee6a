use std::io;
use std::path::PathBuf;

/// Why a session could not start or go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Cluster(#[from] cluster::Error),
    #[error(transparent)]
    Sandbox(#[from] sandbox::Error),
    #[error("cannot reach the agent in pod {pod}: {cause}")]
    Link { pod: String, cause: String },
    #[error("cannot reach the agent in pod {pod}; {}", one_by_one(failures))]
    Rungs {
        pod: String,
        failures: Vec<(cluster::Rung, Error)>,
        /// The user wanted no other.
        only: bool,
    },
    #[error("cannot open the control socket {path}: {cause}")]
    ControlSocket { path: String, cause: io::Error },
    #[error("cannot write the environment to {}: {cause}", path.display())]
    EnvFile { path: PathBuf, cause: io::Error },
    #[error("the command listens on port {port}, which cannot be had on this machine's localhost: {cause}")]
    PortTaken { port: u16, cause: io::Error },
    #[error("interrupted by signal {0}")]
    Interrupted(i32),
}

impl Error {
    /// What the user can do next, where there is something.
    pub fn hint(&self) -> Option<String> {
        match self {
            Error::Cluster(error) => error.next_step().map(str::to_owned),
            Error::Sandbox(error) => error.hint(),
            Error::Link { .. } => Some(
                "check that the API server can reach pod addresses (`kubectl get --raw` on the pod's proxy), \
                 and that no NetworkPolicy blocks it"
                    .to_owned(),
            ),
            // The way by the pod's address is not missed: few machines have it.
            Error::Rungs { failures, only: true, .. } => {
                let hint = failures.first().and_then(|(_, error)| error.hint()).map(|hint| hint + "; ");
                Some(hint.unwrap_or_default() + "without --rung the others are tried, too")
            }
            Error::Rungs { failures, .. } => {
                let hints = failures.iter().filter(|(rung, _)| *rung != cluster::Rung::Direct);
                let mut hints: Vec<String> = hints.filter_map(|(_, error)| error.hint()).collect();
                hints.dedup();
                (!hints.is_empty()).then(|| hints.join("\n"))
            }
            Error::ControlSocket { .. } => Some("set XDG_RUNTIME_DIR to a folder of yours".into()),
            Error::PortTaken { port, .. } => Some(format!(
                "`ss -ltnp sport = :{port}` shows who has it; without --strict-ports the next free port is taken and named"
            )),
            Error::EnvFile { .. } | Error::Interrupted(_) => None,
        }
    }

    /// Asking again does not help.
    pub(crate) fn is_missing_right(&self) -> bool {
        matches!(self, Error::Cluster(error) if error.kind() == cluster::Kind::MissingRight)
    }

    /// The other ways through the API server are no better.
    pub(crate) fn is_of_the_api_server(&self) -> bool {
        matches!(self, Error::Cluster(error) if error.kind() == cluster::Kind::Unreachable)
    }

    /// Ours are 64-78, one per class; `stead help exit-codes` lists them.
    pub fn exit_code(&self) -> u8 {
        match self {
            Error::Cluster(error) => error.kind().exit_code(),
            Error::Sandbox(error) => sandbox_exit_code(error),
            Error::Link { .. } => 76,
            Error::Rungs { failures, .. } => {
                let through_api = failures.iter().find(|(rung, _)| *rung != cluster::Rung::Direct);
                through_api.or(failures.first()).map_or(76, |(_, error)| error.exit_code())
            }
            Error::ControlSocket { .. } | Error::EnvFile { .. } | Error::PortTaken { .. } => 74,
            Error::Interrupted(signal) => 128 + u8::try_from(*signal).unwrap_or(0),
        }
    }
}

fn one_by_one(failures: &[(cluster::Rung, Error)]) -> String {
    failures.iter().map(|(rung, error)| format!("{rung}: {error}")).collect::<Vec<_>>().join("; ")
}

/// A command that cannot be run ends as in a shell; what the machine forbids is a class of its own.
pub(crate) fn sandbox_exit_code(error: &sandbox::Error) -> u8 {
    match error {
        sandbox::Error::NotFound { .. } => 127,
        sandbox::Error::NotExecutable { .. } => 126,
        sandbox::Error::NamespacesForbidden { .. } | sandbox::Error::Tun { .. } | sandbox::Error::Setup { .. } => 71,
        sandbox::Error::ZeroByte => 64,
        sandbox::Error::Directory { .. } | sandbox::Error::Bind { .. } | sandbox::Error::Io(_) => 74,
        sandbox::Error::Spawn(_) => 71,
        sandbox::Error::Threads(_) | sandbox::Error::GuardLost | sandbox::Error::Busy => 70,
    }
}
