//! Counts what passed and failed, runs each step's process so that an interrupt can end it, and prints times.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

static INTERRUPTED: AtomicBool = AtomicBool::new(false);
/// Process id of the step that runs, 0 for none.
static RUNNING: AtomicU32 = AtomicU32::new(0);

/// Ends the step that runs and keeps others from starting.
pub(crate) fn interrupt() {
    INTERRUPTED.store(true, Ordering::SeqCst);
    if let Ok(pid @ 1..) = i32::try_from(RUNNING.load(Ordering::SeqCst)) {
        // It may have ended meanwhile.
        let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
    }
}

pub(crate) fn is_interrupted() -> bool {
    INTERRUPTED.load(Ordering::SeqCst)
}

/// For work that is not a process of its own: an error once an interrupt came.
pub(crate) fn stop_if_interrupted() -> Result<()> {
    ensure!(!is_interrupted(), "interrupted");
    Ok(())
}

#[derive(Default)]
pub(crate) struct Tally {
    pub(crate) passed: usize,
    pub(crate) failed: usize,
}

impl Tally {
    /// One step that passes or fails as a whole.
    pub(crate) fn step(&mut self, name: &str, work: impl FnOnce() -> Result<()>) -> bool {
        self.count(name, || work().map(|()| (1, 0)))
    }

    /// A step that counts for itself; an error counts as one failure.
    pub(crate) fn count(&mut self, name: &str, work: impl FnOnce() -> Result<(usize, usize)>) -> bool {
        println!("== {name}");
        let started = Instant::now();
        let counted = if is_interrupted() { Err(anyhow::anyhow!("interrupted")) } else { work() };
        let seconds = started.elapsed().as_secs_f64();
        let (passed, failed) = counted.unwrap_or_else(|error| {
            println!("FAILED {name}: {error:#}");
            (0, 1)
        });
        println!("== {name}: {passed} passed, {failed} failed ({seconds:.1} s)");
        self.passed += passed;
        self.failed += failed;
        failed == 0
    }
}

/// Runs a process to its end as the step that an interrupt ends.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let mut child = start(command)?;
    finish(&mut child)
}

/// As [`run`]; `each` sees every line of stdout, which is shown as well.
pub(crate) fn run_with_lines(command: &mut Command, mut each: impl FnMut(&str)) -> Result<()> {
    let mut child = start(command.stdout(Stdio::piped()))?;
    let stdout = child.stdout.take().context("stdout is piped")?;
    for line in BufReader::new(stdout).lines().map_while(Result::ok) {
        each(&line);
        println!("{line}");
    }
    finish(&mut child)
}

fn start(command: &mut Command) -> Result<Child> {
    let program = command.get_program().to_owned();
    let child = command.spawn().with_context(|| format!("cannot start {}", program.display()))?;
    RUNNING.store(child.id(), Ordering::SeqCst);
    Ok(child)
}

fn finish(child: &mut Child) -> Result<()> {
    let status = child.wait();
    RUNNING.store(0, Ordering::SeqCst);
    if is_interrupted() {
        bail!("interrupted");
    }
    let status = status?;
    ensure!(status.success(), "it ended with {status}");
    Ok(())
}
