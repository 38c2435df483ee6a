//! What is left when the command, the client or the guard ends: nothing (acceptance F3).

use std::io::{BufRead, BufReader};
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Child, Stdio};

use nix::poll::{PollFd, PollFlags, PollTimeout};

use crate::support::{as_user, finish, kill, run};

/// Runs away in every way known: its own session, no terminal signals, an orphan of an orphan.
const RUNAWAYS: &str =
    "setsid sleep 1000 & nohup sleep 1000 >/dev/null 2>&1 & (setsid sh -c 'sleep 1000 & sleep 1000' &); sleep 0.2; ";

/// Processes whose environment holds `MARK=mark`.
fn marked(mark: &str) -> Vec<u32> {
    let needle = format!("MARK={mark}");
    let holds = |pid: &u32| {
        let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        environment.split(|byte| *byte == 0).any(|entry| entry == needle.as_bytes())
    };
    let pids = std::fs::read_dir("/proc").expect("/proc").flatten();
    pids.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter(holds).collect()
}

fn network_namespace(pid: u32) -> Option<std::path::PathBuf> {
    std::fs::read_link(format!("/proc/{pid}/ns/net")).ok()
}

/// Waits until each of them has ended.
fn ended(pids: Vec<OwnedFd>) {
    for pid in pids {
        let mut ready = [PollFd::new(pid.as_fd(), PollFlags::POLLIN)];
        let ended = nix::poll::poll(&mut ready, PollTimeout::from(10_000u16)).expect("poll");
        assert_eq!(ended, 1, "a process did not end");
    }
}

fn handle(pid: &u32) -> Option<OwnedFd> {
    let pid = rustix::process::Pid::from_raw(*pid as i32)?;
    rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).ok()
}

/// A command with runaways that says its process id and sleeps.
fn start(mark: &str) -> (Child, u32) {
    let script = format!("{RUNAWAYS} echo $$; sleep 1000");
    let mut child =
        as_user(&["run", "--", "sh", "-c", &script]).env("MARK", mark).stderr(Stdio::null()).spawn().expect("start");
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().expect("piped")).read_line(&mut line).expect("read");
    (child, line.trim().parse().expect("a process id"))
}

#[test]
fn descendants_end_with_the_command() {
    let mark = format!("descendants-{}", std::process::id());
    let script = format!("{RUNAWAYS} grep -lz MARK={mark} /proc/[0-9]*/environ 2>/dev/null | wc -l; exit 3");
    let child = as_user(&["run", "--", "sh", "-c", &script]).env("MARK", &mark).spawn().expect("start");
    let (code, out, _) = finish(child);
    assert_eq!(code, 3);
    assert!(out.trim().parse::<u32>().expect("a count") >= 6, "the runaways ran: {out}");
    assert_eq!(marked(&mark), []);
}

#[test]
fn a_killed_client_leaves_nothing() {
    let mark = format!("client-{}", std::process::id());
    let (mut child, command) = start(&mark);
    let namespace = network_namespace(command).expect("the command's namespace");
    assert_ne!(Some(&namespace), network_namespace(std::process::id()).as_ref());
    let before = marked(&mark);
    assert!(before.len() >= 8, "client, guard, command and runaways: {before:?}");
    let handles = before.iter().filter_map(handle).collect();
    kill(child.id(), 9);
    ended(handles);
    child.wait().expect("wait");
    assert_eq!(marked(&mark), []);
    let everyone = std::fs::read_dir("/proc").expect("/proc").flatten();
    let others = everyone.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    assert_eq!(others.filter(|pid| network_namespace(*pid).as_ref() == Some(&namespace)).count(), 0);
}

#[test]
fn a_killed_guard_ends_command_and_client() {
    let mark = format!("guard-{}", std::process::id());
    let (child, command) = start(&mark);
    let before = marked(&mark);
    let guard = *before.iter().find(|pid| name_of(**pid) == "stead-guard").expect("the guard");
    kill(guard, 9);
    ended(handle(&command).into_iter().collect());
    let (code, _, _) = finish(child);
    assert_eq!(code, 70);
    assert_eq!(marked(&mark), []);
}

fn name_of(pid: u32) -> String {
    std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default().trim().to_owned()
}

#[test]
fn a_stopped_tree_ends_with_its_client_too() {
    let mark = format!("stopped-{}", std::process::id());
    let (mut child, _) = start(&mark);
    let before = marked(&mark);
    let handles = before.iter().filter_map(handle).collect();
    let guard = *before.iter().find(|pid| name_of(**pid) == "stead-guard").expect("the guard");
    kill(guard, 19);
    kill(child.id(), 9);
    ended(handles);
    child.wait().expect("wait");
    assert_eq!(marked(&mark), []);
}

#[test]
fn a_terminated_client_passes_it_on() {
    let script = "trap 'echo got it; exit 5' TERM; echo ready; while :; do sleep 0.05; done";
    let mut child = as_user(&["run", "--", "sh", "-c", script]).spawn().expect("start");
    let mut reader = BufReader::new(child.stdout.take().expect("piped"));
    let mut line = String::new();
    reader.read_line(&mut line).expect("read");
    kill(child.id(), 15);
    line.clear();
    reader.read_line(&mut line).expect("read");
    assert_eq!(line, "got it\n");
    assert_eq!(finish(child).0, 5);
}

#[test]
fn a_signal_to_the_whole_group_reaches_the_command_once() {
    // The command counts; `setsid` gives client, guard and command a group of their own.
    let script =
        "n=0; trap 'n=$((n+1))' USR1; trap 'echo $n; exit' USR2; kill -USR1 0; kill -USR2 $$; sleep 1; echo none";
    let (_, out, err) = run_in_own_group(script);
    assert_eq!(out, "1\n", "{err}");
}

fn run_in_own_group(script: &str) -> (i32, String, String) {
    let mut command = as_user(&["run", "--", "sh", "-c", script]);
    std::os::unix::process::CommandExt::process_group(&mut command, 0);
    finish(command.spawn().expect("start"))
}

#[test]
fn nothing_is_left_after_a_plain_command() {
    assert_eq!(run(&["true"]), (0, String::new(), String::new()));
}
