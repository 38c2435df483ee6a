//! A shell somewhere else (in a session, in a pod) that runs one line after another.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use serde_json::Value;

use super::within;

/// Longer than any single line of a test.
const PATIENCE: Duration = Duration::from_secs(120);

/// A running `sh`, fed line by line. Ended when dropped.
pub struct Shell {
    child: Child,
    stdin: Option<ChildStdin>,
    lines: Receiver<String>,
    said: Arc<Mutex<String>>,
}

impl Shell {
    /// Starts a command whose innermost program is `sh`, and waits until that takes lines.
    pub fn start(mut command: Command) -> anyhow::Result<Shell> {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().context("cannot start it")?;
        let stdout = child.stdout.take().context("stdout is piped")?;
        let stderr = child.stderr.take().context("stderr is piped")?;
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        let said = Arc::new(Mutex::new(String::new()));
        let sink = Arc::clone(&said);
        std::thread::spawn(move || collect(stderr, &sink));
        let mut shell = Shell { stdin: child.stdin.take(), child, lines, said };
        shell.ok("true").context("the shell did not start")?;
        Ok(shell)
    }

    /// The outermost process's id; `testbed exec` has become the command itself.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Runs one line; its exit code and its stdout.
    pub fn line(&mut self, line: &str) -> anyhow::Result<(i32, String)> {
        let stdin = self.stdin.as_mut().context("stdin was closed")?;
        if writeln!(stdin, "{{ {line}\n}} </dev/null; printf '\\n%s %d\\n' '== end' $?").is_err() {
            bail!("the shell ended: {}", self.said());
        }
        let mut out = String::new();
        loop {
            match self.lines.recv_timeout(PATIENCE) {
                Ok(said) => match said.strip_prefix("== end ") {
                    Some(code) => return Ok((code.parse()?, out.trim_end_matches('\n').to_owned())),
                    None => {
                        out.push_str(&said);
                        out.push('\n');
                    }
                },
                Err(error) => bail!("`{line}`: {error} after {out:?}; stderr: {}", self.said()),
            }
        }
    }

    /// Runs one line that must succeed.
    pub fn ok(&mut self, line: &str) -> anyhow::Result<String> {
        let (code, out) = self.line(line)?;
        ensure!(code == 0, "`{line}` ended with {code}: {out}; stderr: {}", self.said());
        Ok(out)
    }

    /// Runs one line that prints JSON.
    pub fn json(&mut self, line: &str) -> anyhow::Result<Value> {
        let out = self.ok(line)?;
        serde_json::from_str(&out).with_context(|| format!("`{line}` gave no JSON: {out}"))
    }

    /// What was written to stderr so far.
    pub fn said(&self) -> String {
        self.said.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits for its end.
    pub fn wait(&mut self, patience: Duration) -> anyhow::Result<ExitStatus> {
        within(patience, || self.child.try_wait()?.context("it still runs"))
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        self.stdin = None;
        if self.wait(Duration::from_secs(5)).is_err() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

fn collect(mut from: impl Read, into: &Mutex<String>) {
    let mut block = [0; 4096];
    while let Ok(n @ 1..) = from.read(&mut block) {
        into.lock().unwrap_or_else(PoisonError::into_inner).push_str(&String::from_utf8_lossy(&block[..n]));
    }
}
