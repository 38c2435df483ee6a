//! R5: many bytes, unchanged, over the links that are there to carry them.

use anyhow::ensure;
use serde_json::Value;

use super::{Row, row};
use crate::world::World;
use testkit::lab::Shell;

pub(super) const ROWS: &[Row] = &[
    row("R5", "13 parallel uploads of 20 MiB come back identical, over both links", uploads),
    row("R5", "the same over one link and over four", other_link_counts),
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

fn other_link_counts(world: &World) -> anyhow::Result<()> {
    for count in [1, 4] {
        let mut shell = world.run("deploy/web").flags(&["--links", &count.to_string()]).shell()?;
        upload(world, &mut shell, 13, 4 * MIB)?;
        let status = world.status()?;
        let links = links(&status);
        ensure!(links.len() == count, "--links {count}: {status}");
        let carried = links.iter().filter(|(sent, received)| sent + received > MIB).count();
        ensure!(carried >= count.min(2), "{carried} of {count} links carried bulk: {status}");
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
