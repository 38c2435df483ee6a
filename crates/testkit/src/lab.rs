//! The handle to a running testbed: commands on the developer's machine of it, kubectl, the API, and the processes of
//! its pods. It starts no testbed and ends none.

mod api;
mod pods;
mod shell;
mod wait;

pub use api::Api;
pub use pods::{Container, containers};
pub use shell::Shell;
pub use wait::{until, within};

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use anyhow::{Context, ensure};
use serde_json::Value;

/// The unprivileged user of the testbed's developer machine, unless STEAD_TEST_USER names another: two runs beside each
/// other must not be the same user, as the pictures show all of a user's processes and files.
pub fn user_name() -> String {
    std::env::var("STEAD_TEST_USER").unwrap_or_else(|_| "stead-dev".to_owned())
}

/// Where commands run: on the testbed's developer machine, through `xtask testbed exec`.
#[derive(Clone, Debug)]
pub struct Lab {
    xtask: PathBuf,
}

impl Lab {
    /// Through the given build of xtask.
    pub fn new(xtask: impl Into<PathBuf>) -> Lab {
        Lab { xtask: xtask.into() }
    }

    /// The build of xtask that started this process.
    pub fn from_env() -> anyhow::Result<Lab> {
        let xtask =
            std::env::var_os("STEAD_XTASK").context("STEAD_XTASK is not set: run `cargo xtask test cluster`")?;
        Ok(Lab::new(xtask))
    }

    /// A command of the unprivileged user, with KUBECONFIG and its own devices.
    pub fn user<S: AsRef<OsStr>>(&self, argv: impl IntoIterator<Item = S>) -> Command {
        self.exec(&[&format!("--user={}", user_name())], argv)
    }

    /// A command of root in the developer machine's network.
    pub fn root<S: AsRef<OsStr>>(&self, argv: impl IntoIterator<Item = S>) -> Command {
        self.exec(&[], argv)
    }

    /// A command of root on a node, with CONTAINERD_ADDRESS.
    pub fn node<S: AsRef<OsStr>>(&self, node: &str, argv: impl IntoIterator<Item = S>) -> Command {
        self.exec(&[&format!("--node={node}")], argv)
    }

    fn exec<S: AsRef<OsStr>>(&self, flags: &[&str], argv: impl IntoIterator<Item = S>) -> Command {
        let mut command = Command::new(&self.xtask);
        command.args(["testbed", "exec"]).args(flags).arg("--").args(argv).stdin(Stdio::null());
        command
    }

    /// Another verb of the testbed (`wan --rtt 20ms`, `route on`, `load FILE`).
    pub fn testbed(&self, words: &[&str]) -> anyhow::Result<String> {
        checked(Command::new(&self.xtask).arg("testbed").args(words).stdin(Stdio::null()))
    }

    /// kubectl's stdout, as the testbed's administrator.
    pub fn kubectl(&self, words: &[&str]) -> anyhow::Result<String> {
        checked(&mut self.root([&["kubectl"], words].concat()))
    }

    /// kubectl's answer as JSON.
    pub fn kubectl_json(&self, words: &[&str]) -> anyhow::Result<Value> {
        let text = self.kubectl(&[words, &["-o", "json"]].concat())?;
        serde_json::from_str(&text).with_context(|| format!("kubectl {} gave no JSON", words.join(" ")))
    }

    /// Applies a manifest file.
    pub fn apply(&self, manifest: &Path) -> anyhow::Result<()> {
        let file = manifest.to_str().context("the path is not UTF-8")?;
        self.kubectl(&["apply", "-f", file]).map(drop)
    }

    /// Runs a command in a pod.
    pub fn in_pod(&self, namespace: &str, pod: &str, argv: &[&str]) -> anyhow::Result<String> {
        self.kubectl(&[&["exec", "-n", namespace, pod, "--"], argv].concat())
    }

    /// The unprivileged user's id, group and home.
    pub fn account(&self) -> anyhow::Result<Account> {
        let text = checked(&mut self.user(["sh", "-c", "id -u; id -g; echo $HOME; echo $XDG_RUNTIME_DIR"]))?;
        let mut lines = text.lines();
        let mut next = || lines.next().context("`id` says too little");
        Ok(Account { uid: next()?.parse()?, gid: next()?.parse()?, home: next()?.into(), runtime: next()?.into() })
    }
}

/// The unprivileged user.
#[derive(Clone, Debug)]
pub struct Account {
    pub uid: u32,
    pub gid: u32,
    pub home: PathBuf,
    pub runtime: PathBuf,
}

/// Runs to the end; stdout, or an error that carries stderr.
pub fn checked(command: &mut Command) -> anyhow::Result<String> {
    let output = command.output().with_context(|| format!("cannot start {}", command.get_program().display()))?;
    ensure!(output.status.success(), "{}: {}", shown(command), failure(&output));
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// How a process failed, with the end of what it said.
pub fn failure(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stderr);
    let lines: Vec<&str> = text.trim().lines().collect();
    format!("{}: {}", output.status, lines[lines.len().saturating_sub(12)..].join("\n"))
}

/// A command as a person would type it, without what stands before `--`.
pub fn shown(command: &Command) -> String {
    let words: Vec<_> = command.get_args().map(|word| word.to_string_lossy().into_owned()).collect();
    let start = words.iter().position(|word| word == "--").map_or(0, |at| at + 1);
    words[start..].join(" ")
}
