//! What the mux knows of each live link: what waits to go out on it, and how it is doing.

use std::collections::VecDeque;
use std::time::Duration;

use crate::frame::FlowId;

use super::flow::Flow;

/// Live links of one session; a bit each in a [`LinkSet`].
const LINKS: usize = 32;
/// Answers to nonsense that may wait on one link. An honest peer causes next to none.
const UNKNOWN_LIMIT: usize = 1024;

/// A live link: a slot, used again when its link is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LinkId(pub(super) u8);

impl LinkId {
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

/// A set of live links.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LinkSet(u32);

impl LinkSet {
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    pub fn contains(self, link: LinkId) -> bool {
        self.0 & (1 << link.0) != 0
    }

    pub(super) fn insert(&mut self, link: LinkId) {
        self.0 |= 1 << link.0;
    }

    pub(super) fn remove(&mut self, link: LinkId) {
        self.0 &= !(1 << link.0);
    }
}

impl Iterator for LinkSet {
    type Item = LinkId;

    fn next(&mut self) -> Option<LinkId> {
        let lowest = self.0.checked_ilog2().map(|_| self.0.trailing_zeros())?;
        self.0 &= self.0 - 1;
        Some(LinkId(lowest as u8))
    }
}

/// Something small that goes before data.
#[derive(Debug)]
pub(super) enum Control {
    /// What is due of a flow.
    Flow(FlowId),
    /// The last word about a flow that is gone.
    Farewell(FlowId),
    /// RST 8: asked about a flow that nobody knows.
    Unknown(FlowId),
}

#[derive(Debug)]
pub(super) struct Link {
    pub number: u32,
    pub control: VecDeque<Control>,
    /// Flows with bytes to send, each served in turn.
    pub data: VecDeque<FlowId>,
    /// Flows that were moved here because of their load.
    pub heavy: usize,
    /// Whether others share its way, so that it keeps to the pace; and until when its data has to wait for that.
    pub is_shared: bool,
    pub held_until: Option<Duration>,
    pub ping_due: bool,
    pub pong_due: Option<u64>,
    /// PINGs sent so far; the number of the last is its opaque value.
    pub pings: u64,
    pub ping_sent: Option<Duration>,
    pub next_ping: Duration,
    /// Of the last PING answered, and of the one before.
    pub round_trip: Option<Duration>,
    round_trip_before: Option<Duration>,
    pub heard: Duration,
    pub silent: bool,
    /// Farewells sent here and not proven to have arrived, with the PINGs sent before each. PONG n proves everything
    /// sent before PING n.
    pub farewells: VecDeque<(u64, FlowId)>,
    unknown: usize,
    pub counts: Counts,
}

/// What passed over a link.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub bytes_sent: u64,
    pub bytes_received: u64,
    pub frames_sent: u64,
    /// Reads may cut a frame; each part counts.
    pub frames_received: u64,
}

impl Link {
    fn new(number: u32, now: Duration, ping_interval: Duration) -> Self {
        Link {
            number,
            control: VecDeque::new(),
            data: VecDeque::new(),
            heavy: 0,
            is_shared: false,
            held_until: None,
            ping_due: true,
            pong_due: None,
            pings: 0,
            ping_sent: None,
            next_ping: now + ping_interval,
            round_trip: None,
            round_trip_before: None,
            heard: now,
            silent: false,
            farewells: VecDeque::new(),
            unknown: 0,
            counts: Counts::default(),
        }
    }

    pub(super) fn has_something(&self) -> bool {
        self.ping_due || self.pong_due.is_some() || !self.control.is_empty() || !self.data.is_empty()
    }

    /// The flow whose turn it is, and whether no other waits.
    pub(super) fn next_flow(&mut self) -> Option<(FlowId, bool)> {
        let flow = self.data.pop_front()?;
        Some((flow, self.data.is_empty()))
    }

    /// The PONG for PING `number` came. Returns the flows whose farewells are proven now.
    pub(super) fn ponged(&mut self, number: u64, now: Duration) -> Vec<FlowId> {
        let Some(sent) = self.ping_sent.filter(|_| number == self.pings) else { return Vec::new() };
        self.ping_sent = None;
        self.round_trip_before = self.round_trip.replace(now.saturating_sub(sent));
        let proven = self.farewells.partition_point(|(before, _)| *before < number);
        self.farewells.drain(..proven).map(|(_, flow)| flow).collect()
    }

    /// False when too many of them wait.
    pub(super) fn queue_unknown(&mut self, flow: FlowId) -> bool {
        self.unknown += 1;
        self.control.push_back(Control::Unknown(flow));
        self.unknown <= UNKNOWN_LIMIT
    }

    pub(super) fn unknown_sent(&mut self) {
        self.unknown -= 1;
    }
}

/// The live links, and which of them got something to send.
#[derive(Debug, Default)]
pub(super) struct Links {
    slots: Vec<Option<Link>>,
    dirty: LinkSet,
}

impl Links {
    /// `None` when a link of that number lives, or too many do.
    pub(super) fn add(&mut self, number: u32, now: Duration, ping_interval: Duration) -> Option<LinkId> {
        if self.iter().any(|(_, link)| link.number == number) {
            return None;
        }
        let free = self.slots.iter().position(Option::is_none);
        let slot = free.or_else(|| (self.slots.len() < LINKS).then_some(self.slots.len()))?;
        if slot == self.slots.len() {
            self.slots.push(None);
        }
        self.slots[slot] = Some(Link::new(number, now, ping_interval));
        let id = LinkId(slot as u8);
        self.dirty.insert(id);
        Some(id)
    }

    pub(super) fn remove(&mut self, id: LinkId) -> Option<Link> {
        self.dirty.remove(id);
        self.slots.get_mut(id.index())?.take()
    }

    pub(super) fn get(&self, id: LinkId) -> Option<&Link> {
        self.slots.get(id.index())?.as_ref()
    }

    pub(super) fn get_mut(&mut self, id: LinkId) -> Option<&mut Link> {
        self.slots.get_mut(id.index())?.as_mut()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (LinkId, &Link)> {
        self.slots.iter().enumerate().filter_map(|(slot, link)| Some((LinkId(slot as u8), link.as_ref()?)))
    }

    /// What the path takes without our own queues: the shortest that any link saw lately. The path may change.
    pub(super) fn shortest_round_trip(&self) -> Option<Duration> {
        self.iter().flat_map(|(_, link)| [link.round_trip, link.round_trip_before]).flatten().min()
    }

    pub(super) fn ids(&self) -> LinkSet {
        let mut all = LinkSet::default();
        self.iter().for_each(|(id, _)| all.insert(id));
        all
    }

    pub(super) fn mark(&mut self, id: LinkId) {
        self.dirty.insert(id);
    }

    pub(super) fn take_dirty(&mut self) -> LinkSet {
        std::mem::take(&mut self.dirty)
    }

    /// Lets the flow say what is due on its link, or as soon as it has one.
    pub(super) fn queue_control(&mut self, id: FlowId, flow: &mut Flow) {
        if let Some(at) = flow.link
            && flow.control_on != Some(at)
            && flow.due.any()
            && let Some(link) = self.get_mut(at)
        {
            flow.control_on = Some(at);
            link.control.push_back(Control::Flow(id));
            self.dirty.insert(at);
        }
    }

    /// Lets the flow send its bytes on its link, or as soon as it has one.
    pub(super) fn queue_data(&mut self, id: FlowId, flow: &mut Flow) {
        if let Some(at) = flow.link
            && flow.data_on != Some(at)
            && !flow.resuming
            && flow.send.has_next()
            && let Some(link) = self.get_mut(at)
        {
            flow.data_on = Some(at);
            link.data.push_back(id);
            self.dirty.insert(at);
        }
    }

    /// Queues a farewell. False when no link lives.
    pub(super) fn queue_farewell(&mut self, id: FlowId, preferred: Option<LinkId>) -> bool {
        let Some(at) = preferred.filter(|at| self.get(*at).is_some()).or_else(|| self.interactive()) else {
            return false;
        };
        if let Some(link) = self.get_mut(at) {
            link.control.push_back(Control::Farewell(id));
            self.dirty.insert(at);
        }
        true
    }
}
