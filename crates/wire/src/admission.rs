//! The two lines by which a session is admitted to an agent, over the agent's stdin and stdout.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use prost::Message;

/// Longest admission line, newline included: one pipe write of this size is atomic (`PIPE_BUF`), so that the lines of
/// two sessions attached at once never mix.
pub const LINE_LIMIT: usize = 4096;

const ADMIT: &str = "stead-admit-1 ";
const ADMITTED: &str = "stead-admitted-1 ";

/// Names a session for as long as it lives. 16 random bytes, shown as 32 hex digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SessionId(pub [u8; 16]);

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

impl fmt::Debug for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for SessionId {
    type Err = LineError;

    fn from_str(text: &str) -> Result<Self, LineError> {
        if text.len() != 32 || !text.is_ascii() {
            return Err(LineError::Malformed("a session id has 32 hex digits"));
        }
        let mut id = [0; 16];
        for (i, byte) in id.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&text[2 * i..2 * i + 2], 16)
                .map_err(|_| LineError::Malformed("a session id has 32 hex digits"))?;
        }
        Ok(SessionId(id))
    }
}

impl TryFrom<&[u8]> for SessionId {
    type Error = LineError;

    fn try_from(bytes: &[u8]) -> Result<Self, LineError> {
        bytes.try_into().map(SessionId).map_err(|_| LineError::Malformed("a session id has 16 bytes"))
    }
}

/// Asks an agent to admit a session. Sent by the client over `pods/attach`.
#[derive(Clone, PartialEq, Message)]
pub struct Admit {
    /// 16 bytes.
    #[prost(bytes = "vec", tag = "1")]
    pub session: Vec<u8>,
    /// SHA-256 of the session key's SubjectPublicKeyInfo, 32 bytes.
    #[prost(bytes = "vec", tag = "2")]
    pub key_hash: Vec<u8>,
    /// 16 random bytes, repeated in the answer.
    #[prost(bytes = "vec", tag = "3")]
    pub nonce: Vec<u8>,
    #[prost(string, tag = "4")]
    pub release: String,
    /// How long the session lives on without a link.
    #[prost(uint32, tag = "5")]
    pub lease_seconds: u32,
    /// Listen on the pod's address too (rungs `proxy` and `direct`), not on loopback alone (`forward`).
    #[prost(bool, tag = "6")]
    pub pod_address: bool,
    /// How long the agent waits, without any session, before it exits; 0 = at once.
    #[prost(uint32, tag = "7")]
    pub park_seconds: u32,
}

/// The agent's answer, seen by every attached client; the nonce says whose it is.
#[derive(Clone, PartialEq, Message)]
pub struct Admitted {
    #[prost(bytes = "vec", tag = "1")]
    pub nonce: Vec<u8>,
    /// SHA-256 of the agent key's SubjectPublicKeyInfo, 32 bytes.
    #[prost(bytes = "vec", tag = "2")]
    pub key_hash: Vec<u8>,
    #[prost(uint32, tag = "3")]
    pub port: u32,
    #[prost(string, tag = "4")]
    pub release: String,
    /// Empty when admitted; else why not, for the user.
    #[prost(string, tag = "5")]
    pub error: String,
    /// The agent knew the session: its flows live on. Else it is a new one to it.
    #[prost(bool, tag = "6")]
    pub renewed: bool,
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum LineError {
    #[error("not an admission line")]
    NotOurs,
    #[error("malformed admission line: {0}")]
    Malformed(&'static str),
    #[error("admission line of {0} bytes is longer than {LINE_LIMIT}")]
    TooLong(usize),
}

impl Admit {
    /// The whole line, newline included.
    pub fn to_line(&self) -> Result<String, LineError> {
        to_line(ADMIT, self)
    }

    /// Reads a line with or without its newline and checks the sizes of its fields.
    pub fn from_line(line: &str) -> Result<Self, LineError> {
        let admit: Admit = from_line(ADMIT, line)?;
        check_len(&admit.session, 16, "a session id has 16 bytes")?;
        check_len(&admit.key_hash, 32, "a key hash has 32 bytes")?;
        check_len(&admit.nonce, 16, "a nonce has 16 bytes")?;
        Ok(admit)
    }
}

impl Admitted {
    /// The whole line, newline included.
    pub fn to_line(&self) -> Result<String, LineError> {
        to_line(ADMITTED, self)
    }

    /// Reads a line with or without its newline and checks the sizes of its fields.
    pub fn from_line(line: &str) -> Result<Self, LineError> {
        let admitted: Admitted = from_line(ADMITTED, line)?;
        check_len(&admitted.nonce, 16, "a nonce has 16 bytes")?;
        if admitted.error.is_empty() {
            check_len(&admitted.key_hash, 32, "a key hash has 32 bytes")?;
            if !(1..=65_535).contains(&admitted.port) {
                return Err(LineError::Malformed("a port is 1 to 65535"));
            }
        }
        Ok(admitted)
    }
}

fn to_line(prefix: &str, message: &impl Message) -> Result<String, LineError> {
    let line = format!("{prefix}{}\n", URL_SAFE_NO_PAD.encode(message.encode_to_vec()));
    if line.len() > LINE_LIMIT { Err(LineError::TooLong(line.len())) } else { Ok(line) }
}

fn from_line<M: Message + Default>(prefix: &str, line: &str) -> Result<M, LineError> {
    if line.len() > LINE_LIMIT {
        return Err(LineError::TooLong(line.len()));
    }
    let body = line.strip_prefix(prefix).ok_or(LineError::NotOurs)?.trim_end_matches(['\r', '\n']);
    let bytes = URL_SAFE_NO_PAD.decode(body).map_err(|_| LineError::Malformed("not base64"))?;
    M::decode(bytes.as_slice()).map_err(|_| LineError::Malformed("not the expected message"))
}

fn check_len(bytes: &[u8], len: usize, why: &'static str) -> Result<(), LineError> {
    if bytes.len() == len { Ok(()) } else { Err(LineError::Malformed(why)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admit() -> Admit {
        Admit {
            session: vec![1; 16],
            key_hash: vec![2; 32],
            nonce: vec![3; 16],
            release: "0.1.0".into(),
            lease_seconds: 60,
            pod_address: true,
            park_seconds: 600,
        }
    }

    #[test]
    fn a_line_reads_back_as_it_was_written() {
        let line = admit().to_line().expect("short enough");
        assert_eq!(Admit::from_line(&line), Ok(admit()));
        assert_eq!(Admit::from_line(line.trim_end()), Ok(admit()));
    }

    #[test]
    fn fields_of_a_wrong_size_are_refused() {
        let spoils: [fn(&mut Admit); 3] = [|a| a.session.push(0), |a| a.key_hash.clear(), |a| a.nonce.truncate(1)];
        for spoil in spoils {
            let mut bad = admit();
            spoil(&mut bad);
            let line = bad.to_line().expect("short enough");
            assert!(matches!(Admit::from_line(&line), Err(LineError::Malformed(_))));
        }
    }

    #[test]
    fn an_overlong_line_is_neither_written_nor_read() {
        let bad = Admit { release: "x".repeat(LINE_LIMIT), ..admit() };
        assert!(matches!(bad.to_line(), Err(LineError::TooLong(_))));
        assert!(matches!(Admit::from_line(&"x".repeat(LINE_LIMIT + 1)), Err(LineError::TooLong(_))));
    }

    #[test]
    fn an_answer_needs_a_port_unless_it_is_an_error() {
        let mut answer = Admitted { nonce: vec![3; 16], key_hash: vec![4; 32], ..Admitted::default() };
        let line = answer.to_line().expect("short enough");
        assert!(Admitted::from_line(&line).is_err());
        answer.error = "too many sessions".into();
        let line = answer.to_line().expect("short enough");
        assert_eq!(Admitted::from_line(&line), Ok(answer));
    }

    #[test]
    fn a_session_id_reads_back_as_it_is_shown() {
        let id = SessionId([0xab; 16]);
        assert_eq!(id.to_string().parse(), Ok(id));
        assert!("é".repeat(16).parse::<SessionId>().is_err());
    }
}
