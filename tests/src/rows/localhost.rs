//! R12, R14: localhost is the command's own, this machine's, and of the pod's other containers.

use std::time::Duration;

use anyhow::{Context, ensure};
use serde_json::Value;
use testkit::lab::{Shell, checked, within};

use super::{Row, probe, row};
use crate::stead::{Server, failed};
use crate::world::World;

pub(super) const ROWS: &[Row] = &[
    row("R12", "a service on the machine's 127.0.0.1 is reached from the command", machine),
    row("R12", "a port that the command listens on is on the machine's 127.0.0.1", ports),
    row("R12", "a port that is taken on the machine gives way to the next, or ends a strict session", taken),
    row("R14", "what other containers of the pod serve on its localhost is on the command's", neighbours),
];

/// Of the server on the machine, one for each of the test program's habits.
const PORTS: [&str; 5] = ["--raw=19200", "--http=19201", "--first=19202", "--reset=19203", "--record=19204"];

fn machine(world: &World) -> anyhow::Result<()> {
    let _server = Server::start(world, &PORTS)?;
    let mut shell = world.shell()?;
    within(Duration::from_secs(10), || {
        let hello = probe(world, &mut shell, "probe get 127.0.0.1:19201 /hello")?;
        ensure!(hello.as_str().is_some_and(|hello| hello.starts_with("hello from ")), "{hello}");
        Ok(())
    })?;
    let half = probe(world, &mut shell, "probe half-close 127.0.0.1:19200 --bytes 70000")?;
    ensure!(half["hash_equal"] == true && half["count"] == 70_000, "a half-close is not kept: {half}");
    let closed = probe(world, &mut shell, "probe connect 127.0.0.1:19299")?;
    ensure!(closed["result"] == "ECONNREFUSED", "{closed}");
    // What the command itself listens on comes first.
    let script = format!(
        "{} serve {} >/dev/null 2>&1 & server=$!; until {} probe server-first 127.0.0.1:19302 >/dev/null 2>&1; do :; done; kill $server",
        world.testapp(),
        PORTS.join(" ").replace("192", "193"),
        world.testapp()
    );
    shell.ok(&script)?;
    Ok(())
}

/// Waits until the session's status shows this port of the command; its number on the machine.
fn published(world: &World, port: u16) -> anyhow::Result<u64> {
    let mut here = None;
    within(Duration::from_secs(10), || {
        let status = world.status()?;
        let ports = status["ports"].as_array().context("no list of ports")?;
        here = ports.iter().find(|entry| entry["port"] == port).and_then(|entry| entry["machine_port"].as_u64());
        ensure!(here.is_some(), "{port} is not published: {ports:?}");
        Ok(())
    })?;
    here.context("not published")
}

/// What the test program says of a connection from the machine, outside of any session.
fn from_machine(world: &World, words: &[&str]) -> anyhow::Result<Value> {
    let text = checked(&mut world.lab().user([&[world.testapp(), "probe"], words].concat()))?;
    serde_json::from_str(&text).context("no JSON")
}

fn ports(world: &World) -> anyhow::Result<()> {
    let closed = from_machine(world, &["connect", "127.0.0.1:19401"])?;
    ensure!(closed["result"] == "ECONNREFUSED", "something else listens: {closed}");
    let mut shell = world.shell()?;
    let serve =
        format!("{} serve {} >/dev/null 2>&1  & server=$!", world.testapp(), PORTS.join(" ").replace("192", "194"));
    shell.ok(&serve)?;
    ensure!(published(world, 19_401)? == 19_401);
    published(world, 19_403)?;
    let hello = from_machine(world, &["get", "127.0.0.1:19401", "/hello"])?;
    ensure!(hello.as_str().is_some_and(|hello| hello.starts_with("hello from ")), "{hello}");
    let half = from_machine(world, &["half-close", "127.0.0.1:19400", "--bytes", "3000000"])?;
    ensure!(half["hash_equal"] == true && half["count"] == 3_000_000, "a half-close is not kept: {half}");
    let reset = from_machine(world, &["reset-by-peer", "127.0.0.1:19400"])?;
    ensure!(reset["read"] == "ECONNRESET", "a reset is not kept: {reset}");
    let seen = from_machine(world, &["ends-at-peer", "127.0.0.1:19404"])?;
    ensure!(seen["seen"] == "ECONNRESET", "a reset is not kept: {seen}");
    shell.ok("kill $server; wait $server || true")?;
    within(Duration::from_secs(2), || {
        let closed = from_machine(world, &["connect", "127.0.0.1:19401"])?;
        ensure!(closed["result"] == "ECONNREFUSED", "still there: {closed}");
        Ok(())
    })
}

fn taken(world: &World) -> anyhow::Result<()> {
    let ports = PORTS.map(|port| port.replace("192", "195"));
    let serve = [&[world.testapp(), "serve"][..], &ports.each_ref().map(String::as_str)].concat();
    let _server = Server::start(world, &serve[2..])?;
    within(Duration::from_secs(10), || {
        let taken = from_machine(world, &["connect", "127.0.0.1:19500"])?;
        ensure!(taken["result"] == "ok", "{taken}");
        Ok(())
    })?;
    let mut shell = world.shell()?;
    shell.ok(&format!("{} >/dev/null 2>&1 &", serve.join(" ")))?;
    // The next one that is free: those of the server follow each other.
    ensure!(published(world, 19_500)? == 19_505, "{}", world.status()?["ports"]);
    drop(shell);
    let strict = failed(&mut world.run("deploy/web").flag("--strict-ports").command(&serve))?;
    ensure!(strict.code == Some(74), "{:?}: {}", strict.code, strict.stderr);
    ensure!(strict.stderr.contains("port 1950") && strict.stderr.contains("next:"), "{}", strict.stderr);
    Ok(())
}

fn neighbours(world: &World) -> anyhow::Result<()> {
    let reached = |world: &World, shell: &mut Shell, port: u16| -> anyhow::Result<bool> {
        let answer = probe(world, shell, &format!("probe connect 127.0.0.1:{port}"))?;
        ensure!(answer["result"] == "ok" || answer["result"] == "ECONNREFUSED", "{port}: {answer}");
        Ok(answer["result"] == "ok")
    };
    // Root with capabilities, which no agent without may look into: just what the other container declares.
    let mut shell = world.shell()?;
    let found = [9101, 9001, 9002, 9999].map(|port| reached(world, &mut shell, port));
    ensure!(matches!(found, [Ok(true), Ok(false), Ok(false), Ok(false)]), "of a hidden container: {found:?}");
    drop(shell);
    // No capabilities: whose a port is can be seen.
    let mut shell = world.run("sts/db").shell()?;
    let found = [9101, 9100, 9001, 9002, 9999].map(|port| reached(world, &mut shell, port));
    ensure!(matches!(found, [Ok(true), Ok(true), Ok(false), Ok(false), Ok(false)]), "of a plain container: {found:?}");
    drop(shell);
    let mut shell = world.run("sts/db").flags(&["--to-pod", "9001"]).shell()?;
    let hello = probe(world, &mut shell, "probe get 127.0.0.1:9001 /hello")?;
    ensure!(hello.as_str().is_some_and(|hello| hello.starts_with("hello from db-")), "{hello}");
    Ok(())
}
