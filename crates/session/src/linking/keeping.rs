//! One link and what keeps it: it runs, moves to a better rung when that serves, and is dialled again when it is lost.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use cluster::Rung;
use link::{LinkEnd, Way};
use tokio::sync::{oneshot, watch};
use tokio::time::{Instant, sleep, sleep_until};
use wire::{Hello, PROTOCOL, RELEASE};

use super::race::{self, Dialled};
use super::waits::Waits;
use super::{Dial, LinkState, LinkStates};
use crate::Error;

/// Between tries of better rungs, beside those after a change of the machine's network.
const TRIED_AGAIN: Duration = Duration::from_secs(60);
/// A dial that is not through after so long, and the machine's network changed meanwhile, waits for answers on a way that
/// is gone.
const STUCK: Duration = Duration::from_secs(2);

pub(super) struct Link {
    pub(super) number: u32,
    pub(super) dial: Arc<Dial>,
    pub(super) states: Arc<watch::Sender<LinkStates>>,
    /// Of the machine's network.
    pub(super) changes: watch::Receiver<u64>,
}

enum Ended {
    Lost(LinkEnd),
    Better(Box<Dialled>),
}

impl Link {
    /// `first` is told how the first dial went; when that failed nothing is kept.
    pub(super) async fn keep(mut self, first: Option<oneshot::Sender<Result<(), Error>>>) {
        let mut waits = Waits::default();
        let mut dialled = match first {
            Some(first) => match race::any(&self.dial).await {
                Ok(dialled) => {
                    let _ = first.send(Ok(())); // nobody waits when another link's dial has failed
                    dialled
                }
                Err(error) => {
                    let _ = first.send(Err(error));
                    return;
                }
            },
            None => self.dial_again(&mut waits).await,
        };
        loop {
            let (rung, since) = (dialled.rung, Instant::now());
            dialled = match self.run(dialled).await {
                Ended::Better(better) => {
                    tracing::info!(number = self.number, from = %rung, to = %better.rung, "link moves");
                    *better
                }
                Ended::Lost(end) => {
                    tracing::info!(number = self.number, %rung, %end, "link ended");
                    self.is_down(end.to_string());
                    let (now, lived) = (Instant::now(), since.elapsed());
                    waits.lived(lived);
                    race::ladder(&self.dial.ladder).ended(self.number, rung, lived, now.into_std());
                    self.dial_again(&mut waits).await
                }
            };
        }
    }

    /// Dials until it is through.
    async fn dial_again(&mut self, waits: &mut Waits) -> Dialled {
        let dial = self.dial.clone();
        let _turn = dial.turn.lock().await;
        loop {
            tokio::select! {
                () = sleep(waits.next(rand::random())) => {}
                Ok(()) = self.changes.changed() => {}
            }
            match self.dial_in_this_network().await {
                Ok(dialled) => return dialled,
                Err(error) => {
                    tracing::debug!(number = self.number, %error, "link is down");
                    self.is_down(error.to_string());
                }
            }
        }
    }

    async fn dial_in_this_network(&mut self) -> Result<Dialled, Error> {
        let dial = self.dial.clone();
        loop {
            let begun = Instant::now();
            tokio::select! {
                dialled = race::any(&dial) => return dialled,
                () = self.changed(begun + STUCK) => tracing::debug!(number = self.number, "dialled anew"),
            }
        }
    }

    /// The machine's network changed, and it is not before `earliest`.
    async fn changed(&mut self, earliest: Instant) {
        if self.changes.changed().await.is_err() {
            std::future::pending().await
        }
        sleep_until(earliest).await;
    }

    /// Runs it until it is lost or goes on elsewhere.
    async fn run(&mut self, Dialled { rung, io }: Dialled) -> Ended {
        let (number, dial, states) = (self.number, self.dial.clone(), self.states.clone());
        // Up with the agent's first word: it may refuse the session after the handshake.
        let greet = |theirs: &[u8]| {
            check(theirs)?;
            publish(&states, number, |state| *state = LinkState { up: true, rung: Some(rung), error: None });
            Ok(())
        };
        let way = if rung == Rung::Direct { Way::Own } else { Way::Shared };
        tokio::select! {
            end = dial.endpoint.run_link(number, way, io, hello(&dial, number, way), greet) => Ended::Lost(end),
            better = self.better(rung) => Ended::Better(Box::new(better)),
        }
    }

    /// The link on a better rung than the one it is on, once that serves.
    async fn better(&mut self, than: Rung) -> Dialled {
        loop {
            tokio::select! {
                () = sleep(TRIED_AGAIN) => {}
                Ok(()) = self.changes.changed() => {}
            }
            let rungs = race::ladder(&self.dial.ladder).better_than(than, Instant::now().into_std());
            for rung in rungs {
                if let Ok(dialled) = race::one(&self.dial, rung).await {
                    return dialled;
                }
            }
        }
    }

    fn is_down(&self, why: String) {
        publish(&self.states, self.number, |state| {
            state.up = false;
            state.error = Some(why);
        });
    }
}

fn publish(states: &watch::Sender<LinkStates>, number: u32, change: impl FnOnce(&mut LinkState)) {
    states.send_if_modified(|all| {
        let state = all.entry(number).or_default();
        let before = state.clone();
        change(state);
        *state != before
    });
}

fn hello(dial: &Dial, number: u32, way: Way) -> Bytes {
    let hello = Hello {
        protocol: PROTOCOL,
        release: RELEASE.into(),
        session: dial.id.0.to_vec(),
        link: number,
        shared_way: way == Way::Shared,
    };
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
