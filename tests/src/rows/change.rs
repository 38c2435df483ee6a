//! R6, R8: the cluster changes under a session, and shares addresses with the machine's own networks.

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, ensure};
use testkit::lab::{Shell, checked, within};

use super::{Row, probe, row};
use crate::stead::Server;
use crate::world::{NAMESPACE, World};

pub(super) const ROWS: &[Row] = &[
    row("R6", "a Service and a pod that appear during the session are reached", appearing),
    row("R8", "the machine is on a network that holds the cluster's: both are reached", within_a_wider_network),
    row(
        "R8",
        "the machine is on a network inside the cluster's: it is said, and --never-proxy reaches it",
        inside_of_the_range,
    ),
];

const LATE: &str = r#"
apiVersion: v1
kind: Service
metadata: {name: late, namespace: $NAMESPACE}
spec: {selector: {app: late}, ports: [{port: 9001}]}
---
apiVersion: v1
kind: Pod
metadata: {name: late, namespace: $NAMESPACE, labels: {app: late}}
spec:
  terminationGracePeriodSeconds: 1
  containers: [{name: late, image: $IMAGE, imagePullPolicy: Never, args: [serve], readinessProbe: {tcpSocket: {port: 9001}, periodSeconds: 1}}]
"#;

fn appearing(world: &World) -> anyhow::Result<()> {
    let mut shell = world.shell()?;
    let (code, _) = shell.line("getent ahostsv4 late")?;
    ensure!(code != 0, "the Service is there before it was made");
    let manifest = tempfile::Builder::new().suffix(".yaml").tempfile()?;
    let text = LATE.replace("$NAMESPACE", NAMESPACE).replace("$IMAGE", world.testapp_image());
    std::fs::write(manifest.path(), text)?;
    world.lab().apply(manifest.path())?;
    let reached = reach_late(world, &mut shell);
    let file = manifest.path().to_str().context("the path is not UTF-8")?;
    world.lab().kubectl(&["delete", "-f", file, "--wait"])?;
    reached
}

fn reach_late(world: &World, shell: &mut Shell) -> anyhow::Result<()> {
    let ready = "--for=condition=Ready";
    world.lab().kubectl(&["wait", "-n", NAMESPACE, ready, "pod/late", "--timeout=30s"])?;
    // That the name did not exist may be believed for two seconds, and kube-proxy takes its time.
    within(Duration::from_secs(5), || {
        let found = shell.ok("getent ahostsv4 late")?;
        let address = found.split_whitespace().next().context("no address")?;
        for address in [address.to_owned(), world.pod_addresses("late")?[0].to_string()] {
            let hello = probe(world, shell, &format!("probe get {address}:9001 /hello"))?;
            ensure!(hello.as_str().is_some_and(|hello| hello.starts_with("hello from late")), "{address}: {hello}");
        }
        Ok(())
    })
}

fn within_a_wider_network(world: &World) -> anyhow::Result<()> {
    let _network = Network::join(world, "10.77.0.1/8")?;
    let _server = Server::start(world, &["--raw=19600"])?;
    both_are_reached(world, "10.77.0.1:19600", &[])
}

/// Services that name no address get none of the range's first 256.
fn inside_of_the_range(world: &World) -> anyhow::Result<()> {
    let _network = Network::join(world, "10.96.0.209/28")?;
    let _server = Server::start(world, &["--raw=19600"])?;
    both_are_reached(world, "10.96.0.209:19600", &["--never-proxy", "10.96.0.208/28"])?;
    let output = world.run("deploy/web").output(&["true"])?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(said.contains("10.96.0.208/28") && said.contains("--never-proxy"), "the overlap is not said: {said}");
    Ok(())
}

fn both_are_reached(world: &World, machines: &str, flags: &[&str]) -> anyhow::Result<()> {
    let mut shell = world.run("deploy/web").flags(flags).shell()?;
    let pod = format!("{}:9000", world.pod_addresses("db-0")?[0]);
    let service = format!("{}:9000", world.service("web")?[0]);
    for target in [machines, &pod, &service] {
        let outcome = probe(world, &mut shell, &format!("probe connect {target}"))?;
        ensure!(outcome["result"] == "ok", "{target}: {outcome}");
    }
    let flows = &world.status()?["flows"];
    ensure!(flows["through_pod"] == 2 && flows["by_machine"] == 1, "{flows}");
    Ok(())
}

/// A network that the developer's machine is on.
struct Network<'a>(&'a World);

impl Network<'_> {
    const DEVICE: &'static str = "other0";

    fn join<'a>(world: &'a World, address: &str) -> anyhow::Result<Network<'a>> {
        let ip = |words: &[&str]| checked(&mut world.lab().root([&["ip"], words].concat()));
        ip(&["link", "add", Self::DEVICE, "type", "veth", "peer", "name", "other1"])?;
        let network = Network(world);
        ip(&["address", "add", address, "dev", Self::DEVICE])?;
        ip(&["link", "set", Self::DEVICE, "up"])?;
        Ok(network)
    }
}

impl Drop for Network<'_> {
    fn drop(&mut self) {
        let mut delete = self.0.lab().root(["ip", "link", "delete", Self::DEVICE]);
        // What is left shows in the picture of the machine.
        let _ = delete.stderr(Stdio::null()).status();
    }
}
