//! R7: what goes through the pod is what the user wants. R14: and reaches what the pod alone does.

use std::time::Duration;

use anyhow::{Context, ensure};
use testkit::lab::{checked, within};

use super::{Row, at, probe, row};
use crate::stead::Server;
use crate::world::World;

pub(super) const ROWS: &[Row] = &[
    row("R7", "--also-proxy HOST and --dns cluster: the pod resolves it", names),
    row("R7", "--never-proxy CIDR, and of several networks the smallest", networks),
    row("R7", "--egress cluster leaves private addresses to the machine, --egress all takes public ones", scopes),
    row("R14", "a name of the cluster's private zone, at an address that lets the pod alone in", allow_listed),
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

/// `inside.test` is known to the cluster's DNS alone, and is this node.
const NODE: &str = "node1";
const PORT: u16 = 19_700;

fn allow_listed(world: &World) -> anyhow::Result<()> {
    let _server = Server::on_node(
        world,
        NODE,
        &["--raw=19701", "--http=19700", "--first=19702", "--reset=19703", "--record=19704"],
    )?;
    let pods = world.pods()?;
    // From another node the address of a pod may be its node's.
    let mut there = pods.iter().filter(|pod| pod["spec"]["nodeName"] == NODE && crate::scratch::is_ready(pod));
    let name = there.find_map(|pod| pod["metadata"]["name"].as_str()).context("no ready pod is on the node")?;
    let url = format!("http://{}:{PORT}/hello", world.node_address()?);
    let laptop = ["curl", "-sS", "--max-time", "5", &url];
    within(Duration::from_secs(5), || checked(&mut world.lab().user(laptop)).map(drop))?;
    let _listed = AllowListed::only(world, world.pod_addresses(name)?[0])?;
    let refused = world.lab().user(laptop).output()?;
    ensure!(
        refused.status.code() == Some(7),
        "the laptop is not refused: {}",
        String::from_utf8_lossy(&refused.stderr)
    );
    let by_name = format!("http://inside.test:{PORT}/hello");
    let hello = world.run(&format!("pod/{name}")).stdout(&["curl", "-4", "-sS", "--max-time", "10", &by_name])?;
    ensure!(hello.starts_with("hello from"), "{hello}");
    // Another pod's address is not on the list.
    let elsewhere = world.run("pod/stranger").output(&["curl", "-4", "-sS", "--max-time", "10", &by_name])?;
    ensure!(
        elsewhere.status.code() == Some(7),
        "another pod is let in: {}",
        String::from_utf8_lossy(&elsewhere.stdout)
    );
    Ok(())
}

/// The node refuses everybody else at the port, until this is dropped.
struct AllowListed<'a>(&'a World);

impl AllowListed<'_> {
    fn only(world: &World, pod: std::net::IpAddr) -> anyhow::Result<AllowListed<'_>> {
        let listed = AllowListed(world);
        listed.nft(&format!(
            "add table inet listed; add chain inet listed in {{ type filter hook input priority 0; }}; \
             add rule inet listed in tcp dport {PORT} ip saddr != {pod} reject with tcp reset"
        ))?;
        Ok(listed)
    }

    fn nft(&self, rules: &str) -> anyhow::Result<()> {
        checked(&mut self.0.lab().node(NODE, ["nft", rules])).map(drop)
    }
}

impl Drop for AllowListed<'_> {
    fn drop(&mut self) {
        // What is left makes the next run's first request fail.
        let _ = self.nft("delete table inet listed");
    }
}
