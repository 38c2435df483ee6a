//! `cargo xtask test`: everything that must hold before a change is taken, with the time of each step.
//!
//! It goes on after a failure, brings down what it started in every case, and its last line is the count.

mod edges;
mod steps;
mod tally;

use std::process::ExitCode;
use std::time::Instant;

use anyhow::Result;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

use crate::test::tally::Tally;

pub(crate) use tally::stop_if_interrupted;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Only these (default: all, with formatting, lints and a short benchmark)
    #[arg(value_enum)]
    what: Option<What>,
    /// Only the cluster's rows of this name
    #[arg(long)]
    row: Option<String>,
    /// How often each row runs
    #[arg(long, default_value_t = 1)]
    repeat: usize,
    /// Use a testbed that is up, and leave it up
    #[arg(long)]
    keep: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum What {
    /// Tests that need nothing but this process
    Unit,
    /// Tests in namespaces of their own
    Lab,
    /// Rows against a real Kubernetes
    Cluster,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    end_gently()?;
    let started = Instant::now();
    let mut tally = Tally::default();
    let what = if args.row.is_some() { Some(What::Cluster) } else { args.what };
    let wants = |part| what.is_none() || what == Some(part);
    if what.is_none() {
        steps::style(&mut tally);
    }
    if wants(What::Unit) {
        steps::unit(&mut tally);
    }
    if what.is_none() {
        steps::fuzz(&mut tally);
    }
    if wants(What::Lab) {
        steps::lab(&mut tally);
    }
    if wants(What::Cluster) {
        steps::cluster(&mut tally, args, what.is_none());
    }
    println!("all in {:.0} s", started.elapsed().as_secs_f64());
    println!("{} passed, {} failed", tally.passed, tally.failed);
    Ok(if tally.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// On SIGINT, SIGQUIT, SIGTERM and SIGHUP the step that runs is ended, the steps left fail at once, and cleaning up goes its usual
/// way. By a handler, which child processes do not inherit as they would a blocked or ignored signal.
pub(crate) fn end_gently() -> Result<()> {
    let action = SigAction::new(SigHandler::Handler(interrupted), SaFlags::SA_RESTART, SigSet::empty());
    for signal in [Signal::SIGINT, Signal::SIGQUIT, Signal::SIGTERM, Signal::SIGHUP] {
        // SAFETY: the handler only loads and stores atomics and calls kill and write, which are async-signal-safe.
        #[expect(unsafe_code, reason = "a handler runs in the middle of anything")]
        unsafe {
            sigaction(signal, &action)?;
        }
    }
    Ok(())
}

extern "C" fn interrupted(_: i32) {
    tally::interrupt();
    // Nobody to tell when it fails.
    let _ = nix::unistd::write(std::io::stderr(), b"ending; the testbed goes down first\n");
}
