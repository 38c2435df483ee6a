//! The control groups of the testbed: who is in them is ours to end. Knows cgroup v1, v2 and both at once.
//!
//! Our groups lie below those this process is in (v1), or below the root (v2, whose inner groups may hold no process).

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::testbed::process::wait_until;

const GROUP: &str = "stead-testbed";

/// One mounted hierarchy.
pub(crate) struct Hierarchy {
    pub(crate) mount: PathBuf,
    /// Mount options that name it (`cpu`, `name=systemd`); none is v2.
    pub(crate) controllers: Option<String>,
}

pub(crate) fn hierarchies() -> Result<Vec<Hierarchy>> {
    let text = fs::read_to_string("/proc/self/mountinfo").context("cannot read the list of mounts")?;
    Ok(text.lines().filter_map(hierarchy).collect())
}

fn hierarchy(line: &str) -> Option<Hierarchy> {
    let (left, right) = line.split_once(" - ")?;
    let mount = PathBuf::from(left.split(' ').nth(4)?);
    let (kind, options) = (right.split(' ').next()?, right.split(' ').nth(2)?);
    let is_flag = |option: &&str| matches!(*option, "rw" | "ro" | "xattr" | "noprefix" | "clone_children");
    let names = options.split(',').filter(|option| !is_flag(option) && !option.starts_with("release_agent"));
    match kind {
        "cgroup" => Some(Hierarchy { mount, controllers: Some(names.collect::<Vec<_>>().join(",")) }),
        "cgroup2" => Some(Hierarchy { mount, controllers: None }),
        _ => None,
    }
}

/// Moves this process into the testbed's group of that name, in every hierarchy.
pub(crate) fn join(name: &str) -> Result<()> {
    let mine = fs::read_to_string("/proc/self/cgroup").context("cannot read /proc/self/cgroup")?;
    for hierarchy in hierarchies()? {
        let parent = hierarchy.mount.join(own_path(&mine, hierarchy.controllers.as_deref()));
        let group = parent.join(GROUP).join(name);
        for dir in [parent.join(GROUP), group.clone()] {
            fs::create_dir_all(&dir).with_context(|| format!("cannot make the control group {}", dir.display()))?;
            inherit(&dir, hierarchy.controllers.is_none());
        }
        fs::write(group.join("cgroup.procs"), "0").with_context(|| format!("cannot enter {}", group.display()))?;
    }
    Ok(())
}

/// Path of this process's group in a hierarchy; without a part of ours (a testbed command run inside the testbed).
fn own_path(mine: &str, controllers: Option<&str>) -> PathBuf {
    let Some(controllers) = controllers else { return PathBuf::new() };
    let find = |line: &str| {
        let mut fields = line.splitn(3, ':').skip(1);
        (fields.next() == Some(controllers)).then(|| fields.next().unwrap_or("/").to_owned())
    };
    let path = mine.lines().find_map(find).unwrap_or_default();
    let path = path.split(&format!("/{GROUP}")).next().unwrap_or_default();
    PathBuf::from(path.trim_start_matches('/'))
}

/// A new cpuset (v1) is empty and takes nobody; a new v2 group has the controllers its parent hands down.
fn inherit(dir: &Path, is_v2: bool) {
    let parent = dir.parent().unwrap_or(dir);
    for file in ["cpuset.cpus", "cpuset.mems"] {
        if !is_v2 && let Ok(value) = fs::read_to_string(parent.join(file)) {
            let _ = fs::write(dir.join(file), value.trim()); // the join below says what is wrong
        }
    }
    if is_v2 {
        hand_down(parent);
    }
}

/// Lets groups below `dir` use every controller there is (v2).
pub(crate) fn hand_down(dir: &Path) {
    let Ok(all) = fs::read_to_string(dir.join("cgroup.controllers")) else { return };
    for controller in all.split_whitespace() {
        let _ = fs::write(dir.join("cgroup.subtree_control"), format!("+{controller}")); // some can't be handed down
    }
}

/// Our topmost group in every hierarchy, whoever made it.
pub(crate) fn roots() -> Vec<PathBuf> {
    let mut found = Vec::new();
    for hierarchy in hierarchies().unwrap_or_default() {
        search(&hierarchy.mount, 6, &mut found);
    }
    found
}

fn search(dir: &Path, depth: u8, found: &mut Vec<PathBuf>) {
    for child in children(dir) {
        if child.ends_with(GROUP) {
            found.push(child);
        } else if depth > 0 {
            search(&child, depth - 1, found);
        }
    }
}

fn children(dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    let is_dir = |entry: &fs::DirEntry| entry.file_type().is_ok_and(|kind| kind.is_dir());
    entries.flatten().filter(is_dir).map(|entry| entry.path()).collect()
}

/// Everybody in our groups save this process.
pub(crate) fn members() -> Vec<i32> {
    let me = Pid::this().as_raw();
    let mut pids: Vec<i32> = roots().iter().flat_map(|root| members_below(root)).filter(|pid| *pid != me).collect();
    pids.sort_unstable();
    pids.dedup();
    pids
}

fn members_below(dir: &Path) -> Vec<i32> {
    let own = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
    let mut pids: Vec<i32> = own.lines().filter_map(|line| line.parse().ok()).collect();
    pids.extend(children(dir).iter().flat_map(|child| members_below(child)));
    pids
}

/// Ends every member, again and again until none is left.
pub(crate) fn kill_members() -> Result<()> {
    let mut ended = BTreeSet::new();
    wait_until("processes of the testbed do not end (a disk that is slow to sync?)", Duration::from_secs(120), || {
        let members = members();
        for pid in &members {
            let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL); // it may just have ended
        }
        ended.extend(&members);
        members.is_empty()
    })?;
    // Those whose parents ended before them are reaped by the machine's own init: wait for it, but not for ever.
    let is_gone = |pid: &i32| !Path::new(&format!("/proc/{pid}")).exists();
    let _ = wait_until("", Duration::from_secs(2), || ended.iter().all(is_gone)); // a zombie does no harm
    Ok(())
}

/// Removes our groups; those that cannot be removed are what [`roots`] still finds.
pub(crate) fn remove() {
    roots().iter().for_each(|root| remove_below(root));
}

fn remove_below(dir: &Path) {
    children(dir).iter().for_each(|child| remove_below(child));
    let _ = fs::remove_dir(dir); // the caller checks what is left
}
