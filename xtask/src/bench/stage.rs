//! What is measured against: one server pod, one driver pod on the other node, and the ways to reach the server.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use testkit::lab::{Lab, within};

use crate::arena::Arena;
use crate::{cache, dist, image};

pub(crate) const NAMESPACE: &str = "stead-bench";
const PATIENCE: Duration = Duration::from_secs(60);
const RAW_PORT: u16 = 9100;

/// Both pods share one machine, and so do all paths: what differs is what a path does.
const MANIFEST: &str = "\
apiVersion: v1
kind: Namespace
metadata: {name: stead-bench}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: server, namespace: stead-bench}
spec:
  replicas: 1
  selector: {matchLabels: {app: server}}
  template:
    metadata: {labels: {app: server}}
    spec:
      nodeName: node1
      terminationGracePeriodSeconds: 1
      containers:
      - {name: testapp, image: $TESTAPP, imagePullPolicy: Never, args: [serve]}
      - {name: rawpipe, image: $RAWPIPE, imagePullPolicy: Never, args: [serve, --listen=0.0.0.0:9100, --target=127.0.0.1:9000]}
---
apiVersion: v1
kind: Pod
metadata: {name: driver, namespace: stead-bench}
spec:
  nodeName: node2
  terminationGracePeriodSeconds: 1
  containers:
  - {name: testapp, image: $TESTAPP, imagePullPolicy: Never, args: [serve]}
";

/// Everything is there and ready. Dropping it ends the processes it started and deletes the namespace.
pub(crate) struct Stage<'a> {
    pub(crate) arena: &'a Arena,
    pub(crate) lab: &'a Lab,
    pub(crate) address: String,
    relay: Background,
    pub(crate) relay_port: u16,
    forward: Background,
    pub(crate) forward_ports: [u16; 2],
}

impl<'a> Stage<'a> {
    pub(crate) fn set(arena: &'a Arena) -> Result<Stage<'a>> {
        let lab = arena.lab();
        let rawpipe = dist::program("rawpipe", "rawpipe")?;
        let rawpipe_image = format!("localhost/rawpipe:{}", &cache::key([std::fs::read(&rawpipe)?])[..12]);
        let archive = image::from_static_binary(&rawpipe_image, &rawpipe)?;
        lab.testbed(&["load", archive.to_str().context("the cache's path is not UTF-8")?])?;
        let manifest = MANIFEST.replace("$TESTAPP", &arena.testapp_image).replace("$RAWPIPE", &rawpipe_image);
        let file = tempfile::Builder::new().suffix(".yaml").tempfile()?;
        std::fs::write(file.path(), manifest)?;
        lab.kubectl(&["delete", "namespace", NAMESPACE, "--ignore-not-found", "--wait"])?;
        lab.apply(file.path())?;
        let timeout = format!("--timeout={}s", PATIENCE.as_secs());
        lab.kubectl(&["-n", NAMESPACE, "wait", "--for=condition=Ready", "pod/driver", &timeout])?;
        lab.kubectl(&["-n", NAMESPACE, "rollout", "status", "deploy/server", &timeout])?;
        let pod = jsonpath(lab, "{.items[0].metadata.name}")?;
        let address = jsonpath(lab, "{.items[0].status.podIP}")?;
        let key = within(PATIENCE, || {
            let log = lab.kubectl(&["-n", NAMESPACE, "logs", &pod, "-c", "rawpipe"])?;
            log.lines().next().map(str::to_owned).context("rawpipe printed no key")
        })?;
        let (relay, relay_port) = relay(lab, rawpipe.to_str().context("the path is not UTF-8")?, &pod, &key)?;
        let (forward, forward_ports) = port_forward(lab)?;
        Ok(Stage { arena, lab, address, relay, relay_port, forward, forward_ports })
    }

    pub(crate) fn relay_pid(&self) -> u32 {
        self.relay.0.id()
    }

    pub(crate) fn forward_pid(&self) -> u32 {
        self.forward.0.id()
    }

    /// `stead run` on the server's workload, as the unprivileged user.
    pub(crate) fn stead(&self, flags: &[&str], command: &[&str]) -> Command {
        let stead = self.arena.dist.stead.display().to_string();
        let head = [stead.as_str(), "run", "-n", NAMESPACE, "--container", "testapp", "--lease", "5s"];
        let mut run = self.lab.user([&head[..], flags, &["deploy/server", "--"], command].concat());
        run.env("STEAD_AGENT_IMAGE", &self.arena.agent_image);
        run
    }
}

impl Drop for Stage<'_> {
    fn drop(&mut self) {
        let _ = self.lab.kubectl(&["delete", "namespace", NAMESPACE, "--ignore-not-found", "--wait=false"]);
    }
}

/// A process that is ended, and waited for, when dropped.
pub(crate) struct Background(pub(crate) Child);

impl Drop for Background {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn jsonpath(lab: &Lab, path: &str) -> Result<String> {
    let path = format!("jsonpath={path}");
    lab.kubectl(&["-n", NAMESPACE, "get", "pods", "-l", "app=server", "-o", &path])
}

fn relay(lab: &Lab, program: &str, pod: &str, key: &str) -> Result<(Background, u16)> {
    let port = RAW_PORT.to_string();
    let words = [program, "relay", "--namespace", NAMESPACE, "--pod", pod, "--port", &port, "--key", key];
    let mut child = lab.root(words).stdout(Stdio::piped()).spawn().context("cannot start rawpipe")?;
    let stdout = child.stdout.take().context("stdout is piped")?;
    let child = Background(child);
    let mut line = String::new();
    BufReader::new(stdout).read_line(&mut line)?;
    Ok((child, line.trim().parse().context("rawpipe printed no port")?))
}

/// `kubectl port-forward` of the raw and the HTTP port; kubectl picks the near ports and prints them.
fn port_forward(lab: &Lab) -> Result<(Background, [u16; 2])> {
    let words = ["kubectl", "-n", NAMESPACE, "port-forward", "deploy/server", ":9000", ":9001"];
    let mut child =
        lab.root(words).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().context("cannot start kubectl")?;
    let stdout = child.stdout.take().context("stdout is piped")?;
    let child = Background(child);
    let mut lines = BufReader::new(stdout).lines().map_while(Result::ok);
    let mut port = |far: &str| {
        let line = lines.by_ref().find(|line| line.contains("127.0.0.1:") && line.ends_with(far));
        let near = line.as_deref().and_then(|l| l.split("127.0.0.1:").nth(1)?.split(' ').next()?.parse().ok());
        near.with_context(|| format!("kubectl forwards no port to {far}"))
    };
    let ports = [port("9000")?, port("9001")?];
    ensure!(ports[0] != ports[1], "kubectl forwards one port twice");
    // kubectl prints a line for each connection; somebody has to read them.
    std::thread::spawn(move || lines.for_each(drop));
    Ok((child, ports))
}
