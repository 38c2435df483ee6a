//! Programs at the ends of flows: what they do, what they saw, and whether the two of a flow agree.

use std::time::Duration;

use bytes::Bytes;
use link::Reset;
use link::frame::FlowId;
use link::mux::Mux;

/// One end of a flow.
pub(crate) struct Program {
    pub(crate) is_control: bool,
    /// Bytes it will send, and how many it has.
    pub(crate) length: u64,
    pub(crate) written: u64,
    pub(crate) finished: bool,
    /// It resets the flow when it has sent so much.
    pub(crate) resets_at: Option<u64>,
    pub(crate) read: u64,
    /// Handed out by the mux, not written on yet.
    pub(crate) lent: Option<Bytes>,
    pub(crate) stalled: bool,
    pub(crate) end_seen: bool,
    pub(crate) outcome: Option<Outcome>,
    /// Its process is gone.
    pub(crate) died: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Finished,
    /// The program here reset it.
    Did(Reset),
    /// It was reset from elsewhere.
    Was(Reset),
}

/// Every byte of every flow is known from its place.
fn byte(flow: FlowId, from: usize, at: u64) -> u8 {
    let mixed = (u64::from(flow.0) << 40 | (from as u64) << 36 | at).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed >> 56) as u8
}

/// Whether what this end saw is right, given what the other saw.
pub(crate) fn agree(here: &Program, there: &Program) -> bool {
    match here.outcome {
        // Whoever was left alone is told so.
        Some(Outcome::Was(Reset::Aborted)) if there.died => true,
        Some(Outcome::Was(why)) => there.outcome == Some(Outcome::Did(why)),
        // What was handed to a process that died may be lost, as with TCP.
        Some(Outcome::Finished) if there.died && there.outcome.is_none() => here.read == there.length,
        Some(Outcome::Finished) => {
            // The other may have reset what was finished here, or was told that this end's process died.
            let did = matches!(there.outcome, Some(Outcome::Did(_)));
            let did = did || (here.died && there.outcome == Some(Outcome::Was(Reset::Aborted)));
            here.read <= there.length && (did || (here.read == there.length && there.read == here.length))
        }
        None if here.died => true,
        // The control flow never ends.
        None => here.read == there.length,
        Some(Outcome::Did(_)) => true,
    }
}

impl Program {
    /// The control flow has neither an end nor an outcome.
    pub(crate) fn is_through(&self) -> bool {
        self.outcome.is_some() || (self.is_control && self.finished)
    }

    pub(crate) fn write(&mut self, id: FlowId, end: usize, mux: &mut Mux, most: u64, now: Duration) {
        let len = (mux.room(id) as u64).min(self.length - self.written).min(most);
        if len > 0 {
            let bytes: Vec<u8> = (self.written..self.written + len).map(|at| byte(id, end, at)).collect();
            mux.write(id, Bytes::from(bytes), now);
            self.written += len;
        }
        if self.written == self.length && !self.finished {
            self.finished = true;
            if id != FlowId::CONTROL {
                mux.finish(id);
            }
        }
    }

    pub(crate) fn read(
        &mut self,
        id: FlowId,
        end: usize,
        mux: &mut Mux,
        random: &mut Random,
        now: Duration,
    ) -> Result<(), String> {
        if self.lent.is_none() {
            self.lent = mux.take(id);
        }
        if let Some(bytes) = self.lent.take() {
            let most = if self.stalled { 0 } else { random.below(bytes.len() as u64 + 1) as usize };
            for (at, got) in (self.read..).zip(&bytes[..most]) {
                if *got != byte(id, 1 - end, at) {
                    return Err(format!("flow {id}: wrong byte at {at}"));
                }
            }
            self.read += most as u64;
            mux.delivered(id, most, &bytes[most..], now);
        }
        if mux.at_end(id) && !self.end_seen {
            self.end_seen = true;
            mux.end_taken(id, now);
        }
        Ok(())
    }
}

/// xorshift64*.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        for _ in 0..4 {
            random.below(2);
        }
        random
    }

    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let value = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11;
        value % limit.max(1)
    }
}
