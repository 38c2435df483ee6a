//! `testbed down`, and what `up` does first: end and remove whatever a testbed left, of whichever run, checkout or
//! cache directory, and say what could not be removed.
//!
//! Ours is: what the marker in /run names, every process in our control groups or network namespaces, mounts below a
//! state directory, our namespaces. Nothing is matched by program name.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::shell;
use crate::testbed::process::{self, wait_until};
use crate::testbed::state::{MARKER_DIR, Owner, StateDir, lock};
use crate::testbed::{cgroups, net};

pub(crate) fn run() -> Result<()> {
    let _lock = lock()?;
    let start = Instant::now();
    clear()?;
    eprintln!(
        "down after {:.1} s: no process, mount, namespace or control group is left",
        start.elapsed().as_secs_f32()
    );
    Ok(())
}

/// Leaves nothing, or says what it had to leave.
pub(crate) fn clear() -> Result<()> {
    let owner = Owner::read();
    if owner.is_none() && !net::existing().is_empty() && cgroups::roots().is_empty() {
        bail!(
            "network namespaces named {} exist that no testbed of ours made: remove them with `ip netns del`",
            net::existing().join(", ")
        );
    }
    for init in owner.iter().flat_map(|owner| &owner.inits) {
        init.signal(Signal::SIGKILL);
    }
    cgroups::kill_members()?;
    kill_in_namespaces()?;
    for name in net::existing() {
        shell::run(&format!("ip netns del {name}"))?;
    }
    let states = owner.iter().map(Owner::dir).chain(StateDir::of_this_user());
    for state in states {
        unmount_below(&state.0);
        remove_state(&state)?;
    }
    unmount_below(Path::new(MARKER_DIR));
    cgroups::remove();
    remove_marker()?;
    check()
}

/// Processes somebody started in our namespaces without our help (`nsenter`).
fn kill_in_namespaces() -> Result<()> {
    wait_until("processes in the testbed's namespaces do not end", Duration::from_secs(10), || {
        let pids = in_namespaces();
        for pid in &pids {
            let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL); // it may just have ended
        }
        pids.is_empty()
    })
}

fn in_namespaces() -> Vec<i32> {
    let ours: Vec<_> = net::existing().iter().filter_map(|name| fs::metadata(net::path(name)).ok()).collect();
    let me = Pid::this().as_raw();
    let is_ours = |pid: &i32| {
        let theirs = fs::metadata(format!("/proc/{pid}/ns/net"));
        theirs.is_ok_and(|theirs| ours.iter().any(|our| (our.dev(), our.ino()) == (theirs.dev(), theirs.ino())))
    };
    process::all().into_iter().filter(|pid| *pid != me && is_ours(pid)).collect()
}

/// Mounts in this namespace; those of the nodes went with their inits.
fn unmount_below(dir: &Path) {
    for mount in mounts_below(dir).iter().rev() {
        let _ = umount2(mount.as_str(), MntFlags::MNT_DETACH); // `check` finds what stays
    }
}

fn mounts_below(dir: &Path) -> Vec<String> {
    let text = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let points = text.lines().filter_map(|line| line.split(' ').nth(4));
    points.filter(|point| Path::new(point).starts_with(dir)).map(str::to_owned).collect()
}

fn remove_state(state: &StateDir) -> Result<()> {
    let dir = &state.0;
    if !dir.exists() {
        return Ok(());
    }
    if !dir.ends_with("stead/testbed") {
        bail!("{} does not look like a testbed's state: remove it by hand if it is one", dir.display());
    }
    // What just ended may still write its last lines.
    wait_until(&format!("{} cannot be removed", dir.display()), Duration::from_secs(5), || {
        fs::remove_dir_all(dir).is_ok() || !dir.exists()
    })
}

/// All but the lock, which we hold.
fn remove_marker() -> Result<()> {
    for entry in fs::read_dir(MARKER_DIR)?.flatten().filter(|entry| entry.file_name() != "lock") {
        let path = entry.path();
        if path.is_dir() { fs::remove_dir_all(path)? } else { fs::remove_file(path)? }
    }
    Ok(())
}

fn check() -> Result<()> {
    let mut left: Vec<String> =
        cgroups::members().iter().chain(&in_namespaces()).map(|pid| format!("process {pid}")).collect();
    left.extend(net::existing().iter().map(|name| format!("network namespace {name}")));
    left.extend(cgroups::roots().iter().map(|group| format!("control group {}", group.display())));
    left.extend(mounts_below(Path::new(MARKER_DIR)).iter().map(|mount| format!("mount {mount}")));
    if !left.is_empty() {
        bail!("left, and not to be removed: {}", left.join("; "));
    }
    Ok(())
}
