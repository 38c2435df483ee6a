//! Measures an agent's memory and throughput over loopback: `measure PATH-OF-STEAD-AGENT`. Figures are of both ends and
//! the load on one machine: good for comparing two builds, no more.

#![expect(clippy::print_stdout, reason = "the figures are the output")]

use std::net::{Ipv4Addr, SocketAddr};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use link::tls::{Identity, client_tls};
use link::{Endpoint, Role};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::Command;
use wire::{Admit, Admitted, Hello, Leave, Open, Request, encode_control, request};

const BULK: u64 = 2 << 30;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let path = std::env::args_os().nth(1).context("usage: measure PATH-OF-STEAD-AGENT")?;
    let mut agent = Command::new(path).stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true).spawn()?;
    let pid = agent.id().context("it runs")?;
    let mut stdin = agent.stdin.take().context("piped")?;
    let mut stdout = BufReader::new(agent.stdout.take().context("piped")?);

    let identity = Identity::generate()?;
    let admit = Admit {
        session: vec![1; 16],
        key_hash: identity.hash().to_vec(),
        nonce: vec![2; 16],
        lease_seconds: 60,
        park_seconds: 60,
        ..Admit::default()
    };
    stdin.write_all(admit.to_line()?.as_bytes()).await?;
    let mut line = String::new();
    stdout.read_line(&mut line).await?;
    let admitted = Admitted::from_line(&line)?;
    report(pid, "admitted, no link")?;

    let (endpoint, _incoming) = Endpoint::new(Role::Client, link::Config::default());
    let pin = <[u8; 32]>::try_from(admitted.key_hash.as_slice())?;
    let mut links = Vec::new();
    for number in 0..2 {
        let pipe = TcpStream::connect((Ipv4Addr::LOCALHOST, u16::try_from(admitted.port)?)).await?;
        pipe.set_nodelay(true)?;
        let io = link::tls::connect(pipe, client_tls(&identity, pin)).await?;
        let hello =
            Hello { protocol: 1, release: wire::RELEASE.into(), session: vec![1; 16], link: number, shared_way: false };
        let endpoint = endpoint.clone();
        links.push(tokio::spawn(async move {
            endpoint.run_link(number, link::Way::Own, io, hello.to_bytes().into(), |_| Ok(())).await;
        }));
    }
    let server = serve().await?;
    for _ in 0..100 {
        transfer(&endpoint, server, b'd', 1).await?;
    }
    report(pid, "idle, two links")?;
    for (name, kind) in [("down", b'd'), ("up", b'u'), ("down", b'd'), ("up", b'u')] {
        let (before, begin) = (cpu_seconds(pid)?, Instant::now());
        transfer(&endpoint, server, kind, BULK).await?;
        let seconds = begin.elapsed().as_secs_f64();
        let cpu = (cpu_seconds(pid)? - before) / (BULK as f64 / 1e9);
        println!("{name}: {:.2} Gbit/s, agent {cpu:.2} CPU s/GB", BULK as f64 * 8e-9 / seconds);
        report(pid, "after bulk")?;
    }
    let begin = Instant::now();
    for _ in 0..2000 {
        transfer(&endpoint, server, b'd', 1).await?;
    }
    println!("new connection + first byte: {:.0} us", begin.elapsed().as_secs_f64() * 1e6 / 2000.0);
    tokio::time::sleep(Duration::from_secs(12)).await;
    report(pid, "idle again")?;

    let mut control = endpoint.control();
    let leave = Request { id: 1, kind: Some(request::Kind::Leave(Leave {})) };
    control.write_all(&encode_control(&leave)).await?;
    control.read_u8().await?;
    links.iter().for_each(tokio::task::JoinHandle::abort);
    tokio::time::sleep(Duration::from_secs(4)).await;
    report(pid, "parked")?;
    Ok(())
}

/// One flow: says what it wants and how much, and takes it.
async fn transfer(endpoint: &Endpoint, to: SocketAddr, kind: u8, bytes: u64) -> anyhow::Result<()> {
    let flow = endpoint.open(Open::tcp(to).to_bytes().into()).await?;
    let mut flow = flow.into_stream();
    flow.write_all(&[&[kind], &bytes.to_be_bytes()[..]].concat()).await?;
    if kind == b'u' {
        tokio::io::copy(&mut tokio::io::repeat(7).take(bytes), &mut flow).await?;
    }
    flow.shutdown().await?;
    let mut buffer = vec![0; 256 << 10];
    while flow.read(&mut buffer).await? > 0 {}
    Ok(())
}

async fn serve() -> anyhow::Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let at = listener.local_addr()?;
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (kind, mut left) = (stream.read_u8().await?, stream.read_u64().await?);
                let mut buffer = vec![0; 256 << 10];
                while kind == b'd' && left > 0 {
                    let len = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
                    left -= stream.write(&buffer[..len]).await? as u64;
                }
                while stream.read(&mut buffer).await? > 0 {}
                stream.shutdown().await
            });
        }
    });
    Ok(at)
}

fn report(pid: u32, when: &str) -> anyhow::Result<()> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or("?").trim().to_owned();
    println!("{when}: RSS {} (anonymous {}), threads {}", field("VmRSS:"), field("RssAnon:"), field("Threads:"));
    Ok(())
}

fn cpu_seconds(pid: u32) -> anyhow::Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let fields: Vec<_> = stat.rsplit(')').next().unwrap_or_default().split_ascii_whitespace().collect();
    // utime and stime, in ticks of 10 ms.
    Ok((fields[11].parse::<f64>()? + fields[12].parse::<f64>()?) / 100.0)
}
