//! F5: many connections, many sessions.

use std::fs;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use serde_json::Value;
use testkit::lab::{containers, within};
use testkit::snapshot::AGENT;

use super::{Row, probe, row};
use crate::stead::Held;
use crate::world::World;

pub(super) const ROWS: &[Row] = &[
    row("F5", "10,000 flows at once, of at most 15 KiB on each side", ten_thousand),
    row("F5", "1,000 new connections a second", thousand_a_second),
    row("F5", "a reader that stands still does not slow another", stalled),
    row("F5", "500 sessions one after another leave at most two agents in the pod's list", five_hundred),
];

const FLOWS: u64 = 10_000;
/// Of memory, on each side.
const LIMIT: u64 = 15 << 10;

fn ten_thousand(world: &World) -> anyhow::Result<()> {
    let web = world.service("web")?[0];
    let count = FLOWS.to_string();
    let command = [world.testapp(), "probe", "hold", &format!("{web}:9000"), "--count", &count];
    // A warm session: what it needs without flows is not the flows'.
    let wrapped = [&["sh", "-c", "read go; exec \"$@\"", "-"][..], &command].concat();
    let mut session = Held::start(world.run("deploy/web").command(&wrapped))?;
    // The API shows the agent's container a moment after it runs.
    let before = within(Duration::from_secs(20), || memory(world))?;
    session.say()?;
    let held = session.line()?;
    ensure!(held["held"] == FLOWS, "{held}");
    let now = memory(world)?;
    let each = [now[0].saturating_sub(before[0]) / FLOWS, now[1].saturating_sub(before[1]) / FLOWS];
    println!(
        "       {} s to open; a flow takes {} B of the client, {} B of the agent",
        held["seconds"], each[0], each[1]
    );
    session.say()?;
    let alive = session.line()?;
    ensure!(alive["alive"] == FLOWS, "{alive}");
    session.end()?;
    ensure!(each.iter().all(|bytes| *bytes <= LIMIT), "bytes for a flow: {each:?}");
    Ok(())
}

/// Resident bytes of the client and of its agent.
fn memory(world: &World) -> anyhow::Result<[u64; 2]> {
    let status = world.status()?;
    let client = status["client_pid"].as_u64().context("no client")?;
    let pod = status["pod"].as_str().context("no pod")?;
    let agents = containers(&[world.pod(pod)?]).into_iter().filter(|container| container.name.starts_with(AGENT));
    let agent = agents.flat_map(|agent| agent.pids).next().context("no agent runs")?;
    let resident = |pid: u64| -> anyhow::Result<u64> {
        let text = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no size")?;
        Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? * 1024)
    };
    Ok([resident(client)?, resident(agent.into())?])
}

fn thousand_a_second(world: &World) -> anyhow::Result<()> {
    // A pod has 28,000 ports to connect from and keeps each for a minute: not the pod whose ports other rows used up.
    let mut shell = world.run("pod/db-0").shell()?;
    let web = world.service("web")?[0];
    let line = format!("probe pace {web}:9000 --per-second 1000 --seconds 5");
    // The machine is shared, and now and then stands still for a moment: what is really slower is so every time.
    let mut last = Value::Null;
    for _ in 0..3 {
        last = probe(world, &mut shell, &line)?;
        println!("       {last}");
        ensure!(last["ok"] == 5000, "{last}");
        if last["seconds"].as_f64().is_some_and(|seconds| seconds < 5.5) {
            return Ok(());
        }
    }
    bail!("it fell behind: {last}")
}

fn stalled(world: &World) -> anyhow::Result<()> {
    let mut shell = world.shell()?;
    let web = world.service("web")?[0];
    let outcome = probe(world, &mut shell, &format!("probe beside-stalled {web}:9000"))?;
    let seconds = |what: &str| outcome[what].as_f64().context("no time");
    ensure!(seconds("beside")? < seconds("alone")? * 2.0 + 0.2, "{outcome}");
    Ok(())
}

fn five_hundred(world: &World) -> anyhow::Result<()> {
    for number in 0..500 {
        let output = world.run("pod/db-1").output(&["true"])?;
        ensure!(output.status.success(), "session {number}: {}", String::from_utf8_lossy(&output.stderr));
    }
    let pod = world.pod("db-1")?;
    let agents = pod["spec"]["ephemeralContainers"].as_array().map_or(0, Vec::len);
    ensure!((1..=2).contains(&agents), "{agents} agents");
    Ok(())
}
