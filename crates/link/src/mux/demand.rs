//! How many links the session wants: two, and more where the path is long and several flows are bulk at once.
//!
//! Flows on one link share one TCP connection, and so one congestion window: on a long path that is what bounds them, and a
//! lost segment holds all of them up. On a short one TCP recovers within a round trip that nobody notices, and further links
//! gain nothing (`docs/decisions/0013-links-by-load.md`).

use std::time::Duration;

use crate::frame::FlowId;

/// Links of a session at rest: one for interactive flows, one for bulk.
const AT_REST: usize = 2;
/// Round trips from which on a path is long. The shortest of the last PINGs counts, so that queues do not.
const LONG: Duration = Duration::from_millis(5);
/// How long a flow that was heavy counts as bulk.
const BULK_FOR: Duration = Duration::from_secs(1);
/// How often one flow is reason to look.
const LOOK_AFTER: Duration = Duration::from_millis(100);
/// How long links stay that nobody needs.
const UNUSED: Duration = Duration::from_secs(30);

#[derive(Debug)]
pub(super) struct Demand {
    most: usize,
    wanted: usize,
    /// Flows that were heavy lately, in either direction, and when; no more than could have links of their own.
    bulk: Vec<(FlowId, Duration)>,
    /// When there was last need for as many links as are wanted.
    needed_at: Duration,
}

impl Demand {
    /// Never wants more than `most` links.
    pub(super) fn new(most: usize) -> Self {
        let most = most.max(1);
        Demand { most, wanted: AT_REST.min(most), bulk: Vec::new(), needed_at: Duration::ZERO }
    }

    pub(super) fn wanted(&self) -> usize {
        self.wanted
    }

    /// The flow is heavy. Whether that is reason to [`look`](Demand::look).
    pub(super) fn heavy(&mut self, flow: FlowId, now: Duration) -> bool {
        if let Some((_, at)) = self.bulk.iter_mut().find(|(known, _)| *known == flow) {
            let due = now >= *at + LOOK_AFTER;
            if due {
                *at = now;
            }
            return due;
        }
        if self.bulk.len() >= self.most {
            self.bulk.retain(|(_, at)| now < *at + BULK_FOR);
            return false;
        }
        self.bulk.push((flow, now));
        true
    }

    /// The number of links wanted from now on, when it changed: one more at a time, each after those before are up.
    pub(super) fn look(&mut self, live: usize, round_trip: Option<Duration>, now: Duration) -> Option<usize> {
        self.bulk.retain(|(_, at)| now < *at + BULK_FOR);
        let (before, needed) = (self.wanted, self.bulk.len() + 1);
        if needed >= self.wanted {
            self.needed_at = now;
        }
        let is_long = round_trip.is_some_and(|round_trip| round_trip >= LONG);
        if is_long && live >= self.wanted && needed.min(self.most) > self.wanted {
            self.wanted += 1;
        } else if now >= self.needed_at + UNUSED {
            self.wanted = needed.max(AT_REST).min(self.wanted);
            self.needed_at = now;
        }
        (self.wanted != before).then_some(self.wanted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FAR: Option<Duration> = Some(Duration::from_millis(20));
    const START: Duration = Duration::from_secs(100);

    /// What is wanted after a second in which the flows were heavy all the time and every link wanted was up.
    fn after_a_second(demand: &mut Demand, flows: &[u32], round_trip: Option<Duration>, from: Duration) -> usize {
        for tenth in 0..10 {
            for flow in flows {
                let now = from + LOOK_AFTER * tenth;
                if demand.heavy(FlowId(*flow), now) {
                    demand.look(demand.wanted(), round_trip, now);
                }
            }
        }
        demand.wanted()
    }

    #[test]
    fn each_bulk_flow_of_a_long_path_gets_a_link_up_to_the_bound() {
        for (flows, wanted) in [(&[][..], 2), (&[1], 2), (&[1, 3], 3), (&[1, 3, 5], 4), (&[1, 3, 5, 7, 9], 4)] {
            assert_eq!(after_a_second(&mut Demand::new(4), flows, FAR, START), wanted, "{flows:?}");
        }
        for most in [1, 2] {
            assert_eq!(after_a_second(&mut Demand::new(most), &[1, 3, 5], FAR, START), most);
        }
    }

    #[test]
    fn a_short_path_and_an_unknown_one_keep_two_links() {
        for round_trip in [None, Some(Duration::from_micros(4999))] {
            assert_eq!(after_a_second(&mut Demand::new(4), &[1, 3, 5], round_trip, START), 2, "{round_trip:?}");
        }
        assert_eq!(after_a_second(&mut Demand::new(4), &[1, 3, 5], Some(LONG), START), 4);
    }

    #[test]
    fn the_next_link_is_wanted_when_those_before_are_up() {
        let mut demand = Demand::new(4);
        for flow in [1, 3, 5] {
            demand.heavy(FlowId(flow), START);
        }
        assert_eq!(demand.look(1, FAR, START), None, "one is being dialled again");
        assert_eq!(demand.look(2, FAR, START), Some(3));
        assert_eq!(demand.look(2, FAR, START), None);
        assert_eq!(demand.look(3, FAR, START), Some(4));
    }

    #[test]
    fn flows_that_are_bulk_one_after_another_are_not_several() {
        let mut demand = Demand::new(4);
        for flow in 0..20 {
            let now = START + BULK_FOR * flow;
            assert!(demand.heavy(FlowId(flow), now));
            assert_eq!(demand.look(2, FAR, now), None, "flow {flow}");
        }
    }

    #[test]
    fn links_that_nobody_needs_go_after_half_a_minute() {
        let mut demand = Demand::new(4);
        assert_eq!(after_a_second(&mut demand, &[1, 3, 5], FAR, START), 4);
        let last = START + LOOK_AFTER * 9;
        assert_eq!(demand.look(4, FAR, last + UNUSED / 2), None);
        // One flow alone does not need them.
        let later = last + UNUSED;
        assert_eq!(after_a_second(&mut demand, &[1], FAR, later - BULK_FOR), 4);
        assert_eq!(demand.look(4, FAR, later), Some(2));
        assert_eq!(after_a_second(&mut demand, &[1, 3], FAR, later), 3, "they come back");
    }

    #[test]
    fn a_flow_is_reason_to_look_ten_times_a_second() {
        let mut demand = Demand::new(4);
        assert!(demand.heavy(FlowId(1), START));
        assert!(!demand.heavy(FlowId(1), START + LOOK_AFTER / 2));
        assert!(demand.heavy(FlowId(1), START + LOOK_AFTER));
    }
}
