//! One admitted session: its flows and its requests, until the owner ends it.

use std::collections::HashMap;
use std::sync::Arc;

use link::{Endpoint, Incoming, LinkEnd, Reset, Way};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{mpsc, oneshot};
use tokio::task::{AbortHandle, JoinSet};
use wire::{Hello, PROTOCOL, RELEASE, SessionId};

use crate::control::{self, Ended};
use crate::describe::Sources;
use crate::dial::{self, Dialled};

/// What a session is to its owner. Dropping it ends the session: its flows are reset and its links closed.
pub(crate) struct Session {
    pub(crate) endpoint: Endpoint,
    id: SessionId,
    task: AbortHandle,
    /// By their numbers, which the client chooses.
    links: HashMap<u32, Link>,
}

impl Session {
    /// Starts to serve it as a task of `tasks`. `left` is told when the client says that it is over.
    pub(crate) fn start(
        id: SessionId,
        sources: Arc<Sources>,
        left: mpsc::UnboundedSender<SessionId>,
        tasks: &mut JoinSet<()>,
    ) -> Self {
        let (endpoint, incoming) = Endpoint::new(link::Role::Agent, link::Config::default());
        let (control, paced) = (endpoint.control(), endpoint.clone());
        let pace = move |rate| paced.pace(rate);
        let task = tasks.spawn(async move {
            let mut counts = Counts::default();
            let mut flows = JoinSet::new();
            tokio::join!(serve_flows(incoming, &sources, &mut flows, &mut counts), async {
                match control::serve(control, sources.clone(), pace).await {
                    Ok(Ended::Left) => {
                        let _ = left.send(id);
                    }
                    Ok(Ended::Closed) => {}
                    Err(error) => tracing::warn!(session = %id, %error, "control flow ended"),
                }
            });
            tracing::debug!(session = %id, ?counts, "flows of the session");
        });
        Session { endpoint, id, task, links: HashMap::new() }
    }

    /// Runs a link as a task of `links`, which tells by the session's id that it ended, and why unless it had to.
    ///
    /// It takes the place of a link of its number: a client dials again when it lost one, which this side, with an API
    /// server between, may not have noticed.
    pub(crate) fn run_link<S>(&mut self, io: S, hello: Hello, links: &mut JoinSet<(SessionId, Option<LinkEnd>)>)
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let (id, number, endpoint) = (self.id, hello.link, self.endpoint.clone());
        let ours = Hello {
            protocol: PROTOCOL,
            release: RELEASE.into(),
            session: id.0.to_vec(),
            link: number,
            shared_way: false,
        };
        let (hold, held) = oneshot::channel();
        let (gone_tx, gone) = oneshot::channel::<()>();
        // A task that ended has dropped its end.
        self.links.retain(|_, link| !link.hold.is_closed());
        let before = self.links.insert(number, Link { hold, gone });
        links.spawn(async move {
            let _gone = gone_tx;
            if let Some(before) = before {
                drop(before.hold);
                let _ = before.gone.await;
            }
            let way = if hello.shared_way { Way::Shared } else { Way::Own };
            let check = |_: &[u8]| check(&hello, id);
            let ours = ours.to_bytes().into();
            tokio::select! {
                end = endpoint.run_link(number, way, io, ours, check) => (id, Some(end)),
                _ = held => (id, None),
            }
        });
    }
}

/// A running link.
struct Link {
    /// Dropped: the link ends.
    hold: oneshot::Sender<()>,
    /// Fails once it has.
    gone: oneshot::Receiver<()>,
}

/// Whether the client can be spoken with and is who it says.
fn check(hello: &Hello, id: SessionId) -> Result<(), String> {
    if hello.protocol.abs_diff(PROTOCOL) > 1 || hello.protocol == 0 {
        return Err(format!(
            "the agent is release {RELEASE} and speaks protocol {PROTOCOL}; the client is release {} and speaks {}",
            hello.release, hello.protocol
        ));
    }
    if hello.session != id.0 {
        return Err("the link's key was admitted for another session".into());
    }
    Ok(())
}

impl Drop for Session {
    fn drop(&mut self) {
        self.endpoint.close(Reset::Aborted);
        self.task.abort();
    }
}

#[derive(Debug, Default)]
struct Counts {
    carried: u64,
    refused: u64,
    withdrawn: u64,
}

async fn serve_flows(
    mut incoming: Incoming,
    sources: &Arc<Sources>,
    flows: &mut JoinSet<Dialled>,
    counts: &mut Counts,
) {
    loop {
        tokio::select! {
            offer = incoming.next() => match offer {
                Some(offer) => { flows.spawn(dial::serve(offer, sources.clone())); }
                None => break,
            },
            Some(done) = flows.join_next() => count(counts, done),
        }
    }
    while let Some(done) = flows.join_next().await {
        count(counts, done);
    }
}

fn count(counts: &mut Counts, done: Result<Dialled, tokio::task::JoinError>) {
    match done {
        Ok(Dialled::Carried { .. }) => counts.carried += 1,
        Ok(Dialled::Refused(_)) => counts.refused += 1,
        Ok(Dialled::Withdrawn) => counts.withdrawn += 1,
        Err(error) => tracing::error!(%error, "a flow was lost"),
    }
}
