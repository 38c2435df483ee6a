//! Second state: the links of a session, each dialled, run, and dialled again when lost, for as long as the session
//! lives. What is up and why not is published; nobody else counts links.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use cluster::Cluster;
use link::Endpoint;
use link::tls::Identity;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;
use wire::{Admitted, Hello, PROTOCOL, RELEASE, SessionId};

use crate::Error;

/// Between dials of a lost link. The first wait is short, since most losses are; the longest spares the API server.
const FIRST_WAIT: Duration = Duration::from_millis(100);
const LONGEST_WAIT: Duration = Duration::from_secs(2);

/// A dial through the API server takes 10 ms; one that takes this long leads into a black hole.
const DIAL_LIMIT: Duration = Duration::from_secs(10);

/// State of each link by its number.
pub(crate) type LinkStates = BTreeMap<u32, LinkState>;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct LinkState {
    pub(crate) up: bool,
    /// Why it is down.
    pub(crate) error: Option<String>,
}

/// What every link of one session needs to be dialled.
pub(crate) struct Dial {
    pub(crate) cluster: Arc<Cluster>,
    pub(crate) pod: String,
    pub(crate) id: SessionId,
    pub(crate) admitted: Admitted,
    pub(crate) identity: Identity,
    pub(crate) endpoint: Endpoint,
}

/// Owns the tasks that keep the links; dropping it closes them.
pub(crate) struct Links {
    pub(crate) states: watch::Receiver<LinkStates>,
    _keepers: JoinSet<()>,
}

impl Links {
    /// Dials `count` links at once and returns when all are up; an error of the first dial of any is the session's.
    pub(crate) async fn start(dial: Dial, count: u32) -> Result<Links, Error> {
        let (states_tx, states) = watch::channel((0..count).map(|n| (n, LinkState::default())).collect());
        let (dial, states_tx) = (Arc::new(dial), Arc::new(states_tx));
        let mut keepers = JoinSet::new();
        let mut first = Vec::new();
        for number in 0..count {
            let (up_tx, up_rx) = oneshot::channel();
            keepers.spawn(keep(number, dial.clone(), states_tx.clone(), up_tx));
            first.push(up_rx);
        }
        for up in first {
            if let Ok(Err(error)) = up.await {
                return Err(error);
            }
        }
        Ok(Links { states, _keepers: keepers })
    }
}

async fn keep(
    number: u32,
    dial: Arc<Dial>,
    states: Arc<watch::Sender<LinkStates>>,
    first: oneshot::Sender<Result<(), Error>>,
) {
    let (mut first, mut wait) = (Some(first), FIRST_WAIT);
    loop {
        let error = match tokio::time::timeout(DIAL_LIMIT, connect(&dial)).await {
            Ok(Ok(io)) => {
                if let Some(first) = first.take() {
                    let _ = first.send(Ok(()));
                }
                // Up with the agent's first word: it may refuse the session after the handshake.
                let mut greeted = false;
                let greet = |theirs: &[u8]| {
                    check(theirs)?;
                    greeted = true;
                    publish(&states, number, LinkState { up: true, error: None });
                    Ok(())
                };
                let end = dial.endpoint.run_link(number, io, hello(&dial, number), greet).await;
                if greeted {
                    wait = FIRST_WAIT;
                }
                tracing::info!(number, end = %end, "link ended");
                end.to_string()
            }
            Ok(Err(error)) if first.is_some() => return report(first.take(), error),
            Ok(Err(error)) => error.to_string(),
            Err(_) if first.is_some() => {
                let cause = format!("no answer within {} s", DIAL_LIMIT.as_secs());
                return report(first.take(), Error::Link { pod: dial.pod.clone(), cause });
            }
            Err(_) => format!("no answer within {} s", DIAL_LIMIT.as_secs()),
        };
        tracing::debug!(number, %error, "link is down");
        publish(&states, number, LinkState { up: false, error: Some(error) });
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(LONGEST_WAIT);
    }
}

fn report(first: Option<oneshot::Sender<Result<(), Error>>>, error: Error) {
    if let Some(first) = first {
        let _ = first.send(Err(error));
    }
}

fn publish(states: &watch::Sender<LinkStates>, number: u32, state: LinkState) {
    states.send_if_modified(|all| all.insert(number, state.clone()).as_ref() != Some(&state));
}

async fn connect(dial: &Dial) -> Result<link::tls::TlsStream<cluster::Pipe>, Error> {
    let port = u16::try_from(dial.admitted.port).unwrap_or_default();
    let pipe = dial.cluster.pipe(cluster::Rung::Proxy, &dial.pod, &[], port).await?;
    let failed = |cause: String| Error::Link { pod: dial.pod.clone(), cause };
    let pin = <[u8; 32]>::try_from(dial.admitted.key_hash.as_slice()).map_err(|_| failed("bad key hash".into()))?;
    link::tls::connect(pipe, link::tls::client_tls(&dial.identity, pin)).await.map_err(|e| failed(e.to_string()))
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
