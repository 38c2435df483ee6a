//! Pure: how long a lost link waits before it is dialled again.

use std::time::Duration;

/// The first wait is short, since most losses are; the longest spares the API server.
const FIRST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(4);
/// Part of a wait that chance decides, so that the clients of an API server that restarts do not come all at once.
const CHANCE: f64 = 0.4;
/// A link that was lost sooner was not worth its dial: the next wait is longer all the same.
const LASTING: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub(super) struct Waits {
    next: Duration,
}

impl Default for Waits {
    fn default() -> Self {
        Waits { next: FIRST }
    }
}

impl Waits {
    /// The next wait; `chance` is between 0 and 1.
    pub(super) fn next(&mut self, chance: f64) -> Duration {
        let wait = self.next.mul_f64(1.0 - CHANCE * chance);
        self.next = (self.next * 2).min(LONGEST);
        wait
    }

    /// The link was there for so long.
    pub(super) fn lived(&mut self, lived: Duration) {
        if lived >= LASTING {
            self.next = FIRST;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_seconds_and_chance_makes_them_shorter() {
        let mut waits = Waits::default();
        let first: Vec<_> = (0..7).map(|_| waits.next(0.0).as_millis()).collect();
        assert_eq!(first, [100, 200, 400, 800, 1600, 3200, 4000]);
        assert_eq!(waits.next(1.0).as_millis(), 2400);
    }

    #[test]
    fn only_a_link_that_lasted_makes_them_short_again() {
        let mut waits = Waits::default();
        assert_eq!([0.0; 3].map(|chance| waits.next(chance)), [FIRST, FIRST * 2, FIRST * 4]);
        waits.lived(LASTING / 2);
        assert_eq!(waits.next(0.0), FIRST * 8);
        waits.lived(LASTING);
        assert_eq!(waits.next(0.0), FIRST);
    }
}
