//! The tests' stand-in for `stead`: runs a command in a sandbox whose dialer maps addresses to this machine's loopback.
//!
//! ```text
//! sandbox-lab as-user -- ARG…      as root: becomes uid 6500 with a /dev/net/tun of its own, then `sandbox-lab ARG…`
//! sandbox-lab run [--file PATH=CONTENT]… [--cwd DIR] [--timings] [--visit] -- CMD…
//!                                  --visit: connects to what CMD listens on, and says what came
//! sandbox-lab plain -- CMD…        the same command without a sandbox, to compare
//! sandbox-lab client WHAT ARG…     what runs inside: one connection's story, told in a line
//! sandbox-lab measure              round trips, connects, throughput and start: without a sandbox and within one
//! ```
//! In arguments after `--`, `@self` is this binary. Addresses: 10.96.255.1 host unreachable, .2 never answers, .3 network
//! unreachable, 10.96.254.0/24 takes 50 ms, others of 10.96.0.0/16 and fd96::/16 are loopback here, all else is network
//! unreachable.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a program for tests")]

mod as_user;
mod client;
mod measure;
mod run;

fn main() -> std::process::ExitCode {
    let mut arguments = std::env::args().skip(1);
    let what = arguments.next().unwrap_or_default();
    let rest: Vec<String> = arguments.collect();
    let result = match what.as_str() {
        "as-user" => as_user::become_user(&rest),
        "run" => run::run(&rest),
        "plain" => run::plain(&rest),
        "measure" => measure::measure(&rest),
        "client" => client::client(&rest),
        other => Err(format!("unknown: {other}").into()),
    };
    result.unwrap_or_else(|error| {
        eprintln!("sandbox-lab: {error}");
        std::process::ExitCode::from(70)
    })
}

type Outcome = Result<std::process::ExitCode, Box<dyn std::error::Error>>;
