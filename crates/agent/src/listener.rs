//! The agent's ports: accepts connections, tells the API server's pipes from direct ones, and shakes hands. Nobody but
//! an admitted session gets beyond that, and nobody waits long or takes another's place (`slots`).

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener as StdListener};
use std::sync::Arc;
use std::time::Duration;

use link::tls::TlsStream;
use rustls::ServerConfig;
use tokio::io::AsyncReadExt as _;
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, Id, JoinSet};
use tokio::time::{sleep, timeout};
use wire::Hello;

use crate::greeting::{Replayed, greet};
use crate::head::{Begins, HEAD_LIMIT, Verdict, begins, judge};
use crate::registry::KeyHash;
use crate::slots::Slots;

/// From the first byte to the end of the client's HELLO.
const PATIENCE: Duration = Duration::from_secs(5);
/// While the process may open no more files.
const PAUSE: Duration = Duration::from_millis(100);

/// A connection that proved to be an admitted session's.
pub(crate) struct Arrival {
    pub(crate) io: Replayed<TlsStream<TcpStream>>,
    pub(crate) hello: Hello,
    pub(crate) key: KeyHash,
    pub(crate) from: SocketAddr,
}

pub(crate) struct Listener {
    tls: Arc<ServerConfig>,
    pod_ips: Vec<IpAddr>,
    loopback_port: u16,
    pod_port: Option<u16>,
    accepted_tx: mpsc::Sender<(TcpStream, SocketAddr)>,
    accepted: mpsc::Receiver<(TcpStream, SocketAddr)>,
    acceptors: JoinSet<()>,
    waiting: JoinSet<io::Result<Arrival>>,
    slots: Slots<Id>,
    handles: HashMap<Id, AbortHandle>,
}

impl Listener {
    /// Listens on loopback, at a port that the kernel chooses. `pod_ips` are for later; without any, every address of
    /// the pod will do.
    pub(crate) fn bind(tls: Arc<ServerConfig>, pod_ips: Vec<IpAddr>) -> io::Result<Self> {
        let (accepted_tx, accepted) = mpsc::channel(1);
        let mut listener = Listener {
            tls,
            pod_ips,
            loopback_port: 0,
            pod_port: None,
            accepted_tx,
            accepted,
            acceptors: JoinSet::new(),
            waiting: JoinSet::new(),
            slots: Slots::new(),
            handles: HashMap::new(),
        };
        // A pod has one family or both; `forward` dials either.
        let v4 = listen(Ipv4Addr::LOCALHOST.into(), 0)?;
        listener.loopback_port = v4.local_addr()?.port();
        listener.accept_on(v4);
        match listen(Ipv6Addr::LOCALHOST.into(), listener.loopback_port) {
            Ok(v6) => listener.accept_on(v6),
            Err(error) => tracing::debug!(%error, "not listening on ::1"),
        }
        Ok(listener)
    }

    /// The port at which a session is served; opens it on the pod's addresses when asked for the first time.
    pub(crate) fn port(&mut self, pod_address: bool) -> io::Result<u16> {
        if !pod_address {
            return Ok(self.loopback_port);
        }
        if let Some(port) = self.pod_port {
            return Ok(port);
        }
        // The port that is free on loopback mostly is on the pod's addresses too.
        let opened = self.listen_on_pod(self.loopback_port).or_else(|_| self.listen_on_pod(0))?;
        let port = opened.first().map(TcpListener::local_addr).transpose()?.map_or(0, |address| address.port());
        tracing::info!(port, addresses = ?self.pod_ips, "listening on the pod's address");
        opened.into_iter().for_each(|listener| self.accept_on(listener));
        self.pod_port = Some(port);
        Ok(port)
    }

    /// The next admitted connection. May be dropped and called again.
    pub(crate) async fn next(&mut self) -> Arrival {
        loop {
            tokio::select! {
                Some((stream, from)) = self.accepted.recv() => self.wait_for(stream, from),
                Some(done) = self.waiting.join_next_with_id() => {
                    let (id, done) = match done {
                        Ok((id, done)) => (id, done),
                        // Evicted: its slot is another's already.
                        Err(error) => (error.id(), Err(io::ErrorKind::ConnectionAborted.into())),
                    };
                    self.slots.free(id);
                    self.handles.remove(&id);
                    match done {
                        Ok(arrival) => return arrival,
                        Err(error) => tracing::debug!(%error, "connection closed before it was admitted"),
                    }
                }
            }
        }
    }

    fn wait_for(&mut self, stream: TcpStream, from: SocketAddr) {
        let tls = self.tls.clone();
        let task = self.waiting.spawn(async move {
            timeout(PATIENCE, shake_hands(stream, from, tls))
                .await
                .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
        });
        if let Some(evicted) = self.slots.take(from.ip(), task.id())
            && let Some(evicted) = self.handles.remove(&evicted)
        {
            tracing::debug!(%from, "too many connections wait: closed the oldest of the busiest address");
            evicted.abort();
        }
        self.handles.insert(task.id(), task);
    }

    /// All of the pod's addresses at one port, or none.
    fn listen_on_pod(&self, port: u16) -> io::Result<Vec<TcpListener>> {
        if self.pod_ips.is_empty() {
            let every = listen(Ipv6Addr::UNSPECIFIED.into(), 0).or_else(|_| listen(Ipv4Addr::UNSPECIFIED.into(), 0))?;
            return Ok(vec![every]);
        }
        let mut opened: Vec<TcpListener> = Vec::new();
        for &ip in &self.pod_ips {
            let port = opened.first().map(TcpListener::local_addr).transpose()?.map_or(port, |address| address.port());
            opened.push(listen(ip, port)?);
        }
        Ok(opened)
    }

    fn accept_on(&mut self, listener: TcpListener) {
        let accepted = self.accepted_tx.clone();
        self.acceptors.spawn(async move {
            loop {
                match listener.accept().await {
                    Ok(connection) => {
                        if accepted.send(connection).await.is_err() {
                            return;
                        }
                    }
                    Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                    Err(error) => {
                        tracing::warn!(%error, "cannot accept connections");
                        sleep(PAUSE).await;
                    }
                }
            }
        });
    }
}

fn listen(ip: IpAddr, port: u16) -> io::Result<TcpListener> {
    let listener = StdListener::bind((ip, port))?;
    listener.set_nonblocking(true)?;
    TcpListener::from_std(listener)
}

async fn shake_hands(mut stream: TcpStream, from: SocketAddr, tls: Arc<ServerConfig>) -> io::Result<Arrival> {
    stream.set_nodelay(true)?;
    let mut first = [0];
    if stream.peek(&mut first).await? == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    match begins(first[0]) {
        Begins::Tls => {}
        Begins::Http => upgrade(&mut stream).await?,
        Begins::Foreign => return Err(io::Error::other("neither TLS nor the API server's upgrade")),
    }
    let (io, key) = link::tls::accept(stream, tls).await?;
    let (io, hello) = greet(io).await?;
    Ok(Arrival { io, hello, key, from })
}

async fn upgrade(stream: &mut TcpStream) -> io::Result<()> {
    let mut head = Vec::with_capacity(1024);
    loop {
        match judge(&head) {
            Verdict::More => {
                let room = HEAD_LIMIT - head.len();
                if stream.take(room as u64).read_buf(&mut head).await? == 0 {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
            }
            Verdict::Upgrade(answer) => return stream.write_all(answer).await,
            Verdict::Refuse(answer) => {
                stream.write_all(answer).await?;
                return Err(io::Error::other("an HTTP request that is no upgrade of ours"));
            }
        }
    }
}
