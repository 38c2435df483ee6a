//! Second state: the links of a session, each dialled, run, and dialled again when lost, for as long as the session
//! lives. What is up and why not is published; nobody else counts links. A link that is up moves to the pod's address when
//! that is found to be reachable: its flows resume there.

mod ladder;
mod network;
mod race;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use cluster::{Cluster, Rung};
use link::tls::Identity;
use link::{Endpoint, LinkEnd};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::sleep;
use wire::{Admitted, Hello, PROTOCOL, RELEASE, SessionId};

use crate::Error;
use ladder::Ladder;
pub use ladder::RungChoice;
use race::Dialled;

/// Between dials of a lost link. The first wait is short, since most losses are; the longest spares the API server.
const FIRST_WAIT: Duration = Duration::from_millis(100);
const LONGEST_WAIT: Duration = Duration::from_secs(4);
/// Part of a wait that chance decides, so that the clients of an API server that restarts do not come all at once.
const CHANCE: f64 = 0.4;

/// Between tries of the pod's address, beside those after a change of the machine's network.
const TRIED_AGAIN: Duration = Duration::from_secs(60);

/// State of each link by its number.
pub(crate) type LinkStates = BTreeMap<u32, LinkState>;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct LinkState {
    pub(crate) up: bool,
    /// The one it is on, or was on last.
    pub(crate) rung: Option<Rung>,
    /// Why it is down.
    pub(crate) error: Option<String>,
}

/// What every link of one session needs to be dialled.
pub(crate) struct Dial {
    pub(crate) cluster: Arc<Cluster>,
    pub(crate) pod: String,
    /// The pod's own, as the API server names them.
    pub(crate) addresses: Vec<IpAddr>,
    ladder: Mutex<Ladder>,
    pub(crate) id: SessionId,
    pub(crate) admitted: Admitted,
    pub(crate) identity: Identity,
    pub(crate) endpoint: Endpoint,
}

/// What of it is of the agent.
pub(crate) struct Destination {
    pub(crate) pod: String,
    pub(crate) addresses: Vec<IpAddr>,
    pub(crate) admitted: Admitted,
}

impl Dial {
    pub(crate) fn new(
        cluster: Arc<Cluster>,
        to: Destination,
        choice: RungChoice,
        id: SessionId,
        identity: Identity,
        endpoint: Endpoint,
    ) -> Dial {
        let Destination { pod, addresses, admitted } = to;
        Dial { cluster, pod, addresses, ladder: Mutex::new(Ladder::new(choice)), id, admitted, identity, endpoint }
    }
}

/// Owns the tasks that keep the links; dropping it closes them. There are as many as the endpoint wants.
pub(crate) struct Links {
    pub(crate) states: watch::Receiver<LinkStates>,
    _keepers: JoinSet<()>,
}

impl Links {
    /// Dials the links wanted at first, all at once, and returns when they are up; an error of the first dial of any is the
    /// session's.
    pub(crate) async fn start(dial: Dial) -> Result<Links, Error> {
        let count = number(*dial.endpoint.wanted_links().borrow());
        let (states_tx, states) = watch::channel((0..count).map(|n| (n, LinkState::default())).collect());
        let (dial, states_tx) = (Arc::new(dial), Arc::new(states_tx));
        let (changes_tx, changes) = watch::channel(0);
        let mut keepers = JoinSet::new();
        keepers.spawn(network::watch(changes_tx));
        let mut first = Vec::new();
        for number in 0..count {
            let (up_tx, up_rx) = oneshot::channel();
            let link = Link { number, dial: dial.clone(), states: states_tx.clone(), changes: changes.clone() };
            keepers.spawn(link.keep(Some(up_tx)));
            first.push(up_rx);
        }
        keepers.spawn(keep_more(count, dial, states_tx, changes));
        for up in first {
            if let Ok(Err(error)) = up.await {
                return Err(error);
            }
        }
        Ok(Links { states, _keepers: keepers })
    }
}

/// Keeps the links that the endpoint wants beside the `first` ones.
async fn keep_more(first: u32, dial: Arc<Dial>, states: Arc<watch::Sender<LinkStates>>, changes: watch::Receiver<u64>) {
    let mut wanted = dial.endpoint.wanted_links();
    let mut more = Vec::new();
    loop {
        let count = number(*wanted.borrow_and_update()).max(first);
        more.truncate((count - first) as usize);
        states.send_if_modified(|all| {
            let before = all.len();
            all.retain(|number, _| *number < count);
            all.len() < before
        });
        for number in first + number(more.len())..count {
            tracing::info!(number, "one more link");
            let link = Link { number, dial: dial.clone(), states: states.clone(), changes: changes.clone() };
            let mut keeper = JoinSet::new();
            keeper.spawn(link.keep(None));
            more.push(keeper);
        }
        if wanted.changed().await.is_err() {
            return;
        }
    }
}

/// Counts of links are small.
fn number(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

/// One link, and what keeps it.
struct Link {
    number: u32,
    dial: Arc<Dial>,
    states: Arc<watch::Sender<LinkStates>>,
    /// Of the machine's network.
    changes: watch::Receiver<u64>,
}

impl Link {
    /// `first` is told how the first dial went; when that failed nothing is kept.
    async fn keep(mut self, mut first: Option<oneshot::Sender<Result<(), Error>>>) {
        let (mut wait, mut better) = (FIRST_WAIT, None);
        loop {
            let dialled = match better.take() {
                Some(dialled) => Ok(dialled),
                None => race::any(&self.dial).await,
            };
            let error = match (dialled, first.take()) {
                (Ok(dialled), first) => {
                    if let Some(first) = first {
                        let _ = first.send(Ok(()));
                    }
                    let rung = dialled.rung;
                    let (end, greeted) = self.run(dialled).await;
                    if greeted {
                        wait = FIRST_WAIT;
                    }
                    match end {
                        Ended::Lost(end) => {
                            tracing::info!(number = self.number, %rung, %end, "link ended");
                            end.to_string()
                        }
                        Ended::Better(dialled) => {
                            tracing::info!(number = self.number, from = %rung, to = %dialled.rung, "link moves");
                            better = Some(*dialled);
                            continue;
                        }
                    }
                }
                (Err(error), Some(first)) => {
                    let _ = first.send(Err(error));
                    return;
                }
                (Err(error), None) => error.to_string(),
            };
            tracing::debug!(number = self.number, %error, "link is down");
            self.publish(|state| {
                state.up = false;
                state.error = Some(error);
            });
            tokio::select! {
                () = sleep(wait.mul_f64(1.0 - CHANCE * rand::random::<f64>())) => {}
                Ok(()) = self.changes.changed() => {}
            }
            wait = (wait * 2).min(LONGEST_WAIT);
        }
    }

    /// Runs it until it is lost or goes on elsewhere; whether the agent took it.
    async fn run(&mut self, Dialled { rung, io }: Dialled) -> (Ended, bool) {
        // Up with the agent's first word: it may refuse the session after the handshake.
        let mut greeted = false;
        let (number, dial, states) = (self.number, self.dial.clone(), self.states.clone());
        let greet = |theirs: &[u8]| {
            check(theirs)?;
            greeted = true;
            publish(&states, number, |state| *state = LinkState { up: true, rung: Some(rung), error: None });
            Ok(())
        };
        let end = tokio::select! {
            end = dial.endpoint.run_link(number, io, hello(&dial, number), greet) => Ended::Lost(end),
            better = self.better(rung) => Ended::Better(Box::new(better)),
        };
        (end, greeted)
    }

    /// The pod's own address, once it is reached from where a link on this rung is.
    async fn better(&mut self, than: Rung) -> Dialled {
        if !race::ladder(&self.dial.ladder).could_be_direct(than) {
            return std::future::pending().await;
        }
        loop {
            tokio::select! {
                () = sleep(TRIED_AGAIN) => {}
                Ok(()) = self.changes.changed() => {}
            }
            if let Ok(dialled) = race::one(&self.dial, Rung::Direct).await {
                return dialled;
            }
        }
    }

    fn publish(&self, change: impl FnOnce(&mut LinkState)) {
        publish(&self.states, self.number, change);
    }
}

enum Ended {
    Lost(LinkEnd),
    Better(Box<Dialled>),
}

fn publish(states: &watch::Sender<LinkStates>, number: u32, change: impl FnOnce(&mut LinkState)) {
    states.send_if_modified(|all| {
        let state = all.entry(number).or_default();
        let before = state.clone();
        change(state);
        *state != before
    });
}

fn hello(dial: &Dial, number: u32) -> Bytes {
    let hello = Hello { protocol: PROTOCOL, release: RELEASE.into(), session: dial.id.0.to_vec(), link: number };
    Bytes::from(hello.to_bytes())
}

/// Client and agent may differ by one protocol version.
fn check(theirs: &[u8]) -> Result<(), String> {
    let hello = Hello::from_bytes(theirs).ok_or("the agent's hello cannot be read")?;
    if hello.protocol.abs_diff(PROTOCOL) > 1 {
        return Err(format!(
            "the agent is release {} and speaks protocol {}, not {PROTOCOL}",
            hello.release, hello.protocol
        ));
    }
    Ok(())
}
