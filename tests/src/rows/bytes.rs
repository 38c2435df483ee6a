//! R5: many bytes, unchanged, over the links that are there to carry them.

use anyhow::ensure;
use serde_json::Value;

use super::{Row, row};
use crate::far::Far;
use crate::world::World;
use testkit::lab::Shell;

pub(super) const ROWS: &[Row] = &[
    row("R5", "13 parallel uploads of 20 MiB come back identical, over both links", uploads),
    row("R5", "the same over one link", one_link),
    row("R5", "the same on a 20 ms path, over up to four links, which come as bulk does", links_by_load),
    row("R5", "one upload of 1 GiB comes back identical", one_gib),
    row("R5", "90 parallel requests", requests),
];

const MIB: u64 = 1 << 20;

fn uploads(world: &World) -> anyhow::Result<()> {
    let mut shell = world.shell()?;
    upload(world, &mut shell, 13, 20 * MIB)?;
    let status = world.status()?;
    let links = links(&status);
    ensure!(links.len() == 2, "two links by default: {status}");
    let total: u64 = links.iter().map(|(sent, received)| sent + received).sum();
    ensure!(total >= 2 * 13 * 20 * MIB, "{total} bytes on the links cannot be 13 uploads and their echoes");
    // Bulk is kept apart: the interactive link sees each flow's first bytes only.
    let (interactive, bulk) = (links[0].0 + links[0].1, links[1].0 + links[1].1);
    ensure!(bulk > 200 * MIB, "link 1 carried {bulk} bytes only: {status}");
    ensure!(interactive > 0 && interactive < bulk, "link 0 carried {interactive}, link 1 {bulk} bytes");
    Ok(())
}

fn one_link(world: &World) -> anyhow::Result<()> {
    let mut shell = world.run("deploy/web").flags(&["--links", "1"]).shell()?;
    upload(world, &mut shell, 13, 4 * MIB)?;
    let status = world.status()?;
    let links = links(&status);
    ensure!(links.len() == 1 && links[0].0 + links[0].1 > 2 * 13 * 4 * MIB, "one link carries all: {status}");
    Ok(())
}

fn links_by_load(world: &World) -> anyhow::Result<()> {
    let _far = Far::start(world, "20ms")?;
    for (flag, most) in [("4", 4), ("3", 3)] {
        let mut shell = world.run("deploy/web").flags(&["--links", flag]).shell()?;
        ensure!(links(&world.status()?).len() == 2, "two links before there is bulk");
        upload(world, &mut shell, 1, 20 * MIB)?;
        ensure!(links(&world.status()?).len() == 2, "two links for one bulk flow");
        upload(world, &mut shell, 13, 20 * MIB)?;
        let status = world.status()?;
        let links = links(&status);
        ensure!(links.len() == most, "--links {flag}: {status}");
        let idle = links[1..].iter().filter(|(sent, received)| *sent < MIB || *received < MIB).count();
        ensure!(idle == 0, "{idle} bulk links carried less than a MiB one way: {status}");
    }
    Ok(())
}

fn one_gib(world: &World) -> anyhow::Result<()> {
    let mut shell = world.shell()?;
    upload(world, &mut shell, 1, 1024 * MIB)
}

fn upload(world: &World, shell: &mut Shell, count: u64, bytes: u64) -> anyhow::Result<()> {
    let target = world.service("web")?[0];
    let line = format!("{} probe uploads {target}:80 --count {count} --bytes {bytes}", world.testapp());
    let outcome = shell.json(&line)?;
    ensure!(outcome["identical"] == count, "{count} uploads of {bytes} bytes: {outcome}");
    Ok(())
}

fn requests(world: &World) -> anyhow::Result<()> {
    let mut shell = world.shell()?;
    for target in world.service("web")? {
        let target = std::net::SocketAddr::from((target, 80));
        let outcome = shell.json(&format!("{} probe requests {target} --count 90", world.testapp()))?;
        ensure!(outcome["errors"] == serde_json::json!([]), "90 requests to {target}: {outcome}");
    }
    Ok(())
}

/// Bytes sent and received of each link, by number.
fn links(status: &Value) -> Vec<(u64, u64)> {
    let bytes = |link: &Value, key: &str| link[key].as_u64().unwrap_or_default();
    let links = status["links"].as_array().into_iter().flatten();
    links.map(|link| (bytes(link, "sent_bytes"), bytes(link, "received_bytes"))).collect()
}
