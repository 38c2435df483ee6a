//! Pure: which side connects an address, the pod or this machine. It opens nothing and asks no clock.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::egress::{Egress, Scope};

/// Who connects a destination of the command.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Side {
    Pod,
    Machine,
}

/// Ranges that belong to nobody in particular, so that a cluster may use them: RFC 1918, RFC 6598, RFC 4193.
const PRIVATE_V4: [(Ipv4Addr, u8); 4] = [
    (Ipv4Addr::new(10, 0, 0, 0), 8),
    (Ipv4Addr::new(172, 16, 0, 0), 12),
    (Ipv4Addr::new(192, 168, 0, 0), 16),
    (Ipv4Addr::new(100, 64, 0, 0), 10),
];
const PRIVATE_V6: (Ipv6Addr, u8) = (Ipv6Addr::new(0xfc00, 0, 0, 0, 0, 0, 0, 0), 7);

/// Addresses learned from the pod's DNS are kept at least this long, since programs hold on to them past their TTL.
const SHORTEST_MEMORY: Duration = Duration::from_secs(60);

/// Learned addresses are swept when the table has grown to this many.
const SWEEP_AT: usize = 4096;

/// Decides by ranges of the cluster, addresses the pod's DNS answered with, and what the machine itself is attached to.
#[derive(Debug)]
pub(crate) struct Router {
    scope: Scope,
    /// What the user said, or the pod's environment: these networks, on this side.
    said: Vec<(IpNet, Side)>,
    cluster: Vec<IpNet>,
    on_link: Vec<IpNet>,
    learned: HashMap<IpAddr, Instant>,
}

impl Router {
    /// `on_link` are the networks this machine is attached to.
    pub(crate) fn new(on_link: Vec<IpNet>, egress: &Egress) -> Self {
        let also = egress.also_networks().map(|network| (network, Side::Pod));
        let never = egress.never.iter().map(|network| (*network, Side::Machine));
        let said = never.chain(also).collect();
        Router { scope: egress.scope, said, cluster: Vec::new(), on_link, learned: HashMap::new() }
    }

    /// Adds addresses that go through the pod, unless the user said otherwise.
    pub(crate) fn also(&mut self, addresses: impl Iterator<Item = IpAddr>) {
        self.said.extend(addresses.map(|address| (IpNet::from(address), Side::Pod)));
    }

    /// The Service and pod ranges, as far as they can be known.
    pub(crate) fn know(&mut self, cluster: Vec<IpNet>) {
        self.cluster = cluster;
    }

    /// The pod's DNS answered with `address`, valid for `ttl` from `now`.
    pub(crate) fn learn(&mut self, address: IpAddr, ttl: Duration, now: Instant) {
        if self.learned.len() >= SWEEP_AT {
            self.learned.retain(|_, until| *until > now);
        }
        let until = now + ttl.max(SHORTEST_MEMORY);
        let entry = self.learned.entry(address).or_insert(until);
        *entry = (*entry).max(until);
    }

    /// The most telling fact wins: what the user said (of what fits, the smallest network, then `--never-proxy`), a cluster
    /// range, a name the pod resolved, then the machine's own networks, then private space, which is the cluster's unless the
    /// machine is on it.
    pub(crate) fn side(&self, to: IpAddr, now: Instant) -> Side {
        let to = to.to_canonical();
        // For datagrams; connections to localhost are `localhost`'s business.
        if to.is_loopback() {
            return Side::Machine;
        }
        let said = self.said.iter().filter(|(network, _)| network.contains(&to));
        // Of equals the last: `said` begins with what never goes through the pod.
        if let Some((_, side)) = said.rev().max_by_key(|(network, _)| network.prefix_len()) {
            return *side;
        }
        if self.cluster.iter().any(|net| net.contains(&to)) {
            return Side::Pod;
        }
        if self.learned.get(&to).is_some_and(|until| *until > now) {
            return Side::Pod;
        }
        match self.scope {
            Scope::All if !to.is_multicast() && to != Ipv4Addr::BROADCAST => Side::Pod,
            Scope::Private if is_private(to) && !self.on_link.iter().any(|net| net.contains(&to)) => Side::Pod,
            _ => Side::Machine,
        }
    }

    /// Networks of the machine that lie within a range of the cluster (or are it), unless the user said whose they are.
    pub(crate) fn shared_networks(&self) -> Vec<(IpNet, IpNet)> {
        let is_said = |network: &IpNet| self.said.iter().any(|(said, _)| said.contains(network));
        let unsaid = self.on_link.iter().filter(|network| !is_said(network));
        unsaid
            .flat_map(|network| {
                let mut within = self.cluster.iter().filter(move |range| range.contains(network));
                within.next().map(|range| (*network, *range))
            })
            .collect()
    }

    /// The cluster's ranges as known, for DNS reverse zones and for `status`.
    pub(crate) fn cluster_ranges(&self) -> &[IpNet] {
        &self.cluster
    }
}

fn is_private(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => PRIVATE_V4.iter().any(|&(base, len)| Ipv4Net::new_assert(base, len).contains(&ip)),
        IpAddr::V6(ip) => Ipv6Net::new_assert(PRIVATE_V6.0, PRIVATE_V6.1).contains(&ip),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn router() -> Router {
        let nets = |list: &[&str]| list.iter().map(|n| n.parse().expect("a literal")).collect();
        let mut router = Router::new(nets(&["192.168.1.0/24", "10.0.0.0/8"]), &Egress::default());
        router.know(nets(&["10.96.0.0/16", "fd00:96::/112"]));
        router
    }

    fn side(to: &str) -> Side {
        router().side(to.parse().expect("a literal"), Instant::now())
    }

    #[test]
    fn a_cluster_range_goes_through_the_pod_even_when_the_machine_is_on_a_wider_one() {
        assert_eq!(side("10.96.3.4"), Side::Pod);
        assert_eq!(side("fd00:96::7"), Side::Pod);
        assert_eq!(side("::ffff:10.96.3.4"), Side::Pod);
    }

    #[test]
    fn the_machines_own_networks_and_public_addresses_stay_with_the_machine() {
        assert_eq!(side("192.168.1.9"), Side::Machine);
        assert_eq!(side("10.1.2.3"), Side::Machine);
        assert_eq!(side("203.0.113.7"), Side::Machine);
        assert_eq!(side("2001:db8::1"), Side::Machine);
    }

    #[test]
    fn private_space_the_machine_is_not_on_goes_through_the_pod() {
        assert_eq!(side("172.20.0.1"), Side::Pod);
        assert_eq!(side("192.168.2.1"), Side::Pod);
        assert_eq!(side("100.64.0.1"), Side::Pod);
        assert_eq!(side("fd12::1"), Side::Pod);
    }

    #[test]
    fn an_address_the_pod_resolved_goes_through_it_until_forgotten() {
        let (mut router, start) = (router(), Instant::now());
        let public = "203.0.113.7".parse().expect("a literal");
        router.learn(public, Duration::from_secs(5), start);
        assert_eq!(router.side(public, start + Duration::from_secs(59)), Side::Pod);
        assert_eq!(router.side(public, start + Duration::from_secs(61)), Side::Machine);
    }

    #[test]
    fn a_network_that_the_cluster_covers_is_told_unless_the_user_said_whose_it_is() {
        let nets = |list: &[&str]| list.iter().map(|n| n.parse().expect("a literal")).collect::<Vec<_>>();
        let shared = |never: &[&str]| {
            let egress = Egress { never: nets(never), ..Egress::default() };
            let mut router = Router::new(nets(&["10.244.7.0/24", "10.0.0.0/8"]), &egress);
            router.know(nets(&["10.244.0.0/16"]));
            router.shared_networks()
        };
        let [network, range] = ["10.244.7.0/24", "10.244.0.0/16"].map(|n| n.parse().expect("a literal"));
        assert_eq!(shared(&[]), [(network, range)]);
        assert_eq!(shared(&["10.244.7.0/24"]), []);
    }

    #[test]
    fn a_shorter_answer_does_not_shorten_a_longer_one() {
        let (mut router, start) = (router(), Instant::now());
        let public = "203.0.113.7".parse().expect("a literal");
        router.learn(public, Duration::from_secs(300), start);
        router.learn(public, Duration::from_secs(1), start);
        assert_eq!(router.side(public, start + Duration::from_secs(299)), Side::Pod);
    }

    #[test]
    fn expired_addresses_do_not_pile_up() {
        let (mut router, start) = (router(), Instant::now());
        for i in 0..SWEEP_AT as u32 {
            router.learn(IpAddr::from(Ipv4Addr::from(i)), Duration::ZERO, start);
        }
        router.learn("203.0.113.7".parse().expect("a literal"), Duration::ZERO, start + SHORTEST_MEMORY * 2);
        assert_eq!(router.learned.len(), 1);
    }

    fn with(scope: Scope, also: &[&str], never: &[&str]) -> impl Fn(&str) -> Side {
        let also = also.iter().map(|also| also.parse().expect("a destination")).collect();
        let never = never.iter().map(|never| never.parse().expect("a literal")).collect();
        let mut router = Router::new(Vec::new(), &Egress { scope, also, never, ..Egress::default() });
        router.know(vec!["10.96.0.0/16".parse().expect("a literal")]);
        router.also(["169.254.170.23".parse().expect("a literal")].into_iter());
        move |to| router.side(to.parse().expect("a literal"), Instant::now())
    }

    #[test]
    fn the_scope_decides_where_nothing_is_known() {
        let sides = |scope| {
            let side = with(scope, &[], &[]);
            ["10.96.0.1", "192.168.7.7", "203.0.113.7"].map(side)
        };
        assert_eq!(sides(Scope::Cluster), [Side::Pod, Side::Machine, Side::Machine]);
        assert_eq!(sides(Scope::Private), [Side::Pod, Side::Pod, Side::Machine]);
        assert_eq!(sides(Scope::All), [Side::Pod; 3]);
        assert_eq!(with(Scope::All, &["127.0.0.0/8"], &[])("127.0.0.1"), Side::Machine, "localhost is the machine's");
        assert_eq!(
            with(Scope::All, &[], &[])("224.0.0.251"),
            Side::Machine,
            "nobody is reached by multicast through a pod"
        );
    }

    #[test]
    fn what_the_user_said_comes_first_and_the_smaller_network_before_the_larger() {
        let side = with(Scope::Private, &["203.0.113.0/24", "10.1.2.3", "10.5.0.0/16"], &["10.0.0.0/8", "10.5.0.0/16"]);
        assert_eq!(side("203.0.113.7"), Side::Pod);
        assert_eq!(side("10.96.0.1"), Side::Machine);
        assert_eq!(side("10.1.2.3"), Side::Pod);
        assert_eq!(side("10.5.0.1"), Side::Machine, "never is the last word");
        assert_eq!(side("169.254.170.23"), Side::Pod);
    }
}
