//! R7: what goes through the pod is what the user wants.

use anyhow::{Context, ensure};

use super::{Row, at, probe, row};
use crate::world::World;

pub(super) const ROWS: &[Row] = &[
    row("R7", "--also-proxy HOST and --dns cluster: the pod resolves it", names),
    row("R7", "--never-proxy CIDR, and of several networks the smallest", networks),
    row("R7", "--egress cluster leaves private addresses to the machine, --egress all takes public ones", scopes),
];

/// `both.test` has an address in the cluster's DNS and another in the machine's.
fn names(world: &World) -> anyhow::Result<()> {
    let resolve = |flags: &[&str]| -> anyhow::Result<String> {
        let text = world.run("deploy/web").flags(flags).stdout(&["getent", "ahostsv4", "both.test"])?;
        Ok(text.split_whitespace().next().context("no address")?.to_owned())
    };
    let (machine, pod) = (resolve(&[])?, resolve(&["--also-proxy", "both.test"])?);
    ensure!(machine != pod, "{machine} either way");
    ensure!(resolve(&["--also-proxy", "other.test"])? == machine, "another name is resolved by the pod");
    ensure!(resolve(&["--dns", "cluster"])? == pod, "--dns cluster asks the machine");
    Ok(())
}

fn networks(world: &World) -> anyhow::Result<()> {
    let pods = world.pod_addresses("db-0")?;
    let target = at(&pods[..1], 9000)[0];
    let connect = |flags: &[&str]| -> anyhow::Result<String> {
        let mut shell = world.run("deploy/web").flags(flags).shell()?;
        let outcome = probe(world, &mut shell, &format!("probe connect {target} --patience 3"))?;
        Ok(outcome["result"].as_str().context("no result")?.to_owned())
    };
    ensure!(connect(&[])? == "ok", "{target} is not reached");
    let never = ["--never-proxy", "10.0.0.0/8"];
    ensure!(connect(&never)? != "ok", "{target} is reached through the pod against --never-proxy");
    let one = target.ip().to_string();
    ensure!(
        connect(&[&never[..], &["--also-proxy", &one]].concat())? == "ok",
        "{target} is said to go through the pod"
    );
    Ok(())
}

fn scopes(world: &World) -> anyhow::Result<()> {
    // Whether the pod was asked for a connection, whatever came of it.
    let asks_the_pod = |target: &str, flags: &[&str]| -> anyhow::Result<bool> {
        let mut shell = world.run("deploy/web").flags(flags).shell()?;
        probe(world, &mut shell, &format!("probe connect {target} --patience 2"))?;
        let flows = &world.status()?["flows"];
        let (pod, machine) = (flows["through_pod"].as_u64(), flows["by_machine"].as_u64());
        ensure!(pod.zip(machine).is_some_and(|(pod, machine)| pod + machine == 1), "{target} is one flow: {flows}");
        Ok(pod == Some(1))
    };
    let node = world.node_address()?;
    let kubelet = format!("{node}:10250");
    ensure!(asks_the_pod(&kubelet, &[])?, "{kubelet} is private, and not reached through the pod");
    ensure!(!asks_the_pod(&kubelet, &["--egress", "cluster"])?, "{kubelet} is reached through the pod");
    let public = world.run("deploy/web").stdout(&["getent", "ahostsv4", "example.test"])?;
    let public = format!("{}:80", public.split_whitespace().next().context("no address")?);
    ensure!(!asks_the_pod(&public, &[])?, "{public} is reached through the pod");
    ensure!(asks_the_pod(&public, &["--egress", "all"])?, "{public} is not reached through the pod");
    Ok(())
}
