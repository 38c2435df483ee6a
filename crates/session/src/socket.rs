//! The control socket of a session: one request and one answer per connection, each a line of JSON.
//!
//! It lies in `$XDG_RUNTIME_DIR/stead`, mode 0700, one socket a session, so only the same user reaches it. A socket whose
//! session died without cleaning up is recognised (nobody listens) and removed by whoever looks next.

use std::fmt;
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot};

use crate::status::Status;

/// What one can ask of a running session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "verb", rename_all = "lowercase")]
pub enum Request {
    Status,
    /// End the attachment to this workload; the session's last one ends the session.
    Leave {
        workload: String,
    },
    /// End the session: its command is asked to end, then ended.
    Quit,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "lowercase")]
pub enum Answer {
    Status(Box<Status>),
    /// Done; sent when the effect is complete.
    Done,
    Refused {
        why: String,
    },
}

/// A request waiting for the session's answer.
pub struct Asked {
    pub request: Request,
    pub answer: oneshot::Sender<Answer>,
}

/// Longest request or answer line.
const LINE_LIMIT: u64 = 1 << 20;

/// A session that does not answer within this is stuck, and is said to be.
const PATIENCE: Duration = Duration::from_secs(15);

/// The folder of one user's sockets, which need not exist.
#[derive(Clone, Debug)]
pub struct Folder(PathBuf);

impl Folder {
    /// `$XDG_RUNTIME_DIR/stead`, or what stands in for it where no login manager made one.
    pub fn of_this_user() -> Self {
        let runtime = std::env::var_os("XDG_RUNTIME_DIR").filter(|dir| !dir.is_empty());
        let uid = rustix::process::getuid().as_raw();
        let run = PathBuf::from(format!("/run/user/{uid}"));
        Folder(match runtime {
            Some(dir) => PathBuf::from(dir).join("stead"),
            None if run.is_dir() => run.join("stead"),
            None => PathBuf::from(format!("/tmp/stead-{uid}")),
        })
    }

    pub fn at(path: impl Into<PathBuf>) -> Self {
        Folder(path.into())
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Where the session of this id listens.
    pub fn socket(&self, session: &str) -> PathBuf {
        self.0.join(format!("{session}.sock"))
    }

    /// Ids and sockets of live sessions, sorted; dead sockets are removed on the way.
    pub async fn sessions(&self) -> io::Result<Vec<(String, PathBuf)>> {
        let mut found = Vec::new();
        let entries = match std::fs::read_dir(&self.0) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(found),
            Err(error) => return Err(error),
        };
        for entry in entries {
            let path = entry?.path();
            let name = path.file_name().and_then(|n| n.to_str());
            let Some(id) = name.and_then(|n| n.strip_suffix(".sock")) else { continue };
            match UnixStream::connect(&path).await {
                Ok(_) => found.push((id.to_owned(), path.clone())),
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                    let _ = std::fs::remove_file(&path);
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        found.sort();
        Ok(found)
    }

    /// Whether a session could listen here. Leaves nothing.
    pub fn try_out(&self) -> io::Result<()> {
        self.prepare()?;
        // No session's name, so that nobody who lists sessions asks it.
        let path = self.0.join(format!("doctor-{}", std::process::id()));
        let bound = std::os::unix::net::UnixListener::bind(&path).map(drop);
        let _ = std::fs::remove_file(&path);
        // Succeeds only when no session's socket is there.
        let _ = std::fs::remove_dir(&self.0);
        bound
    }

    /// Makes the folder where needed; refuses one that others could write to.
    fn prepare(&self) -> io::Result<()> {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.0)?;
        let meta = std::fs::symlink_metadata(&self.0)?;
        if meta.is_dir() && meta.uid() == rustix::process::getuid().as_raw() && meta.mode() & 0o077 == 0 {
            return Ok(());
        }
        let text = format!("{} is not a folder of yours with mode 0700; remove it", self.0.display());
        Err(io::Error::new(io::ErrorKind::PermissionDenied, text))
    }
}

impl fmt::Display for Folder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0.display(), f)
    }
}

/// The listening end, removed when dropped.
pub struct ControlSocket {
    folder: Folder,
    path: PathBuf,
    listener: UnixListener,
}

impl ControlSocket {
    pub fn bind(folder: &Folder, session: &str) -> io::Result<Self> {
        let path = folder.socket(session);
        loop {
            folder.prepare()?;
            match UnixListener::bind(&path) {
                Ok(listener) => return Ok(ControlSocket { folder: folder.clone(), path, listener }),
                // The last other session just ended and took the empty folder with it.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Hands each request to `asked` until nobody receives there. Then the socket is gone at once, and this ends when
    /// those who still wait have their answers.
    pub async fn serve(self, asked: mpsc::Sender<Asked>) {
        let mut connections = tokio::task::JoinSet::new();
        loop {
            tokio::select! {
                accepted = self.listener.accept() => match accepted {
                    Ok((stream, _)) => {
                        connections.spawn(serve_one(stream, asked.clone()));
                    }
                    Err(error) => {
                        tracing::warn!(%error, "control socket cannot accept");
                        break;
                    }
                },
                Some(_) = connections.join_next() => {}
                () = asked.closed() => break,
            }
        }
        drop(self);
        let answered = async { while connections.join_next().await.is_some() {} };
        let _ = tokio::time::timeout(PATIENCE, answered).await;
    }
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
        // Succeeds only when no other session's socket is there.
        let _ = std::fs::remove_dir(&self.folder.0);
    }
}

async fn serve_one(stream: UnixStream, asked: mpsc::Sender<Asked>) {
    let (read, mut write) = stream.into_split();
    let mut line = String::new();
    if BufReader::new(read.take(LINE_LIMIT)).read_line(&mut line).await.is_err() {
        return;
    }
    let reply = match serde_json::from_str(&line) {
        Ok(request) => {
            let (answer, answered) = oneshot::channel();
            if asked.send(Asked { request, answer }).await.is_err() {
                return;
            }
            match answered.await {
                Ok(answer) => answer,
                Err(_) => return,
            }
        }
        Err(error) => Answer::Refused { why: format!("not a request this release knows: {error}") },
    };
    if let Ok(mut text) = serde_json::to_vec(&reply) {
        text.push(b'\n');
        let _ = write.write_all(&text).await;
    }
}

/// Asks the session behind `path`.
pub async fn ask(path: &Path, request: &Request) -> io::Result<Answer> {
    let exchange = async {
        let (read, mut write) = UnixStream::connect(path).await?.into_split();
        let mut text = serde_json::to_vec(request)?;
        text.push(b'\n');
        write.write_all(&text).await?;
        let mut line = String::new();
        BufReader::new(read.take(LINE_LIMIT)).read_line(&mut line).await?;
        if line.is_empty() {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the session ended before it answered"));
        }
        Ok(serde_json::from_str(&line)?)
    };
    tokio::time::timeout(PATIENCE, exchange)
        .await
        .unwrap_or_else(|_| Err(io::Error::new(io::ErrorKind::TimedOut, "the session does not answer")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder() -> (tempfile::TempDir, Folder) {
        let dir = tempfile::tempdir().expect("a writable temporary folder");
        let folder = Folder::at(dir.path().join("stead"));
        (dir, folder)
    }

    /// Serves one session whose every answer is a refusal that repeats the request.
    async fn with_session<T>(folder: &Folder, work: impl Future<Output = T>) -> T {
        let control = ControlSocket::bind(folder, "0a").expect("bound");
        let (asked_tx, mut asked_rx) = mpsc::channel::<Asked>(1);
        let answering = async move {
            let answer_all = async {
                while let Some(Asked { request, answer }) = asked_rx.recv().await {
                    let _ = answer.send(Answer::Refused { why: format!("{request:?}") });
                }
            };
            // The receiver goes with this block, and the socket with it.
            tokio::select! {
                done = work => done,
                () = answer_all => panic!("nobody asks any more"),
            }
        };
        let serving = control.serve(asked_tx);
        tokio::join!(answering, serving).0
    }

    #[tokio::test]
    async fn who_asked_before_the_end_is_answered_after_the_socket_is_gone() {
        let (_dir, folder) = folder();
        let control = ControlSocket::bind(&folder, "0a").expect("bound");
        let (asked_tx, mut asked_rx) = mpsc::channel::<Asked>(1);
        let path = folder.socket("0a");
        let ending = async {
            let Asked { answer, .. } = asked_rx.recv().await.expect("asked");
            drop(asked_rx);
            while path.exists() {
                tokio::task::yield_now().await;
            }
            answer.send(Answer::Done).expect("still waited for");
        };
        let (answer, (), ()) = tokio::join!(ask(&path, &Request::Quit), ending, control.serve(asked_tx));
        assert_eq!(answer.expect("answered"), Answer::Done);
    }

    #[tokio::test]
    async fn a_session_is_found_asked_and_gone() {
        let (_dir, folder) = folder();
        with_session(&folder, async {
            let found = folder.sessions().await.expect("readable");
            assert_eq!(found, [("0a".to_owned(), folder.socket("0a"))]);
            let answer = ask(&found[0].1, &Request::Quit).await.expect("answered");
            assert_eq!(answer, Answer::Refused { why: "Quit".into() });
        })
        .await;
        assert_eq!(folder.sessions().await.expect("readable"), []);
        assert!(!folder.0.exists());
    }

    #[tokio::test]
    async fn what_is_no_request_is_refused_with_a_reason() {
        let (_dir, folder) = folder();
        let line = with_session(&folder, async {
            let mut stream = UnixStream::connect(folder.socket("0a")).await.expect("listening");
            stream.write_all(b"{\"verb\":\"dance\"}\n").await.expect("open");
            let mut line = String::new();
            stream.read_to_string(&mut line).await.expect("answered");
            line
        })
        .await;
        assert!(line.contains("not a request this release knows"), "{line}");
    }

    #[tokio::test]
    async fn a_dead_sessions_socket_is_removed() {
        let (_dir, folder) = folder();
        folder.prepare().expect("writable");
        drop(std::os::unix::net::UnixListener::bind(folder.socket("0b")).expect("bound"));
        assert!(folder.socket("0b").exists());
        assert_eq!(folder.sessions().await.expect("readable"), []);
        assert!(!folder.socket("0b").exists());
    }

    #[test]
    fn a_folder_that_others_can_enter_is_refused() {
        use std::os::unix::fs::PermissionsExt;
        let (_dir, folder) = folder();
        folder.prepare().expect("writable");
        std::fs::set_permissions(&folder.0, PermissionsExt::from_mode(0o755)).expect("own folder");
        assert_eq!(folder.prepare().expect_err("open to others").kind(), io::ErrorKind::PermissionDenied);
    }
}
