//! The processes that carry bytes, and the CPU time and memory they take.

use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use testkit::lab::{Lab, containers, until, within};
use testkit::snapshot::AGENT;

use crate::bench::manifest::NAMESPACE;
use crate::bench::paths::Path;

/// Clock ticks a second in /proc/PID/stat; 100 on every Linux that we run on.
const TICKS: f64 = 100.0;

/// CPU seconds of all processes together between two looks (50 ms apart) that count as rest; the clock has 10 ms.
const QUIET: f64 = 0.04;
/// How long the idle cluster is watched.
const IDLE: Duration = Duration::from_secs(3);

/// Process ids by role. A path's own come first, then the cluster's, which all paths share.
pub(crate) struct Processes {
    by_path: BTreeMap<Path, Vec<(&'static str, Vec<u32>)>>,
    cluster: Vec<(&'static str, Vec<u32>)>,
    /// CPU seconds a second of the cluster's processes when nothing is carried.
    idle: Cpu,
}

/// CPU seconds by role.
pub(crate) type Cpu = BTreeMap<&'static str, f64>;

impl Processes {
    pub(crate) fn find(lab: &Lab, sessions: BTreeMap<Path, u32>, forward: u32, relays: [u32; 2]) -> Result<Processes> {
        let status: Value = serde_json::from_str(&lab.testbed(&["status", "-o", "json"])?)?;
        let component = |prefix: &str| -> Vec<u32> {
            let all = status["processes"].as_array().into_iter().flatten();
            let named = all.filter(|process| process["name"].as_str().is_some_and(|name| name.starts_with(prefix)));
            named.filter_map(|process| u32::try_from(process["pid"].as_u64()?).ok()).collect()
        };
        // The API shows a container a moment after it runs.
        let agent = within(Duration::from_secs(10), || {
            Some(agents_of(&pods(lab)?)).filter(|a| !a.is_empty()).context("no agent runs")
        })?;
        let pipe: Vec<u32> = called("testpipe").into_iter().filter(|pid| !relays.contains(pid)).collect();
        ensure!(!pipe.is_empty(), "no raw pipe runs");
        let mut by_path = BTreeMap::from([
            (Path::Raw, vec![("client", relays.to_vec()), ("agent", pipe)]),
            (Path::Forward, vec![("client", vec![forward])]),
            (Path::Telepresence, vec![("client", called("telepresence")), ("agent", called("traffic"))]),
        ]);
        for (path, session) in sessions {
            let mut client = vec![session];
            client.extend(descendants_called(session, "stead"));
            by_path.insert(path, vec![("client", client), ("agent", agent.clone())]);
        }
        let cluster = vec![
            ("apiserver", component("apiserver")),
            ("kubelet", component("kubelet")),
            ("containerd", component("containerd")),
        ];
        let mut processes = Processes { by_path, cluster, idle: Cpu::new() };
        processes.idle = processes.at_rest()?;
        Ok(processes)
    }

    fn at_rest(&self) -> Result<Cpu> {
        self.settle()?;
        let (before, started) = (self.cpu(Path::Plain), Instant::now());
        until("time does not pass", IDLE * 2, || started.elapsed() >= IDLE)?;
        let seconds = started.elapsed().as_secs_f64();
        let spent = |(role, now): (_, f64)| (role, (now - before.get(role).copied().unwrap_or(0.0)) / seconds);
        Ok(self.cpu(Path::Plain).into_iter().map(spent).collect())
    }

    /// Waits until what the last measurement left in buffers is gone: a closed port-forward goes on for a second.
    pub(crate) fn settle(&self) -> Result<()> {
        let all = || self.by_path.keys().flat_map(|path| self.cpu(*path).into_values()).sum::<f64>();
        let (mut last, mut quiet) = (0.0, 0);
        within(Duration::from_secs(10), || {
            let now = all();
            let spent = now - std::mem::replace(&mut last, now);
            quiet = if spent <= QUIET { quiet + 1 } else { 0 };
            ensure!(quiet >= 3, "the cluster does not come to rest: {spent:.2} s of CPU time in one look");
            Ok(())
        })
        .or_else(|error| {
            // A machine that others use is never quiet; the rounds' medians have to do then.
            eprintln!("{error:#}");
            Ok(())
        })
    }

    /// What a path's processes spent between two looks, without what they spend anyway.
    pub(crate) fn spent(&self, before: &Cpu, after: Cpu, seconds: f64) -> Cpu {
        let net = |(role, now): (&'static str, f64)| {
            let idle = self.idle.get(role).copied().unwrap_or(0.0) * seconds;
            (role, (now - before.get(role).copied().unwrap_or(0.0) - idle).max(0.0))
        };
        after.into_iter().map(net).collect()
    }

    /// CPU seconds so far of everything that a path uses.
    pub(crate) fn cpu(&self, path: Path) -> Cpu {
        let own = self.by_path.get(&path).into_iter().flatten();
        own.chain(&self.cluster).map(|(role, pids)| (*role, pids.iter().map(|pid| seconds(*pid)).sum())).collect()
    }
}

/// User and system time of a process (proc(5): fields 14 and 15; the name in field 2 may hold blanks).
fn seconds(pid: u32) -> f64 {
    let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else { return 0.0 };
    let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
    fields.skip(11).take(2).filter_map(|ticks| ticks.parse::<f64>().ok()).sum::<f64>() / TICKS
}

/// The benchmark's pods; other namespaces may have agents of their own.
pub(crate) fn pods(lab: &Lab) -> Result<Vec<Value>> {
    let pods = lab.kubectl_json(&["get", "pods", "-n", NAMESPACE])?;
    Ok(pods["items"].as_array().cloned().unwrap_or_default())
}

/// The running agents in the pods.
pub(crate) fn agents_of(pods: &[Value]) -> Vec<u32> {
    let agents = containers(pods).into_iter().filter(|container| container.name.starts_with(AGENT));
    agents.flat_map(|container| container.pids).collect()
}

/// Processes by their `comm`.
fn called(name: &str) -> Vec<u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|pid| fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm.trim() == name)).collect()
}

/// Those of them that come from `ancestor`.
pub(crate) fn descendants_called(ancestor: u32, name: &str) -> Vec<u32> {
    called(name).into_iter().filter(|pid| *pid != ancestor && descends(*pid, ancestor)).collect()
}

fn descends(pid: u32, ancestor: u32) -> bool {
    let mut pid = pid;
    while pid > 1 {
        let Some(parent) = parent(pid) else { return false };
        if parent == ancestor {
            return true;
        }
        pid = parent;
    }
    false
}

fn parent(pid: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit(')').next()?.split_whitespace().nth(1)?.parse().ok()
}

/// Resident and proportional size of a process, in MB of 10^6 bytes.
pub(crate) fn memory(pid: u32) -> Result<(f64, f64)> {
    let text =
        fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).with_context(|| format!("process {pid} is gone"))?;
    let figure = |name: &str| -> f64 {
        let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
        line.split_whitespace().next().and_then(|kb| kb.parse::<f64>().ok()).unwrap_or(0.0) * 1024.0 / 1e6
    };
    Ok((figure("Rss:"), figure("Pss:")))
}
