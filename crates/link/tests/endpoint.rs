//! Two endpoints in one process, over in-memory pipes and real loopback sockets.

use std::io;
use std::time::Duration;

use bytes::Bytes;
use link::{Config, Endpoint, Flow, FlowEnd, Incoming, LinkEnd, Reset, Role, Spliced};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

/// Client and agent joined by `links` in-memory pipes; the tasks end with it.
struct Pair {
    client: Endpoint,
    agent: Endpoint,
    incoming: Incoming,
    links: JoinSet<LinkEnd>,
}

impl Pair {
    fn new(links: u32) -> Self {
        let (client, _) = Endpoint::new(Role::Client, Config::default());
        let (agent, incoming) = Endpoint::new(Role::Agent, Config::default());
        let mut pair = Pair { client, agent, incoming, links: JoinSet::new() };
        (0..links).for_each(|number| pair.add_link(number));
        pair
    }

    fn add_link(&mut self, number: u32) {
        let (near, far) = tokio::io::duplex(1 << 20);
        self.links.spawn(run(self.client.clone(), number, near));
        self.links.spawn(run(self.agent.clone(), number, far));
    }

    /// A flow open at both ends.
    async fn flow(&mut self) -> (Flow, Flow) {
        let answer = async { self.incoming.next().await.expect("an offer").accept() };
        let (opened, accepted) = tokio::join!(self.client.open(Bytes::from_static(b"to")), answer);
        (opened.expect("accepted"), accepted)
    }

    /// A flow with a spliced socket at each end: the program's ends of them, and the splices.
    async fn spliced(&mut self) -> ([TcpStream; 2], [JoinHandle<Spliced>; 2]) {
        let (opened, accepted) = self.flow().await;
        let (near, near_inside) = sockets().await;
        let (far, far_inside) = sockets().await;
        let splices = [tokio::spawn(opened.splice(near_inside)), tokio::spawn(accepted.splice(far_inside))];
        ([near, far], splices)
    }
}

async fn run(endpoint: Endpoint, number: u32, io: DuplexStream) -> LinkEnd {
    endpoint.run_link(number, io, Bytes::from_static(b"hello"), |_| Ok(())).await
}

async fn sockets() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
    let to = listener.local_addr().expect("bound");
    let (outside, inside) = tokio::join!(TcpStream::connect(to), listener.accept());
    (outside.expect("connected"), inside.expect("accepted").0)
}

/// Fails instead of hanging.
async fn soon<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), work).await.expect("hangs")
}

/// Bytes that differ by position, so that loss, doubling and reordering show.
fn pattern(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

#[tokio::test]
async fn a_half_close_stays_a_half_close() {
    let mut pair = Pair::new(2);
    let ([mut near, mut far], [near_end, far_end]) = soon(pair.spliced()).await;
    near.write_all(b"question").await.expect("written");
    near.shutdown().await.expect("half-closed");
    let mut question = String::new();
    soon(far.read_to_string(&mut question)).await.expect("read to the end");
    assert_eq!(question, "question");
    far.write_all(b"answer").await.expect("the other direction is open");
    far.shutdown().await.expect("half-closed");
    let mut answer = String::new();
    soon(near.read_to_string(&mut answer)).await.expect("read to the end");
    assert_eq!(answer, "answer");
    let near_end = soon(near_end).await.expect("no panic");
    assert_eq!(near_end, Spliced { sent: 8, received: 6, end: FlowEnd::Finished });
    assert_eq!(soon(far_end).await.expect("no panic").end, FlowEnd::Finished);
}

#[tokio::test]
async fn a_reset_is_a_reset_both_ways() {
    for from in [0, 1] {
        let mut pair = Pair::new(2);
        let (sockets, ends) = soon(pair.spliced()).await;
        let mut sockets = sockets.map(Some);
        let gone = sockets[from].take().expect("there");
        gone.set_zero_linger().expect("set");
        drop(gone);
        let mut other = sockets[1 - from].take().expect("there");
        let error = soon(other.read_u8()).await.expect_err("reset");
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        for end in ends {
            assert_eq!(soon(end).await.expect("no panic").end, FlowEnd::Reset(Reset::ResetByPeer));
        }
    }
}

#[tokio::test]
async fn a_refusal_carries_its_reason() {
    let mut pair = Pair::new(1);
    for why in [Reset::Refused, Reset::HostUnreachable, Reset::AddressNotAvailable] {
        let refuse = async {
            let offer = pair.incoming.next().await.expect("an offer");
            assert_eq!(offer.payload, "to");
            offer.refuse(why);
        };
        let (opened, ()) = soon(async { tokio::join!(pair.client.open(Bytes::from_static(b"to")), refuse) }).await;
        assert_eq!(opened.err(), Some(why));
    }
    assert_eq!((pair.client.stats().flows, pair.agent.stats().flows), (0, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bulk_arrives_whole_both_ways_over_two_links() {
    const LEN: usize = 64 << 20;
    let mut pair = Pair::new(2);
    let ([near, far], ends) = soon(pair.spliced()).await;
    let mut tasks = JoinSet::new();
    for (socket, seed) in [(near, 1), (far, 2)] {
        tasks.spawn(async move {
            let (mut read, mut write) = socket.into_split();
            let writing = async {
                write.write_all(&pattern(LEN, seed)).await.expect("written");
                write.shutdown().await.expect("half-closed");
            };
            let mut got = Vec::with_capacity(LEN);
            let (_, read) = tokio::join!(writing, read.read_to_end(&mut got));
            read.expect("read to the end");
            assert!(got == pattern(LEN, 3 - seed), "{} bytes came, not the same", got.len());
        });
    }
    soon(tasks.join_all()).await;
    for end in ends {
        let end = soon(end).await.expect("no panic");
        assert_eq!(end, Spliced { sent: LEN as u64, received: LEN as u64, end: FlowEnd::Finished });
    }
    let bulk = pair.client.stats().links[1].clone();
    assert!(bulk.bytes_sent > LEN as u64 / 2, "bulk flows belong on the bulk link, which carried {}", bulk.bytes_sent);
}
