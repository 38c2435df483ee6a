//! F2: the agent goes, in every way it can, while traffic flows. The command lives; open connections are reset; new ones work
//! within two seconds of a ready pod being there.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use testkit::lab::{Shell, containers, within};
use testkit::snapshot::AGENT;

use super::{Row, at, row};
use crate::scratch::{Scratch, ready_pod};
use crate::world::{NAMESPACE, World};

pub(super) const ROWS: &[Row] = &[
    row("F2", "the agent is killed during traffic: another one in the same pod", agent_killed),
    row("F2", "the app is killed during traffic: another agent in the same pod", app_killed),
    row("F2", "the pod is deleted during traffic: an agent in the next one", pod_deleted),
    row("F2", "the workload is rolled out during traffic: an agent in a new pod", rolled_out),
    row("F2", "the node is drained during traffic: an agent in another pod", node_drained),
    row("F2", "the pod of a stand-in is deleted during traffic: another stand-in", stand_in_deleted),
];

const MOVING: &str = r#"
apiVersion: apps/v1
kind: Deployment
metadata: {name: moving, namespace: $NAMESPACE}
spec:
  selector: {matchLabels: {app: moving}}
  template:
    metadata: {labels: {app: moving}}
    spec:
      terminationGracePeriodSeconds: 3
      containers:
      - {name: moving, image: $IMAGE, imagePullPolicy: Never, args: [serve], readinessProbe: {tcpSocket: {port: 9001}, periodSeconds: 1}}
"#;

const LABEL: &str = "app=moving";

/// From a ready pod to a request that is answered.
const AT_ONCE: Duration = Duration::from_secs(2);
/// The kubelet looks at its containers once a second: in the same pod it has to see the end of one before the next begins.
const KUBELET: Duration = Duration::from_secs(1);

fn agent_killed(world: &World) -> anyhow::Result<()> {
    with_moving(world, |pod| {
        kill_in(world, pod, |container| container.starts_with(AGENT))?;
        Ok(pod.to_owned())
    })
}

fn app_killed(world: &World) -> anyhow::Result<()> {
    with_moving(world, |pod| {
        kill_in(world, pod, |container| container == "moving")?;
        within(Duration::from_secs(20), || {
            let status = world.pod(pod)?["status"]["containerStatuses"][0].take();
            ensure!(status["restartCount"] == 1 && status["ready"] == true, "{status}");
            Ok(())
        })?;
        Ok(pod.to_owned())
    })
}

fn pod_deleted(world: &World) -> anyhow::Result<()> {
    with_moving(world, |pod| {
        world.lab().kubectl(&["delete", "pod", "-n", NAMESPACE, pod, "--wait=false"])?;
        ready_pod(world, NAMESPACE, LABEL, &[pod])
    })
}

fn rolled_out(world: &World) -> anyhow::Result<()> {
    with_moving(world, |pod| {
        world.lab().kubectl(&["rollout", "restart", "-n", NAMESPACE, "deploy/moving"])?;
        let next = ready_pod(world, NAMESPACE, LABEL, &[pod])?;
        // The old one serves for as long as it is not told to go.
        within(Duration::from_secs(20), || {
            let old = world.pod(pod);
            ensure!(old.is_err() || !old?["metadata"]["deletionTimestamp"].is_null(), "the old pod stays");
            Ok(())
        })?;
        Ok(next)
    })
}

fn node_drained(world: &World) -> anyhow::Result<()> {
    with_moving(world, |pod| {
        let node = world.pod(pod)?["spec"]["nodeName"].as_str().context("it is on no node")?.to_owned();
        let flags = ["--pod-selector=app=moving", "--ignore-daemonsets", "--delete-emptydir-data", "--timeout=30s"];
        let drained = world.lab().kubectl(&[&["drain", &node][..], &flags].concat());
        let next = drained.and_then(|_| ready_pod(world, NAMESPACE, LABEL, &[pod]));
        world.lab().kubectl(&["uncordon", &node])?;
        next
    })
}

/// Runs traffic in a session on a workload of its own, whose agent `end` takes away; it returns when a pod is ready for the
/// next agent, and its name.
fn with_moving(world: &World, end: impl FnOnce(&str) -> anyhow::Result<String>) -> anyhow::Result<()> {
    let _moving = Scratch::apply(world, NAMESPACE, MOVING)?;
    let pod = ready_pod(world, NAMESPACE, LABEL, &[])?;
    let shell = world.run("deploy/moving").shell()?;
    outlive(world, shell, |_| end(&pod))
}

fn stand_in_deleted(world: &World) -> anyhow::Result<()> {
    let shell = world.run_alone().shell()?;
    outlive(world, shell, |pod| {
        world.lab().kubectl(&["delete", "pod", "-n", NAMESPACE, pod, "--wait=false"])?;
        ready_pod(world, NAMESPACE, "stead.dev/session", &[pod])
    })
}

fn outlive(world: &World, mut shell: Shell, end: impl FnOnce(&str) -> anyhow::Result<String>) -> anyhow::Result<()> {
    shell.ok("cd \"$(mktemp -d)\"")?;
    let lived = lives_on(world, &mut shell, end);
    shell.ok("cd / && rm -r \"$OLDPWD\"")?;
    lived
}

fn lives_on(world: &World, shell: &mut Shell, end: impl FnOnce(&str) -> anyhow::Result<String>) -> anyhow::Result<()> {
    let (testapp, one) = (world.testapp(), world.service("one")?);
    let (raw, http) = (at(&one, 9000)[0], at(&one, 80)[0]);
    let before = world.status()?;
    let pod = before["pod"].as_str().context("no pod")?;
    // One that is open and one that is busy, when the agent goes.
    shell.ok(&format!("{testapp} probe poke {raw} E > open & {testapp} probe poke {raw} E > other & true"))?;
    within(Duration::from_secs(10), || {
        ensure!(world.status()?["flows"]["open"] == 2, "{}", world.status()?["flows"]);
        Ok(())
    })?;
    let next = end(pod)?;
    let since = Instant::now();
    let hello = shell.json(&format!("{testapp} probe get {http} /hello"))?;
    let waited = since.elapsed();
    println!(
        "       answered {:.1} s after a pod was ready: {}",
        waited.as_secs_f64(),
        shell.said().replace('\n', " | ")
    );
    ensure!(hello.as_str().is_some_and(|hello| hello.starts_with("hello from db-0")), "{hello}");
    let limit = if next == pod { AT_ONCE + KUBELET } else { AT_ONCE };
    ensure!(waited < limit, "a new connection took {waited:?}");
    shell.ok("wait")?;
    for file in ["open", "other"] {
        let outcome = shell.json(&format!("cat {file}"))?;
        ensure!(outcome["end"] == "ECONNRESET", "a connection of the agent that is gone ended with {outcome}");
    }
    within(Duration::from_secs(5), || {
        let status = world.status()?;
        let named = [&status["pod"], &status["agent"]];
        ensure!(status["pod"] == next.as_str() && named != [&before["pod"], &before["agent"]], "{status}");
        ensure!(status["health"] == "healthy" && status["command_pid"] == before["command_pid"], "{status}");
        Ok(())
    })?;
    let said = shell.said();
    ensure!(said.contains(" is gone: ") && said.contains("goes on through the agent"), "it is not told: {said}");
    Ok(())
}

/// Every process of the pod's containers that are called so, once the API shows them to run.
fn kill_in(world: &World, pod: &str, is_called: impl Fn(&str) -> bool) -> anyhow::Result<()> {
    let pids = within(Duration::from_secs(10), || {
        let named = containers(&[world.pod(pod)?]).into_iter().filter(|container| is_called(&container.name));
        let pids: Vec<u32> = named.flat_map(|container| container.pids).collect();
        ensure!(!pids.is_empty(), "no process was found");
        Ok(pids)
    })?;
    for pid in pids {
        kill(Pid::from_raw(i32::try_from(pid)?), Signal::SIGKILL)?;
    }
    Ok(())
}
