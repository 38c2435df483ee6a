//! A resolver just good enough for pods: A records over UDP, with the search list of /etc/resolv.conf. A static binary
//! has no NSS, and the demo's services call each other by name.

use std::io;
use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::time::Duration;

/// The first IPv4 address of `name`.
pub fn ipv4(name: &str) -> io::Result<Ipv4Addr> {
    if let Ok(address) = name.parse() {
        return Ok(address);
    }
    let conf = std::fs::read_to_string("/etc/resolv.conf")?;
    let server: IpAddr = conf
        .lines()
        .find_map(|line| line.strip_prefix("nameserver ")?.trim().parse().ok())
        .ok_or_else(|| io::Error::other("no name server in /etc/resolv.conf"))?;
    let search = conf.lines().find_map(|line| line.strip_prefix("search ")).unwrap_or_default();
    let candidates = search.split_whitespace().map(|suffix| format!("{name}.{suffix}")).chain([name.to_owned()]);
    for candidate in candidates {
        if let Some(address) = ask(server, &candidate)? {
            return Ok(address);
        }
    }
    Err(io::Error::new(io::ErrorKind::NotFound, format!("no such name: {name}")))
}

fn ask(server: IpAddr, name: &str) -> io::Result<Option<Ipv4Addr>> {
    let socket = UdpSocket::bind(if server.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" })?;
    socket.set_read_timeout(Some(Duration::from_secs(2)))?;
    socket.connect((server, 53))?;
    // RFC 1035, 4.1.1: an id, "recursion desired", one question.
    let mut query = vec![0x57, 0xad, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.trim_end_matches('.').split('.') {
        query.push(label.len() as u8);
        query.extend_from_slice(label.as_bytes());
    }
    query.extend_from_slice(&[0, 0, 1, 0, 1]);
    socket.send(&query)?;
    let mut answer = [0; 1500];
    let n = socket.recv(&mut answer)?;
    Ok(first_a(&answer[..n], query.len()))
}

/// The first A record behind a question of `question_end` bytes (header included).
fn first_a(message: &[u8], question_end: usize) -> Option<Ipv4Addr> {
    let mut at = question_end;
    let answers = u16::from_be_bytes([*message.get(6)?, *message.get(7)?]);
    for _ in 0..answers {
        at = skip_name(message, at)?;
        let kind = u16::from_be_bytes([*message.get(at)?, *message.get(at + 1)?]);
        let length = usize::from(u16::from_be_bytes([*message.get(at + 8)?, *message.get(at + 9)?]));
        let data = message.get(at + 10..at + 10 + length)?;
        if let (1, &[a, b, c, d]) = (kind, data) {
            return Some(Ipv4Addr::new(a, b, c, d));
        }
        at += 10 + length;
    }
    None
}

fn skip_name(message: &[u8], mut at: usize) -> Option<usize> {
    loop {
        match *message.get(at)? {
            0 => return Some(at + 1),
            length if length & 0xc0 == 0xc0 => return Some(at + 2),
            length => at += 1 + usize::from(length),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_a_record_behind_a_compressed_name_is_found() {
        let mut message = vec![0, 1, 0x81, 0x80, 0, 1, 0, 1, 0, 0, 0, 0, 1, b'x', 0, 0, 1, 0, 1];
        let question_end = message.len();
        message.extend_from_slice(&[0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 5, 0, 4, 10, 1, 2, 3]);
        assert_eq!(first_a(&message, question_end), Some(Ipv4Addr::new(10, 1, 2, 3)));
        assert_eq!(first_a(&message[..question_end], question_end), None);
    }
}
