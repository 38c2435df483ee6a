//! F0, F1: connections outlive a network, and an API server, that are lost for a while.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde_json::Value;
use testkit::lab::{until, within};

use super::{Row, at, row};
use crate::world::World;

pub(super) const ROWS: &[Row] = &[
    row("F0", "all packets lost for 5 s in the middle of a 1 GiB upload and download", five),
    row("F0", "the same for 20 s", twenty),
    row("F0", "the same for 45 s", forty_five),
    row("F0", "the same for 20 s over rung forward", forward),
    row("F1", "the API server stands still for 30 s in the middle of a transfer", stopped),
    row("F1", "the API server is restarted in the middle of a transfer", restarted),
];

fn five(world: &World) -> anyhow::Result<()> {
    lost(world, "auto", Duration::from_secs(5))
}

fn twenty(world: &World) -> anyhow::Result<()> {
    lost(world, "auto", Duration::from_secs(20))
}

fn forty_five(world: &World) -> anyhow::Result<()> {
    lost(world, "auto", Duration::from_secs(45))
}

fn forward(world: &World) -> anyhow::Result<()> {
    lost(world, "forward", Duration::from_secs(20))
}

/// Its process is stopped: connections to it are taken by its kernel, and nothing answers.
fn stopped(world: &World) -> anyhow::Result<()> {
    const TIME: Duration = Duration::from_secs(30);
    during_transfer(world, "auto", TIME, || {
        let _stopped = Stopped::new(world, "apiserver")?;
        until_over(TIME)
    })
}

fn restarted(world: &World) -> anyhow::Result<()> {
    during_transfer(world, "auto", Duration::ZERO, || world.lab().testbed(&["restart", "apiserver"]).map(drop))
}

/// A component of the cluster that stands still until this is dropped.
struct Stopped(nix::unistd::Pid);

impl Stopped {
    fn new(world: &World, component: &str) -> anyhow::Result<Stopped> {
        let status: Value = serde_json::from_str(&world.lab().testbed(&["status", "-o", "json"])?)?;
        let processes = status["processes"].as_array().context("no processes")?;
        let process = processes.iter().find(|process| process["name"] == component).context("no such component")?;
        let pid = nix::unistd::Pid::from_raw(i32::try_from(process["pid"].as_i64().context("no pid")?)?);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGSTOP)?;
        Ok(Stopped(pid))
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        let _ = nix::sys::signal::kill(self.0, nix::sys::signal::Signal::SIGCONT);
    }
}

fn lost(world: &World, rung: &str, time: Duration) -> anyhow::Result<()> {
    during_transfer(world, rung, time, || {
        world.lab().testbed(&["wan", "--loss", "100%"])?;
        let waited = until_over(time);
        world.lab().testbed(&["wan", "off"])?;
        waited
    })
}

/// Something happens, for so long, in the middle of an upload of 1 GiB. Its answer is its echo: both directions are under
/// way then.
fn during_transfer(
    world: &World,
    rung: &str,
    time: Duration,
    happens: impl FnOnce() -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let mut shell = world.run("deploy/web").flags(&["--lease", "60s", "--rung", rung]).shell()?;
    let web = at(&world.service("web")?, 80)[0];
    let line = format!("{} probe uploads {web} --count 1 --bytes {}", world.testapp(), 1u64 << 30);
    let (outcome, happened) = std::thread::scope(|scope| {
        let transfer = scope.spawn(move || (shell.json(&line), shell));
        let happened = until_under_way(world).and_then(|()| happens());
        let (outcome, shell) = transfer.join().map_err(|_| anyhow::anyhow!("the transfer panicked"))?;
        drop(shell);
        anyhow::Ok((outcome, happened))
    })?;
    happened?;
    let outcome = outcome?;
    let is_whole = outcome["identical"] == 1 && outcome["seconds"].as_f64() > Some(time.as_secs_f64());
    ensure!(is_whole, "{outcome}");
    Ok(())
}

fn until_under_way(world: &World) -> anyhow::Result<()> {
    within(Duration::from_secs(30), || {
        let status = world.status()?;
        let links = status["links"].as_array().context("no links")?;
        let carried: u64 = links.iter().filter_map(|link| link["received_bytes"].as_u64()).sum();
        ensure!(carried > 50 << 20, "nothing flows");
        Ok(())
    })
}

fn until_over(time: Duration) -> anyhow::Result<()> {
    let over = Instant::now() + time;
    until("time does not pass", time * 2, || Instant::now() >= over)
}
