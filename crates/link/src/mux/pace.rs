//! Pure: how fast bytes may go out on links that others share, such as an API server's.
//!
//! What went out is a debt that is paid off at the rate agreed. Bulk waits as soon as there is a little of it, small flows
//! only when they alone go beyond the rate: so they pass bulk that waits.

use std::num::NonZeroU64;
use std::time::Duration;

/// Debt at which bulk waits, as time at the rate.
const BULK: Duration = Duration::from_millis(20);
/// Debt at which everything does.
const ALL: Duration = Duration::from_millis(100);
/// Debt that never makes anything wait: two turns of a flow, so that a low rate does not mean small frames.
const LEAST: f64 = (128 << 10) as f64;

#[derive(Debug, Default)]
pub(super) struct Pace {
    /// Bytes a second; `None`: as many as there are.
    rate: Option<f64>,
    debt: f64,
    at: Duration,
}

impl Pace {
    /// From now on; what went out before is forgotten.
    pub(super) fn set(&mut self, rate: Option<NonZeroU64>) {
        *self = Pace { rate: rate.map(|rate| rate.get() as f64), ..Pace::default() };
    }

    /// Bytes that may go out now, or when there will be something worth it.
    pub(super) fn room(&mut self, is_bulk: bool, now: Duration) -> Result<usize, Duration> {
        let Some(rate) = self.rate else { return Ok(usize::MAX) };
        self.pay(rate, now);
        let most = (rate * if is_bulk { BULK } else { ALL }.as_secs_f64()).max(LEAST);
        let too_much = self.debt - most / 2.0;
        if too_much > 0.0 {
            return Err(now + Duration::from_secs_f64(too_much / rate));
        }
        Ok((most - self.debt) as usize)
    }

    pub(super) fn sent(&mut self, bytes: usize, now: Duration) {
        if let Some(rate) = self.rate {
            self.pay(rate, now);
            self.debt += bytes as f64;
        }
    }

    fn pay(&mut self, rate: f64, now: Duration) {
        let paid = rate * now.saturating_sub(self.at).as_secs_f64();
        self.debt = (self.debt - paid).max(0.0);
        self.at = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Duration = Duration::from_secs(100);
    const SECOND: Duration = Duration::from_secs(1);

    /// Bytes that go out in a second, and in how many pieces, when there is always more.
    fn in_a_second(rate: u64) -> (usize, usize) {
        let (mut pace, mut now, mut sent, mut pieces) = (Pace::default(), START, 0, 0);
        pace.set(NonZeroU64::new(rate));
        while now < START + SECOND {
            match pace.room(true, now) {
                Ok(room) => {
                    pace.sent(room, now);
                    (sent, pieces) = (sent + room, pieces + 1);
                }
                Err(until) => {
                    assert!(until > now);
                    now = until;
                }
            }
        }
        (sent, pieces)
    }

    #[test]
    fn the_rate_is_kept_and_the_pieces_are_large() {
        for rate in [50_000_000, 5_000_000, 200_000] {
            let (sent, pieces) = in_a_second(rate);
            let rate = rate as usize;
            assert!(sent >= rate && sent <= rate + rate / 20 + LEAST as usize, "{sent} of {rate}");
            assert!(sent / pieces >= 64 << 10, "{pieces} pieces");
        }
    }

    #[test]
    fn small_flows_pass_bulk_that_waits_but_not_the_rate() {
        let mut pace = Pace::default();
        pace.set(NonZeroU64::new(10_000_000));
        let room = pace.room(true, START).expect("nothing went out");
        pace.sent(room, START);
        pace.room(true, START).expect_err("bulk waits");
        let room = pace.room(false, START).expect("small ones do not");
        pace.sent(room, START);
        let until = pace.room(false, START).expect_err("what is more than the rate");
        assert_eq!(until, START + ALL / 2);
    }

    #[test]
    fn nothing_is_saved_up_while_nothing_is_sent() {
        let mut pace = Pace::default();
        pace.set(NonZeroU64::new(10_000_000));
        let first = pace.room(true, START);
        assert_eq!(pace.room(true, START + SECOND), first);
    }

    #[test]
    fn without_a_rate_nothing_waits() {
        let mut pace = Pace::default();
        pace.set(NonZeroU64::new(1_000));
        pace.sent(1 << 30, START);
        pace.room(false, START).expect_err("a second's worth went out a million times");
        pace.set(None);
        pace.sent(1 << 30, START);
        assert_eq!(pace.room(true, START), Ok(usize::MAX));
        pace.set(NonZeroU64::new(1_000));
        pace.room(true, START).expect("what went out before is forgotten");
    }
}
