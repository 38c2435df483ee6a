//! F7: what a pod of somebody else can do to an agent.

use std::net::SocketAddr;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};

use super::{Row, row};
use crate::world::{NAMESPACE, World};

pub(super) const ROWS: &[Row] = &[
    row("F7", "every port of an agent's pod is the app's, closed, or refuses the handshake", ports),
    row("F7", "a slow third pod does not hinder the session", slowloris),
];

/// The app's own: two containers of five ports each.
const APP_PORTS: [u16; 10] = [9000, 9001, 9002, 9003, 9004, 9100, 9101, 9102, 9103, 9104];

/// What is said to a port that may be an agent's. Nothing useful may come back.
const HANDSHAKES: [&str; 4] = [
    "GET / HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n",
    "GET /stead HTTP/1.1\\r\\nHost: x\\r\\nConnection: Upgrade\\r\\nUpgrade: stead-1\\r\\n\\r\\n\\x16\\x03\\x01\\x00\\x05hello",
    "\\x16\\x03\\x01\\x00\\x05hello",
    "stead-admit-1 AAAA\\n",
];

fn ports(world: &World) -> anyhow::Result<()> {
    let _shell = world.shell()?;
    let (_, addresses) = agent_pod(world)?;
    for address in addresses {
        let seen = world.stranger(&["probe", "scan", &address.to_string()])?;
        let open = seen["open"].as_array().cloned().unwrap_or_default();
        let foreign: Vec<u16> = open
            .iter()
            .filter_map(|port| u16::try_from(port.as_u64()?).ok())
            .filter(|port| !APP_PORTS.contains(port))
            .collect();
        // Agents of earlier rows may be parked beside this session's; each must refuse, and one must have been found.
        ensure!(!foreign.is_empty(), "the scan of {address} found no agent");
        for port in foreign {
            refuses_handshakes(world, (address, port).into())?;
        }
    }
    Ok(())
}

fn refuses_handshakes(world: &World, agent: SocketAddr) -> anyhow::Result<()> {
    for text in HANDSHAKES {
        let outcome = world.stranger(&["probe", "poke", &agent.to_string(), text])?;
        let came = outcome["came"].as_str().unwrap_or_default();
        // A TLS alert (RFC 8446, 6) and the upgrade's own head are all that may come.
        let rest =
            came.strip_prefix("HTTP/1.1 101").map_or(came, |head| head.rsplit("\r\n\r\n").next().unwrap_or(head));
        let is_alert = rest.starts_with('\u{15}');
        let is_refusal = rest.starts_with("HTTP/1.1 4");
        ensure!(rest.is_empty() || is_alert || is_refusal, "{agent} answered {text:?} by {outcome}");
        ensure!(outcome["end"] != "EAGAIN", "{agent} keeps a connection open after {text:?}");
    }
    Ok(())
}

fn slowloris(world: &World) -> anyhow::Result<()> {
    let mut shell = world.shell()?;
    let (_, addresses) = agent_pod(world)?;
    let agent = agent_port(world, &addresses)?.context("the scan found no agent")?;
    let slow = ["kubectl", "exec", "-i", "-n", NAMESPACE, "stranger", "--", "/testapp", "probe", "slowloris"];
    let target = agent.to_string();
    let mut command = world.lab().root([&slow[..], &[&target, "--count", "300"]].concat());
    let mut attacker = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let line = format!("{} probe requests {}:80 --count 90", world.testapp(), world.service("web")?[0]);
    let mut slowest = Duration::ZERO;
    for _ in 0..3 {
        ensure!(shell.json(&line)?["errors"] == serde_json::json!([]), "the session is hindered");
        let started = Instant::now();
        let out = world.run("deploy/web").stdout(&["echo", "a new session"])?;
        slowest = slowest.max(started.elapsed());
        ensure!(out == "a new session\n", "a new session said {out:?}");
    }
    drop(attacker.stdin.take());
    let seen = attacker.wait_with_output()?;
    ensure!(seen.status.success(), "the attacker failed, so nothing was shown");
    let seen: serde_json::Value = serde_json::from_slice(&seen.stdout)?;
    ensure!(seen["opened"].as_u64() > Some(64), "the attacker opened too little: {seen}");
    ensure!(slowest < Duration::from_secs(7), "a new session took {slowest:?}");
    Ok(())
}

/// The pod that the session's agent is in, and its addresses.
fn agent_pod(world: &World) -> anyhow::Result<(String, Vec<std::net::IpAddr>)> {
    let status = world.status()?;
    let pod = status["pod"].as_str().context("status names no pod")?.to_owned();
    let addresses = world.pod_addresses(&pod)?;
    Ok((pod, addresses))
}

/// The first port that is open and not the app's.
fn agent_port(world: &World, addresses: &[std::net::IpAddr]) -> anyhow::Result<Option<SocketAddr>> {
    for address in addresses {
        let seen = world.stranger(&["probe", "scan", &address.to_string()])?;
        let open = seen["open"].as_array().into_iter().flatten().filter_map(|port| u16::try_from(port.as_u64()?).ok());
        if let Some(port) = open.into_iter().find(|port| !APP_PORTS.contains(port)) {
            return Ok(Some((*address, port).into()));
        }
    }
    Ok(None)
}
