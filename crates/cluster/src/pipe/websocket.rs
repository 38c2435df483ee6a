//! The frames of rung `forward`, pure: WebSocket (RFC 6455) with Kubernetes' channels in it, as the subprotocol
//! `v4.channel.k8s.io` has them. A message begins with its channel's number: 0 carries data, 1 says why the far dial
//! failed. The first message of each channel is the port's number, two bytes.

use bytes::{Buf, BufMut, Bytes, BytesMut};

/// Longest text that the far side is heard out on.
const REASON_LIMIT: usize = 4 << 10;
/// Longest payload of a control frame (RFC 6455 section 5.5).
const CONTROL_LIMIT: usize = 125;
/// Before a channel's first bytes.
const PORT_LEN: usize = 2;

const FIN: u8 = 0x80;
const MASKED: u8 = 0x80;

/// What came.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Incoming {
    /// Some of the data, as it comes: messages have no meaning.
    Data(Bytes),
    /// To be answered by a pong with the same payload.
    Ping(Bytes),
    /// Nothing more will come, and why, where the far side said so.
    End(String),
}

/// Bytes that are no such frames.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("not what pods/portforward speaks: {0}")]
pub(super) struct Malformed(&'static str);

/// Takes bytes as they come and gives what they mean.
#[derive(Debug, Default)]
pub(super) struct Decoder {
    buffer: BytesMut,
    state: State,
    /// Bytes of the port's number still to come, for data and errors.
    port_left: [usize; 2],
    reason: Vec<u8>,
    is_over: bool,
}

#[derive(Clone, Copy, Debug, Default)]
enum State {
    #[default]
    Header,
    /// In a message's payload. Its channel is unknown until its first byte has come.
    Message {
        left: u64,
        channel: Option<u8>,
        is_last: bool,
    },
    /// Between the frames of one message.
    Between {
        channel: Option<u8>,
    },
    Control {
        opcode: u8,
        left: usize,
        resume: Resume,
    },
}

/// Where control frames came in between.
type Resume = Option<Option<u8>>;

mod opcode {
    pub(super) const CONTINUATION: u8 = 0;
    pub(super) const TEXT: u8 = 1;
    pub(super) const BINARY: u8 = 2;
    pub(super) const CLOSE: u8 = 8;
    pub(super) const PING: u8 = 9;
    pub(super) const PONG: u8 = 10;
}

impl Decoder {
    pub(super) fn new() -> Self {
        Decoder { port_left: [PORT_LEN; 2], ..Decoder::default() }
    }

    /// Where bytes that came are put.
    pub(super) fn buffer(&mut self) -> &mut BytesMut {
        &mut self.buffer
    }

    /// The next thing that the bytes so far mean; `None` until more have come.
    pub(super) fn poll(&mut self) -> Result<Option<Incoming>, Malformed> {
        while !self.is_over {
            let came = match self.state {
                State::Header | State::Between { .. } => {
                    if !self.header()? {
                        return Ok(None);
                    }
                    continue;
                }
                State::Control { opcode, left, resume } => {
                    if self.buffer.len() < left {
                        return Ok(None);
                    }
                    let payload = self.buffer.split_to(left).freeze();
                    self.state = resume.map_or(State::Header, |channel| State::Between { channel });
                    self.control(opcode, payload)
                }
                State::Message { left: 0, channel, is_last } => {
                    self.state = if is_last { State::Header } else { State::Between { channel } };
                    continue;
                }
                State::Message { .. } if self.buffer.is_empty() => return Ok(None),
                State::Message { left, channel, is_last } => self.message(left, channel, is_last)?,
            };
            if came.is_some() {
                return Ok(came);
            }
        }
        Ok(None)
    }

    /// Reads a frame's header; false until it is whole.
    fn header(&mut self) -> Result<bool, Malformed> {
        let [first, second, ..] = self.buffer[..] else { return Ok(false) };
        let (kind, short) = (first & 0x0f, second & 0x7f);
        let long = match short {
            126 => 2,
            127 => 8,
            _ => 0,
        };
        if first & 0x70 != 0 {
            return Err(Malformed("reserved bits are set"));
        }
        if second & MASKED != 0 {
            return Err(Malformed("a server's frame is masked"));
        }
        if self.buffer.len() < 2 + long {
            return Ok(false);
        }
        self.buffer.advance(2);
        let left = match long {
            0 => u64::from(short),
            _ => self.buffer.get_uint(long),
        };
        let between = match self.state {
            State::Between { channel } => Some(channel),
            _ => None,
        };
        let is_last = first & FIN != 0;
        self.state = match (kind, between) {
            (opcode::BINARY, None) => State::Message { left, channel: None, is_last },
            (opcode::CONTINUATION, Some(channel)) => State::Message { left, channel, is_last },
            (opcode::CLOSE | opcode::PING | opcode::PONG, resume) => {
                let left = usize::try_from(left).ok().filter(|left| *left <= CONTROL_LIMIT && is_last);
                let left = left.ok_or(Malformed("a control frame is too long or in pieces"))?;
                State::Control { opcode: kind, left, resume }
            }
            (opcode::TEXT, _) => return Err(Malformed("a text message")),
            _ => return Err(Malformed("a frame out of order")),
        };
        Ok(true)
    }

    fn control(&mut self, kind: u8, payload: Bytes) -> Option<Incoming> {
        match kind {
            opcode::PING => Some(Incoming::Ping(payload)),
            opcode::CLOSE => {
                self.is_over = true;
                // Two bytes of status, then text (RFC 6455 section 5.5.1); an earlier error says more.
                let said = if self.reason.is_empty() { payload.get(2..).unwrap_or_default() } else { &self.reason };
                Some(Incoming::End(String::from_utf8_lossy(said).trim().to_owned()))
            }
            _ => None,
        }
    }

    fn message(&mut self, left: u64, channel: Option<u8>, is_last: bool) -> Result<Option<Incoming>, Malformed> {
        let Some(channel) = channel else {
            let channel = self.buffer.get_u8();
            self.state = State::Message { left: left - 1, channel: Some(channel), is_last };
            return if channel < 2 { Ok(None) } else { Err(Malformed("a channel that was not asked for")) };
        };
        let here = usize::try_from(left).unwrap_or(usize::MAX).min(self.buffer.len());
        let mut payload = self.buffer.split_to(here).freeze();
        self.state = State::Message { left: left - here as u64, channel: Some(channel), is_last };
        let port = &mut self.port_left[usize::from(channel)];
        let skipped = payload.len().min(*port);
        payload.advance(skipped);
        *port -= skipped;
        if payload.is_empty() {
            return Ok(None);
        }
        if channel == 0 {
            return Ok(Some(Incoming::Data(payload)));
        }
        let room = REASON_LIMIT.saturating_sub(self.reason.len());
        self.reason.extend_from_slice(&payload[..payload.len().min(room)]);
        Ok(None)
    }

    /// What the far side said of a failed dial, if it did.
    pub(super) fn reason(&self) -> Option<String> {
        (!self.reason.is_empty()).then(|| String::from_utf8_lossy(&self.reason).trim().to_owned())
    }
}

/// Adds one message that carries all of `parts`.
///
/// The mask is zero: it is there to keep programs behind a proxy from being shown bytes of an attacker's choice, and all
/// of these bytes are TLS.
pub(super) fn put_data<'a>(out: &mut BytesMut, len: usize, parts: impl Iterator<Item = &'a [u8]>) {
    out.reserve(len + 15);
    put_header(out, opcode::BINARY, len + 1);
    out.put_u8(0);
    parts.for_each(|part| out.put_slice(part));
}

pub(super) fn put_pong(out: &mut BytesMut, payload: &[u8]) {
    put_header(out, opcode::PONG, payload.len());
    out.put_slice(payload);
}

pub(super) fn put_close(out: &mut BytesMut) {
    const NORMAL: u16 = 1000;
    put_header(out, opcode::CLOSE, 2);
    out.put_u16(NORMAL);
}

fn put_header(out: &mut BytesMut, kind: u8, len: usize) {
    out.put_u8(FIN | kind);
    match len {
        0..126 => out.put_u8(MASKED | len as u8),
        126..=0xffff => {
            out.put_u8(MASKED | 126);
            out.put_u16(len as u16);
        }
        _ => {
            out.put_u8(MASKED | 127);
            out.put_u64(len as u64);
        }
    }
    out.put_u32(0);
}

#[cfg(test)]
mod tests;
