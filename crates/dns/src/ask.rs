//! Asks the sides of one question and chooses among what they say.
//!
//! The second side is asked when the first does not know the name, fails, or stays silent for a moment: a machine
//! whose own name servers cannot be reached still gets the cluster's answers, and still learns at once that a name
//! does not exist.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::{sleep, timeout};

use crate::message::{Answer, NAME_ERROR, NO_ERROR, Query};
use crate::policy::Side;
use crate::serve::Upstream;

/// The two sides, and how long they are waited for.
pub(crate) struct Sides {
    pub(crate) cluster: Arc<dyn Upstream>,
    pub(crate) host: Arc<dyn Upstream>,
    /// How long the first side may be silent before the second is asked too.
    pub(crate) head_start: Duration,
    /// How long a side is waited for at all.
    pub(crate) limit: Duration,
}

/// What came of a question.
#[derive(Debug)]
pub(crate) struct Asked {
    /// Who said what goes to the program; `None` when no side could be asked.
    pub(crate) answer: Option<(Side, Arc<Answer>)>,
    /// The first side said nothing for longer than its head start.
    pub(crate) first_was_silent: bool,
}

impl Sides {
    /// `impatient`: the first side was silent just now, so both are asked at once and a no of the second is enough.
    pub(crate) async fn ask(&self, query: &Query, order: &[Side], impatient: bool) -> Asked {
        let (first, second) = match order {
            [] => return Asked { answer: None, first_was_silent: false },
            [only] => {
                let answer = self.one(*only, query).await;
                return Asked { first_was_silent: false, answer: answer.map(|answer| (*only, answer)) };
            }
            [first, second, ..] => (*first, *second),
        };
        let head_start = if impatient { Duration::ZERO } else { self.head_start };
        let mut asking_first = std::pin::pin!(self.one(first, query));
        let early = tokio::select! {
            biased;
            answer = &mut asking_first => Some(answer),
            () = sleep(head_start) => None,
        };
        if let Some(answer) = early {
            let answer = match answer {
                Some(answer) if answer.rcode() == NO_ERROR => Some((first, answer)),
                answer => choose(answer.map(|a| (first, a)), self.one(second, query).await.map(|a| (second, a))),
            };
            return Asked { answer, first_was_silent: false };
        }
        let mut asking_second = std::pin::pin!(self.one(second, query));
        tokio::select! {
            biased;
            answer = &mut asking_first => match answer {
                Some(answer) if answer.rcode() == NO_ERROR => {
                    Asked { answer: Some((first, answer)), first_was_silent: false }
                }
                answer => {
                    let other = asking_second.await.map(|a| (second, a));
                    Asked { first_was_silent: answer.is_none(), answer: choose(answer.map(|a| (first, a)), other) }
                }
            },
            answer = &mut asking_second => {
                let enough = answer.as_ref().is_some_and(|a| a.is_positive() || (impatient && is_certain(a)));
                let answer = answer.map(|a| (second, a));
                if enough {
                    return Asked { answer, first_was_silent: true };
                }
                let late = asking_first.await;
                Asked { first_was_silent: late.is_none(), answer: choose(late.map(|a| (first, a)), answer) }
            }
        }
    }

    async fn one(&self, side: Side, query: &Query) -> Option<Arc<Answer>> {
        let upstream = match side {
            Side::Cluster => &self.cluster,
            Side::Host => &self.host,
        };
        let id = rand::random();
        let response = timeout(self.limit, upstream.ask(query.to_upstream(id))).await;
        let response = response.unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()));
        match response.map(|bytes: Bytes| Answer::parse(bytes).filter(|answer| answer.answers(query, id))) {
            Ok(Some(answer)) => Some(Arc::new(answer)),
            Ok(None) => {
                tracing::debug!(?side, "answer is malformed or to another question");
                None
            }
            Err(error) => {
                tracing::debug!(?side, %error, "side could not be asked");
                None
            }
        }
    }
}

/// Yes or no, not a failure of the server.
fn is_certain(answer: &Answer) -> bool {
    matches!(answer.rcode(), NO_ERROR | NAME_ERROR)
}

/// Once both were asked: a yes before a no, a no before a failure, and the first side's among equals. A no of one side
/// stands when the other cannot be asked, so that a name that does not exist fails at once.
fn choose(first: Option<(Side, Arc<Answer>)>, second: Option<(Side, Arc<Answer>)>) -> Option<(Side, Arc<Answer>)> {
    let worth = |said: &Option<(Side, Arc<Answer>)>| match said {
        None => 0,
        Some((_, answer)) if !is_certain(answer) => 1,
        Some((_, answer)) if answer.rcode() == NAME_ERROR => 2,
        Some(_) => 3,
    };
    if worth(&second) > worth(&first) { second } else { first }
}

#[cfg(test)]
mod tests {
    use std::future::pending;
    use std::io;

    use futures::FutureExt as _;
    use futures::future::BoxFuture;

    use super::*;
    use crate::message::SERVER_FAILURE;

    const BOTH: &[Side] = &[Side::Host, Side::Cluster];

    /// Answers every question in one way.
    #[derive(Clone, Copy)]
    enum Says {
        Yes,
        NoData,
        No,
        Fails,
        Lost,
        Nothing,
        Other,
    }

    impl Upstream for Says {
        fn ask(&self, query: Bytes) -> BoxFuture<'static, io::Result<Bytes>> {
            let parsed = Query::parse(&query).expect("a question");
            let response = match self {
                Says::Nothing => return pending().boxed(),
                Says::Lost => Err(io::ErrorKind::NotConnected.into()),
                Says::Yes => {
                    let mut response = parsed.fail(NO_ERROR);
                    response[7] = 1;
                    response.extend_from_slice(&[0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 9, 0, 4, 10, 0, 0, 1]);
                    Ok(response)
                }
                Says::NoData => Ok(parsed.fail(NO_ERROR)),
                Says::No => Ok(parsed.fail(NAME_ERROR)),
                Says::Fails => Ok(parsed.fail(SERVER_FAILURE)),
                Says::Other => Ok([&[query[0] ^ 1], &parsed.fail(NO_ERROR)[1..]].concat()),
            };
            async move { response.map(Bytes::from) }.boxed()
        }
    }

    async fn ask(host: Says, cluster: Says, order: &[Side], impatient: bool) -> (Option<(Side, u16)>, bool) {
        let limit = if matches!((host, cluster), (Says::Nothing, _)) && !impatient { 0 } else { 60_000 };
        let sides = Sides {
            cluster: Arc::new(cluster),
            host: Arc::new(host),
            head_start: Duration::ZERO,
            limit: Duration::from_millis(limit),
        };
        let query = Query::new(&hickory_proto::rr::Name::from_ascii("x.").expect("a name"), 1);
        let asked = sides.ask(&query, order, impatient).await;
        (asked.answer.map(|(side, answer)| (side, answer.rcode())), asked.first_was_silent)
    }

    #[tokio::test]
    async fn the_second_side_is_asked_when_the_first_does_not_know() {
        use Side::{Cluster, Host};
        let cases = [
            (Says::Yes, Says::Yes, Some((Host, NO_ERROR))),
            (Says::NoData, Says::Yes, Some((Host, NO_ERROR))),
            (Says::No, Says::Yes, Some((Cluster, NO_ERROR))),
            (Says::No, Says::NoData, Some((Cluster, NO_ERROR))),
            (Says::No, Says::No, Some((Host, NAME_ERROR))),
            (Says::No, Says::Lost, Some((Host, NAME_ERROR))),
            (Says::No, Says::Fails, Some((Host, NAME_ERROR))),
            (Says::Fails, Says::Yes, Some((Cluster, NO_ERROR))),
            (Says::Fails, Says::No, Some((Cluster, NAME_ERROR))),
            (Says::Fails, Says::Lost, Some((Host, SERVER_FAILURE))),
            (Says::Lost, Says::No, Some((Cluster, NAME_ERROR))),
            (Says::Lost, Says::Fails, Some((Cluster, SERVER_FAILURE))),
            (Says::Lost, Says::Lost, None),
            (Says::Other, Says::Yes, Some((Cluster, NO_ERROR))),
        ];
        for (i, (host, cluster, expected)) in cases.into_iter().enumerate() {
            assert_eq!(ask(host, cluster, BOTH, false).await, (expected, false), "case {i}");
        }
    }

    #[tokio::test]
    async fn a_silent_first_side_does_not_hold_up_a_yes_and_once_known_not_a_no() {
        let cluster = |rcode| (Some((Side::Cluster, rcode)), true);
        assert_eq!(ask(Says::Nothing, Says::Yes, BOTH, true).await, cluster(NO_ERROR));
        assert_eq!(ask(Says::Nothing, Says::No, BOTH, true).await, cluster(NAME_ERROR));
        assert_eq!(ask(Says::Nothing, Says::NoData, BOTH, true).await, cluster(NO_ERROR));
        // Not yet known to be silent: waited for until its limit (0 here).
        assert_eq!(ask(Says::Nothing, Says::No, BOTH, false).await.0, Some((Side::Cluster, NAME_ERROR)));
    }

    #[tokio::test]
    async fn names_of_one_side_are_asked_of_it_alone() {
        let only = &[Side::Cluster];
        assert_eq!(ask(Says::Yes, Says::No, only, false).await.0, Some((Side::Cluster, NAME_ERROR)));
        assert_eq!(ask(Says::Yes, Says::Lost, only, false).await.0, None);
    }
}
