//! Reads resolv.conf(5). Pure. Knows what decides whom to ask and how names are completed; keeps other options as text.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};

const DNS_PORT: u16 = 53;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResolvConf {
    /// At most three, as in libc (MAXNS).
    pub nameservers: Vec<SocketAddr>,
    /// Without a dot at the end.
    pub search: Vec<String>,
    /// Names with fewer dots are tried with the search list first.
    pub ndots: u8,
    /// The other options as written (`edns0`, `trust-ad`, `timeout:1` …).
    pub options: Vec<String>,
}

impl ResolvConf {
    /// Never fails: lines that are not understood are left out, as libc does. An address with a zone that is not a
    /// number (`fe80::1%eth0`) is left out too: the zone's number is not known here.
    pub fn parse(text: &str) -> Self {
        let mut conf = ResolvConf { nameservers: Vec::new(), search: Vec::new(), ndots: 1, options: Vec::new() };
        for line in text.lines().filter(|line| !line.starts_with(['#', ';'])) {
            let mut words = line.split_ascii_whitespace();
            match words.next() {
                Some("nameserver") => conf.nameservers.extend(words.next().and_then(parse_server)),
                // The last of several lines holds, and `domain` is a search list of one.
                Some("search") => conf.search = words.map(trim_dot).collect(),
                Some("domain") => conf.search = words.take(1).map(trim_dot).collect(),
                Some("options") => words.for_each(|word| conf.set_option(word)),
                _ => {}
            }
        }
        conf.search.retain(|domain| !domain.is_empty());
        conf.nameservers.truncate(3);
        conf
    }

    /// The text for the sandbox: the pod's search list, ndots and options, with our name server as the only one.
    pub fn for_sandbox(&self, name_server: Ipv4Addr) -> String {
        let mut text = format!("nameserver {name_server}\n");
        if !self.search.is_empty() {
            text += &format!("search {}\n", self.search.join(" "));
        }
        text += &format!("options ndots:{}", self.ndots);
        self.options.iter().for_each(|option| text += &format!(" {option}"));
        text + "\n"
    }

    fn set_option(&mut self, word: &str) {
        match word.strip_prefix("ndots:").map(str::parse::<u32>) {
            // RES_MAXNDOTS is 15.
            Some(Ok(ndots)) => self.ndots = ndots.min(15) as u8,
            Some(Err(_)) => {}
            None => self.options.push(word.to_owned()),
        }
    }
}

fn trim_dot(domain: &str) -> String {
    domain.trim_end_matches('.').to_owned()
}

fn parse_server(word: &str) -> Option<SocketAddr> {
    let Some((address, zone)) = word.split_once('%') else {
        return word.parse::<IpAddr>().ok().map(|ip| SocketAddr::new(ip, DNS_PORT));
    };
    Some(SocketAddrV6::new(address.parse::<Ipv6Addr>().ok()?, DNS_PORT, 0, zone.parse().ok()?).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pods_file_is_read() {
        let conf = ResolvConf::parse(
            "search shop.svc.cluster.local svc.cluster.local cluster.local.\nnameserver 10.96.0.10\noptions ndots:5 edns0\n",
        );
        assert_eq!(conf.nameservers, ["10.96.0.10:53".parse().expect("an address")]);
        assert_eq!(conf.search, ["shop.svc.cluster.local", "svc.cluster.local", "cluster.local"]);
        assert_eq!((conf.ndots, conf.options), (5, vec!["edns0".to_owned()]));
    }

    #[test]
    fn what_is_not_understood_is_left_out() {
        let conf = ResolvConf::parse(
            "# nameserver 9.9.9.9\n;x\nnameserver\nnameserver nonsense\nnameserver fe80::1%3\nnameserver fe80::1%eth0\n\
             \tnameserver ::1\nsortlist 1.2.3.4\noptions ndots:x ndots:99\ndomain a.example b.example\nsearch .\n",
        );
        assert_eq!(conf.nameservers, ["[fe80::1%3]:53", "[::1]:53"].map(|a| a.parse().expect("an address")));
        assert_eq!(conf.search, Vec::<String>::new());
        assert_eq!(conf.ndots, 15);
    }

    #[test]
    fn the_sandboxs_file_differs_by_its_server_alone() {
        let pod = ResolvConf::parse("search a.svc b\nnameserver 10.96.0.10\nnameserver ::1\noptions ndots:5 edns0\n");
        let ours = ResolvConf::parse(&pod.for_sandbox(Ipv4Addr::new(198, 18, 0, 2)));
        let nameservers = vec!["198.18.0.2:53".parse().expect("an address")];
        assert_eq!(ours, ResolvConf { nameservers, ..pod });
    }

    #[test]
    fn an_empty_file_has_no_servers() {
        let conf = ResolvConf::parse("");
        assert!(conf.nameservers.is_empty() && conf.search.is_empty() && conf.ndots == 1);
    }
}
