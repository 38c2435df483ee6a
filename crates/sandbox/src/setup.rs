//! Makes the namespaces and everything in them. Runs in the guard, once, before any command.
//!
//! How TCP gets out: a SYN to anything but the sandbox itself is marked by nftables, which routes it to the TUN, where
//! the client reads it. When the flow is open the client writes the same SYN back; it then meets `tproxy`, and the
//! client's transparent listener accepts the connection. Every other segment is routed to `lo`, as all addresses are
//! local there ("AnyIP"): the kernel's own TCP carries the data, at loopback speed. No NAT, no connection tracking.
//!
//! UDP and ICMP are marked and go to the TUN as they are, and their answers come from it. A SYN to 127.0.0.0/8 takes the way
//! of all others, so that the machine's localhost can be dialled where nobody inside listens; ::1 (which Linux takes from no
//! device but `lo`) and other protocols to localhost stay inside.
//! Other protocols are dropped by the output chain, so that the system call fails at once with EPERM, as behind a local
//! firewall.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};

use nix::sched::CloneFlags;
use rustix::fs::{Mode, OFlags};
use rustix::mount::MountPropagationFlags;
use socket2::{Domain, Protocol, Socket, Type};

use crate::netlink::{Batch, Refused};
use crate::{nftables, sys};

/// The address of the command's side of its connections.
pub(crate) const COMMAND: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);
pub(crate) const NAME_SERVER: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 2);
pub(crate) const COMMAND_V6: Ipv6Addr = Ipv6Addr::new(0xfd73, 0x7465, 0x6164, 0, 0, 0, 0, 1);

/// Steps that `Error::of_setup` tells apart.
pub(crate) const UNSHARE: &str = "unshare";
pub(crate) const MAP: &str = "map the user id";
pub(crate) const TUN: &str = "open /dev/net/tun";

/// The sockets of the namespace that the client serves.
pub(crate) struct Handles {
    pub(crate) tun: OwnedFd,
    pub(crate) listener: OwnedFd,
    pub(crate) dns_udp: OwnedFd,
    pub(crate) dns_tcp: OwnedFd,
    /// NETLINK_SOCK_DIAG: which sockets exist in the sandbox.
    pub(crate) diag: OwnedFd,
    /// Missing where the kernel has no IPv6.
    pub(crate) listener_v6: Option<OwnedFd>,
}

/// A step that failed.
pub(crate) struct Failure {
    pub(crate) step: &'static str,
    pub(crate) detail: String,
    pub(crate) source: io::Error,
}

/// Makes the calling process's namespaces new ones. It must have one thread.
pub(crate) fn namespaces() -> Result<Handles, Failure> {
    let (uid, gid) = (rustix::process::getuid(), rustix::process::getgid());
    nix::sched::unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS)
        .map_err(|e| failure(UNSHARE, e))?;
    let map = |file: &str, text: String| std::fs::write(format!("/proc/self/{file}"), text);
    // Without this the kernel refuses gid_map to an unprivileged user (user_namespaces(7)).
    map("setgroups", "deny".to_owned()).map_err(|e| failure(MAP, e))?;
    map("uid_map", format!("{0} {0} 1\n", uid.as_raw())).map_err(|e| failure(MAP, e))?;
    map("gid_map", format!("{0} {0} 1\n", gid.as_raw())).map_err(|e| failure(MAP, e))?;
    rustix::mount::mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
        .map_err(|e| failure("make the mounts private", e))?;
    let tun = open_tun()?;
    let listener_v6 = Socket::new(Domain::IPV6, Type::STREAM, Some(Protocol::TCP)).ok();
    network(listener_v6.is_some(), gid.as_raw())?;
    Ok(Handles {
        tun,
        listener: listener(Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP)), LISTENER)?,
        listener_v6: listener_v6.map(|socket| listener(Ok(socket), LISTENER_V6)).transpose()?,
        dns_udp: dns(Type::DGRAM, Protocol::UDP)?,
        dns_tcp: dns(Type::STREAM, Protocol::TCP)?,
        diag: crate::netlink::Socket::sock_diag().map_err(|e| failure("open sock_diag", e))?.into_fd(),
    })
}

/// Bound to addresses that are not routed, so that nobody in the sandbox can connect to the listener but by `tproxy`,
/// and on a port that programs neither ask for nor are given (the ephemeral range ends at 60999).
const LISTENER: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(198, 18, 0, 5)), 64999);
const LISTENER_V6: SocketAddr =
    SocketAddr::new(IpAddr::V6(Ipv6Addr::new(0xfd73, 0x7465, 0x6164, 0, 0, 0, 0, 5)), 64999);

const DEVICE: &str = "tun0";
const LOOPBACK: u32 = 1;
const MARK: u32 = 1;
/// Of connections from the client to what listens inside.
pub(crate) const MARK_INWARD: u32 = 2;
/// Routing table of marked packets: all to the TUN.
const TO_TUN: u8 = 100;
/// Routing table of all others that no other table knows: every address is local.
const ANY_LOCAL: u8 = 200;

fn failure(step: &'static str, source: impl Into<io::Error>) -> Failure {
    Failure { step, detail: step.to_owned(), source: source.into() }
}

impl From<Refused> for Failure {
    fn from(refused: Refused) -> Failure {
        failure(refused.step, refused.source)
    }
}

fn open_tun() -> Result<OwnedFd, Failure> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let tun = rustix::fs::open("/dev/net/tun", flags, Mode::empty()).map_err(|e| failure(TUN, e))?;
    sys::tun_set_interface(tun.as_fd(), DEVICE).map_err(|e| failure("make the TUN interface", e))?;
    Ok(tun)
}

fn network(v6: bool, gid: u32) -> Result<(), Failure> {
    let index = nix::net::if_::if_nametoindex(DEVICE).map_err(|e| failure("find the TUN interface", e))?;
    let route = crate::netlink::Socket::route().map_err(|e| failure("open rtnetlink", e))?;
    let mut batch = Batch::new();
    links(&mut batch, index, v6);
    addresses(&mut batch, index, v6);
    routes(&mut batch, index, COMMAND.into());
    if v6 {
        routes(&mut batch, index, COMMAND_V6.into());
    }
    route.run(&batch)?;
    sysctls(gid)?;
    let netfilter = crate::netlink::Socket::netfilter().map_err(|e| failure("open nfnetlink", e))?;
    netfilter.run(&rules(index, v6))?;
    Ok(())
}

fn links(batch: &mut Batch, tun: u32, v6: bool) {
    const IFLA_MTU: u16 = 4;
    const IFLA_AF_SPEC: u16 = 26;
    const IFLA_INET6_ADDR_GEN_MODE: u16 = 8;
    const IN6_ADDR_GEN_MODE_NONE: u8 = 1;
    let link = |index: u32| {
        let mut header = [0u8; 16];
        header[4..8].copy_from_slice(&index.to_ne_bytes());
        header[8..12].copy_from_slice(&(libc::IFF_UP as u32).to_ne_bytes());
        header[12..16].copy_from_slice(&(libc::IFF_UP as u32).to_ne_bytes());
        header
    };
    batch.request("set lo up", libc::RTM_NEWLINK, 0, &link(LOOPBACK), |_| ());
    if v6 {
        // No link-local address, thus no router solicitations on the TUN.
        let header = [&link(tun)[..8], &[0; 8]].concat();
        batch.request("set the TUN's IPv6 mode", libc::RTM_NEWLINK, 0, &header, |a| {
            a.nest(IFLA_AF_SPEC, |a| {
                a.nest(libc::AF_INET6 as u16, |a| a.put(IFLA_INET6_ADDR_GEN_MODE, &[IN6_ADDR_GEN_MODE_NONE]));
            });
        });
    }
    batch.request("set the TUN up", libc::RTM_NEWLINK, 0, &link(tun), |a| a.put_u32(IFLA_MTU, 65535));
}

fn addresses(batch: &mut Batch, tun: u32, v6: bool) {
    let mut add = |address: IpAddr, index: u32| {
        const IFA_FLAGS: u16 = 8;
        // No probing for others with it, and no route to it but the local one. That one comes a moment later; until then a
        // route through the TUN would have what comes for the command forwarded, which is to say lost.
        const IFA_F_NODAD: u32 = 0x02;
        const IFA_F_NOPREFIXROUTE: u32 = 0x200;
        let (family, bytes, address_flags) = match address {
            IpAddr::V4(a) => (libc::AF_INET, a.octets().to_vec(), None),
            IpAddr::V6(a) => (libc::AF_INET6, a.octets().to_vec(), Some(IFA_F_NODAD | IFA_F_NOPREFIXROUTE)),
        };
        let mut header = [0u8; 8];
        header[..2].copy_from_slice(&[family as u8, bytes.len() as u8 * 8]);
        header[4..].copy_from_slice(&index.to_ne_bytes());
        let flags = libc::NLM_F_CREATE | libc::NLM_F_EXCL;
        batch.request("add an address", libc::RTM_NEWADDR, flags, &header, |a| {
            a.put(libc::IFA_LOCAL, &bytes);
            a.put(libc::IFA_ADDRESS, &bytes);
            if let Some(flags) = address_flags {
                a.put_u32(IFA_FLAGS, flags);
            }
        });
    };
    add(COMMAND.into(), tun);
    add(NAME_SERVER.into(), LOOPBACK);
    if v6 {
        add(COMMAND_V6.into(), tun);
    }
}

/// The two tables and the rules that choose between them, for the family of `source`.
fn routes(batch: &mut Batch, tun: u32, source: IpAddr) {
    let (family, source) = match source {
        IpAddr::V4(a) => (libc::AF_INET as u8, a.octets().to_vec()),
        IpAddr::V6(a) => (libc::AF_INET6 as u8, a.octets().to_vec()),
    };
    let create = libc::NLM_F_CREATE | libc::NLM_F_EXCL;
    let default =
        |table: u8, scope: u8, kind: u8| [family, 0, 0, 0, table, libc::RTPROT_STATIC, scope, kind, 0, 0, 0, 0];
    let to_tun = default(TO_TUN, libc::RT_SCOPE_LINK, libc::RTN_UNICAST);
    batch.request("route to the TUN", libc::RTM_NEWROUTE, create, &to_tun, |a| a.put_u32(libc::RTA_OIF, tun));
    let any_local = default(ANY_LOCAL, libc::RT_SCOPE_HOST, libc::RTN_LOCAL);
    batch.request("make all addresses local", libc::RTM_NEWROUTE, create, &any_local, |a| {
        a.put_u32(libc::RTA_OIF, LOOPBACK);
        a.put(libc::RTA_PREFSRC, &source);
    });

    const FRA_PRIORITY: u16 = 6;
    const FRA_FWMARK: u16 = 10;
    const FR_ACT_TO_TBL: u8 = 1;
    let rule = |table: u8| [family, 0, 0, 0, table, 0, 0, FR_ACT_TO_TBL, 0, 0, 0, 0];
    batch.request("add the rule for marked packets", libc::RTM_NEWRULE, create, &rule(TO_TUN), |a| {
        a.put_u32(FRA_PRIORITY, 0);
        a.put_u32(FRA_FWMARK, MARK);
    });
    batch.request("add the rule for local addresses", libc::RTM_NEWRULE, create, &rule(libc::RT_TABLE_LOCAL), |a| {
        a.put_u32(FRA_PRIORITY, 10);
    });
    batch.request(
        "remove the first rule for local addresses",
        libc::RTM_DELRULE,
        0,
        &rule(libc::RT_TABLE_LOCAL),
        |a| {
            a.put_u32(FRA_PRIORITY, 0);
        },
    );
    batch.request("add the rule for all addresses", libc::RTM_NEWRULE, create, &rule(ANY_LOCAL), |a| {
        a.put_u32(FRA_PRIORITY, 40000);
    });
}

fn sysctls(gid: u32) -> Result<(), Failure> {
    let group = format!("{gid} {gid}");
    let tun = |name: &str| format!("ipv4/conf/{DEVICE}/{name}");
    let needed = [
        // A SYN that comes back has the sandbox's own address as its source.
        (tun("accept_local"), "1"),
        (tun("rp_filter"), "0"),
        (tun("route_localnet"), "1"),
        ("ipv4/conf/all/rp_filter".to_owned(), "0"),
        ("ipv4/conf/lo/rp_filter".to_owned(), "0"),
    ];
    for (name, value) in needed {
        std::fs::write(format!("/proc/sys/net/{name}"), value).map_err(|source| Failure {
            step: "write a sysctl",
            detail: format!("write net/{name}"),
            source,
        })?;
    }
    let wanted = [
        // Bursts of connects: the defaults are 4096 and, on small machines, 128.
        ("core/somaxconn", "65535"),
        ("ipv4/tcp_max_syn_backlog", "65535"),
        // ping without capabilities.
        ("ipv4/ping_group_range", &group),
        // As in a container: a server may take port 80.
        ("ipv4/ip_unprivileged_port_start", "0"),
    ];
    for (name, value) in wanted {
        // Kernels differ in which of these a namespace has of its own; the sandbox works without.
        let _ = std::fs::write(format!("/proc/sys/net/{name}"), value);
    }
    Ok(())
}

fn rules(tun: u32, v6: bool) -> Batch {
    let localhost = [(IpAddr::from([127, 0, 0, 0]), 8)];
    let inside = [localhost[0], (IpAddr::from([198, 18, 0, 0]), 30)];
    let inside_v6 = [
        (IpAddr::V6(Ipv6Addr::LOCALHOST), 128),
        (IpAddr::V6(Ipv6Addr::new(0xfd73, 0x7465, 0x6164, 0, 0, 0, 0, 0)), 126),
    ];
    let mut rules = vec![nftables::Rules {
        shared: &localhost,
        inside: &inside,
        listener: LISTENER,
        tun,
        mark: MARK,
        inward: MARK_INWARD,
    }];
    if v6 {
        rules.push(nftables::Rules {
            shared: &[],
            inside: &inside_v6,
            listener: LISTENER_V6,
            tun,
            mark: MARK,
            inward: MARK_INWARD,
        });
    }
    nftables::transaction(&rules)
}

fn listener(socket: io::Result<Socket>, address: SocketAddr) -> Result<OwnedFd, Failure> {
    let make = || -> io::Result<OwnedFd> {
        let socket = socket?;
        socket.set_nonblocking(true)?;
        // IP_TRANSPARENT sets the same flag on sockets of both families.
        socket.set_ip_transparent_v4(true)?;
        if address.is_ipv6() {
            socket.set_only_v6(true)?;
        }
        socket.bind(&address.into())?;
        socket.listen(65535)?;
        Ok(socket.into())
    };
    make().map_err(|e| failure("open the transparent listener", e))
}

fn dns(kind: Type, protocol: Protocol) -> Result<OwnedFd, Failure> {
    let make = || -> io::Result<OwnedFd> {
        let socket = Socket::new(Domain::IPV4, kind, Some(protocol))?;
        socket.set_nonblocking(true)?;
        socket.set_reuse_address(kind == Type::STREAM)?;
        socket.bind(&SocketAddr::from((NAME_SERVER, 53)).into())?;
        if kind == Type::STREAM {
            socket.listen(128)?;
        }
        Ok(socket.into())
    };
    make().map_err(|e| failure("open the name server's sockets", e))
}
