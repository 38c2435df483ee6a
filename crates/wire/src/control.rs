//! Messages of the control flow: requests with an id, answers that repeat it, each preceded by its length.

use bytes::{Buf, Bytes, BytesMut};
use prost::Message;

/// Longest control message. A DNS answer has at most 65,535 bytes, an environment at most a few MiB.
const MESSAGE_LIMIT: usize = 8 << 20;

/// Asked by either side.
#[derive(Clone, PartialEq, Message)]
pub struct Request {
    /// Unique among the sender's unanswered requests; 0 = no answer wanted.
    #[prost(uint64, tag = "1")]
    pub id: u64,
    #[prost(oneof = "request::Kind", tags = "2, 3, 4, 5, 6")]
    pub kind: Option<request::Kind>,
}

pub mod request {
    use super::{Answer, DescribeContainer, Leave, Pace, Resolve};

    #[derive(Clone, PartialEq, prost::Oneof)]
    pub enum Kind {
        #[prost(message, tag = "2")]
        Resolve(Resolve),
        #[prost(message, tag = "3")]
        DescribeContainer(DescribeContainer),
        #[prost(message, tag = "4")]
        Leave(Leave),
        /// The answer to a request of the other side; its id is the request's.
        #[prost(message, tag = "5")]
        Answer(Answer),
        #[prost(message, tag = "6")]
        Pace(Pace),
    }
}

/// Ask the pod's resolver. The message is a DNS query (RFC 1035), sent on as it is to the pod's first name server that
/// answers.
#[derive(Clone, PartialEq, Message)]
pub struct Resolve {
    #[prost(bytes = "bytes", tag = "1")]
    pub query: Bytes,
}

/// What the target container sees.
#[derive(Clone, PartialEq, Message)]
pub struct DescribeContainer {
    /// The runtime's id of the target container, without a scheme.
    #[prost(string, tag = "1")]
    pub container_id: String,
}

/// The session ends: its flows are closed and its admission is forgotten. Answered by `Done` before that takes effect.
#[derive(Clone, PartialEq, Message)]
pub struct Leave {}

/// From now on the links that said `shared_way` carry at most so much, in the agent's direction, all of them together.
/// Answered by `Done`.
#[derive(Clone, PartialEq, Message)]
pub struct Pace {
    /// 0: as much as there is.
    #[prost(uint64, tag = "1")]
    pub bytes_per_second: u64,
}

#[derive(Clone, PartialEq, Message)]
pub struct Answer {
    #[prost(oneof = "answer::Kind", tags = "1, 2, 3, 4")]
    pub kind: Option<answer::Kind>,
}

pub mod answer {
    use super::{Description, Done, Failure, Resolved};

    #[derive(Clone, PartialEq, prost::Oneof)]
    pub enum Kind {
        #[prost(message, tag = "1")]
        Failure(Failure),
        #[prost(message, tag = "2")]
        Resolved(Resolved),
        #[prost(message, tag = "3")]
        Description(Description),
        #[prost(message, tag = "4")]
        Done(Done),
    }
}

/// It is done, and there is nothing to tell.
#[derive(Clone, PartialEq, Message)]
pub struct Done {}

/// Why a request could not be served, for the user.
#[derive(Clone, PartialEq, Message)]
pub struct Failure {
    #[prost(string, tag = "1")]
    pub text: String,
}

#[derive(Clone, PartialEq, Message)]
pub struct Resolved {
    /// The DNS response as it came.
    #[prost(bytes = "bytes", tag = "1")]
    pub response: Bytes,
}

#[derive(Clone, PartialEq, Message)]
pub struct Description {
    /// The environment as the kubelet resolved it (the agent container has the target's `env` and `envFrom`).
    #[prost(message, repeated, tag = "1")]
    pub kubelet_env: Vec<EnvEntry>,
    /// The environment of the container's first process, where it is intact; else empty.
    #[prost(message, repeated, tag = "2")]
    pub process_env: Vec<EnvEntry>,
    /// The pod's /etc/resolv.conf.
    #[prost(string, tag = "3")]
    pub resolv_conf: String,
    /// The uid of the container's first process; absent when it could not be found.
    #[prost(uint32, optional, tag = "4")]
    pub uid: Option<u32>,
    /// The container's working directory (`/proc/PID/cwd`), where readable.
    #[prost(string, tag = "5")]
    pub working_dir: String,
}

/// One variable. Bytes, since neither the name nor the value need be UTF-8.
#[derive(Clone, PartialEq, Message)]
pub struct EnvEntry {
    #[prost(bytes = "vec", tag = "1")]
    pub name: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    pub value: Vec<u8>,
}

/// The message with its length before it.
pub fn encode_control(message: &Request) -> Bytes {
    Bytes::from(message.encode_length_delimited_to_vec())
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ControlError {
    #[error("control message of {0} bytes is longer than {MESSAGE_LIMIT}")]
    TooLong(usize),
    #[error("malformed control message")]
    Malformed,
}

/// Splits the control flow's bytes into messages.
#[derive(Default)]
pub struct ControlDecoder {
    buffer: BytesMut,
}

impl ControlDecoder {
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole message, or `None` until more bytes came.
    pub fn next_message(&mut self) -> Result<Option<Request>, ControlError> {
        let mut head = &self.buffer[..];
        let len = match prost::decode_length_delimiter(&mut head) {
            Ok(len) => len,
            // A varint has at most ten bytes; with fewer, more may come.
            Err(_) if self.buffer.len() < 10 => return Ok(None),
            Err(_) => return Err(ControlError::Malformed),
        };
        if len > MESSAGE_LIMIT {
            return Err(ControlError::TooLong(len));
        }
        if head.len() < len {
            return Ok(None);
        }
        let header = self.buffer.len() - head.len();
        self.buffer.advance(header);
        Request::decode(self.buffer.split_to(len)).map(Some).map_err(|_| ControlError::Malformed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(id: u64) -> Request {
        Request { id, kind: Some(request::Kind::Resolve(Resolve { query: Bytes::from_static(b"query") })) }
    }

    #[test]
    fn messages_are_found_however_the_bytes_are_cut() {
        let bytes = [encode_control(&resolve(1)), encode_control(&resolve(300))].concat();
        for cut in 1..bytes.len() {
            let mut decoder = ControlDecoder::default();
            let mut seen = Vec::new();
            for part in bytes.chunks(cut) {
                decoder.push(part);
                while let Some(message) = decoder.next_message().expect("well formed") {
                    seen.push(message);
                }
            }
            assert_eq!(seen, [resolve(1), resolve(300)]);
        }
    }

    #[test]
    fn an_overlong_message_is_refused_before_it_is_held() {
        let mut decoder = ControlDecoder::default();
        decoder.push(&[0xff, 0xff, 0xff, 0xff, 0x0f]);
        assert!(matches!(decoder.next_message(), Err(ControlError::TooLong(_))));
    }

    #[test]
    fn a_length_that_never_ends_is_refused() {
        let mut decoder = ControlDecoder::default();
        decoder.push(&[0xff; 11]);
        assert_eq!(decoder.next_message(), Err(ControlError::Malformed));
    }
}
