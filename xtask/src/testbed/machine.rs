//! A machine of the testbed seen from here: start its init, ask it for daemons, remember and find their processes.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};

use crate::shell;
use crate::testbed::process::{self, Process, wait_until};
use crate::testbed::state::{StateDir, write_json};

/// A long-lived program, as its machine's init is asked to start it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Daemon {
    pub(crate) name: String,
    pub(crate) program: PathBuf,
    pub(crate) args: Vec<String>,
    pub(crate) env: Vec<(String, String)>,
    pub(crate) log: PathBuf,
}

impl Daemon {
    /// `line` is split at blanks; no argument of ours holds one.
    pub(crate) fn new(state: &StateDir, name: &str, program: impl Into<PathBuf>, line: &str) -> Self {
        let args = line.split_whitespace().map(str::to_owned).collect();
        Self { name: name.to_owned(), program: program.into(), args, env: Vec::new(), log: state.log(name) }
    }
}

/// A daemon that was started, as kept in the state directory.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Started {
    pub(crate) machine: String,
    pub(crate) process: Process,
    pub(crate) daemon: Daemon,
}

impl Started {
    pub(crate) fn all(state: &StateDir) -> Vec<Self> {
        let Ok(entries) = fs::read_dir(state.join("run")) else { return Vec::new() };
        let read = |entry: fs::DirEntry| serde_json::from_str(&fs::read_to_string(entry.path()).ok()?).ok();
        let mut all: Vec<Self> = entries.flatten().filter_map(read).collect();
        all.sort_by(|a, b| a.process.name.cmp(&b.process.name));
        all
    }

    pub(crate) fn find(state: &StateDir, name: &str) -> Option<Self> {
        Self::all(state).into_iter().find(|started| started.process.name == name)
    }

    /// Asks it to end, makes it end after 10 s, and forgets it.
    pub(crate) fn stop(&self, state: &StateDir) -> Result<()> {
        self.process.signal(Signal::SIGTERM);
        let gone = wait_until("it does not end by itself", Duration::from_secs(10), || !self.process.is_alive());
        if gone.is_err() {
            self.process.signal(Signal::SIGKILL);
            let what = format!("{} does not die", self.process.name);
            wait_until(&what, Duration::from_secs(5), || !self.process.is_alive())?;
        }
        let _ = fs::remove_file(record(state, &self.process.name)); // already forgotten
        Ok(())
    }
}

/// Starts the init of a machine whose network namespace exists; its return says that it takes requests.
pub(crate) fn start_init(state: &StateDir, name: &str) -> Result<Process> {
    fs::create_dir_all(state.join("machine"))?;
    let mut command = Command::new("/proc/self/exe");
    command.args(["testbed", "internal", "machine", name]).arg(&state.0);
    let pid = shell::output(&mut command)?.trim().parse().context("the machine does not say its init's id")?;
    let init =
        Process::of(name, pid).with_context(|| format!("the init of {name} ended at once: see log/init-{name}.log"))?;
    let socket = socket(state, name);
    wait_until(&format!("the init of {name} takes no requests"), Duration::from_secs(5), || {
        UnixStream::connect(&socket).is_ok()
    })?;
    Ok(init)
}

/// Starts a daemon on a machine and records it.
pub(crate) fn start(state: &StateDir, init: &Process, daemon: Daemon) -> Result<Process> {
    let name = daemon.name.clone();
    let path = socket(state, &init.name);
    let mut stream = UnixStream::connect(&path).with_context(|| format!("the init of {} is gone", init.name))?;
    writeln!(stream, "{}", serde_json::to_string(&daemon)?)?;
    let mut reply = String::new();
    BufReader::new(&stream).read_line(&mut reply)?;
    let Ok(inner) = reply.trim().parse() else { bail!("{}", reply.trim()) };
    let pid = outer_pid(init, inner)
        .with_context(|| format!("{name} ended at once: see `cargo xtask testbed logs {name}`"))?;
    let process = Process::of(&name, pid).with_context(|| format!("{name} ended at once"))?;
    write_json(&record(state, &name), &Started { machine: init.name.clone(), process: process.clone(), daemon })?;
    Ok(process)
}

/// The id that the host knows a process of a machine by.
fn outer_pid(init: &Process, inner: i32) -> Option<i32> {
    let namespace = |pid: i32| fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
    let wanted = namespace(init.pid)?;
    process::all().into_iter().find(|pid| namespace(*pid).as_ref() == Some(&wanted) && inner_pid(*pid) == Some(inner))
}

/// The last figure of NSpid is the id in the innermost namespace.
fn inner_pid(pid: i32) -> Option<i32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("NSpid:"))?.split_whitespace().last()?.parse().ok()
}

pub(crate) fn socket(state: &StateDir, name: &str) -> PathBuf {
    state.join("machine").join(format!("{name}.sock"))
}

pub(crate) fn init_log(state: &StateDir, name: &str) -> Result<File> {
    let path = state.log(&format!("init-{name}"));
    fs::create_dir_all(path.parent().unwrap_or(Path::new("/")))?;
    File::options().create(true).append(true).open(&path).with_context(|| format!("cannot open {}", path.display()))
}

fn record(state: &StateDir, name: &str) -> PathBuf {
    state.join("run").join(format!("{name}.json"))
}
