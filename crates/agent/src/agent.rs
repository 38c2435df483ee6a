//! The agent's one loop: admissions in, connections in, sessions begun and ended.

use std::collections::HashSet;
use std::io;
use std::net::IpAddr;
use std::pin::{Pin, pin};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use link::LinkEnd;
use link::tls::{Identity, server_tls};
use tokio::io::AsyncRead;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::sleep_until;
use wire::{Admit, Admitted, RELEASE, SessionId};

use crate::admission::AdmissionLines;
use crate::describe::Sources;
use crate::listener::{Arrival, Listener};
use crate::registry::{Admission, KeyHash, Registry};
use crate::session::Session;

/// A timer far away stands for none.
const FAR: Duration = Duration::from_secs(365 * 24 * 3600);

/// After SIGTERM. A kubelet takes up to 2 s to start an agent in a pod that has just become ready (measured).
const LINGER: Duration = Duration::from_secs(5);

/// Fixed for the agent's life.
#[derive(Clone, Debug)]
pub struct Config {
    /// The pod's addresses, listened on when a session asks for it. Empty: every address.
    pub pod_ips: Vec<IpAddr>,
    pub sources: Sources,
    /// It is alone in a pod of its own, which ends with its last session.
    pub stand_in: bool,
}

/// Serves until no session has been there for as long as the last one asked. Admission lines come from `input`; each
/// answer, a line, goes to `answer`, which must not block. Once `terminated`, it serves on for as long as sessions have
/// links, but not for long: their clients move to the next agent meanwhile.
pub async fn run(
    config: Config,
    input: impl AsyncRead + Unpin,
    answer: impl FnMut(&str),
    terminated: impl Future<Output = ()>,
) -> io::Result<()> {
    let identity = Identity::generate()?;
    let keys = Arc::new(Keys::default());
    let listener = Listener::bind(server_tls(&identity, keys.clone()), config.pod_ips)?;
    let (left_tx, left) = mpsc::unbounded_channel();
    let mut agent = Agent {
        key_hash: identity.hash(),
        keys,
        registry: Registry::new(Instant::now(), config.stand_in),
        listener,
        sources: Arc::new(config.sources),
        left_tx,
        links: JoinSet::new(),
        tasks: JoinSet::new(),
        answer,
    };
    agent.serve(AdmissionLines::new(input), left, pin!(terminated)).await;
    Ok(())
}

/// The keys of the sessions, for handshakes: written by the agent's loop alone.
#[derive(Default)]
struct Keys(RwLock<HashSet<KeyHash>>);

impl link::tls::Admissions for Keys {
    fn is_admitted(&self, key_hash: &KeyHash) -> bool {
        self.0.read().unwrap_or_else(PoisonError::into_inner).contains(key_hash)
    }
}

struct Agent<A> {
    key_hash: KeyHash,
    keys: Arc<Keys>,
    registry: Registry<Session>,
    listener: Listener,
    sources: Arc<Sources>,
    left_tx: mpsc::UnboundedSender<SessionId>,
    links: JoinSet<(SessionId, Option<LinkEnd>)>,
    tasks: JoinSet<()>,
    answer: A,
}

impl<A: FnMut(&str)> Agent<A> {
    async fn serve(
        &mut self,
        mut lines: AdmissionLines<impl AsyncRead + Unpin>,
        mut left: mpsc::UnboundedReceiver<SessionId>,
        mut terminated: Pin<&mut impl Future<Output = ()>>,
    ) {
        tracing::info!(release = RELEASE, "agent is ready");
        let mut last: Option<Instant> = None;
        while !self.end_what_is_over() && !last.is_some_and(|last| self.links.is_empty() || Instant::now() >= last) {
            let wake_at = self.registry.next_deadline().into_iter().chain(last).min();
            let wake_at = wake_at.unwrap_or_else(|| Instant::now() + FAR);
            tokio::select! {
                () = &mut terminated, if last.is_none() => {
                    tracing::info!(links = self.links.len(), "terminated");
                    last = Some(Instant::now() + LINGER);
                }
                admit = lines.next() => self.admit(&admit),
                arrival = self.listener.next() => self.link(arrival),
                Some(id) = left.recv() => self.leave(id),
                Some(ended) = self.links.join_next() => self.unlink(ended),
                Some(_) = self.tasks.join_next() => {}
                () = sleep_until(wake_at.into()) => {}
            }
        }
        tracing::info!(sessions = self.registry.len(), "the agent ends");
    }

    /// True when the agent may go.
    fn end_what_is_over(&mut self) -> bool {
        let now = Instant::now();
        let ended = self.registry.ended(now);
        if !ended.is_empty() {
            self.publish_keys();
        }
        for (id, session) in ended {
            let stats = session.endpoint.stats();
            tracing::info!(session = %id, flows_open = stats.flows, sessions = self.registry.len(), "session ended");
        }
        self.registry.may_exit(now)
    }

    fn admit(&mut self, admit: &Admit) {
        let answered = match self.try_admit(admit) {
            Ok((port, renewed)) => {
                Admitted { key_hash: self.key_hash.to_vec(), port: port.into(), renewed, ..Admitted::default() }
            }
            Err(error) => {
                tracing::warn!(%error, "session not admitted");
                Admitted { error, ..Admitted::default() }
            }
        };
        let answered = Admitted { nonce: admit.nonce.clone(), release: RELEASE.into(), ..answered };
        match answered.to_line() {
            Ok(line) => (self.answer)(&line),
            Err(error) => tracing::error!(%error, "admission not answered"),
        }
    }

    /// The port to dial, and whether the session was known.
    fn try_admit(&mut self, admit: &Admit) -> Result<(u16, bool), String> {
        let port = self.listener.port(admit.pod_address);
        let port = port.map_err(|error| format!("the agent cannot listen on the pod's address: {error}"))?;
        let (sources, left, tasks) = (&self.sources, &self.left_tx, &mut self.tasks);
        let make = |id| Session::start(id, sources.clone(), left.clone(), tasks);
        let admission = self.registry.admit(Instant::now(), admit, make).map_err(|refusal| refusal.to_string())?;
        match admission {
            Admission::New(id) => {
                let sessions = self.registry.len();
                tracing::info!(session = %id, client_release = admit.release, port, sessions, "session admitted");
            }
            Admission::Renewed(id) => tracing::debug!(session = %id, "session renewed"),
        }
        self.publish_keys();
        Ok((port, matches!(admission, Admission::Renewed(_))))
    }

    fn link(&mut self, arrival: Arrival) {
        let Arrival { io, hello, key, from } = arrival;
        let Some((id, session)) = self.registry.link_up(&key) else {
            return tracing::debug!(%from, "the session ended during the handshake");
        };
        tracing::debug!(session = %id, number = hello.link, %from, "link begins");
        session.run_link(io, hello, &mut self.links);
    }

    fn unlink(&mut self, ended: Result<(SessionId, Option<LinkEnd>), tokio::task::JoinError>) {
        match ended {
            Ok((id, why)) => {
                let why = why.map_or_else(|| "replaced, or the session ended".to_owned(), |why| why.to_string());
                tracing::info!(session = %id, why, "link ended");
                self.registry.link_down(Instant::now(), id);
            }
            // A bug. The session keeps a link that it has not, and ends when it leaves.
            Err(error) => tracing::error!(%error, "a link was lost"),
        }
    }

    fn leave(&mut self, id: SessionId) {
        tracing::info!(session = %id, "session leaves");
        self.registry.leave(Instant::now(), id);
        self.publish_keys();
    }

    fn publish_keys(&self) {
        *self.keys.0.write().unwrap_or_else(PoisonError::into_inner) = self.registry.admitted_keys().collect();
    }
}
