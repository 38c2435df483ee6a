//! HTTP: many uploads that must come back unchanged, many requests at once.

use std::io::{self, BufReader, Read, Write};
use std::net::SocketAddr;
use std::time::Instant;

use anyhow::{Context, bail, ensure};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::ends::pattern;
use crate::app::{http, net};

/// `count` uploads at once of `bytes` each to /echo; every body must come back with the hash it went out with.
pub(super) fn parallel(addr: SocketAddr, count: usize, bytes: u64) -> anyhow::Result<Value> {
    let started = Instant::now();
    let results: Vec<_> = std::thread::scope(|scope| {
        let uploads: Vec<_> = (0..count).map(|i| scope.spawn(move || upload(addr, bytes, i))).collect();
        uploads.into_iter().map(|upload| upload.join().unwrap_or_else(|_| bail!("an upload panicked"))).collect()
    });
    let errors: Vec<String> =
        results.iter().filter_map(|result| Some(format!("{:#}", result.as_ref().err()?))).collect();
    let identical = results.iter().filter(|result| matches!(result, Ok(true))).count();
    let seconds = started.elapsed().as_secs_f64();
    Ok(json!({"identical": identical, "count": count, "errors": errors, "seconds": seconds}))
}

fn upload(addr: SocketAddr, bytes: u64, seed: usize) -> anyhow::Result<bool> {
    let mut stream = net::connect_patiently(addr)?;
    let mut writer = stream.try_clone()?;
    // One block in many places: each repetition is stamped with its number, so that a moved block shows.
    let block = pattern((64 << 10) + seed * 17);
    let sender = net::spawn(move || -> io::Result<[u8; 32]> {
        write!(writer, "POST /echo HTTP/1.1\r\nHost: web\r\nContent-Length: {bytes}\r\n\r\n")?;
        let mut hash = Sha256::new();
        let mut left = bytes;
        let mut number = 0u64;
        while left > 0 {
            let mut piece = block.clone();
            piece[..8].copy_from_slice(&number.to_be_bytes());
            piece.truncate(usize::try_from(left).unwrap_or(usize::MAX).min(piece.len()));
            hash.update(&piece);
            writer.write_all(&piece)?;
            left -= piece.len() as u64;
            number += 1;
        }
        Ok(hash.finalize().into())
    })?;
    let mut reader = BufReader::with_capacity(256 << 10, &mut stream);
    let head = http::Head::read(&mut reader)?.context("no answer")?;
    ensure!(head.length() == bytes, "the answer has {} bytes", head.length());
    let mut hash = Sha256::new();
    let back = io::copy(&mut reader.take(bytes), &mut hash)?;
    ensure!(back == bytes, "{back} of {bytes} bytes came back");
    let Ok(sent) = sender.join() else { bail!("the sender panicked") };
    Ok(sent? == <[u8; 32]>::from(hash.finalize()))
}

/// `count` requests at once.
pub(super) fn requests(addr: SocketAddr, count: usize) -> anyhow::Result<Value> {
    let started = Instant::now();
    let errors: Vec<String> = std::thread::scope(|scope| {
        let requests: Vec<_> = (0..count).map(|_| scope.spawn(move || fetch(addr, "/hello"))).collect();
        requests
            .into_iter()
            .filter_map(|request| match request.join() {
                Ok(Ok(body)) if body.starts_with("hello from ") => None,
                Ok(Ok(body)) => Some(format!("wrong body {body:?}")),
                Ok(Err(error)) => Some(format!("{error:#}")),
                Err(_) => Some("a request panicked".into()),
            })
            .collect()
    });
    Ok(json!({"count": count, "errors": errors, "seconds": started.elapsed().as_secs_f64()}))
}

/// One GET; the body as JSON where it is JSON, else as a string.
pub(super) fn get(addr: SocketAddr, path: &str) -> anyhow::Result<Value> {
    let body = fetch(addr, path)?;
    Ok(serde_json::from_str(&body).unwrap_or(Value::String(body)))
}

fn fetch(addr: SocketAddr, path: &str) -> anyhow::Result<String> {
    let mut stream = net::connect_patiently(addr)?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: web\r\n\r\n")?;
    let mut reader = BufReader::new(stream);
    let head = http::Head::read(&mut reader)?.context("no answer")?;
    let mut body = String::new();
    let length = head.length();
    reader.take(length).read_to_string(&mut body)?;
    ensure!(body.len() as u64 == length, "{} of {length} bytes", body.len());
    Ok(body)
}
