//! R4: what TCP says is true.

use anyhow::ensure;

use super::{Row, at, probe, row};
use crate::world::World;

pub(super) const ROWS: &[Row] = &[
    row("R4", "8,000 good and 400 refused connects in 32 threads", many_connects),
    row("R4", "a refused port, a Service without endpoints, an address nobody has", refusals),
    row("R4", "a half-close is kept", half_close),
    row("R4", "a reset is kept, both ways; so is a close", resets),
    row("R4", "a server speaks first", server_first),
];

fn many_connects(world: &World) -> anyhow::Result<()> {
    let mut shell = world.shell()?;
    let web = world.service("web")?[0];
    let line = format!("probe connects --good {web}:9000 --refused {web}:9555");
    let outcome = probe(world, &mut shell, &line)?;
    ensure!(outcome["good"] == serde_json::json!({"ok": 8000}), "good connects: {}", outcome["good"]);
    ensure!(outcome["refused"] == serde_json::json!({"ECONNREFUSED": 400}), "refused connects: {}", outcome["refused"]);
    Ok(())
}

fn refusals(world: &World) -> anyhow::Result<()> {
    let mut shell = world.shell()?;
    let mut targets = at(&world.service("web")?, 9555);
    targets.extend(at(&world.pod_addresses("db-0")?, 9555));
    targets.extend(at(&world.service("empty")?, 80));
    for target in targets {
        let here = probe(world, &mut shell, &format!("probe connect {target}"))?;
        let there = world.stranger(&["probe", "connect", &target.to_string()])?;
        ensure!(here["result"] == there["result"], "{target}: {here} in the sandbox, {there} in a pod");
        ensure!(here["result"] == "ECONNREFUSED", "{target}: {here}");
        let ms = here["ms"].as_f64().unwrap_or(f64::MAX);
        // A rejecting Service answers by ICMP, of which Linux sends few a second: then the second SYN is the answered one.
        ensure!(
            ms < 500.0 || there["ms"].as_f64() > Some(500.0) || ms < 1500.0 && target.port() == 80,
            "{target}: {ms} ms"
        );
    }
    Ok(())
}

fn half_close(world: &World) -> anyhow::Result<()> {
    let mut shell = world.shell()?;
    for target in at(&world.service("web")?, 9000) {
        for bytes in [0, 1, 70_000, 8 << 20] {
            let outcome = probe(world, &mut shell, &format!("probe half-close {target} --bytes {bytes}"))?;
            let is_right = outcome["hash_equal"] == true && outcome["count"] == bytes;
            ensure!(is_right, "{target}: {bytes} bytes and a FIN: {outcome}");
        }
    }
    Ok(())
}

fn resets(world: &World) -> anyhow::Result<()> {
    let mut shell = world.shell()?;
    for target in at(&world.service("web")?, 9000) {
        let outcome = probe(world, &mut shell, &format!("probe reset-by-peer {target}"))?;
        ensure!(outcome["read"] == "ECONNRESET", "{target} resets after a byte: {outcome}");
    }
    for target in at(&world.service("web")?, 9003) {
        let outcome = probe(world, &mut shell, &format!("probe reset-at-once {target}"))?;
        ensure!(outcome["read"] == "ECONNRESET", "{target} resets at once: {outcome}");
    }
    for target in at(&world.service("one")?, 9004) {
        let outcome = probe(world, &mut shell, &format!("probe ends-at-peer {target}"))?;
        ensure!(outcome["seen"] == "ECONNRESET", "the command resets {target}: {outcome}");
        let outcome = probe(world, &mut shell, &format!("probe ends-at-peer --fin {target}"))?;
        ensure!(outcome["seen"] == "fin after 10", "the command closes {target}: {outcome}");
    }
    Ok(())
}

fn server_first(world: &World) -> anyhow::Result<()> {
    let mut shell = world.shell()?;
    for target in at(&world.service("web")?, 9002) {
        let outcome = probe(world, &mut shell, &format!("probe server-first {target}"))?;
        let is_right = outcome["echo"] == "ping" && outcome["greeting"].as_str().is_some_and(|g| g.starts_with("220 "));
        ensure!(is_right, "{target}: {outcome}");
    }
    Ok(())
}
