//! Finding and asking the running sessions of this user.

use std::path::{Path, PathBuf};

use session::socket::{self, Answer, Folder, Request};
use session::status::Status;

use crate::error::Failure;

/// Runs a future on a small runtime of its own.
pub(crate) fn block_on<T>(work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::io("cannot start the runtime", &error))?
        .block_on(work)
}

/// Every session that answers, with its status.
pub(crate) async fn all() -> Result<Vec<(PathBuf, Status)>, Failure> {
    let folder = Folder::of_this_user();
    let found = folder.sessions().await.map_err(|error| Failure::io(&folder.to_string(), &error))?;
    let mut answered = Vec::new();
    for (id, path) in found {
        match socket::ask(&path, &Request::Status).await {
            Ok(Answer::Status(status)) => answered.push((path, *status)),
            Ok(other) => return Err(Failure::new(72, format!("session {id} answered {other:?}"), None)),
            // It ended while it was asked.
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {}
            Err(error) => {
                let next = format!("end it by `kill` of the process that owns {}", path.display());
                return Err(Failure::new(72, format!("session {id}: {error}"), Some(next)));
            }
        }
    }
    Ok(answered)
}

/// The sessions a user means by `wanted`: the beginning of an id, or none for all.
pub(crate) async fn matching(wanted: Option<&str>) -> Result<Vec<(PathBuf, Status)>, Failure> {
    let mut sessions = all().await?;
    if let Some(wanted) = wanted {
        sessions.retain(|(_, status)| status.session.starts_with(wanted));
        if sessions.is_empty() {
            let next = "`stead list` shows the sessions".to_owned();
            return Err(Failure::new(72, format!("no session's id begins with {wanted:?}"), Some(next)));
        }
    }
    Ok(sessions)
}

/// Sends `request` and waits until it is done.
pub(crate) async fn done(path: &Path, request: &Request, session: &str) -> Result<(), Failure> {
    match socket::ask(path, request).await {
        Ok(Answer::Done) => Ok(()),
        Ok(Answer::Refused { why }) => Err(Failure::new(72, why, None)),
        Ok(other) => Err(Failure::new(72, format!("session {session} answered {other:?}"), None)),
        Err(error) => Err(Failure::new(72, format!("session {session}: {error}"), None)),
    }
}
