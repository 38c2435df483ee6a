//! `cargo xtask dist`: the two binaries as they are shipped; also the programs that tests and benchmarks run.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::cache;
use crate::cargo::{cargo, release_dir, target_dir};

/// Release builds that are there.
#[derive(Debug, Clone)]
pub(crate) struct Dist {
    pub(crate) stead: PathBuf,
    pub(crate) agent: PathBuf,
}

/// Builds, then prints each file with its size.
pub(crate) fn run() -> Result<()> {
    let dist = build()?;
    for file in [&dist.stead, &dist.agent] {
        println!("{} {:.1} MB", file.display(), megabytes(file)?);
    }
    Ok(())
}

/// A folder of binaries to take instead of building them: another release's, or those of before a change.
fn elsewhere() -> Option<PathBuf> {
    std::env::var_os("STEAD_DIST").map(PathBuf::from)
}

/// The agent first, then the client with the agent inside. Quick when nothing changed.
pub(crate) fn build() -> Result<Dist> {
    if let Some(dir) = elsewhere() {
        return Ok(Dist { stead: dir.join("stead"), agent: dir.join("stead-agent") });
    }
    let dir = release_dir()?;
    let dist = Dist { stead: dir.join("stead"), agent: dir.join("stead-agent") };
    succeed(&mut cargo(&["build", "--release", "--quiet", "--package", "stead-agent"]))?;
    let mut client = cargo(&["build", "--release", "--quiet", "--package", "stead"]);
    succeed(client.env("STEAD_AGENT_BINARY", &dist.agent))?;
    for file in [&dist.stead, &dist.agent] {
        ensure!(is_static(file)?, "{} needs a dynamic loader", file.display());
    }
    Ok(dist)
}

/// Builds a release program of the tests; its path.
pub(crate) fn program(package: &str, name: &str) -> Result<PathBuf> {
    if let Some(dir) = elsewhere() {
        return Ok(dir.join(name));
    }
    succeed(&mut cargo(&["build", "--release", "--quiet", "--package", package, "--bin", name]))?;
    Ok(release_dir()?.join(name))
}

/// Builds a static Go program of the tests, from its folder in tests/clients; its path.
pub(crate) fn go_program(name: &str) -> Result<PathBuf> {
    let program = target_dir()?.join("clients").join(name);
    let mut build = Command::new("go");
    build.current_dir(cache::checkout().join("tests/clients").join(name)).env("CGO_ENABLED", "0");
    succeed(build.args(["build", "-o"]).arg(&program).arg("."))?;
    Ok(program)
}

pub(crate) fn megabytes(file: &Path) -> Result<f64> {
    let meta = std::fs::metadata(file).with_context(|| format!("cannot look at {}", file.display()))?;
    Ok(meta.len() as f64 / 1e6)
}

/// Runs with our own output; an error when it fails.
pub(crate) fn succeed(command: &mut Command) -> Result<()> {
    let program = command.get_program().to_owned();
    let status = command.status().with_context(|| format!("cannot start {}", program.display()))?;
    let words: Vec<_> = command.get_args().map(|word| word.to_string_lossy()).collect();
    ensure!(status.success(), "{} {} ended with {status}", program.display(), words.join(" "));
    Ok(())
}

/// An ELF file without a program header PT_INTERP (3) asks for no loader.
fn is_static(file: &Path) -> Result<bool> {
    let bytes = std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    let number = |at: usize, size: usize| -> Option<usize> {
        bytes.get(at..at + size)?.iter().rev().try_fold(0usize, |sum, byte| Some(sum << 8 | usize::from(*byte)))
    };
    // The 64-bit, little-endian header: e_phoff at 0x20, e_phentsize at 0x36, e_phnum at 0x38.
    let header = (number(0x20, 8), number(0x36, 2), number(0x38, 2));
    let (Some(start), Some(size), Some(count)) = header else { return Ok(false) };
    Ok((0..count).all(|i| number(start + i * size, 4) != Some(3)))
}
