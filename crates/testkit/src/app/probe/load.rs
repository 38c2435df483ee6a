//! Many connections: held at once, made one after another at a pace, or one that nobody reads beside a busy one.

use std::collections::BTreeMap;
use std::io::{self, BufRead, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{bail, ensure};
use serde_json::{Value, json};

use crate::app::net;

const THREADS: usize = 64;

/// Opens `count` echoed connections, says so in a line, waits for one, then uses each again.
pub(super) fn hold(addr: SocketAddr, count: usize) -> anyhow::Result<Value> {
    let started = Instant::now();
    let mut opened = side_by_side(count, |_| {
        let mut stream = net::connect_patiently(addr)?;
        stream.write_all(b"E")?;
        echoed(&mut stream).map(|()| stream)
    })?;
    let (held, failed) = (opened.done.len(), &opened.failed);
    say(&json!({"held": held, "failed": failed, "seconds": started.elapsed().as_secs_f64()}))?;
    io::stdin().lock().read_line(&mut String::new())?;
    let alive = opened.done.iter_mut().filter_map(|stream| echoed(stream).ok()).count();
    Ok(json!({"alive": alive}))
}

/// Begins a connection every so often, whether the ones before are done or not; each is used once and closed.
pub(super) fn pace(addr: SocketAddr, per_second: u32, seconds: u32) -> anyhow::Result<Value> {
    let started = Instant::now();
    let interval = Duration::from_secs(1) / per_second;
    let count = (per_second * seconds) as usize;
    let result = side_by_side(count, |number| {
        let due = started + interval * u32::try_from(number).map_err(io::Error::other)?;
        #[expect(clippy::disallowed_methods, reason = "the pace is what is tested")]
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        let mut stream = net::connect_patiently(addr)?;
        stream.write_all(b"E")?;
        echoed(&mut stream)?;
        Ok(due.elapsed())
    })?;
    let mut waits: Vec<f64> = result.done.iter().map(|wait| wait.as_secs_f64() * 1e3).collect();
    waits.sort_by(f64::total_cmp);
    let at = |part: f64| waits.get((waits.len() as f64 * part) as usize).copied();
    let seconds = started.elapsed().as_secs_f64();
    Ok(json!({"ok": waits.len(), "failed": result.failed, "seconds": seconds, "p50_ms": at(0.5), "p99_ms": at(0.99)}))
}

/// Downloads `bytes` while another download, on the same path, is not read; then reads that one, too.
pub(super) fn beside_stalled(addr: SocketAddr, bytes: usize) -> anyhow::Result<Value> {
    let download = |stream: &mut TcpStream| -> io::Result<f64> {
        let started = Instant::now();
        let mut block = vec![0; 256 << 10];
        let mut left = bytes;
        while left > 0 {
            match stream.read(&mut block)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                n => left = left.saturating_sub(n),
            }
        }
        Ok(started.elapsed().as_secs_f64())
    };
    let source = || {
        let mut stream = net::connect_patiently(addr)?;
        stream.write_all(b"S")?;
        io::Result::Ok(stream)
    };
    let alone = download(&mut source()?)?;
    let mut stalled = source()?;
    stalled.read_exact(&mut [0])?;
    // It is stalled by the time that the first half has passed it by.
    let mut busy = source()?;
    download(&mut busy)?;
    let beside = download(&mut busy)?;
    drop(busy);
    let resumed = download(&mut stalled)?;
    Ok(json!({"alone": alone, "beside": beside, "resumed": resumed}))
}

struct Done<T> {
    done: Vec<T>,
    failed: BTreeMap<String, usize>,
}

fn side_by_side<T: Send>(count: usize, work: impl Fn(usize) -> io::Result<T> + Sync) -> anyhow::Result<Done<T>> {
    let next = AtomicUsize::new(0);
    let worker = || {
        let mut results = Vec::new();
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= count {
                return results;
            }
            results.push(work(number));
        }
    };
    let mut all = Done { done: Vec::with_capacity(count), failed: BTreeMap::new() };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..THREADS).map(|_| scope.spawn(worker)).collect();
        for worker in workers {
            let Ok(results) = worker.join() else { bail!("a thread panicked") };
            for result in results {
                match result {
                    Ok(done) => all.done.push(done),
                    Err(error) => *all.failed.entry(net::errno_name(&error)).or_default() += 1,
                }
            }
        }
        Ok(())
    })?;
    ensure!(all.done.len() + all.failed.values().sum::<usize>() == count, "some are not counted");
    Ok(all)
}

fn echoed(stream: &mut TcpStream) -> io::Result<()> {
    stream.write_all(b"x")?;
    stream.read_exact(&mut [0])
}

#[expect(clippy::print_stdout, reason = "the test reads it")]
fn say(value: &Value) -> io::Result<()> {
    println!("{value}");
    io::stdout().flush()
}
