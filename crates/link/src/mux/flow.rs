//! One flow as one end knows it.

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;

use crate::frame::{FlowId, Reset};

use super::link::{LinkId, LinkSet};
use super::place::Load;
use super::receive::Receiving;
use super::send::Sending;
use super::{Config, ProtocolError};

/// Numbers of the peer's flows that may be missing below the highest one seen. OPENs overtake each other only when
/// one was lost with its link.
const GAP_LIMIT: usize = 65_536;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Opened here; the other side has not answered.
    Opening,
    /// Opened by the other side; not answered here.
    Offered,
    Open,
    /// Reset by either side. Bytes that came before may still be taken.
    Ended(Reset),
}

/// Frames about the flow that are to be sent.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Due {
    pub open: bool,
    pub opened: bool,
    pub credit: bool,
    /// RESUME that wants an answer: we lost a link and must know what arrived.
    pub ask: bool,
    /// RESUME that is the answer.
    pub answer: bool,
}

impl Due {
    pub(super) fn any(&self) -> bool {
        self.open || self.opened || self.credit || self.ask || self.answer
    }
}

#[derive(Debug)]
pub(super) struct Flow {
    pub ours: bool,
    pub phase: Phase,
    pub send: Sending,
    pub receive: Receiving,
    /// OPEN's payload, kept until it is answered.
    pub payload: Bytes,
    pub due: Due,
    pub open_sent: bool,
    /// The link this end sends on.
    pub link: Option<LinkId>,
    /// Links that carried any frame of ours, and the one that carried the last CREDIT.
    pub sent_on: LinkSet,
    pub credit_on: Option<LinkId>,
    /// The link in whose queue the flow stands. An entry in another link's queue is stale.
    pub control_on: Option<LinkId>,
    pub data_on: Option<LinkId>,
    /// A link was lost with frames of ours; nothing is sent until the peer has said what it received.
    pub resuming: bool,
    /// In the list of flows whose credit goes out with the next PING.
    pub owing: bool,
    /// In the list of flows whose final CREDIT goes out soon.
    pub parting: bool,
    /// Somebody above holds the flow; without, it only waits for its last acknowledgement.
    pub held: bool,
    /// What was lately written here, and what came.
    pub load: Load,
    pub inflow: Load,
    pub heavy: bool,
}

impl Flow {
    pub(super) fn new(ours: bool, phase: Phase, payload: Bytes, config: &Config, now: Duration) -> Self {
        Flow {
            ours,
            phase,
            send: Sending::new(config.window, config.max_window),
            receive: Receiving::new(config.window, now),
            payload,
            due: Due { open: ours && phase == Phase::Opening, ..Due::default() },
            open_sent: false,
            link: None,
            sent_on: LinkSet::default(),
            credit_on: None,
            control_on: None,
            data_on: None,
            resuming: false,
            owing: false,
            parting: false,
            held: true,
            load: Load::default(),
            inflow: Load::default(),
            heavy: false,
        }
    }

    pub(super) fn is_ended(&self) -> bool {
        matches!(self.phase, Phase::Ended(_))
    }

    /// The other side knows the flow, so that frames may arrive in any order.
    pub(super) fn is_answered(&self) -> bool {
        self.phase == Phase::Open
    }

    /// Nothing is left to do for either direction.
    pub(super) fn is_done(&self) -> bool {
        self.send.is_done() && self.receive.is_done()
    }

    /// Frames of ours went down with `link`: says again what may be lost, and asks what arrived.
    pub(super) fn link_lost(&mut self, link: LinkId) {
        if !self.sent_on.contains(link) || self.is_ended() {
            return;
        }
        self.sent_on.remove(link);
        self.due.open |= self.phase == Phase::Opening;
        self.due.opened |= !self.ours && self.phase == Phase::Open;
        self.due.ask = true;
        self.resuming = true;
    }

    pub(super) fn end(&mut self, why: Reset) {
        self.phase = Phase::Ended(why);
        self.due = Due::default();
        self.payload = Bytes::new();
        self.resuming = false;
        self.send.abort();
    }
}

/// The last word about a flow that is gone here, kept until it is known to have arrived.
#[derive(Clone, Copy, Debug)]
pub(super) enum Farewell {
    Rst(Reset),
    /// The final CREDIT: everything was taken, up to this offset.
    Taken(u64),
}

/// Which of the peer's flow numbers were used.
#[derive(Debug)]
pub(super) struct Seen {
    next: u32,
    missing: BTreeSet<u32>,
}

impl Seen {
    pub(super) fn new(first: u32) -> Self {
        Seen { next: first, missing: BTreeSet::new() }
    }

    pub(super) fn contains(&self, id: FlowId) -> bool {
        id.0 < self.next && !self.missing.contains(&id.0)
    }

    /// Whether it is the first time.
    pub(super) fn insert(&mut self, id: FlowId) -> Result<bool, ProtocolError> {
        if id.0 < self.next {
            return Ok(self.missing.remove(&id.0));
        }
        let skipped = ((id.0 - self.next) / 2) as usize;
        if skipped + self.missing.len() > GAP_LIMIT {
            return Err(ProtocolError::TooManyGaps);
        }
        self.missing.extend((self.next..id.0).step_by(2));
        self.next = id.0.saturating_add(2);
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_new_once_in_whatever_order() {
        let mut seen = Seen::new(1);
        for (id, new) in [(1, true), (7, true), (3, true), (7, false), (5, true), (5, false), (3, false)] {
            assert_eq!(seen.insert(FlowId(id)), Ok(new), "{id}");
            assert!(seen.contains(FlowId(id)));
        }
        assert!(!seen.contains(FlowId(9)));
        assert_eq!(seen.insert(FlowId(u32::MAX)), Err(ProtocolError::TooManyGaps));
    }
}
