//! One end of a session as a pure state machine: flows with credit, over any number of links that come and go.
//!
//! It does no I/O and knows no clock: `now` is the time since the session began. Whoever drives it
//! - tells it of links ([`Mux::link_up`], [`Mux::link_lost`]), of frames that came ([`Mux::handle_data`],
//!   [`Mux::handle_frame`]) and of time ([`Mux::handle_timeout`]);
//! - puts on each link what [`Mux::poll_transmit`] gives, in that order;
//! - follows [`Mux::poll_event`].
//!
//! Bytes written are kept until the peer took them, so that flows survive the loss of links: each end that lost frames
//! with a link asks the peer what it received (RESUME) and sends the rest again. The peer is not trusted: whatever it
//! sends is either right or a [`ProtocolError`], after which the link must be closed.

mod demand;
mod flow;
mod input;
mod link;
mod pace;
mod place;
mod receive;
mod send;

use std::collections::{HashMap, VecDeque};
use std::num::NonZeroU64;
use std::time::Duration;

use bytes::Bytes;

use crate::frame::{FlowId, FrameError, HEADER_LEN, Header, Kind, PAYLOAD_LIMIT, Reset};

pub use flow::Phase;
pub use link::{Counts, LinkId, LinkSet};

use demand::Demand;
use flow::{Farewell, Flow, Seen};
use link::{Control, Link, Links};
use pace::Pace;
use send::Next;

/// What one flow may send before the next one's turn.
const TURN: usize = 64 << 10;
/// How long a final CREDIT waits for something to go out with, and how many may wait.
const PARTING: Duration = Duration::from_millis(20);
const PARTING_LIMIT: usize = 256;
/// Room at which a writer that had to wait is told, unless its queue is empty.
const WORTHWHILE: usize = 64 << 10;

/// Which end of the session this is; decides which flow numbers are ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Client,
    Agent,
}

/// Limits and times. The default is what both ends of a session must agree on; others are for tests.
#[derive(Clone, Debug)]
pub struct Config {
    /// Bytes of a flow's direction that may be under way at first.
    pub window: u64,
    /// What the window may grow to.
    pub max_window: u64,
    /// By how much all windows of a session together may be larger than at first; bounds what stalled flows can hold.
    pub growth_budget: u64,
    pub ping_interval: Duration,
    /// A link from which nothing came for so long is dead.
    pub silence: Duration,
    /// Flows that the peer may have open at once.
    pub max_flows: usize,
    /// Links that this end may want. Only the client dials.
    pub max_links: usize,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            window: 1 << 20,
            max_window: 16 << 20,
            growth_budget: 128 << 20,
            ping_interval: Duration::from_secs(5),
            silence: Duration::from_secs(15),
            max_flows: 65_536,
            max_links: 4,
        }
    }
}

/// What the peer must not do.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProtocolError {
    #[error("more bytes than the window allows")]
    Overrun,
    #[error("bytes after the end of a flow, or two different ends")]
    PastTheEnd,
    #[error("too many gaps")]
    TooManyGaps,
    #[error("acknowledgement of bytes that were never sent")]
    BadOffset,
    #[error("frame for a flow that was never opened")]
    NeverOpened,
    #[error("flow number of the wrong side")]
    WrongSide,
    #[error("frame with a payload of a wrong size")]
    BadPayload,
    #[error("frame where it does not belong")]
    Misplaced,
    #[error("frames faster than their answers are read")]
    Flooded,
    #[error(transparent)]
    Frame(#[from] FrameError),
}

/// A frame to send: the header encoded, the payload shared with what is retained.
#[derive(Debug, Clone)]
pub struct Frame {
    pub header: [u8; HEADER_LEN],
    pub payload: Bytes,
}

#[derive(Debug, PartialEq, Eq)]
pub enum Event {
    /// The peer opened a flow: answer with [`Mux::accept`] or [`Mux::refuse`].
    Offered { flow: FlowId, payload: Bytes },
    /// Something about the flow is worth a look: answered, bytes or room where there were none, finished, reset.
    Changed(FlowId),
    /// Nothing came over the link for too long: close it.
    Silent(LinkId),
    /// So many links would serve what is sent now; see [`Mux::wanted_links`].
    Wanted(usize),
}

/// Faults that can be planted, to prove that the model test finds such.
#[cfg(feature = "seeded-bugs")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {
    LostCredit,
    DuplicateAfterResume,
    DroppedRst,
}

#[derive(Debug)]
pub struct Mux {
    role: Role,
    config: Config,
    flows: HashMap<FlowId, Flow>,
    links: Links,
    /// Of all links together whose way others share.
    pace: Pace,
    demand: Demand,
    events: VecDeque<Event>,
    farewells: HashMap<FlowId, Farewell>,
    /// Farewells to send as soon as a link lives.
    homeless: Vec<FlowId>,
    /// Flows whose credit goes out with the next PING.
    owing: Vec<FlowId>,
    /// Flows whose final CREDIT goes out with whatever goes out next, and by when at the latest.
    parting: Vec<FlowId>,
    part_by: Duration,
    next_id: u32,
    seen: Seen,
    /// By how much windows have grown.
    grown: u64,
    /// Flows of the peer that are open.
    theirs: usize,
    closed: Option<Reset>,
    #[cfg(feature = "seeded-bugs")]
    pub bug: Option<Bug>,
}

impl Mux {
    pub fn new(role: Role, config: Config) -> Self {
        let (ours, theirs) = match role {
            Role::Client => (1, 2),
            Role::Agent => (2, 1),
        };
        let control = Flow::new(role == Role::Client, Phase::Open, Bytes::new(), &config, Duration::ZERO);
        let demand = Demand::new(config.max_links);
        Mux {
            role,
            config,
            demand,
            flows: HashMap::from([(FlowId::CONTROL, control)]),
            links: Links::default(),
            pace: Pace::default(),
            events: VecDeque::new(),
            farewells: HashMap::new(),
            homeless: Vec::new(),
            owing: Vec::new(),
            parting: Vec::new(),
            part_by: Duration::ZERO,
            next_id: ours,
            seen: Seen::new(theirs),
            grown: 0,
            theirs: 0,
            closed: None,
            #[cfg(feature = "seeded-bugs")]
            bug: None,
        }
    }

    // ---- links

    /// A link is there. `None` when one of that number lives already, or too many do.
    pub fn link_up(&mut self, number: u32, now: Duration) -> Option<LinkId> {
        let id = self.links.add(number, now, self.config.ping_interval)?;
        for flow in std::mem::take(&mut self.homeless) {
            self.links.queue_farewell(flow, Some(id));
        }
        self.calm(now);
        for id in self.flow_ids() {
            if let Some(flow) = self.flows.get_mut(&id).filter(|flow| flow.link.is_none()) {
                settle_on_link(&mut self.links, id, flow);
            }
        }
        Some(id)
    }

    /// Others share the link's way: it keeps to the pace.
    pub fn share(&mut self, link: LinkId) {
        if let Some(link) = self.links.get_mut(link) {
            link.is_shared = true;
        }
    }

    /// The links whose way others share carry at most so many bytes a second out, all of them together.
    pub fn set_pace(&mut self, bytes_per_second: Option<NonZeroU64>) {
        self.pace.set(bytes_per_second);
        for id in self.links.ids() {
            if self.links.get_mut(id).is_some_and(|link| link.held_until.take().is_some()) {
                self.links.mark(id);
            }
        }
    }

    /// A link is gone, with whatever was under way on it.
    pub fn link_lost(&mut self, lost: LinkId) {
        let Some(link) = self.links.remove(lost) else { return };
        for id in self.flow_ids() {
            let Some(flow) = self.flows.get_mut(&id) else { continue };
            flow.link_lost(lost);
            if flow.link == Some(lost) {
                self.links.leave(flow);
            }
            settle_on_link(&mut self.links, id, flow);
        }
        let queued = link.control.into_iter().filter_map(|control| match control {
            Control::Farewell(flow) => Some(flow),
            Control::Flow(_) | Control::Unknown(_) => None,
        });
        let unproven = link.farewells.into_iter().map(|(_, flow)| flow);
        for flow in unproven.chain(queued).collect::<Vec<_>>() {
            #[cfg(feature = "seeded-bugs")]
            if self.bug == Some(Bug::DroppedRst) {
                continue;
            }
            self.send_farewell(flow, None);
        }
    }

    /// Links that got something to send since this was last asked.
    pub fn take_dirty(&mut self) -> LinkSet {
        self.links.take_dirty()
    }

    /// Appends frames to be sent on the link now: about `budget` bytes, at most `frames` frames and those that belong
    /// with the last.
    pub fn poll_transmit(&mut self, on: LinkId, out: &mut Vec<Frame>, mut budget: usize, frames: usize, now: Duration) {
        let before = out.len();
        if self.links.get(on).is_some_and(Link::has_something) {
            self.part();
        }
        self.transmit_pings(on, out, now);
        while out.len() < frames
            && let Some(control) = self.links.get_mut(on).and_then(|link| link.control.pop_front())
        {
            self.transmit_control(on, control, out);
        }
        budget = budget.min(self.room_on(on, now));
        while out.len() < frames
            && budget > 0
            && let Some((flow, alone)) = self.links.get_mut(on).and_then(Link::next_flow)
        {
            let turn = if alone { PAYLOAD_LIMIT as usize } else { TURN };
            budget -= self.transmit_data(on, flow, out, budget.min(turn)).min(budget);
        }
        if let Some(link) = self.links.get_mut(on) {
            let bytes: usize = out[before..].iter().map(|frame| HEADER_LEN + frame.payload.len()).sum();
            link.counts.bytes_sent += bytes as u64;
            link.counts.frames_sent += (out.len() - before) as u64;
            if link.is_shared {
                self.pace.sent(bytes, now);
            }
        }
    }

    /// Bytes of data that may go out on the link now; when that is none, the link is marked once there are more.
    fn room_on(&mut self, on: LinkId, now: Duration) -> usize {
        let Some(link) = self.links.get_mut(on).filter(|link| link.is_shared && !link.data.is_empty()) else {
            return usize::MAX;
        };
        self.pace.room(link.heavy > 0, now).unwrap_or_else(|until| {
            link.held_until = Some(until);
            0
        })
    }

    // ---- flows

    /// Opens a flow; `None` when the session is closed or its numbers are used up. [`Event::Changed`] tells when the
    /// answer is there.
    pub fn open(&mut self, payload: Bytes, now: Duration) -> Option<FlowId> {
        if self.closed.is_some() {
            return None;
        }
        let id = FlowId(self.next_id);
        self.next_id = self.next_id.checked_add(2)?;
        let mut flow = Flow::new(true, Phase::Opening, payload, &self.config, now);
        settle_on_link(&mut self.links, id, &mut flow);
        self.flows.insert(id, flow);
        Some(id)
    }

    /// Answers an offered flow.
    pub fn accept(&mut self, id: FlowId) {
        if let Some(flow) = self.flows.get_mut(&id).filter(|flow| flow.phase == Phase::Offered) {
            flow.phase = Phase::Open;
            flow.due.opened = true;
            settle_on_link(&mut self.links, id, flow);
        }
    }

    /// Answers an offered flow with a reset, and forgets it.
    pub fn refuse(&mut self, id: FlowId, why: Reset) {
        self.reset(id, why);
        self.release(id);
    }

    /// Where the flow stands; a flow unknown here was aborted.
    pub fn phase(&self, id: FlowId) -> Phase {
        self.flows.get(&id).map_or(Phase::Ended(Reset::Aborted), |flow| flow.phase)
    }

    /// Bytes that may be written now. After a 0, [`Event::Changed`] tells when to ask again.
    pub fn room(&mut self, id: FlowId) -> usize {
        let Some(flow) = self.flows.get_mut(&id).filter(|flow| !flow.is_ended()) else { return 0 };
        let room = flow.send.room();
        flow.send.blocked = room == 0;
        room
    }

    /// Sends bytes, at most as many as there was room for.
    pub fn write(&mut self, id: FlowId, bytes: Bytes, now: Duration) {
        if let Some(flow) = self.flows.get_mut(&id).filter(|flow| !flow.is_ended() && !flow.send.is_finished()) {
            flow.load.add(bytes.len(), now);
            // Before there is something to send, which would keep a quiet flow where it is.
            self.links.place(flow);
            flow.send.write(bytes);
            settle_on_link(&mut self.links, id, flow);
            if flow.heavy && self.demand.heavy(id, now) {
                self.look_at_demand(now);
            }
        }
    }

    /// No more will be written.
    pub fn finish(&mut self, id: FlowId) {
        if let Some(flow) = self.flows.get_mut(&id).filter(|flow| !flow.is_ended()) {
            flow.send.finish();
            settle_on_link(&mut self.links, id, flow);
        }
    }

    /// Whether [`Mux::finish`] was said.
    pub fn is_finished(&self, id: FlowId) -> bool {
        self.flows.get(&id).is_none_or(|flow| flow.send.is_finished())
    }

    /// The next bytes that came in order, unless somebody has been handed some and did not say [`Mux::delivered`] yet.
    pub fn take(&mut self, id: FlowId) -> Option<Bytes> {
        self.flows.get_mut(&id)?.receive.take()
    }

    /// Of the bytes handed out, `written` were written on and `rest` was not.
    pub fn delivered(&mut self, id: FlowId, written: usize, rest: &[u8], now: Duration) {
        let Some(flow) = self.flows.get_mut(&id) else { return };
        flow.receive.delivered(written, rest);
        if flow.receive.has_ready() || flow.receive.at_end() || flow.is_ended() {
            self.events.push_back(Event::Changed(id));
        }
        if flow.is_ended() {
            return;
        }
        if flow.receive.credit_due() {
            let round_trip = self.links.shortest_round_trip();
            if let Some(wanted) = round_trip.and_then(|round_trip| flow.receive.wanted_window(now, round_trip)) {
                let before = flow.receive.window();
                let allowed = before + self.config.growth_budget.saturating_sub(self.grown);
                flow.receive.grow(wanted.min(self.config.max_window).min(allowed));
                self.grown += flow.receive.window() - before;
            }
            flow.due.credit = true;
            settle_on_link(&mut self.links, id, flow);
        } else if flow.receive.credit_owed() && !flow.owing {
            flow.owing = true;
            self.owing.push(id);
        }
    }

    /// The peer finished and every byte was written on; what is left to do is to pass the end on.
    pub fn at_end(&self, id: FlowId) -> bool {
        self.flows.get(&id).is_some_and(|flow| flow.receive.at_end())
    }

    /// The end was passed on.
    pub fn end_taken(&mut self, id: FlowId, now: Duration) {
        let Some(flow) = self.flows.get_mut(&id).filter(|flow| !flow.is_ended()) else { return };
        if flow.receive.take_fin() {
            if self.parting.is_empty() {
                self.part_by = now + PARTING;
            }
            flow.parting = true;
            self.parting.push(id);
            self.forget_if_done(id);
            if self.parting.len() >= PARTING_LIMIT {
                self.part();
            }
        }
    }

    /// Bytes sent and received so far; the latter written on.
    pub fn totals(&self, id: FlowId) -> (u64, u64) {
        self.flows.get(&id).map_or((0, 0), |flow| (flow.send.end(), flow.receive.taken()))
    }

    /// Ends the flow at once and tells the peer why. It is known until [`Mux::release`].
    pub fn reset(&mut self, id: FlowId, why: Reset) {
        let Some(flow) = self.flows.get_mut(&id).filter(|flow| !flow.is_ended()) else { return };
        let known = !flow.ours || flow.open_sent || id == FlowId::CONTROL;
        let link = flow.link;
        flow.end(why);
        flow.receive.abort();
        self.events.push_back(Event::Changed(id));
        if known {
            self.farewells.insert(id, Farewell::Rst(why));
            self.send_farewell(id, link);
        }
    }

    /// Nobody above holds the flow any more. Unless both directions are finished, that resets it.
    pub fn release(&mut self, id: FlowId) {
        let Some(flow) = self.flows.get_mut(&id).filter(|flow| flow.held && id != FlowId::CONTROL) else { return };
        if !flow.is_ended() && flow.send.is_finished() && flow.receive.is_done() {
            flow.held = false;
            self.forget_if_done(id);
        } else {
            self.reset(id, Reset::Aborted);
            self.forget(id);
        }
    }

    /// Resets every flow; none can be opened any more.
    pub fn close(&mut self, why: Reset) {
        self.closed = Some(why);
        for id in self.flow_ids() {
            self.reset(id, why);
            if self.flows.get(&id).is_some_and(|flow| !flow.held) {
                self.forget(id);
            }
        }
    }

    // ---- events and time

    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// When [`Mux::handle_timeout`] wants to be called; `None` while no link lives.
    pub fn poll_timeout(&self) -> Option<Duration> {
        let deadlines = |link: &Link| {
            let next = link.held_until.map_or(link.next_ping, |until| until.min(link.next_ping));
            if link.silent { next } else { next.min(link.heard + self.config.silence) }
        };
        let next = self.links.iter().map(|(_, link)| deadlines(link)).min()?;
        Some(if self.parting.is_empty() { next } else { next.min(self.part_by) })
    }

    /// PINGs, gives the credit that is owed, notices silent links, and lets go on what waited for the pace.
    pub fn handle_timeout(&mut self, now: Duration) {
        let mut ticked = false;
        for id in self.links.ids() {
            let Some(link) = self.links.get_mut(id) else { continue };
            if now >= link.heard + self.config.silence && !link.silent {
                link.silent = true;
                self.events.push_back(Event::Silent(id));
            }
            let may_go_on = link.held_until.take_if(|until| now >= *until).is_some();
            let is_ping_due = now >= link.next_ping;
            if is_ping_due {
                ticked = true;
                link.next_ping = now + self.config.ping_interval;
                // One at a time: a link that is behind is not asked twice.
                link.ping_due = link.ping_sent.is_none();
            }
            if is_ping_due || may_go_on {
                self.links.mark(id);
            }
        }
        if ticked {
            self.give_owed_credit();
            self.calm(now);
            self.look_at_demand(now);
        }
        if now >= self.part_by {
            self.part();
        }
    }

    // ---- what is shown

    /// Number, counters, last round trip and time of the last frame heard, of each live link.
    pub fn link_states(&self) -> impl Iterator<Item = LinkState> {
        self.links.iter().map(|(id, link)| LinkState {
            id,
            number: link.number,
            counts: link.counts,
            round_trip: link.round_trip,
            heard: link.heard,
        })
    }

    /// Flows open, the control flow not counted.
    pub fn flow_count(&self) -> usize {
        self.flows.len() - 1
    }

    /// Bytes kept until the peer acknowledges them, and bytes received and not yet taken.
    pub fn bytes_kept(&self) -> (u64, u64) {
        self.flows
            .values()
            .fold((0, 0), |(sent, received), flow| (sent + flow.send.retained(), received + flow.receive.held() as u64))
    }

    /// Books kept about flows that are gone.
    pub fn farewells_kept(&self) -> usize {
        self.farewells.len()
    }

    /// How many links would serve what is sent now: two, or up to the configured number while several bulk flows share a
    /// long path.
    pub fn wanted_links(&self) -> usize {
        self.demand.wanted()
    }

    // ---- inside

    fn look_at_demand(&mut self, now: Duration) {
        let live = self.links.iter().count();
        if let Some(wanted) = self.demand.look(live, self.links.shortest_round_trip(), now) {
            self.events.push_back(Event::Wanted(wanted));
        }
    }

    /// Flows that were bulk and are quiet leave their links to others.
    fn calm(&mut self, now: Duration) {
        for (id, flow) in self.flows.iter_mut().filter(|(_, flow)| flow.heavy) {
            flow.load.add(0, now);
            settle_on_link(&mut self.links, *id, flow);
        }
    }

    /// In the order in which they were opened: what is done for all of them is the same in each run.
    fn flow_ids(&self) -> Vec<FlowId> {
        let mut ids: Vec<_> = self.flows.keys().copied().collect();
        ids.sort_unstable();
        ids
    }

    /// The shortest that PINGs have lately taken.
    pub fn round_trip(&self) -> Option<Duration> {
        self.links.shortest_round_trip()
    }

    fn transmit_pings(&mut self, on: LinkId, out: &mut Vec<Frame>, now: Duration) {
        let Some(link) = self.links.get_mut(on) else { return };
        if let Some(number) = link.pong_due.take() {
            push(out, Header::new(FlowId::CONTROL, Kind::Pong, 0, number), Bytes::new());
        }
        if std::mem::take(&mut link.ping_due) {
            link.pings += 1;
            link.ping_sent = Some(now);
            push(out, Header::new(FlowId::CONTROL, Kind::Ping, 0, link.pings), Bytes::new());
        }
    }

    fn transmit_control(&mut self, on: LinkId, control: Control, out: &mut Vec<Frame>) {
        match control {
            Control::Flow(id) => {
                let Some(flow) = self.flows.get_mut(&id).filter(|flow| flow.control_on == Some(on)) else { return };
                flow.control_on = None;
                transmit_due(on, id, flow, out);
            }
            Control::Farewell(id) => {
                let Some(farewell) = self.farewells.get(&id) else { return };
                push_farewell(out, id, *farewell);
                if let Some(link) = self.links.get_mut(on) {
                    link.farewells.push_back((link.pings, id));
                }
            }
            Control::Unknown(id) => {
                push_farewell(out, id, Farewell::Rst(Reset::UnknownFlow));
                if let Some(link) = self.links.get_mut(on) {
                    link.unknown_sent();
                }
            }
        }
    }

    /// Sends one frame of the flow and puts it last in the queue if it has more. Returns the bytes used.
    fn transmit_data(&mut self, on: LinkId, id: FlowId, out: &mut Vec<Frame>, max: usize) -> usize {
        let Some(flow) = self.flows.get_mut(&id).filter(|flow| flow.data_on == Some(on)) else { return 0 };
        flow.data_on = None;
        if flow.resuming {
            return 0;
        }
        let used = match flow.send.next(max) {
            Some(Next::Data { offset, bytes }) => {
                let used = HEADER_LEN + bytes.len();
                push(out, Header::new(id, Kind::Data, bytes.len() as u32, offset), bytes);
                used
            }
            Some(Next::Fin { length }) => {
                push(out, Header::new(id, Kind::Fin, 0, length), Bytes::new());
                HEADER_LEN
            }
            None => return 0,
        };
        flow.sent_on.insert(on);
        if flow.send.blocked && (flow.send.room() >= WORTHWHILE || (!flow.send.has_next() && flow.send.room() > 0)) {
            flow.send.blocked = false;
            self.events.push_back(Event::Changed(id));
        }
        self.links.queue_data(id, flow);
        used
    }

    fn give_owed_credit(&mut self) {
        for id in std::mem::take(&mut self.owing) {
            let Some(flow) = self.flows.get_mut(&id) else { continue };
            flow.owing = false;
            if flow.receive.credit_owed() && !flow.is_ended() {
                flow.due.credit = true;
                settle_on_link(&mut self.links, id, flow);
            }
        }
    }

    /// Says of flows that are over that everything was taken.
    fn part(&mut self) {
        for id in std::mem::take(&mut self.parting) {
            match self.flows.get_mut(&id).filter(|flow| !flow.is_ended()) {
                Some(flow) => {
                    flow.parting = false;
                    flow.due.credit = true;
                    settle_on_link(&mut self.links, id, flow);
                }
                None => self.send_farewell(id, None),
            }
        }
    }

    fn forget_if_done(&mut self, id: FlowId) {
        let Some(flow) = self.flows.get(&id).filter(|flow| !flow.held && flow.is_done()) else { return };
        self.farewells.insert(id, Farewell::Taken(flow.receive.taken()));
        let credit_on = flow.credit_on.filter(|_| !flow.due.credit && !flow.due.ask && !flow.due.answer);
        match credit_on.and_then(|at| self.links.get_mut(at)) {
            _ if flow.parting => {}
            // It went out there already: the next PING and PONG prove that it arrived.
            Some(link) => link.farewells.push_back((link.pings, id)),
            None => {
                let link = flow.link;
                self.send_farewell(id, link);
            }
        }
        self.forget(id);
    }

    fn forget(&mut self, id: FlowId) {
        if let Some(mut flow) = self.flows.remove(&id) {
            self.links.leave(&mut flow);
            self.grown -= flow.receive.window() - self.config.window;
            self.theirs -= usize::from(!flow.ours);
        }
    }

    fn send_farewell(&mut self, id: FlowId, preferred: Option<LinkId>) {
        if self.farewells.contains_key(&id) && !self.links.queue_farewell(id, preferred) {
            self.homeless.push(id);
        }
    }
}

/// A live link, as [`Mux::link_states`] shows it.
#[derive(Clone, Copy, Debug)]
pub struct LinkState {
    pub id: LinkId,
    pub number: u32,
    pub counts: Counts,
    pub round_trip: Option<Duration>,
    /// When anything last came.
    pub heard: Duration,
}

/// Puts the flow on the link that is right for it and queues there what is to be sent.
fn settle_on_link(links: &mut Links, id: FlowId, flow: &mut Flow) {
    links.place(flow);
    links.queue_control(id, flow);
    links.queue_data(id, flow);
}

fn transmit_due(on: LinkId, id: FlowId, flow: &mut Flow, out: &mut Vec<Frame>) {
    let due = std::mem::take(&mut flow.due);
    if due.any() {
        flow.sent_on.insert(on);
    }
    if due.open {
        flow.open_sent = true;
        let payload = flow.payload.clone();
        push(out, Header::new(id, Kind::Open, payload.len() as u32, 0), payload);
    }
    if due.opened {
        push(out, Header::new(id, Kind::Opened, 0, 0), Bytes::new());
    }
    if !(due.credit || due.ask || due.answer) {
        return;
    }
    flow.credit_on = Some(on);
    let (offset, window) = flow.receive.credit();
    if due.credit && !due.ask && !due.answer {
        push(out, Header::new(id, Kind::Credit, 8, offset), Bytes::copy_from_slice(&window.to_be_bytes()));
    }
    if due.ask || due.answer {
        let mut payload = Vec::with_capacity(17);
        payload.extend_from_slice(&window.to_be_bytes());
        payload.extend_from_slice(&offset.to_be_bytes());
        payload.extend(due.ask.then_some(1));
        let header = Header::new(id, Kind::Resume, payload.len() as u32, flow.receive.received());
        push(out, header, Bytes::from(payload));
    }
}

fn push_farewell(out: &mut Vec<Frame>, id: FlowId, farewell: Farewell) {
    match farewell {
        Farewell::Rst(why) => push(out, Header::new(id, Kind::Rst, 0, why as u64), Bytes::new()),
        Farewell::Taken(length) => push(out, Header::new(id, Kind::Credit, 8, length), Bytes::from_static(&[0; 8])),
    }
}

fn push(out: &mut Vec<Frame>, header: Header, payload: Bytes) {
    out.push(Frame { header: header.encode(), payload });
}

#[cfg(test)]
mod tests;
