//! Every address and name of the testbed, in one place.
//!
//! ```text
//!  outside 203.0.113.10 ── laptop ───────────── lan (router) ──┬── node1 ── pods 10.244.1.0/24
//!   (internet, DNS)    172.29.9.x   172.29.1.x    172.29.0.254 └── node2 ── pods 10.244.2.0/24
//! ```
//! `lan` only routes: to nodes and laptop, and to pods while `route on`. Nothing routes to the real network.

/// Namespaces, in the order they are made. `lan` and `laptop` hold no daemon of ours.
pub(crate) const NAMESPACES: [&str; 5] = ["lan", "laptop", "outside", "node1", "node2"];

pub(crate) const POD_RANGES: [&str; 2] = ["10.244.0.0/16", "fd00:10:244::/56"];
pub(crate) const SERVICE_RANGES: [&str; 2] = ["10.96.0.0/16", "fd00:10:96::/112"];
pub(crate) const NODE_RANGES: [&str; 2] = ["172.29.0.0/24", "fd00:29::/64"];
pub(crate) const KUBERNETES_SERVICE: [&str; 2] = ["10.96.0.1", "fd00:10:96::1"];
pub(crate) const DNS_SERVICE: &str = "10.96.0.10";
pub(crate) const DNS_SERVICE_V6: &str = "fd00:10:96::a";

pub(crate) const LAPTOP: [&str; 2] = ["172.29.1.1", "fd00:29:1::1"];
/// The router as the laptop sees it, and as the nodes see it.
pub(crate) const LAN_TO_LAPTOP: [&str; 2] = ["172.29.1.254", "fd00:29:1::fe"];
pub(crate) const LAN_TO_NODES: [&str; 2] = ["172.29.0.254", "fd00:29::fe"];

/// The world outside the cluster: its DNS server, and a public address that names of its zone lead to.
pub(crate) const OUTSIDE: [&str; 2] = ["172.29.9.1", "fd00:29:9::1"];
pub(crate) const LAPTOP_TO_OUTSIDE: [&str; 2] = ["172.29.9.254", "fd00:29:9::fe"];
pub(crate) const PUBLIC: [&str; 2] = ["203.0.113.10", "2001:db8:9::10"];

/// Nodes answer for these at once: EHOSTUNREACH over IPv4, ENETUNREACH over IPv6. (What else is foreign is dropped
/// without a word.)
pub(crate) const UNREACHABLE: [&str; 2] = ["192.0.2.0/24", "2001:db8:ffff::/48"];

/// The API server, as kubeconfigs name it: on the first node.
pub(crate) const API_SERVER: &str = "https://172.29.0.2:6443";

/// A node; `index` counts from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Node {
    pub(crate) index: u8,
}

impl Node {
    pub(crate) fn all(count: u8) -> impl Iterator<Item = Self> {
        (1..=count).map(|index| Self { index })
    }

    pub(crate) fn name(self) -> String {
        format!("node{}", self.index)
    }

    pub(crate) fn addresses(self) -> [String; 2] {
        [format!("172.29.0.{}", self.index + 1), format!("fd00:29::{}", self.index + 1)]
    }

    pub(crate) fn pod_ranges(self) -> [String; 2] {
        [format!("10.244.{}.0/24", self.index), format!("fd00:10:244:{}::/64", self.index)]
    }
}
