//! UDP exchanges and echo requests, as programs make them.

use std::io::{self, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use serde_json::{Value, json};
use socket2::{Domain, Protocol, Socket, Type};

use super::ends::pattern;
use crate::app::net::{self, PATIENCE};

/// One socket, one datagram to each address, one after another: what came back and from whom.
pub(super) fn exchange(addrs: &[SocketAddr], bytes: usize, connected: bool, patience: f64) -> anyhow::Result<Value> {
    let any: IpAddr = match addrs.first() {
        Some(SocketAddr::V6(_)) => Ipv6Addr::UNSPECIFIED.into(),
        _ => Ipv4Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0))?;
    socket.set_read_timeout(Some(Duration::from_secs_f64(patience)))?;
    let sent = pattern(bytes);
    let mut buffer = vec![0; 1 << 16];
    let mut one = |addr: SocketAddr| -> io::Result<Value> {
        if connected {
            socket.connect(addr)?;
            socket.send(&sent)?;
        } else {
            socket.send_to(&sent, addr)?;
        }
        let (length, from) = socket.recv_from(&mut buffer)?;
        Ok(json!({"same": buffer[..length] == sent, "from": from}))
    };
    let outcomes =
        addrs.iter().map(|addr| one(*addr).unwrap_or_else(|error| json!({"error": net::errno_name(&error)})));
    Ok(Value::Array(outcomes.collect()))
}

/// What `ping` does without capabilities.
pub(super) fn ping(addr: IpAddr, count: u16) -> anyhow::Result<Value> {
    let (domain, protocol, request) = match addr {
        IpAddr::V4(_) => (Domain::IPV4, Protocol::ICMPV4, 8),
        IpAddr::V6(_) => (Domain::IPV6, Protocol::ICMPV6, 128),
    };
    let socket = Socket::new(domain, Type::DGRAM, Some(protocol))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.connect(&SocketAddr::new(addr, 0).into())?;
    let one = |sequence: u16| -> io::Result<bool> {
        let [high, low] = sequence.to_be_bytes();
        let sent = [&[request, 0, 0, 0, 0, 0, high, low], &pattern(56)[..]].concat();
        socket.send(&sent)?;
        let mut buffer = [0; 256];
        let length = (&socket).read(&mut buffer)?;
        Ok(buffer[6..length] == sent[6..])
    };
    let outcomes =
        (1..=count).map(|sequence| one(sequence).map_or_else(|error| json!(net::errno_name(&error)), Value::Bool));
    Ok(Value::Array(outcomes.collect()))
}
