//! Second state: the links of a session, each dialled, run, and dialled again when lost, for as long as the session
//! lives. What is up and why not is published; nobody else counts links.

mod keeping;
mod ladder;
mod network;
mod race;
mod waits;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex};

use cluster::{Cluster, Rung};
use link::Endpoint;
use link::tls::Identity;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;
use wire::{Admitted, SessionId};

use crate::Error;
use keeping::Link;
use ladder::Ladder;
pub use ladder::RungChoice;

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
    /// Held by the link that is dialled again, as long as that takes: an API server that comes back is asked by one.
    turn: tokio::sync::Mutex<()>,
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
        let (ladder, turn) = (Mutex::new(Ladder::new(choice)), tokio::sync::Mutex::default());
        Dial { cluster, pod, addresses, ladder, turn, id, admitted, identity, endpoint }
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
        keepers.spawn(forget_old_network(dial.clone(), changes.clone()));
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

/// What was found out about rungs was so in the network before.
async fn forget_old_network(dial: Arc<Dial>, mut changes: watch::Receiver<u64>) {
    while changes.changed().await.is_ok() {
        race::ladder(&dial.ladder).network_changed();
    }
}

/// Counts of links are small.
fn number(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}
