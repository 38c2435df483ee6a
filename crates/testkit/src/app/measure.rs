//! Measures one server over one path: bulk, round trips, new connections, HTTP. Prints what it saw, judges nothing.

use std::io::{self, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};

use super::serve::ACK_EVERY;
use super::{http, net};

/// Bytes of a round trip's question and of its answer.
const PING: usize = 100;
const BULK: usize = 256 << 10;

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, Serialize, Deserialize)]
#[clap(rename_all = "UPPER")]
pub enum Mode {
    /// Down: the server sends
    S,
    /// Up: the server takes; counted when the server acknowledges
    D,
    /// Round trips of 100 bytes on an open connection
    E,
    /// New connection and its first byte
    C,
    /// HTTP requests on keep-alive connections
    H,
}

#[derive(clap::Args)]
pub struct Options {
    #[arg(long, value_enum, ignore_case = true)]
    mode: Mode,
    /// Where the server's port of this mode is
    #[arg(long)]
    addr: SocketAddr,
    /// Seconds
    #[arg(short, default_value_t = 3.0)]
    t: f64,
    /// At most so many samples; a new connection leaves a port in TIME_WAIT for a minute
    #[arg(short, default_value_t = usize::MAX)]
    n: usize,
    /// Connections at once
    #[arg(short, default_value_t = 1)]
    p: usize,
    /// Beside one bulk flow of this mode (S or D) to the same address
    #[arg(long, value_enum, ignore_case = true)]
    beside: Option<Mode>,
}

/// One measurement. Times are microseconds.
#[derive(Debug, Serialize, Deserialize)]
pub struct Report {
    pub mode: Mode,
    pub parallel: usize,
    pub seconds: f64,
    pub bytes: u64,
    pub gbit_per_s: f64,
    pub n: usize,
    pub rate: f64,
    pub p50_us: f64,
    pub p99_us: f64,
    /// Of the bulk flow beside, Gbit/s
    pub beside_gbit_per_s: f64,
}

/// Runs one measurement to its end.
pub fn run(options: &Options) -> anyhow::Result<Report> {
    let Some(beside) = options.beside else { return alone(options.mode, options) };
    let (stop, ready) = (AtomicBool::new(false), Barrier::new(2));
    std::thread::scope(|scope| {
        let started = Instant::now();
        let bulk = scope.spawn(|| {
            let stream = net::connect(options.addr);
            ready.wait();
            bulk(beside, stream?, &|| stop.load(Ordering::Relaxed))
        });
        ready.wait();
        let report = alone(options.mode, options);
        let elapsed = started.elapsed().as_secs_f64();
        stop.store(true, Ordering::Relaxed);
        let Ok(bytes) = bulk.join() else { bail!("the bulk flow beside panicked") };
        let bytes = bytes.context("the bulk flow beside failed")?;
        Ok(Report { beside_gbit_per_s: bytes as f64 * 8.0 / elapsed / 1e9, ..report? })
    })
}

fn alone(mode: Mode, options: &Options) -> anyhow::Result<Report> {
    let bytes = AtomicU64::new(0);
    let ready = Barrier::new(options.p + 1);
    let (started, samples) = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..options.p).map(|_| scope.spawn(|| worker(mode, options, &ready, &bytes))).collect();
        ready.wait();
        let started = Instant::now();
        let mut samples = Vec::new();
        for worker in workers {
            match worker.join() {
                Ok(more) => samples.extend(more?),
                Err(_) => bail!("a worker panicked"),
            }
        }
        Ok((started, samples))
    })?;
    let seconds = started.elapsed().as_secs_f64();
    let bytes = bytes.into_inner();
    Ok(report(mode, options.p, seconds, bytes, samples))
}

fn report(mode: Mode, parallel: usize, seconds: f64, bytes: u64, mut samples: Vec<f64>) -> Report {
    samples.sort_by(f64::total_cmp);
    let n = samples.len();
    let at = |share: f64| samples.get(((n as f64 * share) as usize).min(n.saturating_sub(1))).copied().unwrap_or(0.0);
    Report {
        mode,
        parallel,
        seconds,
        bytes,
        gbit_per_s: bytes as f64 * 8.0 / seconds / 1e9,
        n,
        rate: n as f64 / seconds,
        p50_us: at(0.5),
        p99_us: at(0.99),
        beside_gbit_per_s: 0.0,
    }
}

fn worker(mode: Mode, options: &Options, ready: &Barrier, bytes: &AtomicU64) -> anyhow::Result<Vec<f64>> {
    let addr = options.addr;
    let stream = if mode == Mode::C { None } else { Some(net::connect(addr)) };
    ready.wait();
    let stream = stream.transpose().with_context(|| format!("cannot connect to {addr}"))?;
    let end = Instant::now() + Duration::from_secs_f64(options.t);
    match (mode, stream) {
        (Mode::S | Mode::D, Some(stream)) => {
            bytes.fetch_add(bulk(mode, stream, &|| Instant::now() >= end)?, Ordering::Relaxed);
            Ok(Vec::new())
        }
        (Mode::E, Some(mut stream)) => {
            stream.write_all(b"E")?;
            timed(end, options.n, || exchange(&mut stream))
        }
        (Mode::H, Some(stream)) => {
            let mut reader = BufReader::with_capacity(16 << 10, stream.try_clone()?);
            let mut stream = stream;
            timed(end, options.n, || get_hello(&mut stream, &mut reader))
        }
        _ => timed(end, options.n, || first_byte(addr)),
    }
}

/// Runs `step` until `end`, at most `most` times; microseconds of each.
fn timed(end: Instant, most: usize, mut step: impl FnMut() -> io::Result<()>) -> anyhow::Result<Vec<f64>> {
    let mut samples = Vec::with_capacity(1 << 16);
    loop {
        let started = Instant::now();
        if started >= end || samples.len() >= most {
            return Ok(samples);
        }
        step()?;
        samples.push(started.elapsed().as_nanos() as f64 / 1e3);
    }
}

fn exchange(stream: &mut TcpStream) -> io::Result<()> {
    let mut block = [7; PING];
    stream.write_all(&block)?;
    stream.read_exact(&mut block)
}

fn first_byte(addr: SocketAddr) -> io::Result<()> {
    let mut stream = net::connect(addr)?;
    stream.write_all(b"Ex")?;
    stream.read_exact(&mut [0])
}

fn get_hello(stream: &mut TcpStream, reader: &mut BufReader<TcpStream>) -> io::Result<()> {
    stream.write_all(b"GET /hello HTTP/1.1\r\nHost: web\r\n\r\n")?;
    let head = http::Head::read(reader)?.ok_or(io::ErrorKind::UnexpectedEof)?;
    io::copy(&mut reader.take(head.length()), &mut io::sink()).map(drop)
}

/// Moves bytes one way until `done`; how many arrived. The clock is looked at between blocks and at least every 100 ms.
fn bulk(mode: Mode, stream: TcpStream, done: &dyn Fn() -> bool) -> io::Result<u64> {
    stream.set_read_timeout(Some(Duration::from_millis(100)))?;
    match mode {
        Mode::S => down(stream, done),
        Mode::D => up(stream, done),
        _ => Err(io::Error::new(io::ErrorKind::InvalidInput, "a bulk flow is S or D")),
    }
}

fn down(mut stream: TcpStream, done: &dyn Fn() -> bool) -> io::Result<u64> {
    stream.write_all(b"S")?;
    let mut block = vec![0; BULK];
    let mut total = 0;
    while !done() {
        total += read_some(&mut stream, &mut block)?;
    }
    Ok(total)
}

fn up(mut stream: TcpStream, done: &dyn Fn() -> bool) -> io::Result<u64> {
    stream.write_all(b"A")?;
    stream.set_write_timeout(Some(Duration::from_millis(100)))?;
    let acks = stream.try_clone()?;
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| count_acks(acks, &stop));
        let block = vec![0xa5; BULK];
        let sent = loop {
            if done() {
                break Ok(());
            }
            match stream.write(&block) {
                Err(error) if !is_timeout(&error) => break Err(error),
                _ => {}
            }
        };
        stop.store(true, Ordering::Relaxed);
        // The acknowledged bytes are counted up to here; what is still under way is not part of the measurement.
        let acked = reader.join().unwrap_or_else(|_| Err(io::Error::other("the reader panicked")));
        let _ = stream.shutdown(Shutdown::Both);
        sent.and(acked)
    })
}

fn count_acks(mut acks: TcpStream, stop: &AtomicBool) -> io::Result<u64> {
    let mut block = [0; 1024];
    let mut total = 0;
    while !stop.load(Ordering::Relaxed) {
        total += read_some(&mut acks, &mut block)? * ACK_EVERY as u64;
    }
    Ok(total)
}

fn read_some(stream: &mut TcpStream, block: &mut [u8]) -> io::Result<u64> {
    match stream.read(block) {
        Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
        Ok(n) => Ok(n as u64),
        Err(error) if is_timeout(&error) => Ok(0),
        Err(error) => Err(error),
    }
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}
