//! Ends the sandbox's processes without the guard: for a guard that was killed (by the kernel for want of memory, for
//! one) and left descendants of the command behind.

use rustix::process::{Pid, PidfdFlags, Signal};

/// Device and inode of a network namespace.
pub(crate) type Namespace = (u64, u64);

/// The network namespace of a process; `None` when it may not be seen or is gone.
pub(crate) fn network_namespace(pid: i32) -> Option<Namespace> {
    let found = rustix::fs::stat(format!("/proc/{pid}/ns/net")).ok()?;
    Some((found.st_dev, found.st_ino))
}

/// Kills every process in `namespace` until none is found. The caller's process is never in one.
pub(crate) fn end_processes_in(namespace: Namespace) {
    /// Against processes that multiply faster than they are found.
    const ROUNDS: usize = 100;
    for _ in 0..ROUNDS {
        if processes().filter(|pid| kill_if_in(*pid, namespace)).count() == 0 {
            return;
        }
    }
}

fn processes() -> impl Iterator<Item = i32> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// The handle is taken before the look, so that the process killed is the one that was looked at.
fn kill_if_in(pid: i32, namespace: Namespace) -> bool {
    let Some(handle) = Pid::from_raw(pid).and_then(|pid| rustix::process::pidfd_open(pid, PidfdFlags::empty()).ok())
    else {
        return false;
    };
    network_namespace(pid) == Some(namespace) && rustix::process::pidfd_send_signal(&handle, Signal::KILL).is_ok()
}
