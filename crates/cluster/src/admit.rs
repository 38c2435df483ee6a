//! Admitting a session to an agent: one line over `pods/attach` to the agent's stdin, one answer on its stdout.
//!
//! A container's status lags its start by up to a second (the kubelet looks at its containers once a second). So the
//! client does not wait for `running`: it knocks until an attach succeeds, and watches the pod only for what goes wrong.

use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kube::api::AttachParams;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout};
use wire::{Admit, Admitted, LINE_LIMIT};

use crate::Cluster;
use crate::error::{Error, Kind, Right};
use crate::place::{AgentContainer, Progress};
use crate::ready::Target;

/// From the line to its answer; the line may then be sent again, which changes nothing.
const ANSWER_TIMEOUT: Duration = Duration::from_millis(2500);

/// From the placement to the first answer; most of it may be the pull of the image (10 MB).
pub(crate) const START_TIMEOUT: Duration = Duration::from_secs(120);

/// For a container that runs by its status and still cannot be attached to, or does not answer.
const ATTACH_GRACE: Duration = Duration::from_secs(5);

pub(crate) type Report<'a> = &'a (dyn Fn(Progress) + Send + Sync);

impl Cluster {
    /// Places an agent (or finds one) and admits the session to it: the whole way from a target to a port to dial.
    pub async fn enter(
        &self,
        target: &Target,
        image: &str,
        admit: &Admit,
        progress: Report<'_>,
    ) -> Result<(AgentContainer, Admitted), Error> {
        let agent = self.place(target, image, progress).await?;
        match self.start(&agent, admit, progress).await {
            Ok(admitted) => Ok((agent, admitted)),
            // An agent without sessions exits after a while; this one did since the pod was read.
            Err(Trouble::Ended(_)) if agent.reused => {
                let target = self.refreshed(target).await?;
                let next = self.place_except(&target, image, Some(&agent.name), progress).await?;
                let admitted = self.start(&next, admit, progress).await.map_err(Trouble::into_error)?;
                Ok((next, admitted))
            }
            Err(trouble) => Err(trouble.into_error()),
        }
    }

    /// Admits a session, or renews its admission; waits for the agent's container where it does not run yet.
    pub async fn admit(&self, agent: &AgentContainer, admit: &Admit) -> Result<Admitted, Error> {
        self.start(agent, admit, &|_| {}).await.map_err(Trouble::into_error)
    }

    pub(crate) async fn start(
        &self,
        agent: &AgentContainer,
        admit: &Admit,
        progress: Report<'_>,
    ) -> Result<Admitted, Trouble> {
        let line = admit.to_line().map_err(|error| {
            Trouble::Other(Error::new(Kind::Internal, "cannot write the admission line").because(error))
        })?;
        let knock = Knock { cluster: self, agent, line: &line, nonce: &admit.nonce };
        if agent.reused {
            // The usual case needs no watch.
            match knock.once().await {
                Ok(admitted) => return admitted_or(admitted, progress),
                Err(Silence::Failed(error)) => return Err(Trouble::Other(error)),
                Err(Silence::NotYet(_, why)) => tracing::debug!(agent = agent.name, why, "agent does not answer yet"),
            }
        }
        let runs = Notify::new();
        let outcome = timeout(START_TIMEOUT, async {
            tokio::select! {
                biased;
                admitted = knock.until_answered(&runs) => admitted.map_err(Trouble::Other),
                trouble = self.observe(agent, &runs, progress) => Err(trouble),
            }
        });
        match outcome.await {
            Ok(admitted) => admitted_or(admitted?, progress),
            Err(_) => Err(Trouble::Other(
                Error::new(Kind::AgentStart, format!("the agent did not start within {} s", START_TIMEOUT.as_secs()))
                    .hint(format!("`kubectl describe pod {}` shows what its container waits for", agent.pod)),
            )),
        }
    }
}

fn admitted_or(admitted: Admitted, progress: Report<'_>) -> Result<Admitted, Trouble> {
    if !admitted.error.is_empty() {
        return Err(Trouble::Other(
            Error::new(Kind::Protocol, "the agent turned the session away")
                .because(admitted.error)
                .hint("run the command again; a client and an agent of other releases do not go together"),
        ));
    }
    progress(Progress::Ready);
    Ok(admitted)
}

/// Why no answer will come.
pub(crate) enum Trouble {
    /// The agent's container has ended; another may be placed.
    Ended(Error),
    Other(Error),
}

impl Trouble {
    pub(crate) fn into_error(self) -> Error {
        match self {
            Trouble::Ended(error) | Trouble::Other(error) => error,
        }
    }
}

/// Why a knock had no answer.
enum Silence {
    /// The container does not run (yet, or any more).
    NotYet(Kind, String),
    /// Knocking again does not help.
    Failed(Error),
}

/// One admission line for one agent.
struct Knock<'a> {
    cluster: &'a Cluster,
    agent: &'a AgentContainer,
    line: &'a str,
    nonce: &'a [u8],
}

impl Knock<'_> {
    async fn until_answered(&self, runs: &Notify) -> Result<Admitted, Error> {
        let since = Instant::now();
        let mut running_since = None;
        loop {
            let (kind, why) = match self.once().await {
                Ok(admitted) => return Ok(admitted),
                Err(Silence::Failed(error)) => return Err(error),
                Err(Silence::NotYet(kind, why)) => (kind, why),
            };
            tracing::trace!(agent = self.agent.name, why, "knocked in vain");
            if running_since.is_some_and(|at: Instant| at.elapsed() > ATTACH_GRACE) {
                let agent = self.agent;
                return Err(Error::new(
                    kind,
                    format!("the agent {} in pod {} runs and is silent", agent.name, agent.pod),
                )
                .because(why)
                .hint(format!("`kubectl logs {} -c {}` shows its messages", agent.pod, agent.name)));
            }
            tokio::select! {
                () = sleep(pause(since.elapsed())) => {}
                () = runs.notified() => { running_since.get_or_insert_with(Instant::now); }
            }
        }
    }

    async fn once(&self) -> Result<Admitted, Silence> {
        let parameters = AttachParams::default()
            .container(&self.agent.name)
            .stdin(true)
            .stdout(true)
            .stderr(false)
            .tty(false)
            // The whole line in one message, so that it is one write to the agent's pipe.
            .max_stdin_buf_size(2 * LINE_LIMIT);
        let attaching = self.cluster.api::<Pod>();
        let attached = timeout(ANSWER_TIMEOUT, attaching.attach(&self.agent.pod, &parameters)).await;
        let mut attached = match attached {
            Ok(Ok(attached)) => attached,
            Ok(Err(error)) => return Err(self.sorted(error)),
            Err(_) => return Err(Silence::NotYet(Kind::TimedOut, "the kubelet does not answer the attach".to_owned())),
        };
        let missing = || Silence::Failed(Error::new(Kind::Internal, "the attach has no streams"));
        let mut stdin = attached.stdin().ok_or_else(missing)?;
        let stdout = attached.stdout().ok_or_else(missing)?;
        let status = attached.take_status();
        // The status comes last; the answer is looked for first.
        let exchange = async {
            if stdin.write_all(self.line.as_bytes()).await.is_err() {
                return None;
            }
            read_answer(stdout, self.nonce).await
        };
        match timeout(ANSWER_TIMEOUT, exchange).await {
            Ok(Some(admitted)) => Ok(admitted),
            Ok(None) => {
                let status = match status {
                    Some(status) => timeout(Duration::from_millis(50), status).await.ok().flatten(),
                    None => None,
                };
                let message = status.and_then(|status| status.message);
                let message = message.unwrap_or_else(|| "the attach ended without an answer".to_owned());
                Err(Silence::NotYet(Kind::AgentStart, message))
            }
            Err(_) => Err(Silence::NotYet(Kind::TimedOut, "it is attached and does not admit the session".to_owned())),
        }
    }

    fn sorted(&self, error: kube::Error) -> Silence {
        let doing = format!("attach to the agent in pod {}", self.agent.pod);
        match &error {
            kube::Error::Api(status) if !matches!(status.code, 401 | 403) => {
                Silence::NotYet(Kind::AgentStart, status.message.clone())
            }
            _ => Silence::Failed(Error::from_kube(error, doing, Right::core("pods/attach", &["get", "create"]))),
        }
    }
}

/// Between two knocks. The container usually runs 0.4-0.9 s after it was placed; a pull takes longer.
fn pause(waited: Duration) -> Duration {
    match waited.as_secs() {
        0..3 => Duration::from_millis(40),
        3..10 => Duration::from_millis(250),
        _ => Duration::from_secs(1),
    }
}

/// Reads lines until the answer with this nonce; `None` when the stream ends before.
async fn read_answer(mut stdout: impl AsyncRead + Unpin, nonce: &[u8]) -> Option<Admitted> {
    let mut pending = Vec::with_capacity(LINE_LIMIT);
    loop {
        if stdout.read_buf(&mut pending).await.ok()? == 0 {
            return None;
        }
        while let Some(end) = pending.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = pending.drain(..=end).collect();
            let answer = std::str::from_utf8(&line).ok().and_then(|line| Admitted::from_line(line).ok());
            // Every attached client sees every answer; and one may have attached in the middle of a line.
            if let Some(answer) = answer.filter(|answer| answer.nonce == nonce) {
                return Some(answer);
            }
        }
        if pending.len() > LINE_LIMIT {
            pending.clear();
        }
    }
}
