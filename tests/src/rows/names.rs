//! R1, R2: names, from every resolver.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde_json::Value;

use super::{Row, row, strings};
use crate::clients::{ALL, Client};
use crate::world::{NAMESPACE, World};
use testkit::lab::Shell;

pub(super) const ROWS: &[Row] = &[
    row("R1", "names of Services and pods, from every resolver", services),
    row("R1", "SRV and PTR records", records),
    row("R1", "pod addresses, IPv4 and IPv6", pod_addresses),
    row("R2", "a name that does not exist fails at once", missing),
    row("R2", "names outside the cluster keep resolving", outside),
];

/// Answers must come faster than any retry of a resolver would.
const AT_ONCE: Duration = Duration::from_secs(1);

fn services(world: &World) -> anyhow::Result<()> {
    let mut shell = world.shell()?;
    let web = world.service("web")?;
    let mut expected: Vec<(String, Vec<String>)> = [
        "web".to_owned(),
        format!("web.{NAMESPACE}"),
        format!("web.{NAMESPACE}.svc"),
        format!("web.{NAMESPACE}.svc.cluster.local"),
    ]
    .map(|name| (name, texts(&web)))
    .to_vec();
    for pod in ["db-0", "db-1"] {
        expected.push((format!("{pod}.db.{NAMESPACE}"), texts(&world.pod_addresses(pod)?)));
    }
    let both = [world.pod_addresses("db-0")?, world.pod_addresses("db-1")?].concat();
    expected.push(("db".to_owned(), texts(&both)));
    let kubernetes = world.camera().api().get("/api/v1/namespaces/default/services/kubernetes")?;
    expected.push(("kubernetes.default".to_owned(), strings(&kubernetes["spec"]["clusterIPs"])));
    let names: Vec<&str> = expected.iter().map(|(name, _)| name.as_str()).collect();
    for client in ALL.into_iter().filter(|client| client.resolves) {
        let found = resolve(world, &mut shell, client, &names.join(","))?;
        for (name, addresses) in &expected {
            let found = strings(&found[name]);
            let is_right = !found.is_empty() && found.iter().all(|address| addresses.contains(&short(address)));
            ensure!(is_right, "{}: {name} is {addresses:?}, and it found {found:?}", client.name);
        }
    }
    Ok(())
}

fn records(world: &World) -> anyhow::Result<()> {
    let mut shell = world.shell()?;
    let full = format!("web.{NAMESPACE}.svc.cluster.local");
    let srv = format!("srv:_http._tcp.{full}");
    let service = format!("ptr:{}", world.service("web")?[0]);
    let pod = format!("ptr:{}", world.pod_addresses("db-0")?[0]);
    for client in ALL.into_iter().filter(|client| client.ptr) {
        let found = resolve(world, &mut shell, client, &format!("{srv},{service},{pod}"))?;
        let name = strings(&found[&service]).concat();
        ensure!(name == full, "{}: {service} is {full}, and it found {name:?}", client.name);
        let name = strings(&found[&pod]);
        let is_pod = name.iter().any(|name| name.starts_with("db-0.") || name.contains(&format!(".{NAMESPACE}.")));
        ensure!(is_pod, "{}: {pod} is a pod of db, and it found {name:?}", client.name);
        if client.srv {
            let target = strings(&found[&srv]).concat();
            ensure!(target == format!("{full}:80"), "{}: {srv} gave {target:?}", client.name);
        }
    }
    Ok(())
}

fn pod_addresses(world: &World) -> anyhow::Result<()> {
    let mut shell = world.shell()?;
    for pod in ["db-0", "db-1"] {
        for address in world.pod_addresses(pod)? {
            let target = std::net::SocketAddr::from((address, 9001));
            let body = shell.ok(&format!("{} probe get {target} /hello", world.testapp()))?;
            ensure!(body.contains(&format!("hello from {pod}")), "{target} of {pod} answered {body}");
        }
    }
    Ok(())
}

fn missing(world: &World) -> anyhow::Result<()> {
    let mut shell = world.shell()?;
    let names =
        ["nope", &format!("nope.{NAMESPACE}"), "nope.nowhere.svc.cluster.local", "nope.test", "no.such.example"];
    for client in ALL.into_iter().filter(|client| client.resolves) {
        let started = Instant::now();
        let found = resolve(world, &mut shell, client, &names.join(","))?;
        let took = started.elapsed();
        for name in names {
            let answer = strings(&found[name]);
            ensure!(answer == ["!NXDOMAIN"], "{}: {name} does not exist, and it found {answer:?}", client.name);
        }
        ensure!(took < AT_ONCE * 2, "{}: {} names took {took:?}", client.name, names.len());
    }
    Ok(())
}

/// `example.test` is known to the machine's resolver only, `inside.test` to the cluster's only.
fn outside(world: &World) -> anyhow::Result<()> {
    let mut shell = world.shell()?;
    for client in ALL.into_iter().filter(|client| client.resolves) {
        let found = resolve(world, &mut shell, client, "example.test,inside.test")?;
        for name in ["example.test", "inside.test"] {
            let answer = strings(&found[name]);
            let is_found = answer.first().is_some_and(|first| !first.starts_with('!'));
            ensure!(is_found, "{}: {name} gave {answer:?}", client.name);
        }
    }
    Ok(())
}

fn resolve(world: &World, shell: &mut Shell, client: Client, names: &str) -> anyhow::Result<Value> {
    let line = format!("{} '{names}' - - -", world.clients().start(client));
    let mut answer = shell.json(&line).with_context(|| format!("the {} client", client.name))?;
    Ok(answer["names"].take())
}

fn texts(addresses: &[std::net::IpAddr]) -> Vec<String> {
    addresses.iter().map(ToString::to_string).collect()
}

/// In one spelling: Java writes IPv6 addresses with all their zeros.
fn short(address: &str) -> String {
    address.parse::<std::net::IpAddr>().map_or_else(|_| address.to_owned(), |address| address.to_string())
}
