//! `cargo xtask test`: everything that must hold before a change is taken, with the time of each step.
//!
//! It goes on after a failure, brings down what it started in every case, and its last line is the count.

mod edges;
mod steps;
mod tally;

use std::process::ExitCode;
use std::time::Instant;

use anyhow::Result;
use nix::sys::signal::{SigSet, Signal};

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

/// On SIGINT and SIGTERM the step that runs is ended, the steps left fail at once, and cleaning up goes its usual way.
pub(crate) fn end_gently() -> Result<()> {
    let signals = SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP]);
    // Blocked here and so in every thread; std clears the mask for child processes.
    signals.thread_block()?;
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        while let Ok(signal) = signals.wait() {
            eprintln!("{signal}: ending; the testbed goes down first");
            tally::interrupt();
        }
    })?;
    Ok(())
}
