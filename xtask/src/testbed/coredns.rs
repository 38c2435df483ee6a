//! DNS: CoreDNS in the cluster, and one outside it that knows other names.
//!
//! Each knows a name that the other does not, so that a test can tell who was asked: `inside.test` the cluster's,
//! `example.test` the one outside; `both.test` has an address of its own in each. All else outside the cluster's zone does
//! not exist.

use std::net::TcpStream;
use std::time::Duration;

use anyhow::Result;

use crate::testbed::addresses::{DNS_SERVICE, DNS_SERVICE_V6, Node, OUTSIDE, PUBLIC};
use crate::testbed::control_plane::kubectl;
use crate::testbed::machine::{Daemon, start};
use crate::testbed::net;
use crate::testbed::process::{Process, wait_until};
use crate::testbed::state::{StateDir, write};

pub(crate) const IMAGE: &str = "localhost/coredns:1";

const MANIFEST: &str = include_str!("coredns.yaml");

/// Hands CoreDNS to the cluster; [`wait_until_ready`] waits for it.
pub(crate) fn apply(state: &StateDir) -> Result<()> {
    let [v4, v6] = Node { index: 1 }.addresses();
    let manifest = MANIFEST
        .replace("$IMAGE", IMAGE)
        .replace("$SERVICE_V4", DNS_SERVICE)
        .replace("$SERVICE_V6", DNS_SERVICE_V6)
        .replace("$NODE_V4", &v4)
        .replace("$NODE_V6", &v6);
    kubectl(state, "create -f -", Some(&manifest)).map(drop)
}

/// Both nodes Ready and CoreDNS answering (its readiness is that of its Kubernetes plugin).
pub(crate) fn wait_until_ready(state: &StateDir, nodes: u8) -> Result<()> {
    let names: Vec<_> = Node::all(nodes).map(Node::name).collect();
    kubectl(state, &format!("wait --for=condition=Ready --timeout=90s node {}", names.join(" ")), None)?;
    kubectl(state, "-n kube-system wait --for=condition=Available --timeout=90s deployment/coredns", None).map(drop)
}

/// Starts the server outside; it serves the developer's machine.
pub(crate) fn start_outside(state: &StateDir, init: &Process) -> Result<()> {
    let ([dns4, dns6], [web4, web6]) = (OUTSIDE, PUBLIC);
    let zone = format!(
        "$ORIGIN test.\n$TTL 5\n@ IN SOA ns.test. admin.test. 1 60 60 60 5\n@ IN NS ns.test.\n\
         ns IN A {dns4}\nns IN AAAA {dns6}\nexample IN A {web4}\nexample IN AAAA {web6}\n\
         www.example IN CNAME example.test.\nv4.example IN A {web4}\nv6.example IN AAAA {web6}\nboth IN A {web4}\n"
    );
    write(&state.join("outside/test.zone"), &zone)?;
    let corefile = format!(
        "test:53 {{\n bind {dns4} {dns6}\n file {}\n errors\n}}\n\
         .:53 {{\n bind {dns4} {dns6}\n template ANY ANY {{\n  rcode NXDOMAIN\n  authority \". 5 IN SOA ns.test. admin.test. 1 60 60 60 5\"\n }}\n errors\n}}\n",
        state.join("outside/test.zone").display()
    );
    write(&state.join("outside/Corefile"), &corefile)?;
    write(&state.join("laptop/resolv.conf"), &format!("nameserver {dns4}\n"))?;
    let line = format!("-conf {}", state.join("outside/Corefile").display());
    start(state, init, Daemon::new(state, "outside-dns", state.join("components/coredns"), &line))?;
    Ok(())
}

/// It also listens on TCP, where a listener can be seen without a question asked.
pub(crate) fn wait_for_outside() -> Result<()> {
    net::inside("laptop", || {
        wait_until("the DNS server outside does not listen", Duration::from_secs(10), || {
            TcpStream::connect((OUTSIDE[0], 53)).is_ok()
        })
    })
}
