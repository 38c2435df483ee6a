//! `testbed up`: keeps a healthy testbed of the same sources; clears away anything else and starts anew.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result};
use serde_json::json;

use crate::testbed::addresses::Node;
use crate::testbed::gobuild::{COREDNS, KUBE};
use crate::testbed::process::Process;
use crate::testbed::state::{Owner, StateDir, lock};
use crate::testbed::{cleanup, control_plane, coredns, machine, net, node, packages, pki, status, user_view};
use crate::{cache, image};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// How many nodes
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=2))]
    nodes: u8,
}

const COMPONENTS: [&str; 6] =
    ["etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy"];

/// Our own sources that shape a testbed: another version of them is another testbed.
const SHAPE: [&str; 10] = [
    include_str!("addresses.rs"),
    include_str!("cgroups.rs"),
    include_str!("control_plane.rs"),
    include_str!("coredns.rs"),
    include_str!("coredns.yaml"),
    include_str!("machine_init.rs"),
    include_str!("net.rs"),
    include_str!("node.rs"),
    include_str!("pki.rs"),
    include_str!("up.rs"),
];

pub(crate) fn run(args: Args) -> Result<()> {
    let _lock = lock()?;
    packages::install_missing()?;
    let (kube, dns) = (KUBE.program()?, COREDNS.program()?);
    let images = [image::pause()?, image::coredns(&dns)?];
    let owner = Owner {
        state: StateDir::of_this_user()?.0,
        checkout: sharing().unwrap_or_else(cache::checkout),
        key: cache::key([KUBE.key()?, COREDNS.key()?].iter().map(String::as_str).chain(SHAPE)),
        nodes: args.nodes,
        ready: false,
        inits: Vec::new(),
    };
    if status::is_healthy_and_like(&owner) {
        eprintln!("already up");
        return Ok(());
    }
    cleanup::clear()?;
    let start = Instant::now();
    bring_up(owner, &kube, &dns, &images)?;
    eprintln!("up: {} node(s) Ready and DNS answering after {:.1} s", args.nodes, start.elapsed().as_secs_f32());
    Ok(())
}

/// The checkout whose testbed is used as if it were this one's: for several worktrees that share one.
fn sharing() -> Option<PathBuf> {
    std::env::var_os("STEAD_TESTBED_OF").map(PathBuf::from)
}

fn bring_up(mut owner: Owner, kube: &Path, dns: &Path, images: &[PathBuf]) -> Result<()> {
    owner.write()?; // first of all: a later run must know whose all this is
    let state = owner.dir();
    fs::create_dir_all(&state.0).with_context(|| format!("cannot make {}", state.0.display()))?;
    link_programs(&state, kube, dns)?;
    pki::make(&state, owner.nodes)?;
    user_view::make_test_user()?;
    net::make(owner.nodes)?;
    for name in Node::all(owner.nodes).map(Node::name).chain(["outside".to_owned()]) {
        owner.inits.push(machine::start_init(&state, &name)?);
        owner.write()?;
    }
    let (nodes, outside) = owner.inits.split_at(owner.nodes.into());
    start_all(&state, nodes, &outside[0], images)?;
    owner.ready = true;
    owner.write()
}

/// Order: what takes longest to come up first, and nothing before what it would have to retry for.
fn start_all(state: &StateDir, nodes: &[Process], outside: &Process, images: &[PathBuf]) -> Result<()> {
    let count = u8::try_from(nodes.len())?;
    control_plane::start_api(state, &nodes[0])?;
    coredns::start_outside(state, outside)?;
    for (node, init) in Node::all(count).zip(nodes) {
        node::start_runtime(state, node, init, images)?;
    }
    control_plane::wait_for_api(state)?;
    let objects: Vec<_> = Node::all(count).map(node::object).collect();
    let list = json!({ "apiVersion": "v1", "kind": "List", "items": objects }).to_string();
    control_plane::kubectl(state, "create -f -", Some(&list))?;
    control_plane::start_controllers(state, &nodes[0])?;
    for (node, init) in Node::all(count).zip(nodes) {
        node::start_kubelet(state, node, init)?;
    }
    coredns::apply(state)?;
    coredns::wait_until_ready(state, count)?;
    coredns::wait_for_outside()
}

/// The multi-call program under the names it is called by.
fn link_programs(state: &StateDir, kube: &Path, dns: &Path) -> Result<()> {
    let components = state.join("components");
    for dir in [&components, &state.bin(), &state.join("log")] {
        fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    }
    for name in COMPONENTS {
        symlink(kube, components.join(name))?;
    }
    symlink(dns, components.join("coredns"))?;
    symlink(kube, state.bin().join("kubectl")).context("cannot link kubectl")
}
