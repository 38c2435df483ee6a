//! The control socket: status, list, leave, quit.

use std::process::Output;
use std::time::Duration;

use anyhow::ensure;
use serde_json::Value;

use super::{Row, row};
use crate::world::{NAMESPACE, World};

pub(super) const ROWS: &[Row] = &[
    row("CLI", "status, list and their exit codes", status),
    row("CLI", "leave and quit end a session, and its command with it", leave_and_quit),
    row("CLI", "version and image save", version),
];

fn status(world: &World) -> anyhow::Result<()> {
    ensure!(ask(world, &["status"])?.status.code() == Some(3), "no session is exit code 3");
    let _shell = world.shell()?;
    let output = ask(world, &["status", "-o", "json"])?;
    ensure!(output.status.code() == Some(0), "a healthy session is exit code 0: {}", output.status);
    let status = world.status()?;
    let pod = status["pod"].as_str().unwrap_or_default();
    ensure!(status["namespace"] == NAMESPACE && pod.starts_with("web-"), "status says {status}");
    ensure!(status["health"] == "healthy", "status says {status}");
    ensure!(status["links"].as_array().is_some_and(|links| links.iter().all(|l| l["up"] == true)), "links: {status}");
    let listed: Value = serde_json::from_slice(&ask(world, &["list", "-o", "json"])?.stdout)?;
    ensure!(listed[0]["workload"] == "deploy/web" && listed[0]["kind"] == "observe", "list says {listed}");
    let text = String::from_utf8(ask(world, &["status"])?.stdout)?;
    ensure!(text.contains(pod), "the text names the pod: {text}");
    Ok(())
}

fn leave_and_quit(world: &World) -> anyhow::Result<()> {
    for words in [&["leave", "web"][..], &["quit"]] {
        let mut shell = world.shell()?;
        shell.ok("trap '' INT; sleep 1000 & true")?;
        let output = ask(world, words)?;
        ensure!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
        shell.wait(Duration::from_secs(15))?;
        ensure!(ask(world, &["status"])?.status.code() == Some(3), "the session is gone after {words:?}");
    }
    let output = ask(world, &["leave", "no-such-workload"])?;
    ensure!(!output.status.success(), "leaving what is not attached is an error");
    Ok(())
}

fn version(world: &World) -> anyhow::Result<()> {
    let text = String::from_utf8(ask(world, &["version"])?.stdout)?;
    ensure!(text.contains(env!("CARGO_PKG_VERSION")), "version says {text}");
    let first = ask(world, &["image", "save", "-"])?;
    let second = ask(world, &["image", "save", "-"])?;
    ensure!(first.status.success() && first.stdout.len() > 100_000, "the image has {} bytes", first.stdout.len());
    ensure!(first.stdout == second.stdout, "two saves of one release differ");
    Ok(())
}

fn ask(world: &World, words: &[&str]) -> anyhow::Result<Output> {
    Ok(world.lab().user([&[world.stead()], words].concat()).output()?)
}
