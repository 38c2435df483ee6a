//! The state directory, the marker that says whose testbed this machine holds, and the lock around changes to it.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::cache;
use crate::testbed::process::Process;

/// One per machine, whatever the cache directory: a later run finds an earlier one by it.
pub(crate) const MARKER_DIR: &str = "/run/stead-testbed";

/// What `up` writes before it makes anything.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Owner {
    pub(crate) state: PathBuf,
    pub(crate) checkout: PathBuf,
    /// Key of the sources and choices it was started from.
    pub(crate) key: String,
    pub(crate) nodes: u8,
    /// Set when all was ready.
    #[serde(default)]
    pub(crate) ready: bool,
    /// The inits: to end one is to end all below it.
    #[serde(default)]
    pub(crate) inits: Vec<Process>,
}

impl Owner {
    pub(crate) fn read() -> Option<Self> {
        serde_json::from_str(&fs::read_to_string(marker()).ok()?).ok()
    }

    pub(crate) fn write(&self) -> Result<()> {
        write_json(&marker(), self)
    }

    /// The testbed that is up, or an error that says how to get one.
    pub(crate) fn running() -> Result<Self> {
        match Self::read() {
            Some(owner) if owner.ready => Ok(owner),
            Some(_) => bail!("the testbed did not come up wholly: run `cargo xtask testbed up` again"),
            None => bail!("no testbed is up: run `cargo xtask testbed up`"),
        }
    }

    pub(crate) fn dir(&self) -> StateDir {
        StateDir(self.state.clone())
    }
}

fn marker() -> PathBuf {
    Path::new(MARKER_DIR).join("owner.json")
}

/// Held while the testbed is changed.
pub(crate) fn lock() -> Result<fs::File> {
    fs::create_dir_all(MARKER_DIR).with_context(|| format!("cannot make {MARKER_DIR}: the testbed needs root"))?;
    cache::lock(&Path::new(MARKER_DIR).join("lock"))
}

/// `…/stead/testbed`.
#[derive(Debug, Clone)]
pub(crate) struct StateDir(pub(crate) PathBuf);

impl StateDir {
    pub(crate) fn of_this_user() -> Result<Self> {
        Ok(Self(cache::root()?.join("testbed")))
    }

    pub(crate) fn join(&self, path: impl AsRef<Path>) -> PathBuf {
        self.0.join(path)
    }

    pub(crate) fn log(&self, name: &str) -> PathBuf {
        self.0.join("log").join(format!("{name}.log"))
    }

    pub(crate) fn pki(&self, file: &str) -> PathBuf {
        self.0.join("pki").join(file)
    }

    pub(crate) fn kubeconfig(&self, user: &str) -> PathBuf {
        self.0.join("kubeconfig").join(user)
    }

    /// Leads PATH for commands in the testbed; holds the embedded kubectl.
    pub(crate) fn bin(&self) -> PathBuf {
        self.0.join("bin")
    }
}

pub(crate) fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    write(path, &serde_json::to_string_pretty(value)?)
}

/// Writes a file with its parents, all at once: a reader sees the old or the new one.
pub(crate) fn write(path: &Path, text: &str) -> Result<()> {
    let dir = path.parent().context("a file needs a directory")?;
    fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    let fresh = path.with_extension("new");
    fs::write(&fresh, text).with_context(|| format!("cannot write {}", fresh.display()))?;
    fs::rename(&fresh, path).with_context(|| format!("cannot replace {}", path.display()))
}
