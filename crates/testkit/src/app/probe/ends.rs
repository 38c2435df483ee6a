//! How connections begin and end: half-close, resets both ways, servers that speak first.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, ensure};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::app::net;
use crate::app::serve::GREETING;

/// What the server counted and hashed must be what was sent, although this side had closed before it answered.
pub(super) fn half_close(addr: SocketAddr, bytes: usize) -> anyhow::Result<Value> {
    let mut stream = net::connect_patiently(addr)?;
    let body = pattern(bytes);
    stream.write_all(b"F")?;
    stream.write_all(&body)?;
    stream.shutdown(Shutdown::Write)?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    ensure!(answer.len() == 40, "{} bytes came back, not a hash and a count", answer.len());
    let hash = Sha256::digest(&body);
    let count = u64::from_be_bytes(answer[32..].try_into().context("8 bytes are a count")?);
    Ok(json!({"hash_equal": answer[..32] == hash[..], "count": count}))
}

/// Bytes that repeat with no power of two, so that a swapped or repeated block shows.
pub(super) fn pattern(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|i| (i % 251) as u8 ^ (i / 65_521) as u8).collect()
}

/// Mode R.
pub(super) fn reset_by_peer(addr: SocketAddr) -> anyhow::Result<Value> {
    let mut stream = net::connect_patiently(addr)?;
    stream.write_all(b"R")?;
    Ok(json!({"read": read_result(&mut stream)}))
}

/// Port 9003. The reset may come before the connect returns.
pub(super) fn reset_at_once(addr: SocketAddr) -> anyhow::Result<Value> {
    let read = match net::connect_patiently(addr) {
        Ok(mut stream) => read_result(&mut stream),
        Err(error) => net::errno_name(&error),
    };
    Ok(json!({"read": read}))
}

fn read_result(stream: &mut impl Read) -> String {
    match stream.read(&mut [0; 64]) {
        Ok(0) => "eof".into(),
        Ok(n) => format!("{n} bytes"),
        Err(error) => net::errno_name(&error),
    }
}

/// Port 9004: ends one connection, then asks on another how the first ended.
pub(super) fn seen_by_peer(addr: SocketAddr, fin: bool) -> anyhow::Result<Value> {
    let number =
        (SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos() as u64 ^ u64::from(std::process::id())).to_be_bytes();
    let mut watched = net::connect_patiently(addr)?;
    watched.write_all(&[b"w", &number[..]].concat())?;
    watched.read_exact(&mut [0])?;
    watched.write_all(b"0123456789")?;
    if fin {
        drop(watched);
    } else {
        net::reset(&watched)?;
        drop(watched);
    }
    let mut question = net::connect_patiently(addr)?;
    question.write_all(&[b"q", &number[..]].concat())?;
    let mut seen = String::new();
    question.read_to_string(&mut seen)?;
    Ok(json!({"seen": seen}))
}

/// Port 9002.
pub(super) fn server_first(addr: SocketAddr) -> anyhow::Result<Value> {
    let mut stream = net::connect_patiently(addr)?;
    let mut greeting = vec![0; GREETING.len()];
    stream.read_exact(&mut greeting)?;
    stream.write_all(b"ping")?;
    let mut echo = [0; 4];
    stream.read_exact(&mut echo)?;
    Ok(json!({"greeting": String::from_utf8_lossy(&greeting), "echo": String::from_utf8_lossy(&echo)}))
}

/// A line over a unix socket of the machine and its answer.
pub(super) fn unix_socket(path: &Path) -> anyhow::Result<Value> {
    let mut stream = UnixStream::connect(path)?;
    stream.write_all(b"hello\n")?;
    stream.shutdown(Shutdown::Write)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(json!({"answer": answer}))
}
