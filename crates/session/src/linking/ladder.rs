//! Pure: which rungs a link is dialled on, and how long after the first each one is tried.

use std::collections::BTreeSet;
use std::time::Duration;

use cluster::Rung;

/// A dial through `proxy` takes 10 ms here and a round trip or two more on a long path; who is not there by then may be
/// in a black hole.
const HEAD_START: Duration = Duration::from_millis(200);

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
}

impl Ladder {
    pub(super) fn new(choice: RungChoice) -> Self {
        Ladder { choice, is_apart: false, forbidden: BTreeSet::new() }
    }

    /// The rungs to dial, with how long after the first; one whose predecessor through the API server has failed is due at
    /// once.
    pub(super) fn starts(&self) -> Vec<(Rung, Duration)> {
        if let RungChoice::Only(rung) = self.choice {
            return vec![(rung, Duration::ZERO)];
        }
        let useless = |rung: Rung| self.forbidden.contains(&rung) || rung == Rung::Direct && self.is_apart;
        let head_start = if useless(Rung::Proxy) { Duration::ZERO } else { HEAD_START };
        let all = [(Rung::Direct, Duration::ZERO), (Rung::Proxy, Duration::ZERO), (Rung::Forward, head_start)];
        let starts: Vec<_> = all.into_iter().filter(|(rung, _)| !useless(*rung)).collect();
        // With nothing left that could work, all are asked again, so that the error says why.
        if starts.is_empty() { all.to_vec() } else { starts }
    }

    /// Whether a link on this rung could do better.
    pub(super) fn could_be_direct(&self, rung: Rung) -> bool {
        self.choice == RungChoice::Auto && rung != Rung::Direct
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

    #[test]
    fn all_are_raced_and_forward_gives_proxy_a_head_start() {
        let ladder = Ladder::new(RungChoice::Auto);
        assert_eq!(ladder.starts(), [(Rung::Direct, AT_ONCE), (Rung::Proxy, AT_ONCE), (Rung::Forward, HEAD_START)]);
    }

    #[test]
    fn what_was_not_reached_or_is_forbidden_is_not_tried_again() {
        let mut ladder = Ladder::new(RungChoice::Auto);
        ladder.failed(Rung::Direct, false);
        assert_eq!(ladder.starts(), [(Rung::Proxy, AT_ONCE), (Rung::Forward, HEAD_START)]);
        ladder.failed(Rung::Proxy, false);
        assert_eq!(ladder.starts(), [(Rung::Proxy, AT_ONCE), (Rung::Forward, HEAD_START)], "it may come back");
        ladder.failed(Rung::Proxy, true);
        assert_eq!(ladder.starts(), [(Rung::Forward, AT_ONCE)]);
        ladder.reached(Rung::Direct);
        assert_eq!(ladder.starts(), [(Rung::Direct, AT_ONCE), (Rung::Forward, AT_ONCE)]);
    }

    #[test]
    fn where_nothing_is_left_all_are_asked_why() {
        let mut ladder = Ladder::new(RungChoice::Auto);
        for rung in [Rung::Direct, Rung::Proxy, Rung::Forward] {
            ladder.failed(rung, true);
        }
        assert_eq!(ladder.starts().len(), 3);
    }

    #[test]
    fn a_rung_that_was_asked_for_is_the_only_one() {
        let mut ladder = Ladder::new(RungChoice::Only(Rung::Forward));
        ladder.failed(Rung::Forward, true);
        assert_eq!(ladder.starts(), [(Rung::Forward, AT_ONCE)]);
        assert!(!ladder.could_be_direct(Rung::Forward));
    }
}
