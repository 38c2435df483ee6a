//! F0, F1: connections outlive a network, and an API server, that are lost for a while.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde_json::Value;
use testkit::lab::{checked, until, within};

use super::rungs::Route;
use super::{Row, at, row};
use crate::stead::Held;
use crate::world::World;

pub(super) const ROWS: &[Row] = &[
    row("F0", "all packets lost for 5 s in the middle of a 1 GiB upload and download", five),
    row("F0", "the same for 20 s", twenty),
    row("F0", "the same for 45 s", forty_five),
    row("F0", "the same for 20 s over rung forward", forward),
    row("F0", "the same for 5 s over rung direct", direct),
    row("F1", "the API server stands still for 30 s in the middle of a transfer", stopped),
    row("F1", "the API server is restarted in the middle of a transfer", restarted),
    row("F1", "an API server that stands still is not noticed on rung direct", unnoticed),
    row(
        "F1",
        "an API server that refuses for 15 s is dialled in turn by the session's links, not by all at once",
        refused,
    ),
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

fn direct(world: &World) -> anyhow::Result<()> {
    let _route = Route::open(world)?;
    lost(world, "direct", Duration::from_secs(5))
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

fn unnoticed(world: &World) -> anyhow::Result<()> {
    let _route = Route::open(world)?;
    let mut shell = world.run("deploy/web").flags(&["--rung", "direct"]).shell()?;
    let web = at(&world.service("web")?, 80)[0];
    let _stopped = Stopped::new(world, "apiserver")?;
    let outcome = shell.json(&format!("{} probe uploads {web} --count 4 --bytes {}", world.testapp(), 20u64 << 20))?;
    ensure!(outcome["identical"] == 4, "{outcome}");
    let status = world.status()?;
    ensure!(status["health"] == "healthy", "{status}");
    Ok(())
}

/// Refuses the machine's connections to the API server, old and new, and counts the new.
const REFUSING: &str = "add table inet refusing; add counter inet refusing dials; \
    add chain inet refusing out { type filter hook output priority 0; }; \
    add rule inet refusing out tcp dport 6443 tcp flags & (syn | ack) == syn counter name dials; \
    add rule inet refusing out tcp dport 6443 reject with tcp reset";

/// Two links that dial on their own, each on two rungs, are at 30 by then.
const DIALS: u64 = 22;

fn refused(world: &World) -> anyhow::Result<()> {
    const TIME: Duration = Duration::from_secs(15);
    let web = at(&world.service("web")?, 9000)[0].to_string();
    let hold = [world.testapp(), "probe", "hold", &web, "--count", "5"];
    let mut held = Held::start(world.run("deploy/web").flags(&["--lease", "60s"]).command(&hold))?;
    ensure!(held.line()?["held"] == 5);
    let nft = |rules: &str| checked(&mut world.lab().root(["nft", rules]));
    nft(REFUSING)?;
    let waited = until_over(TIME);
    let counted = nft("list counter inet refusing dials");
    nft("delete table inet refusing")?;
    waited?;
    let counted = counted?;
    let dials = counted.split_whitespace().skip_while(|word| *word != "packets").nth(1);
    let dials: u64 = dials.and_then(|count| count.parse().ok()).with_context(|| format!("no count in {counted}"))?;
    println!("       {dials} connections in {} s", TIME.as_secs());
    ensure!((5..=DIALS).contains(&dials), "{dials} connections");
    within(Duration::from_secs(10), || {
        let status = world.status()?;
        ensure!(status["health"] == "healthy", "{status}");
        Ok(())
    })?;
    held.say()?;
    ensure!(held.line()?["alive"] == 5);
    held.end()
}

/// The process of a component of the cluster.
pub(super) fn component(world: &World, name: &str) -> anyhow::Result<nix::unistd::Pid> {
    let status: Value = serde_json::from_str(&world.lab().testbed(&["status", "-o", "json"])?)?;
    let processes = status["processes"].as_array().context("no processes")?;
    let process = processes.iter().find(|process| process["name"] == name).context("no such component")?;
    Ok(nix::unistd::Pid::from_raw(i32::try_from(process["pid"].as_i64().context("no pid")?)?))
}

/// A component of the cluster that stands still until this is dropped.
struct Stopped(nix::unistd::Pid);

impl Stopped {
    fn new(world: &World, component: &str) -> anyhow::Result<Stopped> {
        let pid = self::component(world, component)?;
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
        let happened = until_under_way(world, 50 << 20).and_then(|()| happens());
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

/// So many bytes came in through the session's links.
pub(super) fn until_under_way(world: &World, bytes: u64) -> anyhow::Result<()> {
    within(Duration::from_secs(30), || {
        let status = world.status()?;
        let links = status["links"].as_array().context("no links")?;
        let carried: u64 = links.iter().filter_map(|link| link["received_bytes"].as_u64()).sum();
        ensure!(carried > bytes, "nothing flows");
        Ok(())
    })
}

fn until_over(time: Duration) -> anyhow::Result<()> {
    let over = Instant::now() + time;
    until("time does not pass", time * 2, || Instant::now() >= over)
}
