//! IP packets as the TUN carries them: reading SYNs and datagrams, building what answers them.
//!
//! Pure, IPv4 and IPv6, no fragments, no extension headers (the kernel sends none with a SYN).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Hops of a SYN that comes back from the TUN for a listener inside the sandbox, and of every other.
pub(crate) const INSIDE: u8 = 255;
pub(crate) const OUTSIDE: u8 = 64;

const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMP: u8 = 1;
const ICMPV6: u8 = 58;
const TCP_HEADER: usize = 20;
/// Of UDP, and of ICMP's echo messages.
const SHORT_HEADER: usize = 8;
/// Flags of the TCP header's byte 13.
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const ACK: u8 = 0x10;

/// The request for a connection that a SYN makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Syn {
    pub(crate) from: SocketAddr,
    pub(crate) to: SocketAddr,
    /// Initial sequence number: the same in retransmissions, another when the ports are used anew.
    pub(crate) sequence: u32,
    /// Bytes after the TCP header (TCP fast open).
    payload: u32,
}

/// Why a destination cannot be reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unreachable {
    Host,
    Network,
    /// Nobody listens there.
    Port,
    /// Somebody forbids it; also what the sandbox does not carry.
    Prohibited,
}

/// Which datagrams the sandbox carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Protocol {
    Udp,
    /// ICMP echo: the command's port is the identifier, the peer's the sequence number.
    Echo,
}

/// A datagram of the command, or for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Datagram<'a> {
    pub protocol: Protocol,
    /// The command's end.
    pub command: SocketAddr,
    /// The other end, of the same family.
    pub peer: SocketAddr,
    pub payload: &'a [u8],
}

/// The SYN in `packet`, if it is a whole TCP segment with SYN and without ACK and RST.
pub(crate) fn syn(packet: &[u8]) -> Option<Syn> {
    let ip = Ip::parse(packet)?;
    let tcp = packet.get(ip.header..).filter(|tcp| ip.protocol == TCP && tcp.len() >= TCP_HEADER)?;
    if tcp[13] & (SYN | ACK | RST) != SYN {
        return None;
    }
    let port = |i| u16::from_be_bytes([tcp[i], tcp[i + 1]]);
    let offset = usize::from(tcp[12] >> 4) * 4;
    Some(Syn {
        from: SocketAddr::new(ip.source, port(0)),
        to: SocketAddr::new(ip.destination, port(2)),
        sequence: u32::from_be_bytes(tcp[4..8].try_into().expect("4 bytes")),
        payload: tcp.len().saturating_sub(offset) as u32,
    })
}

/// The segment by which a closed port answers (RFC 9293 3.10.7.1).
pub(crate) fn refusal(syn: &Syn) -> Vec<u8> {
    let mut tcp = [0; TCP_HEADER];
    tcp[0..2].copy_from_slice(&syn.to.port().to_be_bytes());
    tcp[2..4].copy_from_slice(&syn.from.port().to_be_bytes());
    let acknowledged = syn.sequence.wrapping_add(1).wrapping_add(syn.payload);
    tcp[8..12].copy_from_slice(&acknowledged.to_be_bytes());
    tcp[12] = (TCP_HEADER as u8 / 4) << 4;
    tcp[13] = RST | ACK;
    let sum = checksum(pseudo(syn.to.ip(), syn.from.ip(), TCP, tcp.len()), &tcp);
    tcp[16..18].copy_from_slice(&sum.to_be_bytes());
    wrap(syn.to.ip(), syn.from.ip(), TCP, &tcp)
}

/// The ICMP or ICMPv6 error that answers `packet` in the name of its destination (RFC 792, RFC 4443 3.1).
pub(crate) fn unreachable(packet: &[u8], why: Unreachable) -> Option<Vec<u8>> {
    let ip = Ip::parse(packet)?;
    let (protocol, kind, code, quoted) = match (ip.source, why) {
        // At most 576 bytes in all.
        (IpAddr::V4(_), Unreachable::Network) => (ICMP, 3, 0, 548),
        (IpAddr::V4(_), Unreachable::Host) => (ICMP, 3, 1, 548),
        (IpAddr::V4(_), Unreachable::Port) => (ICMP, 3, 3, 548),
        (IpAddr::V4(_), Unreachable::Prohibited) => (ICMP, 3, 13, 548),
        // At most the smallest MTU, 1280 bytes.
        (IpAddr::V6(_), Unreachable::Network) => (ICMPV6, 1, 0, 1232),
        (IpAddr::V6(_), Unreachable::Host) => (ICMPV6, 1, 3, 1232),
        (IpAddr::V6(_), Unreachable::Port) => (ICMPV6, 1, 4, 1232),
        (IpAddr::V6(_), Unreachable::Prohibited) => (ICMPV6, 1, 1, 1232),
    };
    let mut message = vec![kind, code, 0, 0, 0, 0, 0, 0];
    message.extend_from_slice(&packet[..packet.len().min(quoted)]);
    let start = if protocol == ICMPV6 { pseudo(ip.destination, ip.source, ICMPV6, message.len()) } else { 0 };
    let sum = checksum(start, &message);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    Some(wrap(ip.destination, ip.source, protocol, &message))
}

/// The packet with another count of hops.
pub(crate) fn with_hops(packet: &[u8], hops: u8) -> Vec<u8> {
    let mut packet = packet.to_vec();
    match packet.first().map(|first| first >> 4) {
        Some(4) if packet.len() >= 20 => {
            let header = (usize::from(packet[0] & 15) * 4).min(packet.len());
            packet[8] = hops;
            packet[10..12].fill(0);
            let sum = checksum(0, &packet[..header]);
            packet[10..12].copy_from_slice(&sum.to_be_bytes());
        }
        Some(6) if packet.len() >= 40 => packet[7] = hops,
        _ => {}
    }
    packet
}

/// The datagram in `packet`, if it is whole and of a protocol that is carried.
pub(crate) fn datagram(packet: &[u8]) -> Option<Datagram<'_>> {
    let ip = Ip::parse(packet)?;
    let (head, payload) = packet.get(ip.header..)?.split_at_checked(SHORT_HEADER)?;
    let number = |i: usize| u16::from_be_bytes([head[i], head[i + 1]]);
    let (protocol, command, peer) = match (ip.protocol, ip.source) {
        (UDP, _) if usize::from(number(4)) == SHORT_HEADER + payload.len() => (Protocol::Udp, number(0), number(2)),
        (ICMP, IpAddr::V4(_)) if head[..2] == [8, 0] => (Protocol::Echo, number(4), number(6)),
        (ICMPV6, IpAddr::V6(_)) if head[..2] == [128, 0] => (Protocol::Echo, number(4), number(6)),
        _ => return None,
    };
    let (command, peer) = (SocketAddr::new(ip.source, command), SocketAddr::new(ip.destination, peer));
    Some(Datagram { protocol, command, peer, payload })
}

/// The packet by which the datagram comes to the command.
pub(crate) fn to_command(datagram: &Datagram) -> Vec<u8> {
    let Datagram { protocol, command, peer, payload } = *datagram;
    match protocol {
        Protocol::Udp => udp(peer, command, payload),
        Protocol::Echo => echo(if peer.is_ipv4() { 0 } else { 129 }, peer.ip(), command, peer.port(), payload),
    }
}

/// The ICMP error by which the command learns that its datagram to this peer was not delivered.
pub(crate) fn undelivered(protocol: Protocol, command: SocketAddr, peer: SocketAddr, why: Unreachable) -> Vec<u8> {
    // The kernel finds the socket by what the error quotes: the headers are enough.
    let asked = match protocol {
        Protocol::Udp => udp(command, peer, &[]),
        Protocol::Echo => {
            let to = SocketAddr::new(peer.ip(), command.port());
            echo(if peer.is_ipv4() { 8 } else { 128 }, command.ip(), to, peer.port(), &[])
        }
    };
    unreachable(&asked, why).unwrap_or_default()
}

fn udp(from: SocketAddr, to: SocketAddr, payload: &[u8]) -> Vec<u8> {
    let length = SHORT_HEADER + payload.len();
    let mut message = Vec::with_capacity(length);
    for number in [from.port(), to.port(), length as u16, 0] {
        message.extend_from_slice(&number.to_be_bytes());
    }
    message.extend_from_slice(payload);
    // All ones for a sum of zero, which would mean that there is none (RFC 768).
    let sum = match checksum(pseudo(from.ip(), to.ip(), UDP, length), &message) {
        0 => 0xffff,
        sum => sum,
    };
    message[6..8].copy_from_slice(&sum.to_be_bytes());
    wrap(from.ip(), to.ip(), UDP, &message)
}

/// `to`'s port is the identifier.
fn echo(kind: u8, from: IpAddr, to: SocketAddr, sequence: u16, payload: &[u8]) -> Vec<u8> {
    let mut message = vec![kind, 0, 0, 0];
    message.extend_from_slice(&to.port().to_be_bytes());
    message.extend_from_slice(&sequence.to_be_bytes());
    message.extend_from_slice(payload);
    let (protocol, start) = match from {
        IpAddr::V4(_) => (ICMP, 0),
        IpAddr::V6(_) => (ICMPV6, pseudo(from, to.ip(), ICMPV6, message.len())),
    };
    let sum = checksum(start, &message);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    wrap(from, to.ip(), protocol, &message)
}

/// What is read of an IP header.
struct Ip {
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    /// Its length in bytes.
    header: usize,
}

impl Ip {
    fn parse(packet: &[u8]) -> Option<Ip> {
        match packet.first()? >> 4 {
            4 => {
                let head: &[u8; 20] = packet.first_chunk()?;
                let header = usize::from(head[0] & 15) * 4;
                let fragment = u16::from_be_bytes([head[6], head[7]]) & 0x3fff != 0;
                let address = |i: usize| IpAddr::from(Ipv4Addr::new(head[i], head[i + 1], head[i + 2], head[i + 3]));
                (header >= 20 && header <= packet.len() && !fragment).then(|| Ip {
                    source: address(12),
                    destination: address(16),
                    protocol: head[9],
                    header,
                })
            }
            6 => {
                let head: &[u8; 40] = packet.first_chunk()?;
                let address = |i: usize| {
                    let octets: [u8; 16] = head[i..i + 16].try_into().expect("16 bytes");
                    IpAddr::from(Ipv6Addr::from(octets))
                };
                Some(Ip { source: address(8), destination: address(24), protocol: head[6], header: 40 })
            }
            _ => None,
        }
    }
}

/// `payload` with an IP header before it. Both addresses are of one family.
fn wrap(from: IpAddr, to: IpAddr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let mut packet = match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let [high, low] = ((20 + payload.len()) as u16).to_be_bytes();
            let mut head = vec![0x45, 0, high, low, 0, 0, 0x40, 0, OUTSIDE, protocol, 0, 0];
            head.extend_from_slice(&from.octets());
            head.extend_from_slice(&to.octets());
            let sum = checksum(0, &head);
            head[10..12].copy_from_slice(&sum.to_be_bytes());
            head
        }
        (from, to) => {
            let [high, low] = (payload.len() as u16).to_be_bytes();
            let mut head = vec![0x60, 0, 0, 0, high, low, protocol, OUTSIDE];
            head.extend_from_slice(&v6(from).octets());
            head.extend_from_slice(&v6(to).octets());
            head
        }
    };
    packet.extend_from_slice(payload);
    packet
}

fn v6(address: IpAddr) -> Ipv6Addr {
    match address {
        IpAddr::V4(a) => a.to_ipv6_mapped(),
        IpAddr::V6(a) => a,
    }
}

/// Sum over the pseudo header (RFC 9293 3.1, RFC 8200 8.1).
fn pseudo(from: IpAddr, to: IpAddr, protocol: u8, length: usize) -> u32 {
    let addresses = match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => sum(0, &from.octets()) + sum(0, &to.octets()),
        (from, to) => sum(0, &v6(from).octets()) + sum(0, &v6(to).octets()),
    };
    addresses + u32::from(protocol) + length as u32
}

/// The Internet checksum (RFC 1071), going on from `start`.
fn checksum(start: u32, bytes: &[u8]) -> u16 {
    let mut sum = sum(start, bytes);
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// Adds 16-bit words. Holds for 64 KiB and a few headers before it could overflow.
fn sum(start: u32, bytes: &[u8]) -> u32 {
    let words = bytes.chunks(2).map(|word| u32::from(word[0]) << 8 | word.get(1).copied().map_or(0, u32::from));
    start + words.sum::<u32>()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segment(from: &str, to: &str, flags: u8) -> Vec<u8> {
        let (from, to): (SocketAddr, SocketAddr) = (from.parse().expect("address"), to.parse().expect("address"));
        let mut tcp = vec![0; TCP_HEADER];
        tcp[0..2].copy_from_slice(&from.port().to_be_bytes());
        tcp[2..4].copy_from_slice(&to.port().to_be_bytes());
        tcp[4..8].copy_from_slice(&0xffff_fffeu32.to_be_bytes());
        tcp[12] = 0x50;
        tcp[13] = flags;
        wrap(from.ip(), to.ip(), TCP, &tcp)
    }

    const PAIRS: [(&str, &str); 2] = [("198.18.0.1:40000", "10.96.0.5:80"), ("[fd00::1]:40000", "[fd96::5]:80")];

    #[test]
    fn a_syn_is_read_in_both_families() {
        for (from, to) in PAIRS {
            let syn = syn(&segment(from, to, SYN)).expect("a SYN");
            assert_eq!(syn.from, from.parse().expect("address"));
            assert_eq!(syn.to, to.parse().expect("address"));
            assert_eq!(syn.sequence, 0xffff_fffe);
        }
    }

    #[test]
    fn hops_change_and_the_checksum_holds() {
        for (from, to) in PAIRS {
            let packet = segment(from, to, SYN);
            let changed = with_hops(&packet, INSIDE);
            assert_ne!(changed, packet);
            assert_eq!(syn(&changed), syn(&packet));
            assert_eq!(with_hops(&changed, OUTSIDE), packet, "and back");
            assert!(packet[0] >> 4 == 6 || checksum(0, &changed[..20]) == 0);
        }
    }

    #[test]
    fn other_segments_cut_ones_and_garbage_are_no_syn() {
        for (from, to) in PAIRS {
            for flags in [SYN | ACK, SYN | RST, ACK, RST, 0] {
                assert_eq!(syn(&segment(from, to, flags)), None);
            }
            let whole = segment(from, to, SYN);
            for length in 0..whole.len() {
                assert_eq!(syn(&whole[..length]), None, "{length} bytes");
            }
        }
        assert_eq!(syn(&[0xff; 64]), None);
        // A header length that points past the packet.
        let mut packet = segment(PAIRS[0].0, PAIRS[0].1, SYN);
        packet[0] = 0x4f;
        assert_eq!(syn(&packet[..44.min(packet.len())]), None);
    }

    #[test]
    fn a_refusal_acknowledges_the_syn_and_its_checksums_hold() {
        for (from, to) in PAIRS {
            let asked = syn(&segment(from, to, SYN)).expect("a SYN");
            let packet = refusal(&asked);
            let ip = Ip::parse(&packet).expect("IP");
            assert_eq!((ip.source, ip.destination), (asked.to.ip(), asked.from.ip()));
            let tcp = &packet[ip.header..];
            assert_eq!(tcp[13], RST | ACK);
            assert_eq!(tcp[8..12], 0xffff_ffffu32.to_be_bytes());
            assert_eq!(checksum(pseudo(ip.source, ip.destination, TCP, tcp.len()), tcp), 0);
            if ip.header == 20 {
                assert_eq!(checksum(0, &packet[..20]), 0);
            }
        }
    }

    #[test]
    fn an_unreachable_quotes_the_packet_and_its_checksum_holds() {
        for ((from, to), kind) in PAIRS.into_iter().zip([3, 1]) {
            let asked = segment(from, to, SYN);
            let packet = unreachable(&asked, Unreachable::Host).expect("built");
            let ip = Ip::parse(&packet).expect("IP");
            let message = &packet[ip.header..];
            assert_eq!(message[0], kind);
            assert_eq!(&message[8..], &asked[..]);
            let start = if kind == 1 { pseudo(ip.source, ip.destination, ICMPV6, message.len()) } else { 0 };
            assert_eq!(checksum(start, message), 0);
        }
    }

    fn udp_asked<'a>(from: &str, to: &str, payload: &'a [u8]) -> Datagram<'a> {
        let (command, peer) = (from.parse().expect("address"), to.parse().expect("address"));
        Datagram { protocol: Protocol::Udp, command, peer, payload }
    }

    #[test]
    fn a_datagram_is_read_as_it_was_built_in_both_families() {
        for (from, to) in PAIRS {
            for payload in [&b""[..], b"x", &[0xab; 1400]] {
                let asked = udp_asked(from, to, payload);
                let packet = udp(asked.command, asked.peer, payload);
                assert_eq!(datagram(&packet), Some(asked));
                for length in 0..packet.len() {
                    assert_eq!(datagram(&packet[..length]), None, "cut to {length} bytes");
                }
                let echoed = Datagram { protocol: Protocol::Echo, ..asked };
                let kind = if asked.peer.is_ipv4() { 8 } else { 128 };
                let to = SocketAddr::new(asked.peer.ip(), asked.command.port());
                let packet = echo(kind, asked.command.ip(), to, asked.peer.port(), payload);
                assert_eq!(datagram(&packet), Some(echoed));
            }
        }
    }

    #[test]
    fn what_comes_to_the_command_has_its_ends_and_whole_checksums() {
        for (from, to) in PAIRS {
            for protocol in [Protocol::Udp, Protocol::Echo] {
                let answer = Datagram { protocol, ..udp_asked(from, to, b"abc") };
                let packet = to_command(&answer);
                let ip = Ip::parse(&packet).expect("IP");
                assert_eq!((ip.source, ip.destination), (answer.peer.ip(), answer.command.ip()));
                let message = &packet[ip.header..];
                let start =
                    if ip.protocol == ICMP { 0 } else { pseudo(ip.source, ip.destination, ip.protocol, message.len()) };
                assert_eq!(checksum(start, message), 0);
                assert_eq!(&message[SHORT_HEADER..], b"abc");
                assert!(protocol == Protocol::Udp || datagram(&packet).is_none(), "a reply is no request");
            }
        }
    }

    #[test]
    fn an_undelivered_datagram_is_quoted_with_its_ends() {
        for ((from, to), code) in PAIRS.into_iter().zip([[3, 3], [1, 4]]) {
            for protocol in [Protocol::Udp, Protocol::Echo] {
                let asked = Datagram { protocol, ..udp_asked(from, to, b"") };
                let packet = undelivered(protocol, asked.command, asked.peer, Unreachable::Port);
                let message = &packet[Ip::parse(&packet).expect("IP").header..];
                assert_eq!(message[..2], code);
                assert_eq!(datagram(&message[8..]), Some(asked));
            }
        }
    }

    #[test]
    fn a_known_checksum_comes_out() {
        // The example of RFC 1071 section 3.
        assert_eq!(checksum(0, &[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]), !0xddf2);
    }
}
