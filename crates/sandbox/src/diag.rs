//! Asks the kernel (sock_diag) about the command's TCP sockets.
//!
//! Whether a connecting socket still exists, and whether somebody inside listens.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;

use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{RecvFlags, SendFlags};

use crate::flows::Ends;
use crate::netlink;

pub(crate) struct Diag {
    socket: OwnedFd,
}

/// A socket that takes connections.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Listener {
    pub(crate) at: SocketAddr,
    /// It takes none of IPv4.
    pub(crate) v6_only: bool,
}

/// linux/sock_diag.h
const SOCK_DIAG_BY_FAMILY: u16 = 20;
/// States of net/tcp_states.h in which a socket waits for nothing from us.
const TIME_WAIT: u8 = 6;
const CLOSE: u8 = 7;
const LISTEN: u8 = 10;

impl Diag {
    pub(crate) fn new(socket: OwnedFd) -> Diag {
        Diag { socket }
    }

    /// Whether a socket of the command with these ends still exists. True where the kernel does not say.
    /// 5-10 us; the kernel answers within the send.
    pub(crate) fn is_wanted(&self, ends: &Ends) -> bool {
        match self.state(ends) {
            Ok(Some(state)) => ![TIME_WAIT, CLOSE, LISTEN].contains(&state),
            Ok(None) => false,
            Err(_) => true,
        }
    }

    /// Whether a socket inside would take a connection with these ends.
    pub(crate) fn is_listened_for(&self, (from, to): &Ends) -> bool {
        // Seen from the listener, its own end comes first.
        matches!(self.state(&(*to, *from)), Ok(Some(LISTEN)))
    }

    /// A second one on the same socket: each question is answered before the next is asked.
    pub(crate) fn try_clone(&self) -> io::Result<Diag> {
        Ok(Diag { socket: self.socket.try_clone()? })
    }

    /// Everything that listens, of both families.
    pub(crate) fn listeners(&self) -> io::Result<Vec<Listener>> {
        let mut found = Vec::new();
        for family in [libc::AF_INET, libc::AF_INET6] {
            let question = every(family, 1 << LISTEN);
            rustix::net::sendto(&self.socket, &question, SendFlags::empty(), &SocketAddrNetlink::new(0, 0))?;
            let mut buffer = [0u8; 16 << 10];
            let mut is_done = false;
            while !is_done {
                let (length, _) = rustix::net::recv(&self.socket, &mut buffer[..], RecvFlags::empty())?;
                is_done = listed(&buffer[..length], &mut found)?;
            }
        }
        Ok(found)
    }

    /// The socket's state; `None` when there is none.
    fn state(&self, ends: &Ends) -> io::Result<Option<u8>> {
        rustix::net::sendto(&self.socket, &question(ends), SendFlags::empty(), &SocketAddrNetlink::new(0, 0))?;
        let mut buffer = [0u8; 4096];
        let (length, _) = rustix::net::recv(&self.socket, &mut buffer[..], RecvFlags::empty())?;
        answer(&buffer[..length])
    }
}

/// A request for one socket.
fn question((from, to): &Ends) -> Vec<u8> {
    let family = if from.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    request(family, u32::MAX, libc::NLM_F_REQUEST, from, to)
}

/// A request for all sockets in these states, one bit each.
fn every(family: i32, states: u32) -> Vec<u8> {
    let any = SocketAddr::from(([0; 4], 0));
    request(family, states, libc::NLM_F_REQUEST | libc::NLM_F_DUMP, &any, &any)
}

/// nlmsghdr, `struct inet_diag_req_v2`.
fn request(family: i32, states: u32, flags: i32, from: &SocketAddr, to: &SocketAddr) -> Vec<u8> {
    let mut body = vec![family as u8, libc::IPPROTO_TCP as u8, 0, 0];
    body.extend_from_slice(&states.to_ne_bytes());
    body.extend_from_slice(&from.port().to_be_bytes());
    body.extend_from_slice(&to.port().to_be_bytes());
    body.extend_from_slice(&address(from));
    body.extend_from_slice(&address(to));
    body.extend_from_slice(&0u32.to_ne_bytes());
    // INET_DIAG_NOCOOKIE
    body.extend_from_slice(&[0xff; 8]);
    let mut message = ((16 + body.len()) as u32).to_ne_bytes().to_vec();
    message.extend_from_slice(&SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    message.extend_from_slice(&(flags as u16).to_ne_bytes());
    message.extend_from_slice(&[0; 8]);
    message.extend_from_slice(&body);
    message
}

/// In the first bytes of a 16-byte field.
fn address(of: &SocketAddr) -> [u8; 16] {
    match of.ip() {
        IpAddr::V4(a) => {
            let mut field = [0; 16];
            field[..4].copy_from_slice(&a.octets());
            field
        }
        IpAddr::V6(a) => a.octets(),
    }
}

fn answer(bytes: &[u8]) -> io::Result<Option<u8>> {
    match netlink::header(bytes) {
        // `struct inet_diag_msg`: family, state.
        Some((length, SOCK_DIAG_BY_FAMILY, _)) if length >= 18 => Ok(Some(bytes[17])),
        Some((length, kind, _)) if i32::from(kind) == libc::NLMSG_ERROR && length >= 20 => {
            match -i32::from_ne_bytes(*bytes[16..].first_chunk().expect("20 bytes")) {
                libc::ENOENT => Ok(None),
                errno => Err(io::Error::from_raw_os_error(errno)),
            }
        }
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

/// Adds the listeners of one datagram; whether it was the last.
fn listed(mut bytes: &[u8], found: &mut Vec<Listener>) -> io::Result<bool> {
    while let Some((length, kind, _)) = netlink::header(bytes) {
        let message = &bytes[..length as usize];
        match i32::from(kind) {
            libc::NLMSG_DONE => return Ok(true),
            libc::NLMSG_ERROR => return answer(message).map(|_| true),
            _ => found.extend(listener(message)),
        }
        bytes = bytes.get((length as usize).next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(false)
}

/// `struct inet_diag_msg` (72 bytes) behind the header, then attributes.
fn listener(message: &[u8]) -> Option<Listener> {
    const BODY: usize = 16;
    const ATTRIBUTES: usize = BODY + 72;
    const INET_DIAG_SKV6ONLY: u16 = 11;
    let port = u16::from_be_bytes(*message.get(BODY + 4..)?.first_chunk()?);
    let address: [u8; 16] = *message.get(BODY + 8..)?.first_chunk()?;
    let ip = match i32::from(*message.get(BODY)?) {
        libc::AF_INET => IpAddr::from(*address.first_chunk::<4>()?),
        _ => IpAddr::from(address),
    };
    let mut rest = message.get(ATTRIBUTES..)?;
    let mut v6_only = false;
    while let (Some(length), Some(kind)) = (rest.first_chunk(), rest.get(2..).and_then(|kind| kind.first_chunk())) {
        let length = usize::from(u16::from_ne_bytes(*length)).max(4);
        if u16::from_ne_bytes(*kind) == INET_DIAG_SKV6ONLY {
            v6_only = rest.get(4).is_some_and(|value| *value != 0);
        }
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Some(Listener { at: SocketAddr::new(ip, port), v6_only })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_told_apart() {
        let message = |kind: u16, body: &[u8]| {
            let mut bytes = ((16 + body.len()) as u32).to_ne_bytes().to_vec();
            bytes.extend_from_slice(&kind.to_ne_bytes());
            bytes.extend_from_slice(&[0; 10]);
            bytes.extend_from_slice(body);
            bytes
        };
        let error = |errno: i32| answer(&message(libc::NLMSG_ERROR as u16, &(-errno).to_ne_bytes()));
        assert_eq!(answer(&message(SOCK_DIAG_BY_FAMILY, &[2, 2, 0, 0])).expect("state"), Some(2));
        assert_eq!(error(libc::ENOENT).expect("none"), None);
        assert_eq!(error(libc::EPERM).expect_err("error").raw_os_error(), Some(libc::EPERM));
        assert!(answer(&[]).is_err());
        assert!(answer(&[0xff; 20]).is_err());
    }

    #[test]
    fn listeners_are_listed_with_what_they_take() {
        let diag = Diag::new(netlink::Socket::sock_diag().expect("sock_diag").into_fd());
        let bound = |domain: socket2::Domain, at: &str, v6_only: bool| {
            let socket = socket2::Socket::new(domain, socket2::Type::STREAM, None).expect("socket");
            if domain == socket2::Domain::IPV6 {
                socket.set_only_v6(v6_only).expect("option");
            }
            socket.bind(&at.parse::<SocketAddr>().expect("a literal").into()).expect("bind");
            socket.listen(1).expect("listen");
            let at = socket.local_addr().expect("address").as_socket().expect("of IP");
            (socket, Listener { at, v6_only })
        };
        let wanted = [
            bound(socket2::Domain::IPV4, "127.0.0.1:0", false),
            bound(socket2::Domain::IPV6, "[::]:0", false),
            bound(socket2::Domain::IPV6, "[::1]:0", true),
        ];
        let all = diag.listeners().expect("a list");
        for (_, listener) in &wanted {
            assert!(all.contains(listener), "{listener:?} in {all:?}");
        }
        let gone = wanted.map(|(_, listener)| listener);
        let all = diag.listeners().expect("a list");
        assert!(gone.iter().all(|listener| !all.contains(listener)), "{all:?}");
    }

    #[test]
    fn a_real_socket_is_found_and_a_closed_one_is_not() {
        let diag = Diag::new(netlink::Socket::sock_diag().expect("sock_diag").into_fd());
        let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).expect("bind");
        let to = listener.local_addr().expect("address");
        let stream = std::net::TcpStream::connect(to).expect("connect");
        let ends = (stream.local_addr().expect("address"), to);
        assert!(diag.is_wanted(&ends));
        assert!(!diag.is_wanted(&(SocketAddr::new(ends.0.ip(), 1), to)));
        let stranger = SocketAddr::new(to.ip(), 1);
        assert!(diag.is_listened_for(&(stranger, to)) && !diag.is_listened_for(&(stranger, ends.0)));
        // A listener on the port is no connection.
        assert!(!diag.is_wanted(&(to, SocketAddr::new(to.ip(), 1))));
    }
}
