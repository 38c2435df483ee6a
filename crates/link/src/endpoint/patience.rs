//! Pure: whether a link that has nothing to read looks again at once, or sleeps until it is woken.
//!
//! To wake a sleeping thread on an idle core takes longer than all else that a byte goes through here (25 us and more, twice
//! per round trip at each end). Where the other side answers faster than that is worth, which is to say with a cluster on the
//! same machine or network, a short look saves it: `docs/decisions/0007-looking-again.md`.

use std::time::Duration;

/// How long to look. Also what counts as a quick answer.
const LOOK: Duration = Duration::from_micros(300);
/// Quick answers in a row, more or less, before it is worth while.
const ENOUGH: u8 = 4;
const MOST: u8 = 8;

#[derive(Debug, Default)]
pub(super) struct Patience {
    quick: u8,
    /// The last read, and whether it brought one frame: with several flows at work there is no idle moment to save.
    read: Duration,
    single: bool,
}

impl Patience {
    /// Something was read.
    pub(super) fn read(&mut self, now: Duration, frames: usize) {
        let quick = now.saturating_sub(self.read) <= LOOK;
        self.quick = if quick { (self.quick + 1).min(MOST) } else { self.quick / 2 };
        self.single = frames <= 1;
        self.read = now;
    }

    /// Whether to look again now.
    pub(super) fn lasts(&self, now: Duration) -> bool {
        self.single && self.quick >= ENOUGH && now.saturating_sub(self.read) < LOOK
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(gaps: &[u64], frames: usize) -> (Patience, Duration) {
        let (mut patience, mut now) = (Patience::default(), Duration::from_secs(1));
        for gap in gaps {
            now += Duration::from_micros(*gap);
            patience.read(now, frames);
        }
        (patience, now)
    }

    #[test]
    fn it_looks_again_for_a_moment_where_answers_were_quick() {
        let (patience, now) = after(&[200; 10], 1);
        assert!(patience.lasts(now) && patience.lasts(now + LOOK / 2));
        assert!(!patience.lasts(now + LOOK), "an idle session costs nothing");
    }

    #[test]
    fn it_sleeps_where_the_other_side_is_far_or_much_is_under_way() {
        for (gaps, frames) in [(&[1_000; 10][..], 1), (&[200; 10], 5), (&[200, 200, 1_000, 200, 200, 1_000], 1)] {
            let (patience, now) = after(gaps, frames);
            assert!(!patience.lasts(now), "{gaps:?}, {frames} frames");
        }
    }
}
