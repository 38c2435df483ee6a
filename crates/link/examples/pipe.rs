//! Measures a pair of endpoints over loopback TCP with TLS, against a relay that gives each connection a TLS pipe of its
//! own and against nothing in between. Client and agent are processes of their own, so that their CPU time shows.
//!
//! `cargo run --release -p link --example pipe -- [--seconds N] [--rounds N] [--links N]`

#![expect(clippy::print_stdout, reason = "prints a table")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use link::tls::{self, Admissions, Identity, KeyHash};
use link::{Config, Endpoint, Role};

/// What each relay's connections do at the far end: the first byte says it.
const DOWN: u8 = b'D';
const UP: u8 = b'U';
const ECHO: u8 = b'E';

/// What a bulk flow needs to be at full speed.
const RAMP: Duration = Duration::from_millis(300);

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.first().map(String::as_str) {
        Some("agent") => runtime()?.block_on(agent(args[1].parse()?)),
        Some("client") => runtime()?.block_on(client(args[1].parse()?, args[2].parse()?, &args[3], args[4].parse()?)),
        _ => bench(&Options::parse(&args)?),
    }
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?)
}

// ---- the relays

struct Anybody;

impl Admissions for Anybody {
    fn is_admitted(&self, _: &KeyHash) -> bool {
        true
    }
}

/// Prints its two ports (own frames, one pipe each) and its key's hash.
async fn agent(target: SocketAddr) -> Result<()> {
    let identity = Identity::generate()?;
    let config = tls::server_tls(&identity, Arc::new(Anybody));
    let mux = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await?;
    let raw = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await?;
    let pin: String = identity.hash().iter().map(|byte| format!("{byte:02x}")).collect();
    println!("{} {} {pin}", mux.local_addr()?, raw.local_addr()?);
    let (endpoint, mut incoming) = Endpoint::new(Role::Agent, Config::default());
    tokio::spawn(async move {
        while let Some(offer) = incoming.next().await {
            tokio::spawn(async move {
                match tokio::net::TcpStream::connect(target).await {
                    Ok(socket) => drop(offer.accept().splice(socket).await),
                    Err(_) => offer.refuse(link::Reset::Refused),
                }
            });
        }
    });
    let raw_config = config.clone();
    tokio::spawn(async move {
        while let Ok((socket, _)) = raw.accept().await {
            let config = raw_config.clone();
            tokio::spawn(async move {
                socket.set_nodelay(true)?;
                let (mut pipe, _) = tls::accept(socket, config).await?;
                let mut socket = tokio::net::TcpStream::connect(target).await?;
                socket.set_nodelay(true)?;
                tokio::io::copy_bidirectional_with_sizes(&mut pipe, &mut socket, 256 << 10, 256 << 10).await
            });
        }
    });
    let number = AtomicU32::new(0);
    loop {
        let (socket, _) = mux.accept().await?;
        socket.set_nodelay(true)?;
        let (pipe, _) = tls::accept(socket, config.clone()).await?;
        let (endpoint, number) = (endpoint.clone(), number.fetch_add(1, Ordering::Relaxed));
        tokio::spawn(async move { endpoint.run_link(number, link::Way::Own, pipe, Bytes::new(), |_| Ok(())).await });
    }
}

/// Prints its two ports.
async fn client(mux: SocketAddr, raw: SocketAddr, pin: &str, links: u32) -> Result<()> {
    let mut hash = [0; 32];
    for (byte, digits) in hash.iter_mut().zip(pin.as_bytes().chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(digits)?, 16)?;
    }
    let config = tls::client_tls(&Identity::generate()?, hash);
    let (endpoint, _incoming) = Endpoint::new(Role::Client, Config::default());
    for number in 0..links {
        let socket = tokio::net::TcpStream::connect(mux).await?;
        socket.set_nodelay(true)?;
        let pipe = tls::connect(socket, config.clone()).await?;
        let endpoint = endpoint.clone();
        tokio::spawn(async move { endpoint.run_link(number, link::Way::Own, pipe, Bytes::new(), |_| Ok(())).await });
    }
    let muxed = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await?;
    let piped = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await?;
    println!("{} {}", muxed.local_addr()?, piped.local_addr()?);
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = piped.accept().await {
            let config = config.clone();
            tokio::spawn(async move {
                socket.set_nodelay(true)?;
                let pipe = tokio::net::TcpStream::connect(raw).await?;
                pipe.set_nodelay(true)?;
                let mut pipe = tls::connect(pipe, config).await?;
                tokio::io::copy_bidirectional_with_sizes(&mut pipe, &mut socket, 256 << 10, 256 << 10).await
            });
        }
    });
    loop {
        let (socket, _) = muxed.accept().await?;
        let endpoint = endpoint.clone();
        tokio::spawn(async move {
            if let Ok(flow) = endpoint.open(Bytes::new()).await {
                flow.splice(socket).await;
            }
        });
    }
}

// ---- the far end

fn serve() -> Result<SocketAddr> {
    let listener = TcpListener::bind(("127.0.0.1", 0))?;
    let at = listener.local_addr()?;
    std::thread::spawn(move || {
        for socket in listener.incoming().flatten() {
            std::thread::spawn(move || far_end(socket));
        }
    });
    Ok(at)
}

fn far_end(mut socket: TcpStream) -> std::io::Result<()> {
    socket.set_nodelay(true)?;
    let mut what = [0];
    socket.read_exact(&mut what)?;
    let mut buffer = vec![0x5a; 256 << 10];
    match what[0] {
        DOWN => loop {
            socket.write_all(&buffer)?;
        },
        UP => while socket.read(&mut buffer)? > 0 {},
        _ => loop {
            let len = socket.read(&mut buffer)?;
            if len == 0 {
                break;
            }
            socket.write_all(&buffer[..len])?;
        },
    }
    Ok(())
}

// ---- the measurements

struct Options {
    time: Duration,
    rounds: usize,
    links: u32,
}

impl Options {
    fn parse(args: &[String]) -> Result<Self> {
        let mut options = Options { time: Duration::from_secs(2), rounds: 3, links: 2 };
        for pair in args.chunks(2) {
            let [name, value] = pair else { bail!("{} needs a value", pair[0]) };
            match name.as_str() {
                "--seconds" => options.time = Duration::from_secs_f64(value.parse()?),
                "--rounds" => options.rounds = value.parse()?,
                "--links" => options.links = value.parse()?,
                _ => bail!("unknown option {name}"),
            }
        }
        Ok(options)
    }
}

struct Relay(Child);

impl Relay {
    /// Starts this program in another role; returns what it printed first.
    fn start(args: &[String]) -> Result<(Self, Vec<String>)> {
        let mut child = Command::new(std::env::current_exe()?).args(args).stdout(Stdio::piped()).spawn()?;
        let mut line = String::new();
        BufReader::new(child.stdout.take().context("no stdout")?).read_line(&mut line)?;
        Ok((Relay(child), line.split_whitespace().map(str::to_owned).collect()))
    }

    fn cpu(&self) -> Result<f64> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.0.id()))?;
        let fields: Vec<&str> = stat.rsplit(") ").next().unwrap_or_default().split(' ').collect();
        Ok((fields[11].parse::<f64>()? + fields[12].parse::<f64>()?) / 100.0)
    }

    fn memory(&self) -> Result<f64> {
        let statm = std::fs::read_to_string(format!("/proc/{}/statm", self.0.id()))?;
        Ok(statm.split(' ').nth(1).context("no size")?.parse::<f64>()? * 4096.0 / 1e6)
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Row by name, with a value for each way.
#[derive(Default)]
struct Table(Vec<(&'static str, [Vec<f64>; 3])>);

impl Table {
    fn add(&mut self, name: &'static str, way: usize, value: f64) {
        let row = match self.0.iter().position(|row| row.0 == name) {
            Some(row) => row,
            None => {
                self.0.push((name, Default::default()));
                self.0.len() - 1
            }
        };
        self.0[row].1[way].push(value);
    }

    fn print(mut self) {
        println!("{:28} {:>10} {:>10} {:>10} {:>10}", "median", "flows", "pipes", "direct", "flows/pipes");
        for (name, values) in &mut self.0 {
            let [flows, pipes, direct] = values.each_mut().map(|values| percentile(values, 0.5));
            println!("{name:28} {flows:10.2} {pipes:10.2} {direct:10.2} {:10.2}", flows / pipes);
        }
    }
}

fn bench(options: &Options) -> Result<()> {
    let target = serve()?;
    let (agent, at) = Relay::start(&["agent".into(), target.to_string()])?;
    let (client, ways) =
        Relay::start(&["client".into(), at[0].clone(), at[1].clone(), at[2].clone(), options.links.to_string()])?;
    let ways: [SocketAddr; 3] = [ways[0].parse()?, ways[1].parse()?, target];
    let mut table = Table::default();
    for _ in 0..options.rounds {
        for (way, to) in ways.into_iter().enumerate() {
            let cpu = || -> Result<f64> { Ok(agent.cpu()? + client.cpu()?) };
            for (what, flows, speed, cost) in [
                (DOWN, 1, "down x1, Gbit/s", "down x1, CPU s/GB"),
                (UP, 1, "up x1, Gbit/s", "up x1, CPU s/GB"),
                (DOWN, 4, "down x4, Gbit/s", "down x4, CPU s/GB"),
                (UP, 4, "up x4, Gbit/s", "up x4, CPU s/GB"),
            ] {
                let before = cpu()?;
                let (bytes, seconds) = bulk(to, what, flows, options.time)?;
                table.add(speed, way, bytes * 8.0 / seconds / 1e9);
                table.add(cost, way, (cpu()? - before) / (bytes / 1e9));
            }
            let mut times = echo(to, options.time)?;
            table.add("round trip p50, us", way, percentile(&mut times, 0.5));
            table.add("round trip p99, us", way, percentile(&mut times, 0.99));
            let other = std::thread::spawn({
                let time = options.time + RAMP + RAMP / 2;
                move || bulk(to, DOWN, 1, time)
            });
            // While the bulk flow gets going.
            echo(to, RAMP)?;
            let mut times = echo(to, options.time)?;
            table.add("beside bulk p50, us", way, percentile(&mut times, 0.5));
            table.add("beside bulk p99, us", way, percentile(&mut times, 0.99));
            other.join().expect("no panic")?;
            let start = Instant::now();
            let mut times = (0..300).map(|_| connect(to)).collect::<Result<Vec<_>>>()?;
            table.add("new connections per s", way, 300.0 / start.elapsed().as_secs_f64());
            table.add("new connection p50, us", way, percentile(&mut times, 0.5));
        }
    }
    table.print();
    println!("memory, MB: client {:.1}, agent {:.1}", client.memory()?, agent.memory()?);
    Ok(())
}

fn dial(to: SocketAddr, what: u8) -> Result<TcpStream> {
    let mut socket = TcpStream::connect(to)?;
    socket.set_nodelay(true)?;
    socket.write_all(&[what])?;
    Ok(socket)
}

/// Bytes and seconds.
fn bulk(to: SocketAddr, what: u8, flows: usize, time: Duration) -> Result<(f64, f64)> {
    let start = Instant::now();
    let threads: Vec<_> = (0..flows)
        .map(|_| {
            std::thread::spawn(move || -> Result<u64> {
                let mut socket = dial(to, what)?;
                let mut buffer = vec![0; 256 << 10];
                let mut total = 0;
                while start.elapsed() < time {
                    total += match what {
                        DOWN => socket.read(&mut buffer)?,
                        _ => socket.write(&buffer)?,
                    } as u64;
                }
                socket.shutdown(Shutdown::Both)?;
                Ok(total)
            })
        })
        .collect();
    let mut total = 0;
    for thread in threads {
        total += thread.join().expect("no panic")?;
    }
    Ok((total as f64, start.elapsed().as_secs_f64()))
}

/// Round trips of 64 bytes, in microseconds.
fn echo(to: SocketAddr, time: Duration) -> Result<Vec<f64>> {
    let mut socket = dial(to, ECHO)?;
    let start = Instant::now();
    let mut buffer = [7; 64];
    let mut times = Vec::new();
    while start.elapsed() < time {
        let before = Instant::now();
        socket.write_all(&buffer)?;
        socket.read_exact(&mut buffer)?;
        times.push(before.elapsed().as_secs_f64() * 1e6);
    }
    Ok(times)
}

/// A new connection and its first byte back, in microseconds.
fn connect(to: SocketAddr) -> Result<f64> {
    let before = Instant::now();
    let mut socket = dial(to, ECHO)?;
    socket.write_all(&[1])?;
    socket.read_exact(&mut [0])?;
    Ok(before.elapsed().as_secs_f64() * 1e6)
}

fn percentile(values: &mut [f64], part: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(((values.len() as f64 * part) as usize).min(values.len().saturating_sub(1))).copied().unwrap_or(0.0)
}
