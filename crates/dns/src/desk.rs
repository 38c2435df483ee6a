//! The cache, and the list of who waits for which question. Pure: time is an argument.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::message::{Answer, Key, NAME_ERROR, NO_ERROR};

/// A name that moves (a pod restarted, a Service edited) is seen after 5 s. Long enough that a program which resolves
/// for each request asks the cluster 12 times a minute; the pod's own server (CoreDNS, 30 s) keeps the rest.
const LONGEST_POSITIVE: Duration = Duration::from_secs(5);
/// A name that appears during a session (acceptance R6) is seen after 2 s. Long enough for one search through
/// `ndots:5`, for A and AAAA, and a program's immediate retry.
const LONGEST_NEGATIVE: Duration = Duration::from_secs(2);
/// Bounds of what is kept. A typical answer has 100 to 300 bytes.
const MOST_BYTES: usize = 2 << 20;
const MOST_ENTRIES: usize = 4096;
/// Questions waiting at once, all together: above, askers are told to come again (SERVFAIL).
const MOST_WAITING: usize = 4096;

/// What is to be done with a question.
#[derive(Debug)]
pub(crate) enum Step<W> {
    /// Known: tell the asker.
    Known { waiter: W, answer: Arc<Answer>, age: Duration },
    /// The same question is being asked; its answer serves this one too.
    Joined,
    /// Ask, and tell by [`Desk::answered`].
    Ask,
    /// Too many questions wait.
    Full(W),
}

pub(crate) struct Desk<W> {
    known: HashMap<Key, Known>,
    bytes: usize,
    asking: HashMap<Key, Vec<W>>,
    waiting: usize,
}

struct Known {
    answer: Arc<Answer>,
    since: Instant,
    until: Instant,
}

impl<W> Desk<W> {
    pub(crate) fn new() -> Self {
        Desk { known: HashMap::new(), bytes: 0, asking: HashMap::new(), waiting: 0 }
    }

    pub(crate) fn question(&mut self, now: Instant, key: &Key, waiter: W) -> Step<W> {
        if let Some(known) = self.known.get(key).filter(|known| now < known.until) {
            let age = now.saturating_duration_since(known.since);
            return Step::Known { waiter, answer: known.answer.clone(), age };
        }
        if self.waiting >= MOST_WAITING {
            return Step::Full(waiter);
        }
        self.waiting += 1;
        if let Some(waiters) = self.asking.get_mut(key) {
            waiters.push(waiter);
            return Step::Joined;
        }
        self.asking.insert(key.clone(), vec![waiter]);
        Step::Ask
    }

    /// Keeps the answer as long as it may be kept and returns all who wait for it.
    pub(crate) fn answered(&mut self, now: Instant, key: &Key, answer: Option<&Arc<Answer>>) -> Vec<W> {
        if let Some(answer) = answer {
            self.keep(now, key, answer);
        }
        let waiters = self.asking.remove(key).unwrap_or_default();
        self.waiting -= waiters.len();
        waiters
    }

    fn keep(&mut self, now: Instant, key: &Key, answer: &Arc<Answer>) {
        let Some(lifetime) = keep_for(answer) else { return };
        self.forget(key);
        if self.is_full(answer) {
            self.known.retain(|_, known| now < known.until);
            self.bytes = self.known.values().map(|known| known.answer.len()).sum();
        }
        if !self.is_full(answer) {
            self.bytes += answer.len();
            self.known.insert(key.clone(), Known { answer: answer.clone(), since: now, until: now + lifetime });
        }
    }

    fn forget(&mut self, key: &Key) {
        if let Some(known) = self.known.remove(key) {
            self.bytes -= known.answer.len();
        }
    }

    fn is_full(&self, new: &Answer) -> bool {
        self.known.len() >= MOST_ENTRIES || self.bytes + new.len() > MOST_BYTES
    }
}

/// Failures are never kept, so that the first question after a link came back is answered.
fn keep_for(answer: &Answer) -> Option<Duration> {
    let most = match answer.rcode() {
        _ if answer.is_truncated() => return None,
        NO_ERROR if answer.is_positive() => LONGEST_POSITIVE,
        NO_ERROR | NAME_ERROR => LONGEST_NEGATIVE,
        _ => return None,
    };
    answer.lifetime().map(|lifetime| lifetime.min(most)).filter(|lifetime| !lifetime.is_zero())
}

#[cfg(test)]
mod tests {
    use hickory_proto::op::{Message, OpCode, Query as Question, ResponseCode};
    use hickory_proto::rr::rdata::{A, SOA, TXT};
    use hickory_proto::rr::{Name, RData, Record, RecordType};

    use super::*;
    use crate::message::Query;

    fn name(i: usize) -> Name {
        Name::from_ascii(format!("n{i}.example.")).expect("a name")
    }

    fn key(i: usize) -> Key {
        Query::new(&name(i), 1).key()
    }

    fn answer(i: usize, fill: impl FnOnce(&mut Message)) -> Arc<Answer> {
        let mut message = Message::response(1, OpCode::Query);
        message.add_query(Question::query(name(i), RecordType::A));
        fill(&mut message);
        Arc::new(Answer::parse(message.to_vec().expect("encodes").into()).expect("well formed"))
    }

    fn positive(i: usize, ttl: u32) -> Arc<Answer> {
        answer(i, |m| {
            m.add_answer(Record::from_rdata(name(i), ttl, RData::A(A::new(10, 0, 0, 1))));
        })
    }

    fn negative(i: usize, code: ResponseCode) -> Arc<Answer> {
        let soa = SOA::new(name(0), name(0), 1, 2, 3, 4, 60);
        answer(i, |m| {
            m.metadata.response_code = code;
            m.add_authority(Record::from_rdata(name(0), 60, RData::SOA(soa)));
        })
    }

    fn is_known(desk: &mut Desk<()>, now: Instant, i: usize) -> bool {
        match desk.question(now, &key(i), ()) {
            Step::Known { .. } => true,
            Step::Ask => {
                desk.answered(now, &key(i), None);
                false
            }
            step => panic!("{step:?}"),
        }
    }

    #[test]
    fn one_question_is_asked_for_all_who_wait() {
        let (mut desk, now) = (Desk::new(), Instant::now());
        assert!(matches!(desk.question(now, &key(1), "a"), Step::Ask));
        assert!(matches!(desk.question(now, &key(1), "b"), Step::Joined));
        assert!(matches!(desk.question(now, &key(2), "c"), Step::Ask));
        assert_eq!(desk.answered(now, &key(1), Some(&positive(1, 30))), ["a", "b"]);
        let later = now + Duration::from_secs(3);
        let Step::Known { waiter, age, .. } = desk.question(later, &key(1), "d") else { panic!("asked again") };
        assert_eq!((waiter, age), ("d", Duration::from_secs(3)));
    }

    #[test]
    fn answers_are_kept_by_their_ttl_and_never_long() {
        let now = Instant::now();
        let cases = [
            (positive(1, 3), 3),
            (positive(1, 3600), 5),
            (positive(1, 0), 0),
            (negative(1, ResponseCode::NXDomain), 2),
            (negative(1, ResponseCode::NoError), 2),
            (negative(1, ResponseCode::ServFail), 0),
            (negative(1, ResponseCode::Refused), 0),
        ];
        for (answer, secs) in cases {
            let mut desk = Desk::new();
            assert!(matches!(desk.question(now, &key(1), ()), Step::Ask));
            desk.answered(now, &key(1), Some(&answer));
            let end = now + Duration::from_secs(secs);
            assert_eq!(is_known(&mut desk, end - Duration::from_millis(1), 1), secs > 0, "{answer:?}");
            assert!(!is_known(&mut desk, end, 1), "{answer:?}");
        }
    }

    #[test]
    fn what_is_kept_is_bounded_and_what_is_over_makes_room() {
        let (mut desk, now) = (Desk::<()>::new(), Instant::now());
        for i in 0..MOST_ENTRIES + 10 {
            desk.answered(now, &key(i), Some(&positive(i, 30)));
        }
        assert_eq!(desk.known.len(), MOST_ENTRIES);
        let later = now + LONGEST_POSITIVE;
        desk.answered(later, &key(9999), Some(&positive(9999, 30)));
        assert_eq!(desk.known.len(), 1);
        assert!(is_known(&mut desk, later, 9999));
    }

    #[test]
    fn bytes_are_bounded_too() {
        let (mut desk, now) = (Desk::<()>::new(), Instant::now());
        for i in 0..200 {
            let text = RData::TXT(TXT::new(vec!["x".repeat(250); 200]));
            let big = answer(i, |m| {
                m.add_answer(Record::from_rdata(name(i), 30, text));
            });
            desk.answered(now, &key(i), Some(&big));
            desk.answered(now, &key(i), Some(&big));
        }
        assert!(desk.bytes <= MOST_BYTES && desk.known.len() > 30);
        assert_eq!(desk.bytes, desk.known.values().map(|known| known.answer.len()).sum::<usize>());
    }

    #[test]
    fn those_who_wait_are_bounded() {
        let (mut desk, now) = (Desk::new(), Instant::now());
        for i in 0..MOST_WAITING {
            assert!(!matches!(desk.question(now, &key(i % 2), i), Step::Full(_)));
        }
        assert!(matches!(desk.question(now, &key(1), 0), Step::Full(_)));
        desk.answered(now, &key(0), None);
        assert!(matches!(desk.question(now, &key(1), 0), Step::Joined));
    }
}
