//! Pure: whether a link that has nothing to read looks again at once, or sleeps until it is woken.
//!
//! To wake a sleeping thread on an idle core takes longer than all else that a byte goes through here (25 us and more, twice
//! per round trip at each end). Where the other side answers faster than that is worth, which is to say with a cluster on the
//! same machine or network, a short look saves it: `docs/decisions/0007-looking-again.md`.

use std::time::Duration;

use crate::frame::FlowId;

/// How long to look.
const LOOK: Duration = Duration::from_millis(1);
/// Round trips of a link on which answers can be expected within that time.
const NEAR: Duration = Duration::from_millis(3);
/// How long flows that came in turns count as several at once.
const CROWDED: Duration = Duration::from_millis(2);

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
    /// Until when to look.
    until: Duration,
    /// The last data: whose, and when.
    data: Option<(FlowId, Duration)>,
    /// Several flows have data under way: there is no idle moment to save, and others want the processor.
    crowded_until: Duration,
}

impl Patience {
    /// Something was read from a link with this round trip.
    pub(super) fn read(&mut self, now: Duration, carried: Carried, round_trip: Option<Duration>) {
        if round_trip.is_some_and(|round_trip| round_trip <= NEAR) {
            self.until = now + LOOK;
        }
        if self.is_crowd(carried, now) {
            self.crowded_until = now + CROWDED;
        }
        if let Carried::One(flow) = carried {
            self.data = Some((flow, now));
        }
    }

    /// Flows that follow one another, each opened when the one before is done, are no crowd.
    fn is_crowd(&self, carried: Carried, now: Duration) -> bool {
        match carried {
            Carried::Nothing => false,
            Carried::One(flow) => {
                self.data.is_some_and(|(last, at)| last.0 > flow.0 && now.saturating_sub(at) < CROWDED)
            }
            Carried::Several => true,
        }
    }

    /// Whether to look again now.
    pub(super) fn lasts(&self, now: Duration) -> bool {
        now < self.until && now >= self.crowded_until
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Duration = Duration::from_secs(1);
    const STEP: Duration = Duration::from_micros(100);

    /// Reads every 100 us, each with data of the next of these flows, on a path with this round trip.
    fn after(flows: &[u32], round_trip: Option<u64>) -> (Patience, Duration) {
        let (mut patience, mut now) = (Patience::default(), START);
        for flow in flows {
            now += STEP;
            patience.read(now, Carried::Nothing.and(FlowId(*flow)), round_trip.map(Duration::from_micros));
        }
        (patience, now)
    }

    #[test]
    fn it_looks_again_for_a_moment_where_the_other_side_is_near() {
        let (patience, now) = after(&[1], Some(200));
        assert!(patience.lasts(now) && patience.lasts(now + LOOK / 2));
        assert!(!patience.lasts(now + LOOK), "an idle session costs nothing");
    }

    #[test]
    fn it_sleeps_where_the_other_side_is_far_or_may_be() {
        for round_trip in [None, Some(20_000)] {
            let (patience, now) = after(&[1, 1, 1], round_trip);
            assert!(!patience.lasts(now), "{round_trip:?}");
        }
        assert!(!Patience::default().lasts(START), "nothing was read");
    }

    #[test]
    fn it_sleeps_where_several_flows_are_under_way_but_not_where_one_follows_another() {
        let (patience, now) = after(&[1, 3, 5, 5, 7], Some(200));
        assert!(patience.lasts(now));
        let (mut patience, now) = after(&[1, 3, 1], Some(200));
        assert!(!patience.lasts(now));
        let later = now + CROWDED;
        patience.read(later, Carried::Nothing.and(FlowId(5)), Some(STEP));
        assert!(patience.lasts(later), "the crowd is gone");
        patience.read(later, Carried::Nothing.and(FlowId(5)).and(FlowId(7)), Some(STEP));
        assert!(!patience.lasts(later));
    }
}
