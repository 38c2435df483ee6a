//! Frames that come in. Whatever the peer sends is either right or an error; nothing here may panic.

use std::time::Duration;

use bytes::Bytes;

use crate::frame::{FlowId, HEADER_LEN, Header, Kind, Reset};

use super::flow::{Flow, Phase};
use super::link::LinkId;
use super::{Event, Mux, ProtocolError, Role, settle_on_link};

#[cfg(feature = "seeded-bugs")]
use super::Bug;

/// Longest payload of an OPEN.
const OPEN_LIMIT: usize = 16 << 10;

impl Mux {
    /// DATA came, or a part of it: `offset` is that of the first byte of `data`. `Some(n)`: the bytes after the first
    /// `n` are next in order and were **not** kept; the caller writes them on and says [`Mux::delivered`].
    pub fn handle_data(
        &mut self,
        on: LinkId,
        id: FlowId,
        offset: u64,
        data: &[u8],
        now: Duration,
    ) -> Result<Option<usize>, ProtocolError> {
        self.heard(on, data.len(), now);
        let Some(flow) = self.flows.get_mut(&id) else { return self.gone(id).map(|()| None) };
        if flow.is_ended() || data.is_empty() {
            return Ok(None);
        }
        let direct = flow.receive.data(offset, data)?;
        flow.inflow.add(data.len(), now);
        if flow.inflow.is_heavy(false) && self.demand.heavy(id, now) {
            self.look_at_demand(now);
        }
        #[cfg(feature = "seeded-bugs")]
        let direct = direct.map(|skip| if self.bug == Some(Bug::DuplicateAfterResume) { 0 } else { skip });
        Ok(direct)
    }

    /// A whole frame came. HELLO and GOAWAY concern the link alone and do not belong here.
    pub fn handle_frame(
        &mut self,
        on: LinkId,
        header: Header,
        payload: &[u8],
        now: Duration,
    ) -> Result<(), ProtocolError> {
        let id = header.flow;
        match header.kind {
            Kind::Data => {
                if let Some(skip) = self.handle_data(on, id, header.offset, payload, now)? {
                    self.delivered(id, 0, &payload[skip..], now);
                }
                return Ok(());
            }
            Kind::Hello | Kind::GoAway => return Err(ProtocolError::Misplaced),
            _ => self.heard(on, HEADER_LEN + payload.len(), now),
        }
        match header.kind {
            Kind::Open => self.offered(id, payload, on, now),
            Kind::Ping => self.pinged(on, header.offset),
            Kind::Pong => self.ponged(on, header.offset, now),
            Kind::Credit => self.credited(id, header.offset, number(payload)?),
            Kind::Resume => self.resumed(on, id, header.offset, payload),
            Kind::Ignored => Ok(()),
            _ if !payload.is_empty() => Err(ProtocolError::BadPayload),
            Kind::Opened => self.opened(id),
            Kind::Fin => self.finished(id, header.offset),
            Kind::Rst => self.was_reset(id, Reset::from_code(header.offset)),
            Kind::Data | Kind::Hello | Kind::GoAway => Ok(()),
        }
    }

    fn heard(&mut self, on: LinkId, bytes: usize, now: Duration) {
        if let Some(link) = self.links.get_mut(on) {
            link.heard = now;
            link.counts.bytes_received += bytes as u64;
            link.counts.frames_received += 1;
        }
    }

    fn offered(&mut self, id: FlowId, payload: &[u8], on: LinkId, now: Duration) -> Result<(), ProtocolError> {
        if !self.is_theirs(id) {
            return Err(ProtocolError::WrongSide);
        }
        if payload.len() > OPEN_LIMIT {
            return Err(ProtocolError::BadPayload);
        }
        if !self.seen.insert(id)? {
            // Sent again after a loss; what became of it is said in answer to the RESUME that follows.
            return Ok(());
        }
        let refusal = match self.closed {
            Some(why) => Some(why),
            None => (self.theirs >= self.config.max_flows).then_some(Reset::NotAllowed),
        };
        self.theirs += 1;
        let mut flow = Flow::new(false, Phase::Offered, Bytes::new(), &self.config, now);
        flow.link = Some(on);
        self.flows.insert(id, flow);
        match refusal {
            Some(why) => self.refuse(id, why),
            None => self.events.push_back(Event::Offered { flow: id, payload: Bytes::copy_from_slice(payload) }),
        }
        Ok(())
    }

    fn opened(&mut self, id: FlowId) -> Result<(), ProtocolError> {
        if self.is_theirs(id) {
            return Err(ProtocolError::WrongSide);
        }
        let Some(flow) = self.flows.get_mut(&id) else { return self.gone(id) };
        if flow.phase == Phase::Opening {
            flow.phase = Phase::Open;
            flow.payload = Bytes::new();
            flow.due.open = false;
            self.events.push_back(Event::Changed(id));
        }
        Ok(())
    }

    fn finished(&mut self, id: FlowId, length: u64) -> Result<(), ProtocolError> {
        let Some(flow) = self.flows.get_mut(&id) else { return self.gone(id) };
        if flow.is_ended() {
            return Ok(());
        }
        flow.receive.fin(length)?;
        if flow.receive.is_done() {
            // It was lost on the way back that the end was taken.
            flow.due.credit = true;
            settle_on_link(&mut self.links, id, flow);
        } else if flow.receive.at_end() {
            self.events.push_back(Event::Changed(id));
        }
        Ok(())
    }

    fn was_reset(&mut self, id: FlowId, why: Reset) -> Result<(), ProtocolError> {
        let Some(flow) = self.flows.get_mut(&id) else {
            // The OPEN may have been lost and the RST sent again: the number is used all the same.
            if self.is_theirs(id) {
                self.seen.insert(id)?;
            }
            return Ok(());
        };
        if flow.is_ended() {
            return Ok(());
        }
        flow.end(why);
        flow.receive.cut();
        let held = flow.held;
        self.events.push_back(Event::Changed(id));
        if !held {
            self.forget(id);
        }
        Ok(())
    }

    fn credited(&mut self, id: FlowId, offset: u64, window: u64) -> Result<(), ProtocolError> {
        let Some(flow) = self.flows.get_mut(&id) else { return self.gone(id) };
        if flow.is_ended() {
            return Ok(());
        }
        if !flow.send.credit(offset, window) {
            return Err(ProtocolError::BadOffset);
        }
        if flow.send.blocked && flow.send.room() > 0 {
            flow.send.blocked = false;
            self.events.push_back(Event::Changed(id));
        }
        self.forget_if_done(id);
        Ok(())
    }

    fn resumed(&mut self, on: LinkId, id: FlowId, received: u64, payload: &[u8]) -> Result<(), ProtocolError> {
        let (window, rest) = payload.split_at_checked(8).ok_or(ProtocolError::BadPayload)?;
        let (taken, ask) = rest.split_at_checked(8).ok_or(ProtocolError::BadPayload)?;
        let (window, taken) = (number(window)?, number(taken)?);
        if !matches!(ask, [] | [1]) || taken > received {
            return Err(ProtocolError::BadPayload);
        }
        let ask = !ask.is_empty();
        let Some(flow) = self.flows.get_mut(&id).filter(|flow| !flow.is_ended()) else {
            return self.asked_about_gone(on, id, ask);
        };
        if received > flow.send.reached() {
            return Err(ProtocolError::BadOffset);
        }
        if flow.resuming {
            flow.resuming = !flow.send.rewind(received);
        }
        flow.due.answer |= ask;
        settle_on_link(&mut self.links, id, flow);
        #[cfg(feature = "seeded-bugs")]
        if self.bug == Some(Bug::LostCredit) {
            return Ok(());
        }
        self.credited(id, taken, window)
    }

    fn asked_about_gone(&mut self, on: LinkId, id: FlowId, ask: bool) -> Result<(), ProtocolError> {
        if self.farewells.contains_key(&id) {
            self.send_farewell(id, Some(on));
            return Ok(());
        }
        let Some(link) = self.links.get_mut(on).filter(|_| ask) else { return Ok(()) };
        if !link.queue_unknown(id) {
            return Err(ProtocolError::Flooded);
        }
        self.links.mark(on);
        Ok(())
    }

    fn pinged(&mut self, on: LinkId, opaque: u64) -> Result<(), ProtocolError> {
        if let Some(link) = self.links.get_mut(on) {
            link.pong_due = Some(opaque);
            self.links.mark(on);
        }
        Ok(())
    }

    fn ponged(&mut self, on: LinkId, number: u64, now: Duration) -> Result<(), ProtocolError> {
        let proven = self.links.get_mut(on).map(|link| link.ponged(number, now)).unwrap_or_default();
        for flow in proven {
            self.farewells.remove(&flow);
        }
        Ok(())
    }

    /// A frame for a flow that is not known: right only if it once was.
    fn gone(&self, id: FlowId) -> Result<(), ProtocolError> {
        let was = if self.is_theirs(id) { self.seen.contains(id) } else { id.0 < self.next_id };
        if was { Ok(()) } else { Err(ProtocolError::NeverOpened) }
    }

    fn is_theirs(&self, id: FlowId) -> bool {
        let odd = id.0 % 2 == 1;
        id != FlowId::CONTROL && odd == (self.role == Role::Agent)
    }
}

fn number(payload: &[u8]) -> Result<u64, ProtocolError> {
    payload.try_into().map(u64::from_be_bytes).map_err(|_| ProtocolError::BadPayload)
}
