//! Which sessions are admitted, since when without a link, and when the agent may go. Pure: time is an argument.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use wire::{Admit, SessionId};

/// SHA-256 of a session key's SubjectPublicKeyInfo.
pub(crate) type KeyHash = [u8; 32];

/// Sessions at once. Far above what one pod's developers need; each costs memory that the pod's limits bound.
const MOST_SESSIONS: usize = 64;
/// Bounds of what a client may ask for.
const SHORTEST_LEASE: Duration = Duration::from_secs(1);
const LONGEST_LEASE: Duration = Duration::from_secs(3600);
const LONGEST_PARK: Duration = Duration::from_secs(24 * 3600);
/// Until the first session says how long: a client that died between placing and admission must not leave an agent.
const FIRST_PARK: Duration = Duration::from_secs(600);
/// The same in a stand-in, which is made for one session: its client knocks from the start on.
const FIRST_PARK_OF_STAND_IN: Duration = Duration::from_secs(15);
/// A session that left may close its links itself for so long.
const FAREWELL: Duration = Duration::from_secs(2);

/// Sessions, each with a `T` of its owner's.
#[derive(Debug)]
pub(crate) struct Registry<T> {
    sessions: HashMap<SessionId, Session<T>>,
    /// When the last session ended, and how long to stay after it.
    parked_at: Instant,
    park: Duration,
    longest_park: Duration,
}

#[derive(Debug)]
struct Session<T> {
    key: KeyHash,
    lease: Duration,
    park: Duration,
    links: usize,
    /// When it ends, while it has no link or has left.
    ends_at: Option<Instant>,
    left: bool,
    value: T,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Admission {
    New(SessionId),
    Renewed(SessionId),
}

/// Worded for the user.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("the agent already serves {MOST_SESSIONS} sessions; end one with stead quit")]
    TooMany,
    #[error("the session id or its key belongs to another session of this agent")]
    Taken,
    #[error("the admission is malformed")]
    Malformed,
}

impl<T> Registry<T> {
    /// An agent in a stand-in never parks.
    pub(crate) fn new(now: Instant, stand_in: bool) -> Self {
        let (park, longest_park) =
            if stand_in { (FIRST_PARK_OF_STAND_IN, Duration::ZERO) } else { (FIRST_PARK, LONGEST_PARK) };
        Registry { sessions: HashMap::new(), parked_at: now, park, longest_park }
    }

    /// Admits a session, whose value `make` gives, or renews what was agreed with it.
    pub(crate) fn admit(
        &mut self,
        now: Instant,
        admit: &Admit,
        make: impl FnOnce(SessionId) -> T,
    ) -> Result<Admission, Refusal> {
        let id = SessionId::try_from(admit.session.as_slice()).map_err(|_| Refusal::Malformed)?;
        let key: KeyHash = admit.key_hash.as_slice().try_into().map_err(|_| Refusal::Malformed)?;
        let lease = Duration::from_secs(admit.lease_seconds.into()).clamp(SHORTEST_LEASE, LONGEST_LEASE);
        let park = Duration::from_secs(admit.park_seconds.into()).min(self.longest_park);
        if self.sessions.iter().any(|(have, session)| (*have == id) != (session.key == key)) {
            return Err(Refusal::Taken);
        }
        if let Some(session) = self.sessions.get_mut(&id) {
            if session.left {
                return Err(Refusal::Taken);
            }
            (session.lease, session.park) = (lease, park);
            session.ends_at = (session.links == 0).then_some(now + lease);
            return Ok(Admission::Renewed(id));
        }
        if self.sessions.len() >= MOST_SESSIONS {
            return Err(Refusal::TooMany);
        }
        let (ends_at, value) = (Some(now + lease), make(id));
        self.sessions.insert(id, Session { key, lease, park, links: 0, ends_at, left: false, value });
        Ok(Admission::New(id))
    }

    /// Keys that may open links.
    pub(crate) fn admitted_keys(&self) -> impl Iterator<Item = KeyHash> {
        self.sessions.values().filter(|session| !session.left).map(|session| session.key)
    }

    /// A link of this key came: its session, unless that ended meanwhile.
    pub(crate) fn link_up(&mut self, key: &KeyHash) -> Option<(SessionId, &mut T)> {
        let (id, session) = self.sessions.iter_mut().find(|(_, session)| session.key == *key && !session.left)?;
        session.links += 1;
        session.ends_at = None;
        Some((*id, &mut session.value))
    }

    /// A link that came is gone; the last one starts the lease.
    pub(crate) fn link_down(&mut self, now: Instant, id: SessionId) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        session.links -= 1;
        if session.links == 0 {
            session.ends_at = Some(if session.left { now } else { now + session.lease });
        }
    }

    /// The session said that it ends: no new links, and only a moment for the last words.
    pub(crate) fn leave(&mut self, now: Instant, id: SessionId) {
        if let Some(session) = self.sessions.get_mut(&id) {
            session.left = true;
            session.ends_at = Some(if session.links == 0 { now } else { now + FAREWELL });
        }
    }

    /// Removes the sessions whose time has come.
    pub(crate) fn ended(&mut self, now: Instant) -> Vec<(SessionId, T)> {
        let ended = self.sessions.extract_if(|_, session| session.ends_at.is_some_and(|at| at <= now));
        ended
            .map(|(id, session)| {
                (self.parked_at, self.park) = (now, session.park);
                (id, session.value)
            })
            .collect()
    }

    /// Nothing was served for as long as was asked: the agent ends.
    pub(crate) fn may_exit(&self, now: Instant) -> bool {
        self.sessions.is_empty() && now >= self.parked_at + self.park
    }

    /// When `ended` or `may_exit` has something to say next.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        let exit = self.sessions.is_empty().then_some(self.parked_at + self.park);
        self.sessions.values().filter_map(|session| session.ends_at).chain(exit).min()
    }

    pub(crate) fn len(&self) -> usize {
        self.sessions.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn admit(session: u8, key: u8) -> Admit {
        Admit {
            session: vec![session; 16],
            key_hash: vec![key; 32],
            lease_seconds: 60,
            park_seconds: 600,
            ..Admit::default()
        }
    }

    fn id(session: u8) -> SessionId {
        SessionId([session; 16])
    }

    fn start() -> (Registry<SessionId>, Instant) {
        let now = Instant::now();
        (Registry::new(now, false), now)
    }

    #[test]
    fn a_session_lives_a_lease_beyond_its_last_link() {
        let (mut registry, now) = start();
        assert_eq!(registry.admit(now, &admit(1, 1), |id| id), Ok(Admission::New(id(1))));
        assert_eq!(registry.next_deadline(), Some(now + 60 * SECOND), "without any link too");
        assert_eq!(registry.link_up(&[1; 32]), Some((id(1), &mut id(1))));
        registry.link_up(&[1; 32]);
        assert_eq!(registry.next_deadline(), None);
        registry.link_down(now + 10 * SECOND, id(1));
        assert_eq!(registry.next_deadline(), None);
        registry.link_down(now + 20 * SECOND, id(1));
        assert!(registry.ended(now + 79 * SECOND).is_empty());
        assert_eq!(registry.ended(now + 80 * SECOND), [(id(1), id(1))]);
        assert_eq!(registry.link_up(&[1; 32]), None);
    }

    #[test]
    fn a_stand_ins_agent_waits_a_little_for_its_first_session_and_never_parks() {
        let now = Instant::now();
        let mut registry = Registry::new(now, true);
        assert!(!registry.may_exit(now + 14 * SECOND));
        assert!(registry.may_exit(now + 15 * SECOND));
        registry.admit(now, &admit(1, 1), |id| id).expect("admitted");
        registry.leave(now, id(1));
        assert_eq!(registry.ended(now).len(), 1);
        assert!(registry.may_exit(now));
    }

    #[test]
    fn the_same_line_renews() {
        let (mut registry, now) = start();
        registry.admit(now, &admit(1, 1), |id| id).expect("admitted");
        let later = now + 50 * SECOND;
        let longer = Admit { lease_seconds: 120, ..admit(1, 1) };
        assert_eq!(registry.admit(later, &longer, |_| unreachable!("it has one")), Ok(Admission::Renewed(id(1))));
        assert_eq!(registry.next_deadline(), Some(later + 120 * SECOND));
    }

    #[test]
    fn ids_and_keys_of_others_are_refused() {
        let (mut registry, now) = start();
        registry.admit(now, &admit(1, 1), |id| id).expect("admitted");
        assert_eq!(registry.admit(now, &admit(1, 2), |id| id), Err(Refusal::Taken));
        assert_eq!(registry.admit(now, &admit(2, 1), |id| id), Err(Refusal::Taken));
        for session in 2..=MOST_SESSIONS as u8 {
            registry.admit(now, &admit(session, session), |id| id).expect("admitted");
        }
        assert_eq!(registry.admit(now, &admit(100, 100), |id| id), Err(Refusal::TooMany));
        assert_eq!(registry.admitted_keys().count(), MOST_SESSIONS);
    }

    #[test]
    fn who_leaves_is_gone_with_its_links() {
        let (mut registry, now) = start();
        registry.admit(now, &admit(1, 1), |id| id).expect("admitted");
        registry.link_up(&[1; 32]);
        registry.leave(now, id(1));
        assert_eq!(registry.admitted_keys().count(), 0);
        assert_eq!(registry.link_up(&[1; 32]), None);
        assert_eq!(registry.admit(now, &admit(1, 1), |id| id), Err(Refusal::Taken));
        assert!(registry.ended(now).is_empty());
        registry.link_down(now, id(1));
        assert_eq!(registry.ended(now), [(id(1), id(1))]);

        registry.admit(now, &admit(2, 2), |id| id).expect("admitted");
        registry.link_up(&[2; 32]);
        registry.leave(now, id(2));
        assert_eq!(registry.ended(now + FAREWELL).len(), 1, "also with a link that stays open");
    }

    #[test]
    fn the_agent_parks_as_long_as_the_last_session_said() {
        let (mut registry, now) = start();
        assert!(!registry.may_exit(now + FIRST_PARK - SECOND));
        assert!(registry.may_exit(now + FIRST_PARK));
        assert_eq!(registry.next_deadline(), Some(now + FIRST_PARK));
        let no_park = Admit { park_seconds: 0, ..admit(1, 1) };
        registry.admit(now, &no_park, |id| id).expect("admitted");
        registry.admit(now, &admit(2, 2), |id| id).expect("admitted");
        registry.leave(now, id(1));
        registry.ended(now);
        assert!(!registry.may_exit(now), "another session lives");
        registry.leave(now, id(2));
        registry.ended(now);
        assert!(!registry.may_exit(now + 599 * SECOND) && registry.may_exit(now + 600 * SECOND));

        registry.admit(now, &no_park, |id| id).expect("admitted");
        registry.leave(now, id(1));
        registry.ended(now);
        assert!(registry.may_exit(now));
    }
}
