//! Resolves a host name for our own needs, without libc: static binaries have no NSS.
//!
//! Knows /etc/hosts and the name servers of /etc/resolv.conf, search list and ndots included; not mDNS, LDAP or other
//! NSS modules.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use hickory_proto::rr::Name;
use tokio::time::timeout;

use crate::exchange::exchange;
use crate::message::{Answer, NAME_ERROR, Query};
use crate::resolv_conf::ResolvConf;

const TYPES: [u16; 2] = [28, 1];
/// For the whole lookup.
const LIMIT: Duration = Duration::from_secs(10);

/// Every address of `name`: those this machine has a route to first, among them IPv6 before IPv4.
pub async fn lookup(name: &str) -> io::Result<Vec<IpAddr>> {
    if let Ok(ip) = name.parse() {
        return Ok(vec![ip]);
    }
    let hosts = std::fs::read("/etc/hosts").unwrap_or_default();
    let found = in_hosts(&String::from_utf8_lossy(&hosts), name);
    let mut found =
        if found.is_empty() { ask(&resolv_conf(Path::new("/etc/resolv.conf"))?, name).await? } else { found };
    found.sort_by_key(|ip| (!has_route(*ip), ip.is_ipv4()));
    Ok(found)
}

/// The machine's resolv.conf; a missing one means a name server on this machine, as in libc. Bytes that are no UTF-8
/// do not spoil the rest.
pub fn resolv_conf(path: &Path) -> io::Result<ResolvConf> {
    let text = match std::fs::read(path) {
        Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
        Err(error) => return Err(error),
    };
    let mut conf = ResolvConf::parse(&text);
    if conf.nameservers.is_empty() {
        conf.nameservers.push((Ipv4Addr::LOCALHOST, 53).into());
    }
    Ok(conf)
}

fn in_hosts(text: &str, name: &str) -> Vec<IpAddr> {
    let wanted = name.trim_end_matches('.');
    let mut found = Vec::new();
    for line in text.lines() {
        let line = line.split('#').next().unwrap_or_default();
        let mut words = line.split_ascii_whitespace();
        let Some(Ok(ip)) = words.next().map(str::parse::<IpAddr>) else { continue };
        if !found.contains(&ip) && words.any(|word| word.trim_end_matches('.').eq_ignore_ascii_case(wanted)) {
            found.push(ip);
        }
    }
    if found.is_empty() && wanted.eq_ignore_ascii_case("localhost") {
        // RFC 6761 section 6.3: never asked of a name server.
        found.extend([IpAddr::from(Ipv6Addr::LOCALHOST), Ipv4Addr::LOCALHOST.into()]);
    }
    found
}

async fn ask(conf: &ResolvConf, name: &str) -> io::Result<Vec<IpAddr>> {
    timeout(LIMIT, ask_in_turn(conf, name)).await.unwrap_or_else(|_| {
        Err(io::Error::new(io::ErrorKind::TimedOut, format!("the name servers did not answer for {name}")))
    })
}

async fn ask_in_turn(conf: &ResolvConf, name: &str) -> io::Result<Vec<IpAddr>> {
    for candidate in candidates(conf, name) {
        let Ok(candidate) = Name::from_utf8(&candidate) else { continue };
        let (v6, v4) = tokio::join!(one(conf, &candidate, TYPES[0]), one(conf, &candidate, TYPES[1]));
        let found: BTreeSet<IpAddr> = [&v6, &v4].into_iter().flatten().flatten().copied().collect();
        if !found.is_empty() {
            return Ok(found.into_iter().collect());
        }
        // A failure is not a no: the next candidate might be somebody else.
        v4.and(v6)?;
    }
    Err(io::Error::new(io::ErrorKind::NotFound, format!("no address is known for {name}")))
}

/// What is asked, in order, with a dot at the end (resolv.conf(5), `search` and `ndots`).
fn candidates(conf: &ResolvConf, name: &str) -> Vec<String> {
    if name.ends_with('.') {
        return vec![name.to_owned()];
    }
    let plain = format!("{name}.");
    let mut all: Vec<_> = conf.search.iter().map(|domain| format!("{name}.{domain}.")).collect();
    let dots = name.bytes().filter(|&b| b == b'.').count();
    if dots >= usize::from(conf.ndots) {
        all.insert(0, plain)
    } else {
        all.push(plain)
    }
    all
}

async fn one(conf: &ResolvConf, name: &Name, record_type: u16) -> io::Result<Vec<IpAddr>> {
    let query = Query::new(name, record_type);
    let id = rand::random();
    let response: Bytes = exchange(&conf.nameservers, &query.to_upstream(id)).await?;
    let answer = Answer::parse(response).filter(|answer| answer.answers(&query, id));
    let answer =
        answer.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "malformed answer of a name server"))?;
    if answer.rcode() != 0 && answer.rcode() != NAME_ERROR {
        let text = format!("the name server failed for {name} (response code {})", answer.rcode());
        return Err(io::Error::other(text));
    }
    Ok(answer.addresses().iter().map(|(ip, _)| *ip).collect())
}

/// Whether the kernel has a way there; nothing is sent.
fn has_route(ip: IpAddr) -> bool {
    let any: SocketAddr =
        if ip.is_ipv4() { (Ipv4Addr::UNSPECIFIED, 0).into() } else { (Ipv6Addr::UNSPECIFIED, 0).into() };
    UdpSocket::bind(any).and_then(|socket| socket.connect((ip, 53))).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_read() {
        let text = "127.0.0.1 localhost\n# 9.9.9.9 api\n10.0.0.1\tAPI.example api # api2\n10.0.0.1 api\nfd00::1 api.\nbad api\n";
        let ips = |name| in_hosts(text, name).iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(ips("api"), ["10.0.0.1", "fd00::1"]);
        assert_eq!(ips("api.EXAMPLE."), ["10.0.0.1"]);
        assert_eq!(ips("api2"), Vec::<String>::new());
        assert_eq!(in_hosts("", "localhost").len(), 2);
    }

    #[test]
    fn names_are_completed_as_libc_does() {
        let conf = ResolvConf::parse("search a.example b.example\noptions ndots:2\n");
        assert_eq!(candidates(&conf, "x"), ["x.a.example.", "x.b.example.", "x."]);
        assert_eq!(candidates(&conf, "x.y.z"), ["x.y.z.", "x.y.z.a.example.", "x.y.z.b.example."]);
        assert_eq!(candidates(&conf, "x."), ["x."]);
    }

    #[test]
    fn a_missing_resolv_conf_means_this_machine() {
        let conf = resolv_conf(Path::new("/nonexistent/resolv.conf")).expect("not an error");
        assert_eq!(conf.nameservers, ["127.0.0.1:53".parse().expect("an address")]);
    }

    /// Answers both types of each candidate: NXDOMAIN but for `known`, which has one IPv4 address.
    async fn serve(socket: tokio::net::UdpSocket, known: &str) {
        let mut buffer = [0; 512];
        loop {
            let (len, from) = socket.recv_from(&mut buffer).await.expect("asked");
            let query = Query::parse(&buffer[..len]).expect("a question");
            let mut response = query.fail(if query.name().to_ascii() == known { 0 } else { NAME_ERROR });
            if query.name().to_ascii() == known && query.record_type() == 1 {
                response[7] = 1;
                response.extend_from_slice(&[0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 9, 0, 4, 10, 0, 0, 1]);
            }
            socket.send_to(&response, from).await.expect("sent");
        }
    }

    #[tokio::test]
    async fn a_name_is_found_through_the_search_list_and_a_missing_one_is_said() {
        let socket = tokio::net::UdpSocket::bind("127.0.0.1:0").await.expect("loopback");
        let mut conf = ResolvConf::parse("search a.example b.example\n");
        conf.nameservers.push(socket.local_addr().expect("bound"));
        let lookups =
            async { (ask(&conf, "api").await.expect("known"), ask(&conf, "gone").await.expect_err("unknown").kind()) };
        tokio::select! {
            () = serve(socket, "api.b.example.") => unreachable!("it never ends"),
            (found, missing) = lookups => {
                assert_eq!(found, [IpAddr::from([10, 0, 0, 1])]);
                assert_eq!(missing, io::ErrorKind::NotFound);
            }
        }
    }

    #[tokio::test]
    async fn an_address_is_its_own_answer() {
        assert_eq!(lookup("10.1.2.3").await.expect("an address"), [IpAddr::from([10, 1, 2, 3])]);
    }
}
