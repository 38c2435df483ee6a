//! Which side is asked for a name, and in which order. Pure.

use hickory_proto::rr::Name;
use ipnet::IpNet;

use crate::resolv_conf::ResolvConf;

/// What kubeadm and every distribution known to us set.
const USUAL_DOMAIN: &str = "cluster.local";

/// One of the two places that can be asked for a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The pod's name servers.
    Cluster,
    /// The machine's own name servers.
    Host,
}

/// What belongs to the cluster.
#[derive(Clone, Debug, Default)]
pub struct Policy {
    /// Mostly `cluster.local`.
    pub cluster_domain: String,
    /// The pod's search list; the namespace's zone is in it, and on some nodes a domain of the company.
    pub search: Vec<String>,
    /// Names that the user wants resolved and reached by the pod.
    pub names: Vec<String>,
    /// Names that belong to neither are asked of the cluster first (`--dns cluster`).
    pub cluster_first: bool,
    /// Service and pod ranges as far as known; PTR questions for their addresses go to the cluster alone.
    pub reverse: Vec<IpNet>,
}

impl Policy {
    /// From the pod's resolv.conf. The kubelet writes `<namespace>.svc.<domain> svc.<domain> <domain>` at the head of
    /// its search list; a pod with another DNS policy has none of it, and then the usual domain is assumed.
    pub fn from_pod(resolv_conf: &str, reverse: Vec<IpNet>) -> Policy {
        let search = ResolvConf::parse(resolv_conf).search;
        let domain = search.iter().find_map(|zone| {
            let (head, domain) = zone.split_once('.')?;
            if head.eq_ignore_ascii_case("svc") { Some(domain) } else { domain.strip_prefix("svc.") }
        });
        let cluster_domain = domain.unwrap_or(USUAL_DOMAIN).to_owned();
        Policy { cluster_domain, search, reverse, ..Policy::default() }
    }

    /// The sides to ask for `name`: the second only when the first does not know it or cannot be asked.
    pub fn order(&self, name: &Name) -> &'static [Side] {
        if self.is_cluster_name(name) {
            &[Side::Cluster]
        } else if self.cluster_first {
            &[Side::Cluster, Side::Host]
        } else {
            &[Side::Host, Side::Cluster]
        }
    }

    fn is_cluster_name(&self, name: &Name) -> bool {
        if self.names.iter().any(|wanted| is_same(name, wanted)) {
            return true;
        }
        let zones = self.search.iter().chain([&self.cluster_domain]);
        zones.into_iter().any(|zone| is_under(name, zone)) || self.is_cluster_reverse(name)
    }

    fn is_cluster_reverse(&self, name: &Name) -> bool {
        // A partial reverse name reads as a network; it is the cluster's when the cluster has all of it.
        name.parse_arpa_name().is_ok_and(|net| self.reverse.iter().any(|range| range.contains(&net)))
    }
}

fn is_same(name: &Name, wanted: &str) -> bool {
    is_under(name, wanted) && usize::from(name.num_labels()) == wanted.trim_matches('.').split('.').count()
}

/// `zone` itself or below it. Compared by labels, since a label may hold a dot. The root holds nothing: a search list
/// with `.` in it must not turn every name into a cluster's.
fn is_under(name: &Name, zone: &str) -> bool {
    let zone = zone.trim_matches('.');
    let mut labels = name.iter().rev();
    !zone.is_empty()
        && zone.rsplit('.').all(|wanted| labels.next().is_some_and(|have| have.eq_ignore_ascii_case(wanted.as_bytes())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy() -> Policy {
        Policy {
            cluster_domain: "cluster.local".into(),
            search: ["shop.svc.cluster.local", "svc.cluster.local", "cluster.local", "corp.example", "."]
                .map(String::from)
                .to_vec(),
            names: vec!["db.vendor.example".into()],
            cluster_first: false,
            reverse: vec!["10.96.0.0/12".parse().expect("a range"), "fd00:96::/112".parse().expect("a range")],
        }
    }

    fn order(policy: &Policy, name: &str) -> &'static [Side] {
        policy.order(&Name::from_ascii(name).expect("a name"))
    }

    #[test]
    fn names_of_the_cluster_are_asked_of_the_cluster_alone() {
        for name in [
            "web.shop.svc.cluster.local.",
            "WEB.shop.svc.Cluster.LOCAL.",
            "cluster.local.",
            "_http._tcp.web.shop.svc.cluster.local.",
            "example.com.shop.svc.cluster.local.",
            "host.corp.example.",
            "DB.vendor.example.",
        ] {
            assert_eq!(order(&policy(), name), [Side::Cluster], "{name}");
        }
    }

    #[test]
    fn other_names_are_asked_of_the_host_first() {
        for name in [
            "example.com.",
            "x.db.vendor.example.",
            "vendor.example.",
            "web.",
            "notcluster.local.",
            "local.",
            ".",
            r"a\.cluster.local.",
            "example.",
        ] {
            assert_eq!(order(&policy(), name), [Side::Host, Side::Cluster], "{name}");
        }
    }

    #[test]
    fn dns_cluster_turns_it_round() {
        let policy = Policy { cluster_first: true, ..policy() };
        assert_eq!(order(&policy, "example.com."), [Side::Cluster, Side::Host]);
        assert_eq!(order(&policy, "web.shop.svc.cluster.local."), [Side::Cluster]);
    }

    #[test]
    fn the_clusters_domain_is_read_from_the_pods_search_list() {
        let domain = |search: &str| Policy::from_pod(&format!("search {search}\n"), Vec::new()).cluster_domain;
        assert_eq!(domain("shop.svc.k8s.corp svc.k8s.corp k8s.corp corp.example"), "k8s.corp");
        assert_eq!(domain("svc.k8s.corp"), "k8s.corp");
        assert_eq!(domain("corp.example"), "cluster.local");
        assert_eq!(Policy::from_pod("", Vec::new()).search, Vec::<String>::new());
    }

    #[test]
    fn reverse_names_follow_the_ranges() {
        let v6 = format!("1.{}6.9.0.0.0.0.d.f.ip6.arpa.", "0.".repeat(31 - 8));
        for name in ["10.0.96.10.in-addr.arpa.", "1.111.10.in-addr.arpa.", v6.as_str()] {
            assert_eq!(order(&policy(), name), [Side::Cluster], "{name}");
        }
        for name in ["1.0.168.192.in-addr.arpa.", "10.in-addr.arpa.", "in-addr.arpa.", "x.y.in-addr.arpa."] {
            assert_eq!(order(&policy(), name), [Side::Host, Side::Cluster], "{name}");
        }
    }
}
