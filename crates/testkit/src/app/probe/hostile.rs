//! What a pod of somebody else may try on an agent.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use serde_json::{Value, json};

use crate::app::net;

/// Long for a port of a pod on the same machine, short for 65,535 of them.
const SCAN_PATIENCE: Duration = Duration::from_secs(1);
const SCANNERS: usize = 32;

/// Tries every port. Refused ones are not listed.
pub(super) fn scan(addr: IpAddr) -> anyhow::Result<Value> {
    let next = AtomicU32::new(1);
    let open = Mutex::new(Vec::new());
    let others = Mutex::new(BTreeMap::<String, usize>::new());
    std::thread::scope(|scope| {
        for _ in 0..SCANNERS {
            scope.spawn(|| {
                while let Ok(port) = u16::try_from(next.fetch_add(1, Ordering::Relaxed)) {
                    match TcpStream::connect_timeout(&(addr, port).into(), SCAN_PATIENCE) {
                        Ok(_) => open.lock().unwrap_or_else(PoisonError::into_inner).push(port),
                        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
                        Err(error) => {
                            let mut others = others.lock().unwrap_or_else(PoisonError::into_inner);
                            *others.entry(net::errno_name(&error)).or_default() += 1;
                        }
                    }
                }
            });
        }
    });
    let mut open = open.into_inner().unwrap_or_else(PoisonError::into_inner);
    open.sort_unstable();
    Ok(json!({"open": open, "others": others.into_inner().unwrap_or_else(PoisonError::into_inner)}))
}

/// Keeps `count` connections open and reopens those that are closed, sending a byte each second, until stdin ends.
pub(super) fn slowloris(addr: SocketAddr, count: usize) -> anyhow::Result<Value> {
    let (end, ended) = mpsc::channel::<()>();
    net::spawn(move || {
        let _ = io::copy(&mut io::stdin(), &mut io::sink());
        drop(end);
    })?;
    let mut held: Vec<Option<TcpStream>> = (0..count).map(|_| None).collect();
    let mut opened = 0;
    let mut closed = 0;
    let mut refused = 0;
    loop {
        for slot in &mut held {
            let alive = slot.as_mut().is_some_and(|stream| stream.write_all(b"G").is_ok() && !is_at_end(stream));
            if alive {
                continue;
            }
            closed += usize::from(slot.is_some());
            *slot = TcpStream::connect_timeout(&addr, SCAN_PATIENCE).ok();
            opened += usize::from(slot.is_some());
            refused += usize::from(slot.is_none());
        }
        if ended.recv_timeout(Duration::from_secs(1)) != Err(mpsc::RecvTimeoutError::Timeout) {
            return Ok(json!({"opened": opened, "closed": closed, "refused": refused}));
        }
    }
}

fn is_at_end(stream: &TcpStream) -> bool {
    let peeked = stream.set_nonblocking(true).and_then(|()| stream.peek(&mut [0]));
    let _ = stream.set_nonblocking(false);
    !matches!(peeked, Err(error) if error.kind() == io::ErrorKind::WouldBlock)
}

/// Sends `text` (with \r, \n, \xNN) and reads until the end; what came and how it ended.
pub(super) fn poke(addr: SocketAddr, text: &str) -> anyhow::Result<Value> {
    let mut stream = match TcpStream::connect_timeout(&addr, SCAN_PATIENCE) {
        Ok(stream) => stream,
        Err(error) => return Ok(json!({"came": "", "end": net::errno_name(&error)})),
    };
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    let sent = stream.write_all(&unescape(text));
    let mut came = Vec::new();
    let mut block = [0; 4096];
    let end = loop {
        match stream.read(&mut block) {
            Ok(0) => break "eof".to_owned(),
            Ok(n) => came.extend_from_slice(&block[..n]),
            Err(error) => break net::errno_name(&error),
        }
    };
    let sent = sent.map_or_else(|error| net::errno_name(&error), |()| "ok".into());
    Ok(json!({"came": String::from_utf8_lossy(&came), "end": end, "sent": sent}))
}

fn unescape(text: &str) -> Vec<u8> {
    let mut out = Vec::new();
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        match (byte, byte == b'\\') {
            (_, false) => out.push(byte),
            _ => match bytes.next() {
                Some(b'r') => out.push(b'\r'),
                Some(b'n') => out.push(b'\n'),
                Some(b'x') => {
                    let digits: String = bytes.by_ref().take(2).map(char::from).collect();
                    out.extend(u8::from_str_radix(&digits, 16));
                }
                Some(other) => out.push(other),
                None => {}
            },
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::unescape;

    #[test]
    fn escapes_become_bytes() {
        assert_eq!(unescape(r"a\r\n\x16\x03z"), b"a\r\n\x16\x03z");
    }
}
