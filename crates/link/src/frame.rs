//! The frame header: encoding and decoding, nothing else.

use std::fmt;

/// Bytes of a header on the wire.
pub const HEADER_LEN: usize = 16;
/// Longest payload that may follow a header.
pub const PAYLOAD_LIMIT: u32 = 262_144;

/// A flow's number in its session. 0 is the control flow; odd ones are opened by the client, even ones by the agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FlowId(pub u32);

impl FlowId {
    pub const CONTROL: FlowId = FlowId(0);
}

impl fmt::Display for FlowId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What a frame means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    Hello = 1,
    Open = 2,
    Opened = 3,
    Data = 4,
    Fin = 5,
    Rst = 6,
    Credit = 7,
    Ping = 8,
    Pong = 9,
    Resume = 10,
    GoAway = 11,
    /// A kind of a later release with the top bit set: to be skipped.
    Ignored = 0x80,
}

/// Why a flow ended otherwise than by both sides finishing. The number travels in RST's offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
#[repr(u8)]
pub enum Reset {
    #[error("connection refused")]
    Refused = 1,
    #[error("no route to the host")]
    HostUnreachable = 2,
    #[error("network unreachable")]
    NetworkUnreachable = 3,
    #[error("connection timed out")]
    TimedOut = 4,
    #[error("connection reset by peer")]
    ResetByPeer = 5,
    #[error("the other side of the session went away")]
    Aborted = 6,
    #[error("not allowed")]
    NotAllowed = 7,
    #[error("the other side does not know the flow")]
    UnknownFlow = 8,
    #[error("address not available")]
    AddressNotAvailable = 9,
}

impl Reset {
    /// A code of a later release counts as a plain reset.
    pub fn from_code(code: u64) -> Self {
        match code {
            1 => Reset::Refused,
            2 => Reset::HostUnreachable,
            3 => Reset::NetworkUnreachable,
            4 => Reset::TimedOut,
            6 => Reset::Aborted,
            7 => Reset::NotAllowed,
            8 => Reset::UnknownFlow,
            9 => Reset::AddressNotAvailable,
            _ => Reset::ResetByPeer,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    pub flow: FlowId,
    pub kind: Kind,
    /// Length of the payload in bytes, at most [`PAYLOAD_LIMIT`].
    pub len: u32,
    /// Position in the flow's byte stream, or what the kind says.
    pub offset: u64,
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    #[error("frame of unknown type {0}: the other side's release may be too new")]
    UnknownKind(u8),
    #[error("frame of {0} bytes is longer than {PAYLOAD_LIMIT}")]
    TooLong(u32),
}

impl Header {
    pub fn new(flow: FlowId, kind: Kind, len: u32, offset: u64) -> Self {
        Header { flow, kind, len, offset }
    }

    pub fn encode(&self) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        bytes[..4].copy_from_slice(&self.flow.0.to_be_bytes());
        bytes[4..8].copy_from_slice(&self.len.to_be_bytes());
        bytes[4] = self.kind as u8;
        bytes[8..].copy_from_slice(&self.offset.to_be_bytes());
        bytes
    }

    pub fn decode(bytes: &[u8; HEADER_LEN]) -> Result<Self, FrameError> {
        let [f0, f1, f2, f3, kind, l0, l1, l2, offset @ ..] = *bytes;
        let kind = match kind {
            1 => Kind::Hello,
            2 => Kind::Open,
            3 => Kind::Opened,
            4 => Kind::Data,
            5 => Kind::Fin,
            6 => Kind::Rst,
            7 => Kind::Credit,
            8 => Kind::Ping,
            9 => Kind::Pong,
            10 => Kind::Resume,
            11 => Kind::GoAway,
            0x80.. => Kind::Ignored,
            unknown => return Err(FrameError::UnknownKind(unknown)),
        };
        let len = u32::from_be_bytes([0, l0, l1, l2]);
        if len > PAYLOAD_LIMIT {
            return Err(FrameError::TooLong(len));
        }
        let flow = FlowId(u32::from_be_bytes([f0, f1, f2, f3]));
        Ok(Header { flow, kind, len, offset: u64::from_be_bytes(offset) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_reads_back_as_it_was_written() {
        for code in 1..=11 {
            let mut bytes = [0xa5; HEADER_LEN];
            bytes[4..8].copy_from_slice(&[code, 3, 2, 1]);
            let header = Header::decode(&bytes).expect("a known type");
            assert_eq!(header.len, 0x030201);
            assert_eq!(header.encode(), bytes);
        }
    }

    #[test]
    fn only_unknown_types_with_the_top_bit_set_are_ignored() {
        let mut bytes = [0; HEADER_LEN];
        for code in 0..=255_u8 {
            bytes[4] = code;
            match code {
                0 | 12..=127 => assert_eq!(Header::decode(&bytes), Err(FrameError::UnknownKind(code))),
                128.. => assert_eq!(Header::decode(&bytes).expect("ignored").kind, Kind::Ignored),
                _ => assert_eq!(Header::decode(&bytes).expect("known").kind as u8, code),
            }
        }
    }

    #[test]
    fn an_overlong_payload_is_refused() {
        let mut bytes = Header::new(FlowId(1), Kind::Data, PAYLOAD_LIMIT, 0).encode();
        assert!(Header::decode(&bytes).is_ok());
        bytes[7] += 1;
        assert_eq!(Header::decode(&bytes), Err(FrameError::TooLong(PAYLOAD_LIMIT + 1)));
    }

    #[test]
    fn reset_codes_survive_the_wire() {
        for code in 1..=9 {
            assert_eq!(Reset::from_code(code) as u64, code);
        }
        assert_eq!(Reset::from_code(77), Reset::ResetByPeer);
    }
}
