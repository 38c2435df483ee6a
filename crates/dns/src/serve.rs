//! The name server of the sandbox: takes questions over UDP and TCP and owns the desk.
//!
//! One task owns all state; each question that must be asked and each TCP connection is a task in a set of its own,
//! which ends with [`serve`].

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes, BytesMut};
use futures::FutureExt as _;
use futures::future::BoxFuture;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::ask::{Asked, Sides};
use crate::desk::{Desk, Step};
use crate::exchange::with_length;
use crate::message::{Answer, Key, Query, Rejected, SERVER_FAILURE};
use crate::policy::{Policy, Side};

/// Longer than a name server on the other side of the world takes.
const HEAD_START: Duration = Duration::from_millis(500);
/// Below libc's 5 s, so that the program sees our SERVFAIL before it asks again.
const SIDE_LIMIT: Duration = Duration::from_millis(4_500);
/// For how long after a silent first side both sides are asked at once.
const IMPATIENT: Duration = Duration::from_secs(10);
/// TCP connections at once, each idle for at most `TCP_IDLE` (RFC 7766 section 6.2.3: a few seconds).
const MOST_CONNECTIONS: usize = 128;
const TCP_IDLE: Duration = Duration::from_secs(10);
/// Unanswered questions of one TCP connection; above, it is not read on.
const PIPELINED: usize = 64;

/// One side that can be asked. Gets a DNS query with an id of our own, gives the response as it came. An error means
/// that the side could not be asked, and should come at once when that is known (a lost link).
pub trait Upstream: Send + Sync + 'static {
    fn ask(&self, query: Bytes) -> BoxFuture<'static, io::Result<Bytes>>;
}

/// Serves the command's questions until a socket fails, which is logged. `answers` is told every address that the
/// cluster answered with, and its time to live, before the program learns of it.
pub async fn serve(
    udp: UdpSocket,
    tcp: TcpListener,
    policy: Policy,
    cluster: Arc<dyn Upstream>,
    host: Arc<dyn Upstream>,
    answers: impl Fn(IpAddr, Duration) + Send + Sync + 'static,
) {
    let sides = Arc::new(Sides { cluster, host, head_start: HEAD_START, limit: SIDE_LIMIT });
    let (to_server, mut from_connections) = mpsc::channel::<(Bytes, Reply)>(PIPELINED);
    let mut server = Server {
        udp: &udp,
        policy,
        sides,
        answers,
        desk: Desk::new(),
        asking: JoinSet::new(),
        impatient_until: Instant::now(),
    };
    let mut connections = JoinSet::new();
    let mut datagram = vec![0; 65_535];
    loop {
        tokio::select! {
            received = udp.recv_from(&mut datagram) => match received {
                Ok((len, from)) => server.take(&datagram[..len], Asker::Udp(from)),
                // An answer that came too late for its asker.
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
                Err(error) => return tracing::error!(%error, "names are not served any more over UDP"),
            },
            Some((message, reply)) = from_connections.recv() => server.take(&message, Asker::Tcp(reply)),
            Some(done) = server.asking.join_next() => server.finish(done),
            accepted = tcp.accept(), if connections.len() < MOST_CONNECTIONS => match accepted {
                Ok((stream, _)) => { connections.spawn(serve_connection(stream, to_server.clone())); }
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(error) => return tracing::error!(%error, "names are not served any more over TCP"),
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

type Reply = mpsc::Sender<Option<Vec<u8>>>;

enum Asker {
    Udp(SocketAddr),
    Tcp(Reply),
}

/// An asker with its question as it asked it.
struct Waiter {
    query: Query,
    asker: Asker,
}

struct Done {
    key: Key,
    asked: Asked,
    patient: bool,
}

struct Server<'a, F> {
    udp: &'a UdpSocket,
    policy: Policy,
    sides: Arc<Sides>,
    answers: F,
    desk: Desk<Waiter>,
    asking: JoinSet<Done>,
    impatient_until: Instant,
}

impl<F: Fn(IpAddr, Duration)> Server<'_, F> {
    fn take(&mut self, message: &[u8], asker: Asker) {
        let query = match Query::parse(message) {
            Ok(query) => query,
            Err(Rejected::Answer(response)) => return self.send(&asker, Some(response)),
            Err(Rejected::Ignore) => return self.send(&asker, None),
        };
        tracing::trace!(name = %query.name(), record_type = query.record_type(), "question");
        let (key, now) = (query.key(), Instant::now());
        match self.desk.question(now, &key, Waiter { query: query.clone(), asker }) {
            Step::Known { waiter, answer, age } => self.reply(&waiter, Some(&answer), age),
            Step::Joined => {}
            Step::Ask => self.ask(query, key, now),
            Step::Full(waiter) => self.reply(&waiter, None, Duration::ZERO),
        }
    }

    fn ask(&mut self, query: Query, key: Key, now: Instant) {
        let order = self.policy.order(query.name());
        let impatient = now < self.impatient_until;
        let sides = self.sides.clone();
        self.asking.spawn(async move {
            // Caught, since those who wait are known by the key, which must come back.
            let asked = AssertUnwindSafe(sides.ask(&query, order, impatient)).catch_unwind().await;
            let asked = asked.unwrap_or(Asked { answer: None, first_was_silent: false });
            Done { key, asked, patient: !impatient }
        });
    }

    fn finish(&mut self, done: Result<Done, tokio::task::JoinError>) {
        let Ok(Done { key, asked, patient }) = done else { return };
        let now = Instant::now();
        // Found silent while nobody was impatient: so the first side is given its chance again after each period.
        if asked.first_was_silent && patient {
            self.impatient_until = now + IMPATIENT;
        }
        if let Some((Side::Cluster, answer)) = &asked.answer {
            answer.addresses().iter().for_each(|&(ip, ttl)| (self.answers)(ip, ttl));
        }
        let answer = asked.answer.map(|(_, answer)| answer);
        for waiter in self.desk.answered(now, &key, answer.as_ref()) {
            self.reply(&waiter, answer.as_deref(), Duration::ZERO);
        }
    }

    fn reply(&self, waiter: &Waiter, answer: Option<&Answer>, age: Duration) {
        let room = match waiter.asker {
            Asker::Udp(_) => waiter.query.udp_room(),
            Asker::Tcp(_) => usize::from(u16::MAX),
        };
        let response = match answer {
            Some(answer) => waiter.query.respond(answer, age, room),
            None => waiter.query.fail(SERVER_FAILURE),
        };
        self.send(&waiter.asker, Some(response));
    }

    /// Never waits: a full socket buffer loses a datagram as a network would, and a connection has room for as many
    /// replies as it may have questions.
    fn send(&self, asker: &Asker, response: Option<Vec<u8>>) {
        match (asker, response) {
            (Asker::Udp(to), Some(response)) => {
                if let Err(error) = self.udp.try_send_to(&response, *to) {
                    tracing::debug!(%to, %error, "answer not sent");
                }
            }
            (Asker::Udp(_), None) => {}
            (Asker::Tcp(reply), response) => {
                let _ = reply.try_send(response);
            }
        }
    }
}

/// Questions of one connection, answered in the order in which their answers come (RFC 7766 section 6.2.1.1). `None`
/// from the server ends the connection: what came was not a question.
async fn serve_connection(mut stream: TcpStream, server: mpsc::Sender<(Bytes, Reply)>) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let (mut from, mut to) = stream.split();
    let (reply, mut replies) = mpsc::channel::<Option<Vec<u8>>>(PIPELINED);
    let mut buffer = BytesMut::new();
    let (mut open, mut ended) = (0, false);
    loop {
        while open < PIPELINED
            && let Some(message) = next_message(&mut buffer)
        {
            open += 1;
            server.send((message, reply.clone())).await.map_err(|_| io::ErrorKind::BrokenPipe)?;
        }
        if ended && open == 0 {
            return Ok(());
        }
        tokio::select! {
            response = replies.recv() => {
                open -= 1;
                let Some(response) = response.flatten() else { return Ok(()) };
                timeout(TCP_IDLE, to.write_all(&with_length(&response)?)).await??;
            }
            read = timeout(TCP_IDLE, from.read_buf(&mut buffer)), if !ended && open < PIPELINED => match read {
                Ok(read) => ended = read? == 0,
                Err(_) => ended = true,
            },
        }
    }
}

fn next_message(buffer: &mut BytesMut) -> Option<Bytes> {
    let len = usize::from(u16::from_be_bytes(*buffer.first_chunk()?));
    if buffer.len() < 2 + len {
        return None;
    }
    buffer.advance(2);
    Some(buffer.split_to(len).freeze())
}
