//! Network namespaces, links, addresses and routes of the testbed. Starts no process.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nix::sched::{CloneFlags, setns};

use crate::shell;
use crate::testbed::addresses::{
    LAN_TO_LAPTOP, LAN_TO_NODES, LAPTOP, LAPTOP_TO_OUTSIDE, NAMESPACES, NODE_RANGES, Node, OUTSIDE, POD_RANGES, PUBLIC,
    UNREACHABLE,
};

/// Routes that the delay line overrides (with a smaller metric) while it is on.
pub(crate) const METRIC: u32 = 100;

pub(crate) fn path(namespace: &str) -> PathBuf {
    Path::new("/run/netns").join(namespace)
}

/// Namespaces of ours that exist.
pub(crate) fn existing() -> Vec<&'static str> {
    NAMESPACES.into_iter().filter(|name| path(name).exists()).collect()
}

/// Moves the calling thread into a namespace; unlike `ip netns exec` it leaves /sys and mounts alone.
pub(crate) fn enter(namespace: &str) -> Result<()> {
    let file = File::open(path(namespace))
        .with_context(|| format!("no network namespace {namespace}: run `cargo xtask testbed up`"))?;
    setns(file, CloneFlags::CLONE_NEWNET).with_context(|| format!("cannot enter {namespace}: the testbed needs root"))
}

/// Runs `work` on a thread inside a namespace; what it starts is inside too.
pub(crate) fn inside<T: Send>(namespace: &str, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let joined = std::thread::scope(|scope| scope.spawn(|| enter(namespace).and_then(|()| work())).join());
    joined.unwrap_or_else(|_| anyhow::bail!("work in {namespace} panicked"))
}

/// `ip` with several lines in one namespace.
pub(crate) fn ip(namespace: &str, lines: &[String]) -> Result<()> {
    let mut command = shell::command(&format!("ip -n {namespace} -batch -"));
    shell::output_with_input(&mut command, &lines.join("\n")).map(drop)
}

pub(crate) fn make(nodes: u8) -> Result<()> {
    for name in NAMESPACES.into_iter().filter(|name| !name.starts_with("node")) {
        make_namespace(name)?;
    }
    for node in Node::all(nodes) {
        make_namespace(&node.name())?;
    }
    ip("lan", &lan(nodes))?;
    ip("laptop", &laptop())?;
    ip("outside", &outside())?;
    Node::all(nodes).try_for_each(|node| ip(&node.name(), &node_lines(node, nodes)))
}

fn make_namespace(name: &str) -> Result<()> {
    shell::run(&format!("ip netns add {name}"))?;
    let forwards = name != "laptop";
    let mut settings = vec![
        ("ipv6/conf/default/accept_dad", "0"), // an address serves at once
        ("ipv6/conf/all/accept_dad", "0"),
        ("ipv4/ping_group_range", "0 2147483647"),
    ];
    if forwards {
        settings.extend([("ipv4/ip_forward", "1"), ("ipv6/conf/all/forwarding", "1")]);
    }
    if name == "lan" {
        settings.push(("ipv4/conf/all/rp_filter", "1")); // pods reach the laptop only while it has a route back
    }
    inside(name, || {
        settings.iter().try_for_each(|(key, value)| {
            fs::write(format!("/proc/sys/net/{key}"), value).with_context(|| format!("cannot set {key} in {name}"))
        })
    })
}

fn lan(nodes: u8) -> Vec<String> {
    let mut lines = vec![
        "link set lo up".to_owned(),
        "link add br0 type bridge".to_owned(),
        "link set br0 up".to_owned(),
        "link add laptop type veth peer name eth0 netns laptop".to_owned(),
        "link set laptop up".to_owned(),
    ];
    for node in Node::all(nodes).map(Node::name) {
        lines.push(format!("link add {node} type veth peer name eth0 netns {node}"));
        lines.push(format!("link set {node} master br0 up"));
    }
    lines.extend(addresses("br0", LAN_TO_NODES, [24, 64]));
    lines.extend(addresses("laptop", LAN_TO_LAPTOP, [24, 64]));
    lines
}

fn laptop() -> Vec<String> {
    let mut lines = vec![
        "link set lo up".to_owned(),
        "link add out0 type veth peer name eth0 netns outside".to_owned(),
        "link set eth0 up".to_owned(),
        "link set out0 up".to_owned(),
    ];
    lines.extend(addresses("eth0", LAPTOP, [24, 64]));
    lines.extend(addresses("out0", LAPTOP_TO_OUTSIDE, [24, 64]));
    lines.extend(NODE_RANGES.iter().zip(LAN_TO_LAPTOP).map(|(range, via)| route("add", range, via)));
    lines.extend(["0.0.0.0/0", "::/0"].iter().zip(OUTSIDE).map(|(range, via)| route("add", range, via)));
    lines
}

fn outside() -> Vec<String> {
    let mut lines = vec!["link set lo up".to_owned(), "link set eth0 up".to_owned()];
    lines.extend(addresses("eth0", OUTSIDE, [24, 64]));
    lines.extend(addresses("lo", PUBLIC, [32, 128]));
    lines
}

fn node_lines(node: Node, nodes: u8) -> Vec<String> {
    let mut lines = vec!["link set lo up".to_owned(), "link set eth0 up".to_owned()];
    let [v4, v6] = node.addresses();
    lines.extend(addresses("eth0", [&v4, &v6], [24, 64]));
    lines.extend(["0.0.0.0/0", "::/0"].iter().zip(LAN_TO_NODES).map(|(range, via)| route("add", range, via)));
    lines.extend(UNREACHABLE.map(|range| format!("route add unreachable {range}")));
    for other in Node::all(nodes).filter(|other| *other != node) {
        lines.extend(pod_routes("add", other));
    }
    lines
}

fn addresses(link: &str, addresses: [&str; 2], lengths: [u8; 2]) -> Vec<String> {
    addresses.iter().zip(lengths).map(|(address, length)| format!("addr add {address}/{length} dev {link}")).collect()
}

fn route(verb: &str, range: &str, via: &str) -> String {
    format!("route {verb} {range} via {via} metric {METRIC}")
}

/// Routes to the pods of a node by that node.
fn pod_routes(verb: &str, node: Node) -> Vec<String> {
    let [v4, v6] = node.addresses();
    node.pod_ranges().iter().zip([v4, v6]).map(|(range, via)| route(verb, range, &via)).collect()
}

/// Makes pod addresses reachable from the laptop, or takes that away. The nodes' default route is the way back.
pub(crate) fn route_pods(on: bool, nodes: u8) -> Result<()> {
    let verb = if on { "replace" } else { "del" };
    let lan: Vec<_> = Node::all(nodes).flat_map(|node| pod_routes(verb, node)).collect();
    ip("lan", &lan)?;
    let laptop: Vec<_> = POD_RANGES.iter().zip(LAN_TO_LAPTOP).map(|(range, via)| route(verb, range, via)).collect();
    ip("laptop", &laptop)
}
