//! Connects, good and refused, from many threads at once.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::bail;
use serde_json::{Value, json};

use crate::app::net;

type Counts = BTreeMap<String, usize>;

/// Good and refused connects, mixed over `threads` threads; a good one counts once its first byte came back.
pub(super) fn many(
    good: SocketAddr,
    good_count: usize,
    refused: SocketAddr,
    refused_count: usize,
    threads: usize,
) -> anyhow::Result<Value> {
    let total = good_count + refused_count;
    let next = AtomicUsize::new(0);
    let started = Instant::now();
    let worker = || {
        let mut counts = [Counts::new(), Counts::new()];
        loop {
            let i = next.fetch_add(1, Ordering::Relaxed);
            if i >= total {
                return counts;
            }
            // Spreads the refused ones evenly: the integer part of i * refused / total steps at each of them.
            let is_refused = (i + 1) * refused_count / total != i * refused_count / total;
            let outcome = attempt(if is_refused { refused } else { good });
            *counts[usize::from(is_refused)].entry(outcome).or_default() += 1;
        }
    };
    let mut sum = [Counts::new(), Counts::new()];
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(worker)).collect();
        for worker in workers {
            let Ok(counts) = worker.join() else { bail!("a thread panicked") };
            for (sum, counts) in sum.iter_mut().zip(counts) {
                for (outcome, n) in counts {
                    *sum.entry(outcome).or_default() += n;
                }
            }
        }
        Ok(())
    })?;
    Ok(json!({"good": sum[0], "refused": sum[1], "seconds": started.elapsed().as_secs_f64()}))
}

fn attempt(addr: SocketAddr) -> String {
    let exchange = || {
        let mut stream = net::connect_patiently(addr)?;
        stream.write_all(b"Ex")?;
        stream.read_exact(&mut [0])
    };
    match exchange() {
        Ok(()) => "ok".into(),
        Err(error) => net::errno_name(&error),
    }
}

/// One connect, with its time in milliseconds.
pub(super) fn one(addr: SocketAddr, patience: f64) -> anyhow::Result<Value> {
    let started = Instant::now();
    let result = TcpStream::connect_timeout(&addr, Duration::from_secs_f64(patience));
    let result = result.map_or_else(|error| net::errno_name(&error), |_| "ok".into());
    Ok(json!({"result": result, "ms": started.elapsed().as_secs_f64() * 1e3}))
}
