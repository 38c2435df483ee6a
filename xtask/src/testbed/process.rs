//! A process by id and start time, so that a recycled id is never taken for it; and bounded waiting on foreign ones.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Process {
    pub(crate) name: String,
    pub(crate) pid: i32,
    /// Clock ticks after boot, field 22 of /proc/PID/stat.
    pub(crate) start_time: u64,
}

impl Process {
    pub(crate) fn of(name: &str, pid: i32) -> Option<Self> {
        Some(Self { name: name.to_owned(), pid, start_time: stat(pid)?.1 })
    }

    /// A zombie counts as gone.
    pub(crate) fn is_alive(&self) -> bool {
        stat(self.pid).is_some_and(|(state, start)| start == self.start_time && state != 'Z')
    }

    pub(crate) fn signal(&self, signal: Signal) {
        if self.is_alive() {
            let _ = kill(Pid::from_raw(self.pid), signal); // it may just have ended
        }
    }
}

fn stat(pid: i32) -> Option<(char, u64)> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = text.rsplit_once(") ")?.1.split(' ');
    Some((fields.next()?.chars().next()?, fields.nth(18)?.parse().ok()?))
}

/// Ids of all processes.
pub(crate) fn all() -> Vec<i32> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// Asks a foreign process again and again whether it is as wanted; there is no event to wait for.
#[expect(clippy::disallowed_methods, reason = "a foreign process gives no event; the wait is bounded")]
pub(crate) fn wait_until(what: &str, deadline: Duration, mut is_so: impl FnMut() -> bool) -> Result<()> {
    let start = Instant::now();
    while !is_so() {
        if start.elapsed() > deadline {
            bail!("{what} after {} s: see `cargo xtask testbed logs`", deadline.as_secs());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}
