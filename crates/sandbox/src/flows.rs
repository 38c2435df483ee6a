//! Which connections are being made: from the first SYN until the kernel's TCP has the connection. Pure; time is an
//! argument.
//!
//! A flow is dialled when its SYN comes, opened when the far side answered and the SYN was handed back to the kernel,
//! and leaves this table when the kernel accepted it. Retransmitted SYNs while dialling say nothing new; afterwards
//! they are handed back again, as the first one may have been lost to a full queue. Another sequence number on the same
//! ports is another connection: the old one is given up.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::packet::Syn;

/// Both ends of a connection, as the command sees them.
pub(crate) type Ends = (SocketAddr, SocketAddr);
/// Tells dials on the same ports apart.
pub(crate) type Dial = u64;

/// `A` gives up a dial when dropped; `C` is the far side of an opened flow.
pub(crate) struct Flows<A, C> {
    table: HashMap<Ends, Entry<A, C>>,
    next: Dial,
}

struct Entry<A, C> {
    dial: Dial,
    /// As it came from the TUN.
    packet: Vec<u8>,
    syn: Syn,
    state: State<A, C>,
    /// When it came, or was last found wanted.
    checked: Instant,
}

enum State<A, C> {
    Dialling { _abort: A },
    Opened { far: C },
}

/// What a SYN asks for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Dial, and call `begin` with this.
    New(Dial),
    /// It was dialled already and is not yet answered.
    Known,
    /// Hand this packet back to the kernel.
    Again,
}

/// What a dial's success means.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Opened {
    /// Hand this packet back to the kernel.
    Release(Vec<u8>),
    /// Nobody waits for it any more.
    Stale,
}

impl<A, C> Flows<A, C> {
    pub(crate) fn new() -> Flows<A, C> {
        Flows { table: HashMap::new(), next: 0 }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.table.is_empty()
    }

    pub(crate) fn len(&self) -> usize {
        self.table.len()
    }

    /// A SYN came from the command.
    pub(crate) fn syn(&mut self, syn: &Syn) -> Verdict {
        match self.table.get(&(syn.from, syn.to)) {
            Some(entry) if entry.syn.sequence == syn.sequence => match entry.state {
                State::Dialling { .. } => return Verdict::Known,
                State::Opened { .. } => return Verdict::Again,
            },
            _ => (),
        }
        self.next += 1;
        Verdict::New(self.next)
    }

    /// The dial of a new flow was begun. An older flow on the same ports is given up.
    pub(crate) fn begin(&mut self, dial: Dial, syn: Syn, packet: Vec<u8>, abort: A, now: Instant) {
        let state = State::Dialling { _abort: abort };
        self.table.insert((syn.from, syn.to), Entry { dial, packet, syn, state, checked: now });
    }

    /// The dial succeeded.
    pub(crate) fn opened(&mut self, ends: Ends, dial: Dial, far: C, now: Instant) -> Opened {
        match self.table.get_mut(&ends) {
            Some(entry) if entry.dial == dial => {
                entry.state = State::Opened { far };
                entry.checked = now;
                Opened::Release(entry.packet.clone())
            }
            _ => Opened::Stale,
        }
    }

    /// The dial failed: the SYN and its packet, to be answered, if somebody still waits.
    pub(crate) fn failed(&mut self, ends: Ends, dial: Dial) -> Option<(Syn, Vec<u8>)> {
        if self.table.get(&ends).is_none_or(|entry| entry.dial != dial) {
            return None;
        }
        self.table.remove(&ends).map(|entry| (entry.syn, entry.packet))
    }

    /// The kernel accepted the connection: its far side, if the flow is known and opened.
    pub(crate) fn accepted(&mut self, ends: Ends) -> Option<C> {
        match self.table.remove(&ends)?.state {
            State::Opened { far } => Some(far),
            State::Dialling { .. } => None,
        }
    }

    /// Asks, for each flow not asked about for `age`, whether the command still wants it, and gives up those it does
    /// not. Returns how many.
    pub(crate) fn give_up(&mut self, now: Instant, age: Duration, mut wanted: impl FnMut(&Ends) -> bool) -> usize {
        let before = self.table.len();
        self.table.retain(|ends, entry| {
            if now.saturating_duration_since(entry.checked) < age {
                return true;
            }
            entry.checked = now;
            wanted(ends)
        });
        before - self.table.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::rc::Rc;

    const AGE: Duration = Duration::from_millis(500);

    fn packet(sequence: u32) -> Vec<u8> {
        let mut bytes = vec![0x45, 0, 0, 40, 0, 0, 0, 0, 64, 6, 0, 0, 198, 18, 0, 1, 10, 96, 0, 5];
        bytes.extend_from_slice(&[0x9c, 0x40, 0, 80]);
        bytes.extend_from_slice(&sequence.to_be_bytes());
        bytes.extend_from_slice(&[0, 0, 0, 0, 0x50, 2, 0, 0, 0, 0, 0, 0]);
        bytes
    }

    fn syn(sequence: u32) -> Syn {
        crate::packet::syn(&packet(sequence)).expect("a SYN")
    }

    fn ends() -> Ends {
        (syn(0).from, syn(0).to)
    }

    struct Table {
        flows: Flows<Rc<()>, &'static str>,
        now: Instant,
    }

    impl Table {
        fn new() -> Table {
            Table { flows: Flows::new(), now: Instant::now() }
        }

        /// Begins a dial; the reference count of what is returned tells whether it was given up.
        fn dial(&mut self, sequence: u32) -> (Dial, Rc<()>) {
            let Verdict::New(dial) = self.flows.syn(&syn(sequence)) else { panic!("not new") };
            let abort = Rc::new(());
            self.flows.begin(dial, syn(sequence), packet(sequence), abort.clone(), self.now);
            (dial, abort)
        }
    }

    #[test]
    fn a_flow_is_dialled_once_released_and_accepted() {
        let mut t = Table::new();
        let (dial, _) = t.dial(1);
        assert_eq!(t.flows.syn(&syn(1)), Verdict::Known);
        assert_eq!(t.flows.opened(ends(), dial, "far", t.now), Opened::Release(packet(1)));
        assert_eq!(t.flows.accepted(ends()), Some("far"));
        assert!(t.flows.is_empty());
        assert_eq!(t.flows.accepted(ends()), None);
    }

    #[test]
    fn a_syn_repeated_after_opening_is_handed_back_again() {
        let mut t = Table::new();
        let (dial, _) = t.dial(1);
        t.flows.opened(ends(), dial, "far", t.now);
        assert_eq!(t.flows.syn(&syn(1)), Verdict::Again);
        assert_eq!(t.flows.accepted(ends()), Some("far"));
    }

    #[test]
    fn ports_used_anew_give_the_old_dial_up_and_its_late_answers_count_for_nothing() {
        let mut t = Table::new();
        let (old, abort) = t.dial(1);
        let (new, _) = t.dial(2);
        assert_eq!(Rc::strong_count(&abort), 1);
        assert_eq!(t.flows.opened(ends(), old, "old", t.now), Opened::Stale);
        assert_eq!(t.flows.failed(ends(), old), None);
        assert_eq!(t.flows.opened(ends(), new, "new", t.now), Opened::Release(packet(2)));
        assert_eq!(t.flows.accepted(ends()), Some("new"));
    }

    #[test]
    fn a_failed_dial_gives_its_syn_back_and_the_next_syn_dials_anew() {
        let mut t = Table::new();
        let (dial, _) = t.dial(1);
        assert_eq!(t.flows.failed(ends(), dial), Some((syn(1), packet(1))));
        assert!(matches!(t.flows.syn(&syn(1)), Verdict::New(_)));
    }

    #[test]
    fn flows_nobody_waits_for_are_given_up_others_are_asked_about_once_per_age() {
        let mut t = Table::new();
        let (_, abort) = t.dial(1);
        assert_eq!(t.flows.give_up(t.now, AGE, |_| panic!("too young to ask")), 0);
        assert_eq!(t.flows.give_up(t.now + AGE, AGE, |_| true), 0);
        assert_eq!(t.flows.give_up(t.now + AGE, AGE, |_| panic!("asked already")), 0);
        assert_eq!(Rc::strong_count(&abort), 2);
        assert_eq!(t.flows.give_up(t.now + AGE * 2, AGE, |_| false), 1);
        assert_eq!(Rc::strong_count(&abort), 1);
        assert_eq!(t.flows.len(), 0);
    }
}
