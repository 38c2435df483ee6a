//! The agent: the process in a workload's pod that dials, resolves and describes for admitted sessions.
//!
//! It serves nobody whom the API server did not let write an admission line on its stdin; it opens no flow by itself,
//! writes no file, and needs no capability. `main` is the thin start; everything is here so that tests can run it.
//!
//! One task ([`run`]) owns which sessions there are (`registry`); each session is a task of its own (`session`), each
//! flow one of the session's. Ports, handshakes and who may wait for one are `listener`'s, `head`'s and `slots`'.

mod admission;
mod agent;
mod control;
mod describe;
mod dial;
mod greeting;
mod head;
mod listener;
mod listeners;
pub mod lock;
pub mod output;
mod registry;
mod resolve;
mod session;
mod slots;

pub use agent::{Config, run};
pub use describe::Sources;
