//! Datagrams at the end where they leave for the network, and on their way over a flow: UDP and ICMP echo.
//!
//! [`Socket`] stands for one port of the command: it sends to any other end, and tells what comes back, answers and what
//! ICMP says alike. [`Records`] carries them over a byte stream. The agent joins the two, and so does the client for what
//! leaves from the developer's machine.

mod echo;
mod records;
mod socket;

pub use records::Records;
pub use socket::{Protocol, Socket};
