//! Job control on a real terminal: the same dialogue with and without the sandbox gives the same transcript.

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};
use std::sync::mpsc;

use crate::support::{LAB, LONG};

/// One shell on a pseudo-terminal. `r CMD…` runs CMD in the sandbox or plainly.
struct Shell {
    terminal: std::fs::File,
    output: mpsc::Receiver<Vec<u8>>,
    seen: String,
    /// Where the last expectation was met.
    from: usize,
    child: std::process::Child,
    _directory: tempfile::TempDir,
}

impl Shell {
    fn start(how: &str) -> Shell {
        let directory = tempfile::tempdir().expect("directory");
        std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o755)).expect("mode");
        let script = directory.path().join("r");
        std::fs::write(&script, format!("#!/bin/sh\nexec /mnt/sandbox-lab {how} -- \"$@\"\n")).expect("write");
        std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).expect("mode");
        let pty = nix::pty::openpty(None, None).expect("a pseudo-terminal");
        // A shell of another test that held it would keep this one's terminal from hanging up.
        for end in [&pty.master, &pty.slave] {
            rustix::io::fcntl_setfd(end, rustix::io::FdFlags::CLOEXEC).expect("close on exec");
        }
        let path = format!("{}:/usr/bin:/bin", directory.path().display());
        let slave = || Stdio::from(pty.slave.try_clone().expect("clone"));
        let child = Command::new("setsid")
            .args(["--ctty", "--wait", LAB, "as-user", "--", "plain", "--", "sh", "-i"])
            .env_clear()
            .envs([("PATH", path.as_str()), ("PS1", "PROMPT "), ("HOME", "/"), ("TERM", "dumb")])
            .stdin(slave())
            .stdout(slave())
            .stderr(slave())
            .spawn()
            .expect("a shell");
        let terminal = std::fs::File::from(pty.master);
        let mut reader = terminal.try_clone().expect("clone");
        let (send, output) = mpsc::channel();
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(length @ 1..) = reader.read(&mut buffer) {
                let _ = send.send(buffer[..length].to_vec());
            }
        });
        let mut shell = Shell { terminal, output, seen: String::new(), from: 0, child, _directory: directory };
        shell.expect("PROMPT ");
        shell
    }

    fn send(&mut self, text: &str) {
        self.terminal.write_all(text.as_bytes()).expect("write");
    }

    /// Waits for `text` behind what was expected before.
    fn expect(&mut self, text: &str) {
        loop {
            if let Some(at) = self.seen[self.from..].find(text) {
                self.from += at + text.len();
                return;
            }
            match self.output.recv_timeout(LONG) {
                Ok(bytes) => self.seen.push_str(&String::from_utf8_lossy(&bytes)),
                Err(_) => panic!("no {text:?} in what followed: {:?}", &self.seen[self.from..]),
            }
        }
    }

    /// Sends a line and waits until the shell asks again.
    fn line(&mut self, text: &str) {
        self.send(&format!("{text}\n"));
        self.expect("PROMPT ");
    }

    fn end(mut self) -> String {
        self.send("exit\n");
        self.child.wait().expect("the shell's end");
        std::mem::take(&mut self.seen)
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        // Its jobs get SIGHUP, as their session's leader is gone.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn both(dialogue: impl Fn(&mut Shell)) {
    let transcript = |how| {
        let mut shell = Shell::start(how);
        dialogue(&mut shell);
        shell.end()
    };
    assert_eq!(transcript("plain"), transcript("run"));
}

#[test]
fn a_command_is_stopped_continued_and_interrupted() {
    both(|shell| {
        // One process, so that the shell asks again only when all of the job has stopped reading.
        shell.send("r cat\n");
        shell.expect("r cat\r\n");
        shell.send("one\n");
        shell.expect("one\r\none\r\n");
        shell.send("\x1a");
        shell.expect("PROMPT ");
        shell.line("jobs");
        shell.send("fg\n");
        shell.expect("r cat\r\n");
        shell.send("two\n");
        shell.expect("two\r\ntwo\r\n");
        shell.send("\x03");
        shell.expect("PROMPT ");
        shell.line("echo code $?");
    });
}

#[test]
fn a_command_may_catch_what_the_terminal_sends() {
    both(|shell| {
        shell.send("r sh -c 'trap \"echo int\" INT; echo up; until [ \"$x\" ]; do read x; done; exit 4'\n");
        shell.expect("up\r\n");
        shell.send("\x03");
        shell.expect("int\r\n");
        shell.send("a\n");
        shell.expect("PROMPT ");
        shell.line("echo code $?");
        shell.line("ulimit -c 0");
        shell.send("r sh -c 'echo up; exec cat'\n");
        shell.expect("up\r\n");
        shell.send("\x1c");
        shell.expect("PROMPT ");
    });
}

#[test]
fn a_command_that_stops_itself_gives_the_shell_its_prompt() {
    both(|shell| {
        shell.line("r sh -c 'kill -STOP $$; echo on again'");
        shell.send("fg\n");
        shell.expect("on again\r\n");
        shell.expect("PROMPT ");
        shell.line("echo code $?");
    });
}

#[test]
fn a_loop_of_commands_ends_at_one_interrupt() {
    both(|shell| {
        shell.send("sh -c 'for i in 1 2 3; do r sh -c \"echo up; exec cat\"; done'\n");
        shell.expect("up\r\n");
        shell.send("\x03");
        shell.expect("PROMPT ");
    });
}

#[test]
fn a_command_in_the_background_is_stopped_when_it_reads() {
    for how in ["plain", "run"] {
        let mut shell = Shell::start(how);
        shell.line("r cat &");
        // The shell tells of a job that stopped when it is asked, so it is asked until then.
        while !shell.seen.contains("Stopped (tty input)") {
            shell.line("jobs");
        }
        shell.send("fg\n");
        shell.expect("r cat\r\n");
        shell.send("one\n");
        shell.expect("one\r\none\r\n");
        shell.send("\x04");
        shell.expect("PROMPT ");
        shell.line("echo code $?");
        assert!(shell.end().contains("code 0"));
    }
}
