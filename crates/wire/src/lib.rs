//! What client and agent say to each other, apart from frames: the admission lines, the hello of a link, what an OPEN
//! asks for, and the messages of the control flow. The only crate that knows the encoding (protobuf).
//!
//! It does no I/O, knows no clock and draws no random numbers. The format is decided in `docs/decisions/0001-wire.md`.

mod admission;
mod control;
mod datagram;
mod open;

pub use admission::{Admit, Admitted, LINE_LIMIT, LineError, SessionId};
pub use control::{
    Answer, ControlDecoder, ControlError, DescribeContainer, Description, Done, EnvEntry, Failure, Leave, Pace,
    Request, Resolve, Resolved, answer, encode_control, request,
};
pub use datagram::{Datagram, Delivery, MOST_PAYLOAD, Malformed, Undelivered};
pub use open::{Hello, Open, Transport};

/// The protocol spoken by this release. A release also speaks the one before.
pub const PROTOCOL: u32 = 1;

/// This release, as `stead version` prints it and as client and agent compare it.
pub const RELEASE: &str = env!("CARGO_PKG_VERSION");
