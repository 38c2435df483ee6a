//! A socket of its own for one port of the command: unconnected, so that it sends anywhere and hears everybody, as a port
//! does that is not behind address translation.

use std::io::{self, IoSliceMut};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd;

use bytes::Bytes;
use nix::libc;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, SockaddrStorage, recvfrom, recvmsg, setsockopt, sockopt};
use socket2::{Domain, SockAddr, SockRef, Type};
use tokio::io::Interest;
use tokio::net::UdpSocket;
use wire::{Datagram, Delivery, MOST_PAYLOAD, Undelivered};

use crate::echo;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Protocol {
    Udp,
    /// ICMP echo: a peer's port is the sequence number.
    Echo,
}

pub struct Socket {
    /// Of either protocol: they have the same system calls.
    socket: UdpSocket,
    protocol: Protocol,
    buffer: Vec<u8>,
}

impl Socket {
    /// `any` is the unspecified address of the family. Echo needs the right to it (`net.ipv4.ping_group_range`).
    pub fn open(protocol: Protocol, any: IpAddr) -> io::Result<Socket> {
        let domain = if any.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 };
        let number = match (protocol, any) {
            (Protocol::Udp, _) => socket2::Protocol::UDP,
            (Protocol::Echo, IpAddr::V4(_)) => socket2::Protocol::ICMPV4,
            (Protocol::Echo, IpAddr::V6(_)) => socket2::Protocol::ICMPV6,
        };
        let socket = socket2::Socket::new(domain, Type::DGRAM, Some(number))?;
        socket.set_nonblocking(true)?;
        // What ICMP says of a datagram comes with the address it was for.
        if any.is_ipv4() {
            setsockopt(&socket, sockopt::Ipv4RecvErr, &true)?;
            socket.set_broadcast(protocol == Protocol::Udp)?;
        } else {
            setsockopt(&socket, sockopt::Ipv6RecvErr, &true)?;
            socket.set_only_v6(true)?;
        }
        Ok(Socket { socket: UdpSocket::from_std(socket.into())?, protocol, buffer: vec![0; MOST_PAYLOAD + 8] })
    }

    /// Sends at once or not at all: a full queue loses it, as in a router. An error that the kernel knows at once comes back
    /// as what became of the datagram.
    pub fn send(&self, peer: SocketAddr, payload: &[u8]) -> Option<Undelivered> {
        let socket = SockRef::from(&self.socket);
        let send = || match self.protocol {
            Protocol::Udp => socket.send_to(payload, &peer.into()),
            Protocol::Echo => {
                socket.send_to(&echo::request(peer, payload), &SockAddr::from(SocketAddr::new(peer.ip(), 0)))
            }
        };
        // An error pending from an earlier datagram is reported once by whatever is called next.
        let error = send().or_else(|_| send()).err()?;
        match error.raw_os_error() {
            Some(libc::ENETUNREACH | libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL | libc::ENETDOWN) => {
                Some(Undelivered::Network)
            }
            Some(libc::EHOSTUNREACH) => Some(Undelivered::Host),
            Some(libc::EPERM | libc::EACCES) => Some(Undelivered::Prohibited),
            Some(libc::ECONNREFUSED) => Some(Undelivered::Port),
            _ => None,
        }
    }

    /// What comes next, to be given to the command. Can be dropped and called again without a loss.
    pub async fn receive(&mut self) -> io::Result<Datagram> {
        loop {
            self.socket.ready(Interest::READABLE | Interest::ERROR).await?;
            let Socket { socket, protocol, buffer } = self;
            // One interest at a time: with two of them tokio's try_io does nothing.
            for interest in [Interest::ERROR, Interest::READABLE] {
                let found = socket.try_io(interest, || match interest {
                    Interest::ERROR => undelivered(socket, *protocol, buffer),
                    _ => received(socket, *protocol, buffer),
                });
                match found {
                    Ok(Some(datagram)) => return Ok(datagram),
                    Ok(None) => {}
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock || is_of_a_datagram(&error) => {}
                    Err(error) => return Err(error),
                }
            }
        }
    }
}

/// The pending error of a datagram; the queue of errors tells which.
fn is_of_a_datagram(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(
            libc::ECONNREFUSED
                | libc::EHOSTUNREACH
                | libc::ENETUNREACH
                | libc::EACCES
                | libc::EPROTO
                | libc::EMSGSIZE
                | libc::ENOPROTOOPT
                | libc::EHOSTDOWN
                | libc::EOPNOTSUPP
        )
    )
}

/// `None`: it is of no use to the command.
fn received(socket: &UdpSocket, protocol: Protocol, buffer: &mut [u8]) -> io::Result<Option<Datagram>> {
    let (length, from) = recvfrom::<SockaddrStorage>(socket.as_raw_fd(), buffer)?;
    let from = from.as_ref().and_then(address);
    let Some(from) = from else { return Ok(None) };
    let (port, payload) = match protocol {
        Protocol::Udp => (from.port(), &buffer[..length]),
        Protocol::Echo => match echo::reply(from.ip(), &buffer[..length]) {
            Some(reply) => reply,
            None => return Ok(None),
        },
    };
    let what = Delivery::Payload(Bytes::copy_from_slice(payload));
    Ok(Some(Datagram { peer: SocketAddr::new(from.ip(), port), what }))
}

/// The next of the socket's queue of errors. `None`: it is of no use to the command.
fn undelivered(socket: &UdpSocket, protocol: Protocol, buffer: &mut [u8]) -> io::Result<Option<Datagram>> {
    let mut space = nix::cmsg_space!(libc::sock_extended_err, libc::sockaddr_in6);
    let mut parts = [IoSliceMut::new(buffer)];
    let message = recvmsg::<SockaddrStorage>(
        socket.as_raw_fd(),
        &mut parts,
        Some(&mut space),
        MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_ERRQUEUE,
    )?;
    let why = message.cmsgs()?.find_map(|control| match control {
        ControlMessageOwned::Ipv4RecvErr(error, _) | ControlMessageOwned::Ipv6RecvErr(error, _) => reason(&error),
        _ => None,
    });
    let (length, to) = (message.bytes, message.address.as_ref().and_then(address));
    let (Some(why), Some(to)) = (why, to) else { return Ok(None) };
    let port = match protocol {
        Protocol::Udp => Some(to.port()),
        Protocol::Echo => echo::quoted(&buffer[..length]),
    };
    let datagram = port.map(|port| Datagram { peer: SocketAddr::new(to.ip(), port), what: Delivery::Undelivered(why) });
    Ok(datagram)
}

/// RFC 792 and RFC 1812 5.2.7, RFC 4443 3.1. `None`: not an unreachable destination.
fn reason(error: &libc::sock_extended_err) -> Option<Undelivered> {
    match (error.ee_origin, error.ee_type, error.ee_code) {
        (libc::SO_EE_ORIGIN_ICMP, 3, 2 | 3) | (libc::SO_EE_ORIGIN_ICMP6, 1, 4) => Some(Undelivered::Port),
        (libc::SO_EE_ORIGIN_ICMP, 3, 0 | 6 | 11) | (libc::SO_EE_ORIGIN_ICMP6, 1, 0) => Some(Undelivered::Network),
        (libc::SO_EE_ORIGIN_ICMP, 3, 9 | 10 | 13) | (libc::SO_EE_ORIGIN_ICMP6, 1, 1) => Some(Undelivered::Prohibited),
        // Needs fragmentation: the kernel learns from it.
        (libc::SO_EE_ORIGIN_ICMP, 3, 4) => None,
        (libc::SO_EE_ORIGIN_ICMP, 3, _) | (libc::SO_EE_ORIGIN_ICMP6, 1, _) => Some(Undelivered::Host),
        // A neighbour that does not answer.
        (libc::SO_EE_ORIGIN_LOCAL, ..) if error.ee_errno == libc::EHOSTUNREACH as u32 => Some(Undelivered::Host),
        _ => None,
    }
}

fn address(storage: &SockaddrStorage) -> Option<SocketAddr> {
    let v4 = storage.as_sockaddr_in().map(|a| SocketAddr::from((a.ip(), a.port())));
    v4.or_else(|| storage.as_sockaddr_in6().map(|a| SocketAddr::from((a.ip(), a.port()))))
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};
    use std::time::Duration;

    use super::*;

    const ANY: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)];

    fn here(any: IpAddr) -> IpAddr {
        if any.is_ipv4() { Ipv4Addr::LOCALHOST.into() } else { Ipv6Addr::LOCALHOST.into() }
    }

    async fn next(socket: &mut Socket) -> Datagram {
        tokio::time::timeout(Duration::from_secs(5), socket.receive()).await.expect("in time").expect("received")
    }

    fn payload(bytes: &'static [u8]) -> Delivery {
        Delivery::Payload(Bytes::from_static(bytes))
    }

    #[tokio::test]
    async fn one_port_reaches_many_and_hears_who_answers() {
        for any in ANY {
            let servers = [0, 1].map(|_| std::net::UdpSocket::bind((here(any), 0)).expect("bound"));
            let mut socket = Socket::open(Protocol::Udp, any).expect("opened");
            for server in &servers {
                let peer = server.local_addr().expect("bound");
                assert_eq!(socket.send(peer, b"ask"), None);
                let mut buffer = [0; 8];
                let (length, from) = server.recv_from(&mut buffer).expect("asked");
                assert_eq!(&buffer[..length], b"ask");
                server.send_to(b"answer", from).expect("answered");
                assert_eq!(next(&mut socket).await, Datagram { peer, what: payload(b"answer") });
            }
        }
    }

    #[tokio::test]
    async fn a_port_where_nobody_listens_is_told_and_others_go_on() {
        for any in ANY {
            let closed = std::net::UdpSocket::bind((here(any), 0)).and_then(|s| s.local_addr()).expect("bound");
            let open = std::net::UdpSocket::bind((here(any), 0)).expect("bound");
            let mut socket = Socket::open(Protocol::Udp, any).expect("opened");
            assert_eq!(socket.send(closed, b"x"), None);
            let told = Datagram { peer: closed, what: Delivery::Undelivered(Undelivered::Port) };
            assert_eq!(next(&mut socket).await, told);
            // With the next error pending, a datagram to another end still leaves.
            assert_eq!(socket.send(closed, b"x"), None);
            assert_eq!(socket.send(open.local_addr().expect("bound"), b"y"), None);
            let mut buffer = [0; 8];
            assert_eq!(open.recv_from(&mut buffer).expect("asked").0, 1);
            assert_eq!(next(&mut socket).await, told);
        }
    }
}
