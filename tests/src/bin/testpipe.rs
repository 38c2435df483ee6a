//! The raw upgraded pipe, stead's yardstick in the benchmarks: each connection gets a pipe of its own through the API
//! server, with the same pinned TLS inside and nothing else. `relay` stands where the client does, `agent` in the pod.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context, bail, ensure};
use clap::Parser;
use cluster::{Cluster, ConnectOptions};
use link::tls::{Admissions, Identity, client_tls, server_tls};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

/// As the links' own.
const BUFFER: usize = 256 << 10;
/// The target's address, padded with blanks, goes first.
const TARGET: usize = 64;

#[derive(Parser)]
enum Command {
    /// In the pod: prints its key's hash, then serves
    Agent {
        #[arg(long, default_value = "[::]:9200")]
        listen: SocketAddr,
    },
    /// Beside the client: takes connections and carries each through the API server
    Relay {
        #[arg(long)]
        listen: SocketAddr,
        #[arg(long)]
        namespace: String,
        #[arg(long)]
        pod: String,
        #[arg(long, default_value_t = 9200)]
        port: u16,
        /// Hash of the agent's key, in hex
        #[arg(long)]
        pin: String,
        /// What the agent connects to
        #[arg(long)]
        target: SocketAddr,
    },
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    match Command::parse() {
        Command::Agent { listen } => agent(listen).await,
        Command::Relay { listen, namespace, pod, port, pin, target } => {
            let options = ConnectOptions { namespace: Some(namespace), ..Default::default() };
            let cluster = Cluster::connect(&options).await?;
            let way = Way { cluster, pod, port, pin: unhex(&pin)?, target };
            relay(listen, Arc::new(way)).await
        }
    }
}

struct Anybody;

impl Admissions for Anybody {
    fn is_admitted(&self, _key_hash: &[u8; 32]) -> bool {
        true
    }
}

#[expect(clippy::print_stdout, reason = "the key's hash is what the other side needs")]
async fn agent(listen: SocketAddr) -> anyhow::Result<()> {
    let identity = Identity::generate()?;
    let listener = TcpListener::bind(listen).await?;
    println!("{}", identity.hash().iter().map(|byte| format!("{byte:02x}")).collect::<String>());
    let config = server_tls(&identity, Arc::new(Anybody));
    loop {
        let (stream, _) = listener.accept().await?;
        let config = Arc::clone(&config);
        // A connection that fails is seen by its client.
        tokio::spawn(async move { serve(stream, config).await.ok() });
    }
}

async fn serve(mut stream: TcpStream, config: Arc<rustls::ServerConfig>) -> anyhow::Result<()> {
    stream.set_nodelay(true)?;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        ensure!(head.len() < 8192, "a head of more than 8 KiB");
        head.push(stream.read_u8().await?);
    }
    stream.write_all(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: stead-1\r\n\r\n").await?;
    let (mut pipe, _) = link::tls::accept(stream, config).await?;
    let mut target = [0; TARGET];
    pipe.read_exact(&mut target).await?;
    let target: SocketAddr = std::str::from_utf8(&target)?.trim().parse()?;
    let mut socket = TcpStream::connect(target).await?;
    socket.set_nodelay(true)?;
    tokio::io::copy_bidirectional_with_sizes(&mut pipe, &mut socket, BUFFER, BUFFER).await?;
    Ok(())
}

struct Way {
    cluster: Cluster,
    pod: String,
    port: u16,
    pin: [u8; 32],
    target: SocketAddr,
}

async fn relay(listen: SocketAddr, way: Arc<Way>) -> anyhow::Result<()> {
    let listener = TcpListener::bind(listen).await?;
    let config = client_tls(&Identity::generate()?, way.pin);
    loop {
        let (socket, _) = listener.accept().await?;
        let (way, config) = (Arc::clone(&way), Arc::clone(&config));
        tokio::spawn(async move { carry(socket, &way, config).await.ok() });
    }
}

async fn carry(mut socket: TcpStream, way: &Way, config: Arc<rustls::ClientConfig>) -> anyhow::Result<()> {
    socket.set_nodelay(true)?;
    let pipe = way.cluster.pipe(cluster::Rung::Proxy, &way.pod, &[], way.port).await?;
    let mut pipe = link::tls::connect(pipe, config).await?;
    pipe.write_all(format!("{:<TARGET$}", way.target.to_string()).as_bytes()).await?;
    tokio::io::copy_bidirectional_with_sizes(&mut socket, &mut pipe, BUFFER, BUFFER).await?;
    Ok(())
}

fn unhex(text: &str) -> anyhow::Result<[u8; 32]> {
    let text = text.trim();
    if text.len() != 64 {
        bail!("a hash has 64 hex digits");
    }
    let mut bytes = [0; 32];
    for (i, byte) in bytes.iter_mut().enumerate() {
        let digits = text.get(2 * i..2 * i + 2).context("hex digits are ASCII")?;
        *byte = u8::from_str_radix(digits, 16)?;
    }
    Ok(bytes)
}
