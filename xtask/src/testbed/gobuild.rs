//! Builds the Go modules (Kubernetes, CoreDNS, the registry) once and keeps the programs by a key of their sources.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::{cache, shell};

pub(crate) struct Module {
    pub(crate) name: &'static str,
    /// Handed to the Go linker. The version is what `kubectl version` and clients see.
    ldflags: &'static str,
    /// For the impatient, on two cores with an empty cache.
    minutes: u32,
}

pub(crate) const KUBE: Module = Module {
    name: "kube",
    ldflags: "-s -w -X k8s.io/component-base/version.gitVersion=v1.34.2 -X k8s.io/component-base/version.gitMajor=1 \
              -X k8s.io/component-base/version.gitMinor=34 -X k8s.io/component-base/version.gitTreeState=clean \
              -X k8s.io/client-go/pkg/version.gitVersion=v1.34.2",
    minutes: 9,
};

/// Linked statically, because it is the only file of its image.
pub(crate) const COREDNS: Module =
    Module { name: "coredns", ldflags: "-s -w -linkmode external -extldflags -static", minutes: 2 };

/// Not part of the testbed itself: rows start it where they need it.
pub(crate) const REGISTRY: Module = Module { name: "registry", ldflags: "-s -w", minutes: 1 };

impl Module {
    /// Key of everything the program depends on.
    pub(crate) fn key(&self) -> Result<String> {
        let dir = self.sources();
        let mut parts = vec![go_version()?.into_bytes(), self.ldflags.as_bytes().to_vec()];
        for file in ["main.go", "go.mod", "go.sum"] {
            let path = dir.join(file);
            parts.push(std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?);
        }
        Ok(cache::key(parts))
    }

    /// The built program; builds it if no earlier run has.
    pub(crate) fn program(&self) -> Result<PathBuf> {
        let dir = cache::root()?.join("go").join(self.key()?);
        let program = dir.join(self.name);
        if program.exists() {
            return Ok(program);
        }
        let _lock = cache::lock(&dir.join("lock"))?;
        if !program.exists() {
            self.build(&program)?;
        }
        Ok(program)
    }

    fn sources(&self) -> PathBuf {
        cache::checkout().join("testbed").join(self.name)
    }

    fn build(&self, program: &Path) -> Result<()> {
        let start = Instant::now();
        eprintln!("building {} with go: about {} minutes on two cores, once", self.name, self.minutes);
        let fresh = program.with_extension("new");
        let mut go = Command::new("go");
        go.args(["build", "-trimpath", "-p", "2", "-ldflags", self.ldflags, "-o"]).arg(&fresh).arg(".");
        let status = go.current_dir(self.sources()).status().context("cannot start go: is it installed?")?;
        if !status.success() {
            bail!("go build of testbed/{} failed: a module that cannot be downloaded?", self.name);
        }
        std::fs::rename(&fresh, program)?;
        eprintln!("built {} in {} s", self.name, start.elapsed().as_secs());
        Ok(())
    }
}

fn go_version() -> Result<String> {
    shell::run("go env GOVERSION GOARCH").context("go is needed to build the testbed's Kubernetes")
}
