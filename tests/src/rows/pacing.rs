//! Kind to the API server: what goes through it keeps to the user's rate, and gives way while it is slow.

use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, ensure};
use nix::sys::signal::{Signal, kill};
use serde_json::{Value, json};
use testkit::lab::{Shell, within};

use super::loss::{component, until_under_way};
use super::{Row, at, probe, row};
use crate::world::World;

pub(super) const ROWS: &[Row] = &[
    row("API", "--api-rate 20M: 60 MiB each way take three seconds, and requests beside them are not held up", asked),
    row("API", "bulk gives way while the API server is slow, and gets its rate back", slow),
];

const MIB: u64 = 1 << 20;

fn asked(world: &World) -> anyhow::Result<()> {
    let mut shell = world.run("deploy/web").flags(&["--api-rate", "20M", "--rung", "proxy"]).shell()?;
    let paced = json!({"bytes_per_second": 20 * MIB, "slow_api_server": false});
    within(Duration::from_secs(5), || {
        let status = world.status()?;
        ensure!(status["api_rate"] == paced, "{}", status["api_rate"]);
        Ok(())
    })?;
    let web = at(&world.service("web")?, 80)[0];
    shell.ok("out=$(mktemp)")?;
    begin_upload(world, &mut shell, 60 * MIB)?;
    until_under_way(world, 10 * MIB)?;
    let beside = probe(world, &mut shell, &format!("probe requests {web} --count 10"))?;
    let outcome = shell.json("wait && cat \"$out\" && rm \"$out\"")?;
    println!("       {} s; ten requests beside it {} s", outcome["seconds"], beside["seconds"]);
    ensure!(outcome["identical"] == 1, "{outcome}");
    let seconds = outcome["seconds"].as_f64().context("no time")?;
    ensure!((2.7..4.5).contains(&seconds), "60 MiB took {seconds} s");
    ensure!(beside["errors"] == json!([]) && beside["seconds"].as_f64() < Some(0.3), "beside it: {beside}");
    Ok(())
}

fn slow(world: &World) -> anyhow::Result<()> {
    let mut shell = world.run("deploy/web").flags(&["--rung", "proxy"]).shell()?;
    shell.ok("out=$(mktemp)")?;
    begin_upload(world, &mut shell, 1 << 40)?;
    until_under_way(world, 50 * MIB)?;
    let api_rate = || -> anyhow::Result<Value> { Ok(world.status()?["api_rate"].take()) };
    within(Duration::from_secs(10), || {
        let rate = api_rate()?;
        ensure!(rate.is_null(), "it is spared while it is not slow: {rate}");
        Ok(())
    })?;
    let slow = Slow::start(world)?;
    let spared = within(Duration::from_secs(40), || {
        let rate = api_rate()?;
        ensure!(rate["slow_api_server"] == true, "it is not spared: {rate}");
        Ok(rate)
    });
    drop(slow);
    println!("       spared at {}", spared?);
    within(Duration::from_secs(60), || {
        let rate = api_rate()?;
        ensure!(rate.is_null(), "it is still spared: {rate}");
        Ok(())
    })?;
    shell.ok("kill $! && rm \"$out\"").map(drop)
}

/// In the background of the shell; what comes of it goes to `$out`.
fn begin_upload(world: &World, shell: &mut Shell, bytes: u64) -> anyhow::Result<()> {
    let web = at(&world.service("web")?, 80)[0];
    shell.ok(&format!("{} probe uploads {web} --count 1 --bytes {bytes} > \"$out\" &", world.testapp())).map(drop)
}

/// An API server that gets a quarter of its time, until this is dropped.
struct Slow {
    stop: Option<Sender<()>>,
    pulse: Option<JoinHandle<nix::Result<()>>>,
}

impl Slow {
    const STANDS: Duration = Duration::from_millis(450);
    const RUNS: Duration = Duration::from_millis(150);

    fn start(world: &World) -> anyhow::Result<Slow> {
        let pid = component(world, "apiserver")?;
        let (stop, stopped) = channel();
        let pulse = std::thread::spawn(move || {
            loop {
                kill(pid, Signal::SIGSTOP)?;
                let over = stopped.recv_timeout(Slow::STANDS) != Err(RecvTimeoutError::Timeout);
                kill(pid, Signal::SIGCONT)?;
                if over || stopped.recv_timeout(Slow::RUNS) != Err(RecvTimeoutError::Timeout) {
                    return Ok(());
                }
            }
        });
        Ok(Slow { stop: Some(stop), pulse: Some(pulse) })
    }
}

impl Drop for Slow {
    fn drop(&mut self) {
        drop(self.stop.take());
        let _ = self.pulse.take().map(JoinHandle::join);
    }
}
