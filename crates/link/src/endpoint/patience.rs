//! Pure: whether a link that has nothing to read looks again at once, or sleeps until it is woken.
//!
//! To wake a sleeping thread on an idle core takes longer than all else that a byte goes through here (25 us and more, twice
//! per round trip at each end). Where the other side answers faster than that is worth, which is to say with a cluster on the
//! same machine or network, a short look saves it: `docs/decisions/0007-looking-again.md`.

use std::time::Duration;

use crate::frame::FlowId;

/// How long to look. Also what counts as a quick answer.
const LOOK: Duration = Duration::from_micros(500);
/// Quick answers in a row, more or less, before it is worth while.
const ENOUGH: u8 = 4;
const MOST: u8 = 8;

/// Whose data a read brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Carried {
    /// Nobody's: openings, ends, credit.
    Nothing,
    One(FlowId),
    Several,
}

impl Carried {
    pub(super) fn and(self, flow: FlowId) -> Carried {
        match self {
            Carried::Nothing => Carried::One(flow),
            Carried::One(known) if known == flow => self,
            Carried::One(_) | Carried::Several => Carried::Several,
        }
    }
}

#[derive(Debug, Default)]
pub(super) struct Patience {
    quick: u8,
    /// The last read.
    read: Duration,
    /// The last data: whose, and when.
    data: Option<(FlowId, Duration)>,
    /// Several flows have data under way: there is no idle moment to save, and others want the processor.
    crowded: bool,
}

impl Patience {
    /// Something was read.
    pub(super) fn read(&mut self, now: Duration, carried: Carried) {
        let quick = now.saturating_sub(self.read) <= LOOK;
        self.quick = if quick { (self.quick + 1).min(MOST) } else { self.quick / 2 };
        self.read = now;
        match carried {
            Carried::Nothing => {}
            Carried::One(flow) => {
                let other = |(last, at)| last != flow && now.saturating_sub(at) < LOOK;
                self.crowded = self.data.is_some_and(other);
                self.data = Some((flow, now));
            }
            Carried::Several => self.crowded = true,
        }
    }

    /// Whether to look again now.
    pub(super) fn lasts(&self, now: Duration) -> bool {
        !self.crowded && self.quick >= ENOUGH && now.saturating_sub(self.read) < LOOK
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads after so many microseconds each, with data of these flows in turn.
    fn after(gaps: &[u64], flows: &[u32]) -> (Patience, Duration) {
        let (mut patience, mut now) = (Patience::default(), Duration::from_secs(1));
        for (gap, flow) in gaps.iter().zip(flows.iter().cycle()) {
            now += Duration::from_micros(*gap);
            patience.read(now, Carried::Nothing.and(FlowId(*flow)));
        }
        (patience, now)
    }

    #[test]
    fn it_looks_again_for_a_moment_where_answers_were_quick() {
        let (patience, now) = after(&[200; 10], &[1]);
        assert!(patience.lasts(now) && patience.lasts(now + LOOK / 2));
        assert!(!patience.lasts(now + LOOK), "an idle session costs nothing");
    }

    #[test]
    fn it_sleeps_where_the_other_side_is_far() {
        for gaps in [&[1_000; 10][..], &[200, 200, 1_000, 200, 200, 1_000]] {
            let (patience, now) = after(gaps, &[1]);
            assert!(!patience.lasts(now), "{gaps:?}");
        }
    }

    #[test]
    fn it_sleeps_where_several_flows_are_under_way_but_not_where_one_follows_another() {
        let (mut patience, now) = after(&[100; 10], &[1, 3]);
        assert!(!patience.lasts(now));
        patience.read(now + LOOK, Carried::Nothing.and(FlowId(5)));
        assert!(patience.lasts(now + LOOK));
        patience.read(now + LOOK, Carried::Nothing.and(FlowId(5)).and(FlowId(7)));
        assert!(!patience.lasts(now + LOOK));
    }
}
