//! Rungs: each carries bytes, the best is found, and what is missing is gone around.

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde_json::Value;
use testkit::lab::{checked, containers, within};

use super::input::expect;
use super::{Row, row};
use crate::stead::{Held, failed};
use crate::world::{NAMESPACE, World};

pub(super) const ROWS: &[Row] = &[
    row("R5", "each rung carries 4 uploads of 20 MiB, over one link and over two", each_rung),
    row("R5", "a user without pods/proxy is carried by forward; without both, the error names both", forbidden),
    row("R5", "links move to the pod's address when it is reached, and back when it is not; a flow lives on", moving),
    row(
        "R5",
        "a pod address closed to the API server costs no start time; once it is open links leave forward",
        closed,
    ),
];

const MIB: u64 = 1 << 20;

/// A route from the developer's machine to the pods' addresses, until it is dropped.
pub(super) struct Route<'a>(&'a World);

impl Route<'_> {
    pub(super) fn open(world: &World) -> anyhow::Result<Route<'_>> {
        let route = Route(world);
        world.lab().testbed(&["route", "on"])?;
        Ok(route)
    }
}

impl Drop for Route<'_> {
    fn drop(&mut self) {
        // What is left shows in the picture of the machine.
        let _ = self.0.lab().testbed(&["route", "off"]);
    }
}

fn each_rung(world: &World) -> anyhow::Result<()> {
    let _route = Route::open(world)?;
    let web = world.service("web")?[0];
    for rung in ["direct", "proxy", "forward"] {
        for links in ["1", "2"] {
            let mut shell = world.run("deploy/web").flags(&["--rung", rung, "--links", links]).shell()?;
            let line = format!("{} probe uploads {web}:80 --count 4 --bytes {}", world.testapp(), 20 * MIB);
            let outcome = shell.json(&line)?;
            ensure!(outcome["identical"] == 4, "{rung}: {outcome}");
            let status = world.status()?;
            ensure!(on_rung(&status, rung), "not all on {rung}: {}", status["links"]);
            let bytes = |link: &Value| link["sent_bytes"].as_u64().zip(link["received_bytes"].as_u64());
            let carried = status["links"].as_array().into_iter().flatten().filter_map(bytes);
            let carried: u64 = carried.map(|(sent, received)| sent + received).sum();
            ensure!(carried > 2 * 4 * 20 * MIB, "{rung} carried {carried} bytes: {}", status["links"]);
        }
    }
    Ok(())
}

/// Whether all links are up on this rung.
fn on_rung(status: &Value, rung: &str) -> bool {
    let links = status["links"].as_array();
    links.is_some_and(|links| !links.is_empty() && links.iter().all(|link| link["up"] == true && link["rung"] == rung))
}

/// What a session needs but for the pipes.
const ROLE: &str = r#"
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: carried, namespace: $NAMESPACE}
rules:
- {apiGroups: [""], resources: [pods, services, endpoints, events], verbs: [get, list, watch]}
- {apiGroups: [apps], resources: [deployments, replicasets, statefulsets, daemonsets], verbs: [get, list, watch]}
- {apiGroups: [""], resources: [pods/ephemeralcontainers], verbs: [patch]}
- {apiGroups: [""], resources: [pods/attach], verbs: [get, create]}
- {apiGroups: [""], resources: [$PIPES], verbs: [get, create]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: carried, namespace: $NAMESPACE}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: carried}
subjects: [{apiGroup: rbac.authorization.k8s.io, kind: User, name: carried}]
"#;

fn forbidden(world: &World) -> anyhow::Result<()> {
    let role = |pipes: &str| -> anyhow::Result<tempfile::NamedTempFile> {
        let file = tempfile::Builder::new().suffix(".yaml").tempfile()?;
        std::fs::write(file.path(), ROLE.replace("$NAMESPACE", NAMESPACE).replace("$PIPES", pipes))?;
        world.lab().apply(file.path())?;
        Ok(file)
    };
    let run = world.run("deploy/web").flags(&["--as", "carried"]);
    let outcome = (|| {
        let _with = role("pods/portforward")?;
        within(Duration::from_secs(10), || {
            let mut shell = run.shell()?;
            shell.ok("curl -fsS http://nginx/")?;
            let status = world.status()?;
            ensure!(on_rung(&status, "forward"), "{}", status["links"]);
            Ok(())
        })?;
        let _without = role("pods/log")?;
        within(Duration::from_secs(10), || {
            let failed = failed(&mut run.command(&["true"]))?;
            let names_both = failed.stderr.contains("pods/proxy") && failed.stderr.contains("pods/portforward");
            ensure!(failed.code == Some(77) && names_both, "{:?}: {}", failed.code, failed.stderr);
            Ok(())
        })
    })();
    world.lab().kubectl(&["delete", "-n", NAMESPACE, "role/carried", "rolebinding/carried"])?;
    outcome
}

fn moving(world: &World) -> anyhow::Result<()> {
    let web = world.service("web")?[0];
    let hold = ["probe", "hold", &format!("{web}:9000"), "--count", "5"];
    let mut held = Held::start(world.run("deploy/web").command(&[&[world.testapp()], &hold[..]].concat()))?;
    ensure!(held.line()?["held"] == 5);
    ensure!(on_rung(&world.status()?, "proxy"), "{}", world.status()?["links"]);
    let route = Route::open(world)?;
    // The machine tells that its routes changed; nothing waits for the minute between tries.
    let are_all_on = |rung: &str| {
        let status = world.status()?;
        ensure!(on_rung(&status, rung), "not on {rung}: {}", status["links"]);
        Ok(())
    };
    within(Duration::from_secs(10), || are_all_on("direct"))?;
    drop(route);
    // A way that is gone is silence: three PINGs and a dial.
    within(Duration::from_secs(30), || are_all_on("proxy"))?;
    held.say()?;
    ensure!(held.line()?["alive"] == 5);
    held.end()
}

/// The pod takes no new connections on its addresses, but for its app's ports, until this is dropped.
struct Closed(u32);

impl Closed {
    /// The agent has one of the ports that the kernel chooses.
    const RULES: &'static str = "add table inet closed; \
        add chain inet closed in { type filter hook input priority 0; }; \
        add rule inet closed in iifname != lo tcp dport >= 32768 tcp flags & (syn | ack) == syn drop";

    fn start(world: &World, pod: &str) -> anyhow::Result<Closed> {
        let pids = containers(&[world.pod(pod)?]).into_iter().flat_map(|container| container.pids);
        let closed = Closed(pids.min().context("nothing runs in the pod")?);
        closed.nft(Self::RULES)?;
        Ok(closed)
    }

    fn nft(&self, rules: &str) -> anyhow::Result<()> {
        let pid = self.0.to_string();
        checked(Command::new("nsenter").args(["--net", "--target", &pid, "nft", rules])).map(drop)
    }
}

impl Drop for Closed {
    fn drop(&mut self) {
        // What is left shows in the picture of the pod.
        let _ = self.nft("delete table inet closed");
    }
}

fn closed(world: &World) -> anyhow::Result<()> {
    let run = world.run("pod/db-0");
    run.stdout(&["true"])?;
    let closed = Closed::start(world, "db-0")?;
    let started = Instant::now();
    let mut shell = run.shell()?;
    let seconds = started.elapsed().as_secs_f64();
    println!("       a session in {seconds:.2} s");
    ensure!(on_rung(&world.status()?, "forward"), "{}", world.status()?["links"]);
    ensure!(seconds < 1.5, "{seconds} s to start");
    // Whoever insists is told what else there is.
    expect(
        world.run("pod/db-0").flags(&["--rung", "proxy"]).command(&["true"]),
        76,
        &["no answer within 10 s", "NetworkPolicy", "without --rung"],
    )?;
    drop(closed);
    // A change of the machine's network is reason to look again before the minute is over.
    for change in ["add", "del"] {
        checked(&mut world.lab().root(["ip", "address", change, "192.0.2.77/32", "dev", "lo"]))?;
    }
    within(Duration::from_secs(10), || {
        let status = world.status()?;
        ensure!(on_rung(&status, "proxy"), "not on proxy: {}", status["links"]);
        Ok(())
    })?;
    shell.ok("curl -fsS http://nginx/").map(drop)
}
