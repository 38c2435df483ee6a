//! Pure: what the user wants to go through the pod.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::str::FromStr;

pub use ipnet::IpNet as Network;
use ipnet::IpNet;

/// `--egress`, `--also-proxy`, `--never-proxy`, `--dns`.
#[derive(Clone, Debug, Default)]
pub struct Egress {
    pub scope: Scope,
    pub also: Vec<Destination>,
    pub never: Vec<IpNet>,
    /// Names that belong to neither are asked of the cluster before the machine.
    pub cluster_dns_first: bool,
}

/// Which addresses go through the pod when nothing more is known of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Scope {
    /// None: only those of the cluster, and those its DNS answered with.
    Cluster,
    /// Private ones that the machine is not attached to.
    #[default]
    Private,
    /// All.
    All,
}

/// A host, an address or a network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Destination {
    Network(IpNet),
    /// Resolved by the pod, and its addresses reached through it.
    Host(String),
}

impl Egress {
    pub(crate) fn also_networks(&self) -> impl Iterator<Item = IpNet> {
        self.also.iter().filter_map(|destination| match destination {
            Destination::Network(network) => Some(*network),
            Destination::Host(_) => None,
        })
    }

    pub(crate) fn also_hosts(&self) -> impl Iterator<Item = &str> {
        self.also.iter().filter_map(|destination| match destination {
            Destination::Network(_) => None,
            Destination::Host(name) => Some(name.as_str()),
        })
    }
}

impl FromStr for Destination {
    type Err = NoDestination;

    fn from_str(text: &str) -> Result<Self, NoDestination> {
        let is_name = |text: &str| {
            let labels = text.trim_end_matches('.').split('.');
            text.len() < 255 && labels.into_iter().all(is_label) && text.contains(|c: char| c.is_ascii_alphabetic())
        };
        match network(text) {
            Ok(network) => Ok(Destination::Network(network)),
            Err(_) if is_name(text) => Ok(Destination::Host(text.trim_end_matches('.').to_owned())),
            Err(error) => Err(error),
        }
    }
}

fn is_label(label: &str) -> bool {
    let is_letter = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    (1..=63).contains(&label.len()) && label.chars().all(is_letter)
}

/// `10.1.2.3`, `10.1.0.0/16`, `fd00::/8`.
pub fn network(text: &str) -> Result<IpNet, NoDestination> {
    let single = || text.parse::<IpAddr>().map(IpNet::from);
    text.parse::<IpNet>().map(|network| network.trunc()).or_else(|_| single()).map_err(|_| NoDestination)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoDestination;

impl fmt::Display for NoDestination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("neither an address, nor a network such as 10.1.0.0/16, nor a name")
    }
}

impl std::error::Error for NoDestination {}

/// Link-local addresses that a container's environment names, such as those of workload identity. They are the node's, and
/// another machine has none or others there.
pub(crate) fn link_local_addresses<'a>(values: impl Iterator<Item = &'a str>) -> impl Iterator<Item = IpAddr> {
    let words = values.flat_map(|value| value.split(|c: char| !c.is_ascii_digit() && c != '.'));
    words.filter_map(|word| word.parse::<Ipv4Addr>().ok()).filter(Ipv4Addr::is_link_local).map(IpAddr::V4)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_destination_is_a_network_an_address_or_a_name() {
        let network = |text: &str| Ok(Destination::Network(text.parse().expect("a literal")));
        assert_eq!("10.1.2.3".parse(), network("10.1.2.3/32"));
        assert_eq!("10.1.2.3/16".parse(), network("10.1.0.0/16"));
        assert_eq!("fd00::1".parse(), network("fd00::1/128"));
        for name in ["db.corp.example", "db", "_sip.corp", "x1"] {
            assert_eq!(name.parse(), Ok(Destination::Host(name.to_owned())));
        }
        assert_eq!("db.corp.example.".parse(), Ok(Destination::Host("db.corp.example".to_owned())));
        for wrong in ["", ".", "10.1.2", "10.1.2.3/33", "1.2.3.4.5", "a..b", "a b", "http://x", "x:80"] {
            assert_eq!(wrong.parse::<Destination>(), Err(NoDestination), "{wrong:?}");
        }
    }

    #[test]
    fn link_local_addresses_are_found_in_the_environment() {
        let values = ["http://169.254.170.23/v1/credentials", "10.0.0.1", "169.254.169.254", "1.169.254.1.2"];
        let found: Vec<String> = link_local_addresses(values.into_iter()).map(|ip| ip.to_string()).collect();
        assert_eq!(found, ["169.254.170.23", "169.254.169.254"]);
    }
}
