//! Calls to cargo, and where it puts what it builds.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result};
use serde_json::Value;

use crate::{cache, shell};

/// As `.cargo/config.toml` names it.
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// A call to the cargo that runs us, in the checkout.
pub(crate) fn cargo(args: &[&str]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(args).current_dir(cache::checkout()).stdin(Stdio::null());
    command
}

/// `cargo metadata` of the workspace, with dependencies where asked for.
pub(crate) fn metadata(with_dependencies: bool) -> Result<Value> {
    let mut command = cargo(&["metadata", "--format-version=1", "--locked"]);
    if !with_dependencies {
        command.arg("--no-deps");
    }
    serde_json::from_str(&shell::output(&mut command)?).context("cargo metadata gave no JSON")
}

/// Where cargo puts everything.
pub(crate) fn target_dir() -> Result<PathBuf> {
    let metadata = metadata(false)?;
    Ok(metadata["target_directory"].as_str().context("cargo names no target directory")?.into())
}

/// Where release builds of the shipped target lie.
pub(crate) fn release_dir() -> Result<PathBuf> {
    Ok(target_dir()?.join(TARGET).join("release"))
}
