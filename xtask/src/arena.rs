//! What whole-cluster tests, benchmarks and the demo need in common: the testbed up, the binaries built, the images on
//! its nodes; and the testbed down again when it was not up before.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result};
use testkit::lab::Lab;

use crate::dist::{self, Dist};
use crate::{cache, image, shell};

/// A testbed with everything loaded. Taken down when dropped, unless it was up before.
pub(crate) struct Arena {
    lab: Lab,
    pub(crate) dist: Dist,
    pub(crate) testapp: PathBuf,
    /// Reference by which pods name the test program's image.
    pub(crate) testapp_image: String,
    pub(crate) agent_image: String,
    brought_up: bool,
}

/// What to do with a testbed that is up already.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Found {
    /// A test run starts clean.
    Replace,
    Keep,
}

impl Arena {
    /// Builds, brings up, loads.
    pub(crate) fn prepare(found: Found, debian_images: &[&str]) -> Result<Arena> {
        let dist = dist::build()?;
        let testapp = dist::program("testkit", "testapp")?;
        let was_up = is_up()?;
        if was_up && found == Found::Replace {
            itself(&["testbed", "down"])?;
        }
        let brought_up = !was_up || found == Found::Replace;
        let lab = Lab::new(std::env::current_exe().context("this program's own path is unknown")?);
        let mut arena =
            Arena { lab, dist, testapp, testapp_image: String::new(), agent_image: String::new(), brought_up };
        itself(&["testbed", "up"])?;
        arena.load(debian_images)?;
        Ok(arena)
    }

    pub(crate) fn lab(&self) -> &Lab {
        &self.lab
    }

    /// Puts one more static program onto the nodes; its image's reference, whose tag reads as a version: a chart may ask for one.
    pub(crate) fn load_program(&self, name: &str, program: &Path) -> Result<String> {
        let reference = format!("localhost/{name}:0.0.0-{}", &cache::key([std::fs::read(program)?])[..12]);
        let archive = image::from_static_binary(&reference, program)?;
        shell::output(own_command(&["testbed", "load"])?.arg(archive))?;
        Ok(reference)
    }

    /// Images get names that change with their contents: a testbed that stays up must not run an old one.
    fn load(&mut self, debian_images: &[&str]) -> Result<()> {
        let key = |file: &PathBuf| Ok::<_, anyhow::Error>(cache::key([std::fs::read(file)?])[..12].to_owned());
        self.testapp_image = format!("localhost/testapp:{}", key(&self.testapp)?);
        self.agent_image = format!("localhost/stead-agent:{}", key(&self.dist.agent)?);
        let mut archives = vec![image::from_static_binary(&self.testapp_image, &self.testapp)?];
        for name in debian_images {
            archives.push(shell::output(&mut own_command(&["image", name])?)?.trim().into());
        }
        let agent = std::env::temp_dir().join(format!("stead-agent-image-{}.tar", std::process::id()));
        let mut save = Command::new(&self.dist.stead);
        shell::output(save.args(["image", "save", "--name", &self.agent_image]).arg(&agent))?;
        archives.push(agent.clone());
        let mut load = own_command(&["testbed", "load"])?;
        let loaded = shell::output(load.args(&archives));
        let _ = std::fs::remove_file(agent); // the failure above matters more
        loaded.map(drop)
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        if self.brought_up
            && let Err(error) = itself(&["testbed", "down"])
        {
            eprintln!("the testbed did not go down: {error:#}");
        }
    }
}

fn is_up() -> Result<bool> {
    let mut status = own_command(&["testbed", "status"])?;
    Ok(status.stdout(Stdio::null()).stderr(Stdio::null()).status()?.success())
}

/// Runs another verb of this program.
pub(crate) fn itself(words: &[&str]) -> Result<()> {
    dist::succeed(&mut own_command(words)?)
}

pub(crate) fn own_command(words: &[&str]) -> Result<Command> {
    let mut command = Command::new(std::env::current_exe().context("this program's own path is unknown")?);
    command.args(words).stdin(Stdio::null());
    Ok(command)
}
