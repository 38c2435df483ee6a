//! Kind to the API server: bounds what the links through it carry, by the user's word (`--api-rate`), and while its own
//! answers take much longer than they usually do.

use std::num::NonZeroU64;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use cluster::{Cluster, Rung};
use link::Endpoint;
use tokio::sync::watch;
use tokio::time::{Instant, sleep};
use wire::{Pace, request};

use crate::asker::Asker;
use crate::linking::LinkStates;
use crate::status::ApiRate;

/// Between looks at what is carried and, while that is much, at how the API server answers.
const INTERVAL: Duration = Duration::from_secs(1);
/// Of an answer that is waited for.
const LIMIT: Duration = Duration::from_secs(5);
/// Nothing less is asked of bulk, in bytes a second; while less is carried, nothing is asked at all.
const LEAST: u64 = 4 << 20;
/// An answer is slow that takes more than twice the usual time, and so much more.
const MARGIN: Duration = Duration::from_millis(50);
/// Slow answers in a row, before less is carried.
const IN_A_ROW: u32 = 3;
/// So many times that did not help at the least rate, before it is believed that it is not us.
const IN_VAIN: u32 = 3;

/// What is bounded now, for all to see.
#[derive(Clone, Default)]
pub(crate) struct Bound(Arc<Mutex<Option<ApiRate>>>);

impl Bound {
    pub(crate) fn now(&self) -> Option<ApiRate> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One agent's links.
pub(crate) struct Pacing {
    pub(crate) cluster: Arc<Cluster>,
    pub(crate) pod: String,
    pub(crate) endpoint: Endpoint,
    pub(crate) states: watch::Receiver<LinkStates>,
    pub(crate) asker: Arc<Asker>,
    /// By the user's word.
    pub(crate) most: Option<NonZeroU64>,
    pub(crate) bound: Bound,
}

impl Pacing {
    /// Runs for as long as the agent serves.
    pub(crate) async fn run(self) {
        let mut backoff = Backoff::new(self.most.map(NonZeroU64::get), self.cluster.fastest_answer());
        if backoff.rate().is_some() {
            self.tell(&backoff).await;
        }
        let (mut before, mut at) = (self.carried(), Instant::now());
        loop {
            sleep(INTERVAL).await;
            let (carried, now) = (self.carried(), Instant::now());
            let bytes = carried.0.saturating_sub(before.0).max(carried.1.saturating_sub(before.1));
            let rate = (bytes as f64 / (now - at).as_secs_f64()) as u64;
            (before, at) = (carried, now);
            let was = (backoff.rate(), backoff.spares());
            if rate < LEAST / 2 {
                backoff.rest();
            } else if (rate >= LEAST || backoff.spares())
                && let Some(took) = self.cluster.time_of_an_answer(&self.pod, LIMIT).await
            {
                backoff.answered(took, rate);
            }
            if (backoff.rate(), backoff.spares()) != was {
                self.tell(&backoff).await;
            }
        }
    }

    /// Both ends, each of which bounds what it sends.
    async fn tell(&self, backoff: &Backoff) {
        let rate = backoff.rate();
        tracing::info!(?rate, spares = backoff.spares(), "pace of the links through the API server");
        *self.bound.0.lock().unwrap_or_else(PoisonError::into_inner) =
            rate.map(|bytes_per_second| ApiRate { bytes_per_second, slow_api_server: backoff.spares() });
        self.endpoint.pace(rate.and_then(NonZeroU64::new));
        let pace = Pace { bytes_per_second: rate.unwrap_or(0) };
        if let Err(error) = self.asker.ask(request::Kind::Pace(pace)).await {
            tracing::debug!(%error, "the agent does not keep a pace");
        }
    }

    /// Bytes that went through the API server, out and in.
    fn carried(&self) -> (u64, u64) {
        let states = self.states.borrow();
        let through = |number: &u32| states.get(number).is_some_and(|state| state.rung != Some(Rung::Direct));
        let links = self.endpoint.stats().links.into_iter().filter(|link| through(&link.number));
        links.fold((0, 0), |sum, link| (sum.0 + link.bytes_sent, sum.1 + link.bytes_received))
    }
}

/// Pure: how much may be carried, by how long answers take.
struct Backoff {
    most: Option<u64>,
    /// Below that while the API server is slow.
    spared: Option<u64>,
    /// What was carried before.
    full: u64,
    usual: Option<Duration>,
    slow: u32,
    in_vain: u32,
}

impl Backoff {
    fn new(most: Option<u64>, usual: Option<Duration>) -> Backoff {
        Backoff { most, spared: None, full: 0, usual, slow: 0, in_vain: 0 }
    }

    /// Bytes a second; `None`: as many as there are.
    fn rate(&self) -> Option<u64> {
        [self.most, self.spared].into_iter().flatten().min()
    }

    /// Whether less is carried since the API server is slow.
    fn spares(&self) -> bool {
        self.spared.is_some()
    }

    /// Little is carried.
    fn rest(&mut self) {
        (self.spared, self.slow, self.in_vain) = (None, 0, 0);
    }

    /// The API server took so long for an answer while so many bytes a second were carried.
    fn answered(&mut self, took: Duration, carried: u64) {
        let usual = self.usual.map_or(took, |usual| usual.min(took));
        self.usual = Some(usual);
        if took <= (usual * 2).max(usual + MARGIN) {
            (self.slow, self.in_vain) = (0, 0);
            let more = self.spared.map(|rate| rate + rate / 4);
            self.spared = more.filter(|rate| *rate < self.full);
            return;
        }
        self.slow += 1;
        if self.slow < IN_A_ROW {
            return;
        }
        self.slow = 0;
        if self.spared == Some(LEAST) {
            self.in_vain += 1;
            if self.in_vain == IN_VAIN {
                self.usual = Some(took);
                self.rest();
            }
            return;
        }
        if self.spared.is_none() {
            self.full = carried;
        }
        self.spared = Some((self.spared.map_or(carried, |rate| rate.min(carried)) / 2).max(LEAST));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const USUAL: Duration = Duration::from_millis(5);
    const SLOW: Duration = Duration::from_millis(200);
    const FULL: u64 = 100 << 20;

    fn after(times: u32, took: Duration, backoff: &mut Backoff) {
        for _ in 0..times {
            let carried = backoff.rate().unwrap_or(FULL);
            backoff.answered(took, carried);
        }
    }

    #[test]
    fn slow_answers_in_a_row_halve_what_is_carried_and_quick_ones_give_it_back() {
        let mut backoff = Backoff::new(None, Some(USUAL));
        after(IN_A_ROW - 1, SLOW, &mut backoff);
        after(1, USUAL, &mut backoff);
        after(IN_A_ROW - 1, SLOW, &mut backoff);
        assert_eq!(backoff.rate(), None, "they were not in a row");
        after(1, SLOW, &mut backoff);
        assert_eq!(backoff.rate(), Some(FULL / 2));
        after(IN_A_ROW, SLOW, &mut backoff);
        assert_eq!(backoff.rate(), Some(FULL / 4));
        after(1, USUAL, &mut backoff);
        assert_eq!(backoff.rate(), Some(FULL / 4 + FULL / 16));
        after(20, USUAL, &mut backoff);
        assert_eq!(backoff.rate(), None);
    }

    #[test]
    fn answers_that_take_a_little_longer_are_not_slow() {
        let mut backoff = Backoff::new(None, Some(USUAL));
        after(10, USUAL + MARGIN, &mut backoff);
        let mut far = Backoff::new(None, Some(SLOW));
        after(10, SLOW * 2, &mut far);
        assert_eq!((backoff.rate(), far.rate()), (None, None));
    }

    #[test]
    fn what_does_not_help_is_given_up() {
        let mut backoff = Backoff::new(None, Some(USUAL));
        let halvings = (FULL / LEAST).ilog2() + 1;
        after(halvings * IN_A_ROW, SLOW, &mut backoff);
        assert_eq!(backoff.rate(), Some(LEAST));
        after(IN_VAIN * IN_A_ROW, SLOW, &mut backoff);
        assert_eq!(backoff.rate(), None);
        after(20, SLOW, &mut backoff);
        assert_eq!(backoff.rate(), None, "it is usual now");
    }

    #[test]
    fn the_users_word_holds_whatever_the_answers_take() {
        let most = 10 << 20;
        let mut backoff = Backoff::new(Some(most), Some(USUAL));
        assert_eq!((backoff.rate(), backoff.spares()), (Some(most), false));
        after(IN_A_ROW, SLOW, &mut backoff);
        assert_eq!((backoff.rate(), backoff.spares()), (Some(most / 2), true));
        backoff.rest();
        assert_eq!((backoff.rate(), backoff.spares()), (Some(most), false));
    }
}
