//! The agent's binary as a container runtime starts it: arguments, lock, stdin and stdout.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use wire::{Admit, Admitted};

/// A container has a file of its own, so each test has. Another process copies: a descriptor of ours, open for writing,
/// would be inherited by what another test starts at that moment, and the file be busy.
fn installed(dir: &Path) -> PathBuf {
    let path = dir.join("stead-agent");
    let copied = Command::new("cp").arg(env!("CARGO_BIN_EXE_stead-agent")).arg(&path).status();
    assert!(copied.is_ok_and(|status| status.success()), "not copied");
    path
}

fn start(executable: &Path) -> Child {
    let mut command = Command::new(executable);
    command.env_clear().env("STEAD_POD_IPS", "127.0.0.1").env("RUST_LOG", "trace");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("started")
}

fn admit(lease_seconds: u32) -> Admit {
    Admit {
        session: vec![1; 16],
        key_hash: vec![2; 32],
        nonce: vec![3; 16],
        lease_seconds,
        park_seconds: 0,
        ..Admit::default()
    }
}

#[test]
fn it_admits_from_stdin_refuses_a_second_start_and_ends_by_itself() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let executable = installed(dir.path());
    let mut first = start(&executable);
    let mut stdin = first.stdin.take().expect("piped");
    stdin.write_all(admit(1).to_line().expect("short").as_bytes()).expect("read");
    let mut answer = String::new();
    BufReader::new(first.stdout.take().expect("piped")).read_line(&mut answer).expect("answered");
    let admitted = Admitted::from_line(&answer).expect("well formed");
    assert_eq!((admitted.error.as_str(), admitted.nonce), ("", vec![3; 16]));

    let second = start(&executable).wait_with_output().expect("ended");
    assert_eq!(second.status.code(), Some(75));
    assert!(String::from_utf8_lossy(&second.stderr).contains("runs in this container already"));

    // The end of stdin does not end it; the session's lease does, and then nothing is left to park for.
    drop(stdin);
    let first = first.wait_with_output().expect("ended");
    assert_eq!(first.status.code(), Some(0));
    let log = String::from_utf8_lossy(&first.stderr);
    assert!(log.contains("session ended") && !log.contains("TRACE"), "the app's RUST_LOG is not the agent's: {log}");
}

#[test]
fn it_ends_when_the_pod_does() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let mut agent = start(&installed(dir.path()));
    let mut ready = String::new();
    BufReader::new(agent.stderr.take().expect("piped")).read_line(&mut ready).expect("logged");
    assert!(ready.contains("ready"), "{ready}");
    let pid = rustix::process::Pid::from_child(&agent);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("it runs");
    assert_eq!(agent.wait().expect("ended").code(), Some(0));
}

#[test]
fn arguments_are_few() {
    let run =
        |arguments: &[&str]| Command::new(env!("CARGO_BIN_EXE_stead-agent")).args(arguments).output().expect("ran");
    let version = run(&["version"]);
    assert_eq!(version.status.code(), Some(0));
    assert_eq!(String::from_utf8_lossy(&version.stdout), format!("stead-agent {}\n", wire::RELEASE));
    for wrong in [&["serve"][..], &["version", "x"]] {
        assert_eq!(run(wrong).status.code(), Some(64));
    }
}
