//! F0: connections outlive a network that is lost for a while.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use testkit::lab::{until, within};

use super::{Row, at, row};
use crate::world::World;

pub(super) const ROWS: &[Row] = &[
    row("F0", "all packets lost for 5 s in the middle of a 1 GiB upload and download", five),
    row("F0", "the same for 20 s", twenty),
    row("F0", "the same for 45 s", forty_five),
];

fn five(world: &World) -> anyhow::Result<()> {
    lost(world, Duration::from_secs(5))
}

fn twenty(world: &World) -> anyhow::Result<()> {
    lost(world, Duration::from_secs(20))
}

fn forty_five(world: &World) -> anyhow::Result<()> {
    lost(world, Duration::from_secs(45))
}

/// The upload's answer is its echo: both directions are under way when the network goes.
fn lost(world: &World, time: Duration) -> anyhow::Result<()> {
    let mut shell = world.run("deploy/web").flags(&["--lease", "60s"]).shell()?;
    let web = at(&world.service("web")?, 80)[0];
    let line = format!("{} probe uploads {web} --count 1 --bytes {}", world.testapp(), 1u64 << 30);
    let (outcome, cut) = std::thread::scope(|scope| {
        let transfer = scope.spawn(move || (shell.json(&line), shell));
        let cut = cut(world, time);
        let (outcome, shell) = transfer.join().map_err(|_| anyhow::anyhow!("the transfer panicked"))?;
        drop(shell);
        anyhow::Ok((outcome, cut))
    })?;
    cut?;
    let outcome = outcome?;
    let is_whole = outcome["identical"] == 1 && outcome["seconds"].as_f64() > Some(time.as_secs_f64());
    ensure!(is_whole, "{outcome}");
    Ok(())
}

/// Takes the network away while bytes flow, and gives it back.
fn cut(world: &World, time: Duration) -> anyhow::Result<()> {
    let carried = || -> anyhow::Result<u64> {
        let status = world.status()?;
        let links = status["links"].as_array().context("no links")?;
        Ok(links.iter().filter_map(|link| link["received_bytes"].as_u64()).sum())
    };
    within(Duration::from_secs(30), || {
        ensure!(carried()? > 50 << 20, "nothing flows");
        Ok(())
    })?;
    world.lab().testbed(&["wan", "--loss", "100%"])?;
    let back = Instant::now() + time;
    let waited = until("time does not pass", time * 2, || Instant::now() >= back);
    world.lab().testbed(&["wan", "off"])?;
    waited
}
