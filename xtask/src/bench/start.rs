//! Start times, memory at rest, sizes of the binaries.

use std::net::{IpAddr, SocketAddr};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use testkit::lab::{Shell, until, within};

use crate::arena::Arena;
use crate::bench::Plan;
use crate::bench::paths::{Path, stead};
use crate::bench::processes::{agents_of, descendants_called, memory, pods};
use crate::bench::samples::Samples;
use crate::dist;

/// What all of this is called where measurements are chosen by name.
pub(crate) const NAME: &str = "start and rest";

/// Time for the session's buffers to be given back before memory is looked at: longer than one PING.
const REST: Duration = Duration::from_secs(6);

pub(crate) fn measure(arena: &Arena, server: IpAddr, plan: &Plan, samples: &mut Samples) -> Result<()> {
    sizes(arena, samples)?;
    wait_for_no_agent(arena)?;
    for _ in 0..plan.starts {
        samples.add("start cold, s", Path::Stead, run_true(arena, "0s")?);
        wait_for_no_agent(arena)?;
    }
    run_true(arena, "60s")?;
    for _ in 0..plan.starts {
        samples.add("start on a running agent, s", Path::Stead, run_true(arena, "60s")?);
    }
    at_rest(arena, samples)?;
    many_flows(arena, server, samples)
}

/// Longer than the park of the session that was measured before. The cluster must know the end, too: while kubelet has not
/// noticed that a container exited (it looks once a second), it starts no other one in the pod, which is kubelet's time and
/// adds up to 1.7 s for who starts again at once without a parked agent.
fn wait_for_no_agent(arena: &Arena) -> Result<()> {
    within(Duration::from_secs(90), || {
        let pods = pods(arena.lab())?;
        ensure!(agents_of(&pods).is_empty(), "the agent does not end");
        let mut agents = pods.iter().flat_map(|pod| pod["status"]["ephemeralContainerStatuses"].as_array()).flatten();
        ensure!(agents.all(|agent| agent["state"]["terminated"].is_object()), "the cluster does not know its end");
        Ok(())
    })
}

/// Seconds of a whole `stead run -- true`, without what the testbed's own `exec` takes.
fn run_true(arena: &Arena, park: &str) -> Result<f64> {
    crate::test::stop_if_interrupted()?;
    let wrapper = timed(arena.lab().user(["true"]))?;
    Ok(timed(stead(arena, &["--park", park], &["true"]))? - wrapper)
}

fn timed(mut command: std::process::Command) -> Result<f64> {
    let started = Instant::now();
    let output = command.stdout(Stdio::null()).output()?;
    ensure!(output.status.success(), "{}", testkit::lab::failure(&output));
    Ok(started.elapsed().as_secs_f64())
}

fn at_rest(arena: &Arena, samples: &mut Samples) -> Result<()> {
    let session = Shell::start(stead(arena, &["--park", "30s"], &["sh"]))?;
    rest()?;
    let (rss, pss) = client(&session)?;
    samples.add("client at rest, MB resident", Path::Stead, rss);
    samples.add("client at rest, MB proportional", Path::Stead, pss);
    let agent = agent(arena)?;
    samples.add("agent at rest, MB resident", Path::Stead, memory(agent)?.0);
    drop(session);
    let parked = within(REST, || memory(agent))?;
    samples.add("parked agent, MB resident", Path::Stead, parked.0);
    Ok(())
}

const FLOWS: u32 = 10_000;

/// What flows that carry nothing take of either side's memory, and how new ones fare at a given pace.
fn many_flows(arena: &Arena, server: IpAddr, samples: &mut Samples) -> Result<()> {
    let mut session = Shell::start(stead(arena, &["--park", "0s"], &["sh"]))?;
    let (testapp, server) = (arena.testapp.display(), SocketAddr::from((server, 9000)));
    let paced = session.json(&format!("{testapp} probe pace {server} --per-second 1000 --seconds 5"))?;
    samples.add("1,000 new connections a second, p50 us", Path::Stead, figure(&paced, "p50_ms")? * 1e3);
    samples.add("1,000 new connections a second, p99 us", Path::Stead, figure(&paced, "p99_ms")? * 1e3);
    rest()?;
    let before = (client(&session)?.0, memory(agent(arena)?)?.0);
    session.ok("cd \"$(mktemp -d)\" && mkfifo go held")?;
    session.ok(&format!("{testapp} probe hold {server} --count {FLOWS} < go > held & exec 3> go 4< held"))?;
    let held = session.json("read line <&4 && echo \"$line\"")?;
    ensure!(held["held"] == FLOWS, "{held}");
    samples.add("10,000 flows, s to open", Path::Stead, figure(&held, "seconds")?);
    let now = (client(&session)?.0, memory(agent(arena)?)?.0);
    let each = |before: f64, now: f64| (now - before) * 1e6 / 1024.0 / f64::from(FLOWS);
    samples.add("10,000 flows, KiB of the client each", Path::Stead, each(before.0, now.0));
    samples.add("10,000 flows, KiB of the agent each", Path::Stead, each(before.1, now.1));
    session.ok("exec 3>&- 4<&-; wait; rm go held; rmdir \"$PWD\"")?;
    Ok(())
}

fn figure(report: &Value, what: &str) -> Result<f64> {
    report[what].as_f64().with_context(|| format!("no {what} in {report}"))
}

fn agent(arena: &Arena) -> Result<u32> {
    // The API shows a container a moment after it runs.
    within(Duration::from_secs(10), || agents_of(&pods(arena.lab())?).first().copied().context("no agent runs"))
}

fn rest() -> Result<()> {
    let rested = Instant::now() + REST;
    until("time does not pass", REST * 2, || Instant::now() >= rested)
}

/// Resident and proportional size of a session's processes.
fn client(session: &Shell) -> Result<(f64, f64)> {
    let mut client = vec![session.pid()];
    client.extend(descendants_called(session.pid(), "stead"));
    let (mut rss, mut pss) = (0.0, 0.0);
    for pid in client {
        let (resident, proportional) = memory(pid)?;
        rss += resident;
        pss += proportional;
    }
    Ok((rss, pss))
}

fn sizes(arena: &Arena, samples: &mut Samples) -> Result<()> {
    samples.add("stead with the agent inside, MB", Path::Stead, dist::megabytes(&arena.dist.stead)?);
    samples.add("stead-agent, MB", Path::Stead, dist::megabytes(&arena.dist.agent)?);
    Ok(())
}
