//! Names for the command in the sandbox: which side (cluster or host) is asked for which name, a short cache, and the
//! server that the sandbox's resolv.conf points to.
//!
//! `policy`, `resolv_conf`, `message` and `desk` do no I/O and take time as an argument; `exchange`, `ask`, `serve` and
//! `lookup` are the shell around them. The crate knows neither links nor clusters: the two sides are [`Upstream`]s.
//! Answers travel as the bytes they came as, so every record type works; search lists and ndots stay the business of
//! the program's own resolver.

mod ask;
mod desk;
mod exchange;
mod lookup;
mod message;
mod policy;
mod resolv_conf;
mod serve;

pub use exchange::exchange;
pub use lookup::{lookup, resolv_conf as host_resolv_conf};
pub use message::{Answer, Query, Rejected, fuzz_message};
pub use policy::{Policy, Side};
pub use resolv_conf::ResolvConf;
pub use serve::{Upstream, serve};
