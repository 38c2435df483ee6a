//! Telepresence as a peer, where `TELEPRESENCE` names its program and the program `traffic` of the same release, from which
//! the traffic manager's image is made, lies beside it.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;
use testkit::lab::{Lab, checked, within};

use crate::arena::Arena;
use crate::bench::manifest::NAMESPACE;
use crate::testbed::addresses::{POD_RANGES, SERVICE_RANGES};

/// Where its chart puts the traffic manager.
const ITS_NAMESPACE: &str = "ambassador";

/// Connected while this lives; its daemons run as root, as they do.
pub(crate) struct Telepresence {
    lab: Lab,
    program: PathBuf,
    /// It keeps its state and its sockets' names below a home.
    home: TempDir,
}

impl Telepresence {
    /// `None` without the variable.
    pub(crate) fn start(arena: &Arena) -> Result<Option<Telepresence>> {
        let Some(program) = std::env::var_os("TELEPRESENCE").map(PathBuf::from) else { return Ok(None) };
        let traffic = program.with_file_name("traffic");
        ensure!(
            program.is_file() && traffic.is_file(),
            "TELEPRESENCE names no program with the program `traffic` of its release beside it; next: build both from \
             its module (cmd/telepresence, cmd/traffic) into one folder, with CGO_ENABLED=0"
        );
        let image = arena.load_program("traffic", &traffic)?;
        let (registry, name, tag) = parts(&image)?;
        let home = tempfile::tempdir()?;
        let peer = Telepresence { lab: arena.lab().clone(), program, home };
        let values = format!("image.registry={registry},image.name={name},image.tag={tag},agentInjector.enabled=false");
        checked(&mut peer.command(&["helm", "install", "--set", &values])).context("no traffic manager")?;
        // Pods are reached by a route of the testbed's, for other paths; it carries what goes to Services.
        let ranges = ["--never-proxy", POD_RANGES[0], "--also-proxy", SERVICE_RANGES[0]];
        let connect = [&["connect", "-n", NAMESPACE][..], &ranges].concat();
        within(Duration::from_secs(60), || checked(&mut peer.command(&connect))).context("it does not connect")?;
        Ok(Some(peer))
    }

    fn command(&self, words: &[&str]) -> Command {
        let program = self.program.display().to_string();
        let mut command = self.lab.root([&[program.as_str()], words].concat());
        command.env("HOME", self.home.path());
        command
    }
}

impl Drop for Telepresence {
    fn drop(&mut self) {
        // The testbed may be on its way down.
        let _ = checked(&mut self.command(&["quit", "-s"]));
        let _ = checked(&mut self.command(&["helm", "uninstall"]));
        let _ = self.lab.kubectl(&["delete", "namespace", ITS_NAMESPACE, "--ignore-not-found", "--wait=false"]);
    }
}

fn parts(image: &str) -> Result<(&str, &str, &str)> {
    let (path, tag) = image.rsplit_once(':').context("no tag")?;
    let (registry, name) = path.rsplit_once('/').context("no name")?;
    Ok((registry, name, tag))
}
