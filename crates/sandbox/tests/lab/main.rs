//! The sandbox with real namespaces, as an ordinary user (uid 6500, made by `sandbox-lab as-user` where the tests run as
//! root). Servers run outside, in the test.

mod command;
mod ending;
mod network;
mod support;
mod terminal;
