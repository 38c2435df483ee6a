//! Running `stead` as the unprivileged user: whole runs, and sessions with a shell.

use std::io::{BufRead, BufReader, Lines, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Output, Stdio};
use std::time::Duration;

use anyhow::{Context, ensure};
use serde_json::Value;
use testkit::lab::{Shell, checked};

use crate::world::{LEASE, NAMESPACE, PARK, World};

/// A command line of `stead run`, to be filled in and started.
#[derive(Clone)]
pub(crate) struct Run<'a> {
    world: &'a World,
    /// `None`: a session by a stand-in of its own.
    workload: Option<&'a str>,
    flags: Vec<String>,
}

impl<'a> Run<'a> {
    pub(crate) fn new(world: &'a World, workload: Option<&'a str>) -> Run<'a> {
        let seconds = |time: Duration| format!("{}s", time.as_secs());
        let flags = ["-n", NAMESPACE, "--lease", &seconds(LEASE), "--park", &seconds(PARK)];
        Run { world, workload, flags: flags.map(str::to_owned).to_vec() }
    }

    /// More flags, each with its value; those that are set already are replaced.
    pub(crate) fn flags(mut self, flags: &[&str]) -> Run<'a> {
        for pair in flags.chunks(2) {
            if let Some(at) = self.flags.iter().position(|flag| flag == pair[0]) {
                self.flags.drain(at..at + 2);
            }
            self.flags.extend(pair.iter().map(|word| (*word).to_owned()));
        }
        self
    }

    /// One more flag, without a value.
    pub(crate) fn flag(mut self, flag: &str) -> Run<'a> {
        self.flags.push(flag.to_owned());
        self
    }

    /// The words of the whole command.
    pub(crate) fn argv(&self, command: &[&str]) -> Vec<String> {
        let mut argv = vec![self.world.stead().to_owned(), "run".to_owned()];
        argv.extend(self.flags.iter().cloned());
        argv.extend(self.workload.map(str::to_owned));
        argv.push("--".to_owned());
        argv.extend(command.iter().map(|word| (*word).to_owned()));
        argv
    }

    /// As a command of the unprivileged user.
    pub(crate) fn command(&self, command: &[&str]) -> Command {
        let mut run = self.world.lab().user(self.argv(command));
        run.env("STEAD_AGENT_IMAGE", self.world.agent_image());
        run
    }

    /// Runs a command to its end.
    pub(crate) fn output(&self, command: &[&str]) -> anyhow::Result<Output> {
        Ok(self.command(command).output()?)
    }

    /// Runs a command that must succeed; its stdout.
    pub(crate) fn stdout(&self, command: &[&str]) -> anyhow::Result<String> {
        checked(&mut self.command(command))
    }

    /// Starts a session with a shell.
    pub(crate) fn shell(&self) -> anyhow::Result<Shell> {
        Shell::start(self.command(&["sh"]))
    }
}

/// How a run ended that was to fail.
pub(crate) struct Failed {
    pub(crate) code: Option<i32>,
    pub(crate) stderr: String,
}

/// Runs a command line of stead's that is to fail.
pub(crate) fn failed(command: &mut Command) -> anyhow::Result<Failed> {
    let output = command.output()?;
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(!output.status.success(), "it succeeded: {stderr}");
    ensure!(!stderr.contains("panicked"), "it panicked: {stderr}");
    ensure!(output.stdout.is_empty(), "stdout is data, and there is none: {}", String::from_utf8_lossy(&output.stdout));
    Ok(Failed { code: output.status.code(), stderr })
}

/// A session whose command says lines of JSON and waits for a line to go on.
pub(crate) struct Held {
    child: Child,
    stdin: Option<ChildStdin>,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Held {
    pub(crate) fn start(mut command: Command) -> anyhow::Result<Held> {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let stdin = child.stdin.take();
        let lines = BufReader::new(child.stdout.take().context("piped")?).lines();
        Ok(Held { child, stdin, lines })
    }

    /// What it says next.
    pub(crate) fn line(&mut self) -> anyhow::Result<Value> {
        Ok(serde_json::from_str(&self.lines.next().context("it ended")??)?)
    }

    /// Lets it go on.
    pub(crate) fn say(&mut self) -> anyhow::Result<()> {
        Ok(self.stdin.as_mut().context("it was ended")?.write_all(b"\n")?)
    }

    /// It must end well.
    pub(crate) fn end(mut self) -> anyhow::Result<()> {
        drop(self.stdin.take());
        ensure!(self.child.wait()?.success(), "the command failed");
        Ok(())
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // Nothing happens to one that has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The test program's server on the developer's machine, outside of any session, or on a node.
pub(crate) struct Server(Child);

impl Server {
    pub(crate) fn start(world: &World, flags: &[&str]) -> anyhow::Result<Server> {
        Server::spawn(world.lab().user([&[world.testapp(), "serve"], flags].concat()))
    }

    pub(crate) fn on_node(world: &World, node: &str, flags: &[&str]) -> anyhow::Result<Server> {
        Server::spawn(world.lab().node(node, [&[world.testapp(), "serve"], flags].concat()))
    }

    fn spawn(mut serve: Command) -> anyhow::Result<Server> {
        Ok(Server(serve.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Fails only when it has ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
