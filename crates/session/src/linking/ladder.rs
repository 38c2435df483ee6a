//! Pure: which rungs a link is dialled on, and how long after the first each one is tried.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use cluster::Rung;

/// The best first.
const ALL: [Rung; 3] = [Rung::Direct, Rung::Proxy, Rung::Forward];

/// A dial through `proxy` takes 10 ms here and a round trip or two more on a long path; who is not there by then may be
/// in a black hole.
const HEAD_START: Duration = Duration::from_millis(200);

/// A rung that does not hold is given to the others' head start.
const LAST: Duration = Duration::from_secs(1);

/// So many links in a row that were lost while they were [`YOUNG`], each dialled in place of the one before, show that a
/// rung does not hold what its handshakes promise (a way that drops large packets, a proxy that cuts what lasts); one loss
/// of the network ends each link once.
const YOUNG_ENDS: u32 = 3;
const YOUNG: Duration = Duration::from_secs(60);
/// How long that is remembered, unless the machine's network changes.
const REMEMBERED: Duration = Duration::from_secs(600);

/// What the user wants.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RungChoice {
    /// Whichever is there first, and `direct` as soon as that is possible.
    #[default]
    Auto,
    Only(Rung),
}

/// What is known of the rungs to one agent.
#[derive(Debug)]
pub(super) struct Ladder {
    choice: RungChoice,
    /// The pod's address was tried and not reached, from this machine as it was then.
    is_apart: bool,
    /// Rights that are missing do not come by asking again.
    forbidden: BTreeSet<Rung>,
    /// By rung and link: how many in a row were lost young, and when the last was.
    young_ends: BTreeMap<(Rung, u32), (u32, Instant)>,
}

impl Ladder {
    pub(super) fn new(choice: RungChoice) -> Self {
        Ladder { choice, is_apart: false, forbidden: BTreeSet::new(), young_ends: BTreeMap::new() }
    }

    /// Whether the user wants just one.
    pub(super) fn is_one_alone(&self) -> bool {
        self.choice != RungChoice::Auto
    }

    /// The rungs to dial, with how long after the first, soonest first; one whose predecessor through the API server has
    /// failed is due at once.
    pub(super) fn starts(&self, now: Instant) -> Vec<(Rung, Duration)> {
        if let RungChoice::Only(rung) = self.choice {
            return vec![(rung, Duration::ZERO)];
        }
        let useful: Vec<Rung> = ALL.into_iter().filter(|rung| self.may_serve(*rung)).collect();
        // With nothing left that could work, all are asked again, so that the error says why.
        let asked = if useful.is_empty() { ALL.to_vec() } else { useful };
        let (mut first, mut last): (Vec<_>, Vec<_>) = asked.into_iter().partition(|rung| self.holds(*rung, now));
        if first.is_empty() {
            std::mem::swap(&mut first, &mut last);
        }
        let head_start = if first.contains(&Rung::Proxy) { HEAD_START } else { Duration::ZERO };
        let first =
            first.into_iter().map(|rung| (rung, if rung == Rung::Forward { head_start } else { Duration::ZERO }));
        first.chain(last.into_iter().map(|rung| (rung, LAST))).collect()
    }

    fn may_serve(&self, rung: Rung) -> bool {
        let is_apart = rung == Rung::Direct && self.is_apart;
        !is_apart && !self.forbidden.contains(&rung)
    }

    /// The rungs on which a link could do better than on this one, the best first.
    pub(super) fn better_than(&self, rung: Rung, now: Instant) -> Vec<Rung> {
        if self.is_one_alone() {
            return Vec::new();
        }
        let better = ALL.into_iter().take_while(|better| *better < rung);
        better.filter(|better| !self.forbidden.contains(better) && self.holds(*better, now)).collect()
    }

    fn holds(&self, rung: Rung, now: Instant) -> bool {
        let does_not = |(count, last): &(u32, Instant)| *count >= YOUNG_ENDS && now < *last + REMEMBERED;
        !self.young_ends.iter().any(|((of, _), ends)| *of == rung && does_not(ends))
    }

    /// The link of this number was lost after it had lived on the rung for so long.
    pub(super) fn ended(&mut self, link: u32, rung: Rung, lived: Duration, now: Instant) {
        let (count, last) = self.young_ends.entry((rung, link)).or_insert((0, now));
        *count = if lived < YOUNG && now < *last + REMEMBERED { *count + 1 } else { u32::from(lived < YOUNG) };
        *last = now;
    }

    /// What was found out may be different now, but for rights.
    pub(super) fn network_changed(&mut self) {
        self.is_apart = false;
        self.young_ends.clear();
    }

    pub(super) fn failed(&mut self, rung: Rung, is_forbidden: bool) {
        if rung == Rung::Direct {
            self.is_apart = true;
        }
        if is_forbidden {
            self.forbidden.insert(rung);
        }
    }

    pub(super) fn reached(&mut self, rung: Rung) {
        if rung == Rung::Direct {
            self.is_apart = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT_ONCE: Duration = Duration::ZERO;

    fn now() -> Instant {
        Instant::now()
    }

    #[test]
    fn all_are_raced_and_forward_gives_proxy_a_head_start() {
        let ladder = Ladder::new(RungChoice::Auto);
        assert_eq!(
            ladder.starts(now()),
            [(Rung::Direct, AT_ONCE), (Rung::Proxy, AT_ONCE), (Rung::Forward, HEAD_START)]
        );
    }

    #[test]
    fn what_was_not_reached_or_is_forbidden_is_not_tried_again() {
        let mut ladder = Ladder::new(RungChoice::Auto);
        ladder.failed(Rung::Direct, false);
        assert_eq!(ladder.starts(now()), [(Rung::Proxy, AT_ONCE), (Rung::Forward, HEAD_START)]);
        ladder.failed(Rung::Proxy, false);
        assert_eq!(ladder.starts(now()), [(Rung::Proxy, AT_ONCE), (Rung::Forward, HEAD_START)], "it may come back");
        ladder.failed(Rung::Proxy, true);
        assert_eq!(ladder.starts(now()), [(Rung::Forward, AT_ONCE)]);
        ladder.reached(Rung::Direct);
        assert_eq!(ladder.starts(now()), [(Rung::Direct, AT_ONCE), (Rung::Forward, AT_ONCE)]);
    }

    #[test]
    fn where_nothing_is_left_all_are_asked_why() {
        let mut ladder = Ladder::new(RungChoice::Auto);
        for rung in [Rung::Direct, Rung::Proxy, Rung::Forward] {
            ladder.failed(rung, true);
        }
        assert_eq!(ladder.starts(now()).len(), 3);
    }

    #[test]
    fn a_rung_that_was_asked_for_is_the_only_one() {
        let mut ladder = Ladder::new(RungChoice::Only(Rung::Forward));
        ladder.failed(Rung::Forward, true);
        assert_eq!(ladder.starts(now()), [(Rung::Forward, AT_ONCE)]);
        assert_eq!(ladder.better_than(Rung::Forward, now()), []);
    }

    #[test]
    fn links_move_to_every_better_rung_that_is_allowed() {
        let mut ladder = Ladder::new(RungChoice::Auto);
        ladder.failed(Rung::Direct, false);
        ladder.failed(Rung::Proxy, false);
        assert_eq!(ladder.better_than(Rung::Direct, now()), []);
        assert_eq!(ladder.better_than(Rung::Proxy, now()), [Rung::Direct]);
        assert_eq!(ladder.better_than(Rung::Forward, now()), [Rung::Direct, Rung::Proxy]);
        ladder.failed(Rung::Proxy, true);
        assert_eq!(ladder.better_than(Rung::Forward, now()), [Rung::Direct]);
    }

    /// The links of these numbers are lost one after another, each after a second.
    fn lost_young(ladder: &mut Ladder, rung: Rung, links: &[u32], now: Instant) {
        links.iter().for_each(|link| ladder.ended(*link, rung, Duration::from_secs(1), now));
    }

    #[test]
    fn a_rung_that_loses_a_link_again_and_again_comes_last_for_a_while() {
        let (mut ladder, now) = (Ladder::new(RungChoice::Auto), now());
        lost_young(&mut ladder, Rung::Direct, &[1, 1], now);
        assert_eq!(ladder.starts(now)[0], (Rung::Direct, AT_ONCE), "twice is chance");
        lost_young(&mut ladder, Rung::Direct, &[1], now);
        let others = [(Rung::Proxy, AT_ONCE), (Rung::Forward, HEAD_START), (Rung::Direct, LAST)];
        assert_eq!(ladder.starts(now), others);
        assert_eq!(ladder.better_than(Rung::Proxy, now), [], "links do not move there");
        let later = now + REMEMBERED;
        assert_eq!(ladder.starts(later)[0], (Rung::Direct, AT_ONCE));
        lost_young(&mut ladder, Rung::Direct, &[1], later);
        assert_eq!(ladder.starts(later)[0], (Rung::Direct, AT_ONCE), "it is counted from one again");
    }

    #[test]
    fn forward_does_not_wait_for_a_proxy_that_does_not_hold() {
        let (mut ladder, now) = (Ladder::new(RungChoice::Auto), now());
        lost_young(&mut ladder, Rung::Proxy, &[0, 0, 0], now);
        assert_eq!(ladder.starts(now), [(Rung::Direct, AT_ONCE), (Rung::Forward, AT_ONCE), (Rung::Proxy, LAST)]);
        ladder.network_changed();
        assert_eq!(ladder.starts(now)[1], (Rung::Proxy, AT_ONCE), "the fault may have been the network's");
    }

    #[test]
    fn one_loss_of_the_network_is_no_rungs_fault() {
        let (mut ladder, now) = (Ladder::new(RungChoice::Auto), now());
        lost_young(&mut ladder, Rung::Proxy, &[0, 1, 2, 3], now);
        assert_eq!(ladder.starts(now)[1], (Rung::Proxy, AT_ONCE));
        lost_young(&mut ladder, Rung::Proxy, &[0], now);
        ladder.ended(0, Rung::Proxy, YOUNG, now);
        lost_young(&mut ladder, Rung::Proxy, &[0, 0], now);
        assert_eq!(ladder.starts(now)[1], (Rung::Proxy, AT_ONCE), "a link that lasted was between");
    }

    #[test]
    fn where_no_rung_holds_they_are_as_good_as_before() {
        let (mut ladder, now) = (Ladder::new(RungChoice::Auto), now());
        ladder.failed(Rung::Direct, false);
        for rung in [Rung::Proxy, Rung::Forward] {
            lost_young(&mut ladder, rung, &[0, 0, 0], now);
        }
        assert_eq!(ladder.starts(now), [(Rung::Proxy, AT_ONCE), (Rung::Forward, HEAD_START)]);
    }
}
