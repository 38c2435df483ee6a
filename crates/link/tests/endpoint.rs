//! Two endpoints in one process, over in-memory pipes and real loopback sockets.

use std::io;
use std::num::NonZeroU64;
use std::time::Duration;

use bytes::Bytes;
use link::{Config, Endpoint, Flow, FlowEnd, Incoming, LinkEnd, Reset, Role, Spliced, Way};
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
        self.add_link_on(Way::Own, number);
    }

    fn add_link_on(&mut self, way: Way, number: u32) {
        let (near, far) = tokio::io::duplex(1 << 20);
        self.links.spawn(run(self.client.clone(), number, way, near));
        self.links.spawn(run(self.agent.clone(), number, way, far));
    }

    /// Breaks every link, whatever is under way.
    async fn lose_links(&mut self) {
        self.links.shutdown().await;
        soon(self.client.all_links_lost()).await;
        soon(self.agent.all_links_lost()).await;
    }

    /// Waits until neither end knows any flow.
    async fn no_flows(&self) {
        while self.client.stats().flows + self.agent.stats().flows > 0 {
            tokio::task::yield_now().await;
        }
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

async fn run(endpoint: Endpoint, number: u32, way: Way, io: DuplexStream) -> LinkEnd {
    endpoint.run_link(number, way, io, Bytes::from_static(b"hello"), |_| Ok(())).await
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
async fn a_pace_is_kept_on_shared_ways_alone_and_ends_when_it_is_taken_back() {
    const RATE: u64 = 4 << 20;
    const LEN: usize = 2 << 20;
    for (way, paced) in [(Way::Own, false), (Way::Shared, true)] {
        let mut pair = Pair::new(0);
        pair.add_link_on(way, 0);
        pair.client.pace(NonZeroU64::new(RATE));
        let ([mut near, mut far], _ends) = soon(pair.spliced()).await;
        let started = std::time::Instant::now();
        let mut received = vec![0; LEN];
        let sent = pattern(LEN, 1);
        let (wrote, read) = soon(async { tokio::join!(near.write_all(&sent), far.read_exact(&mut received)) }).await;
        wrote.expect("written");
        read.expect("read");
        assert!(received == sent);
        // Half a second, less what goes out at once.
        assert_eq!(started.elapsed() > Duration::from_millis(400), paced, "{way:?}: {:?}", started.elapsed());
        // What waits for a pace that would take hours goes on when that is taken back.
        pair.client.pace(NonZeroU64::new(1));
        let writing = async { near.write_all(&sent).await.expect("written") };
        let reading = async {
            far.read_exact(&mut received[..1]).await.expect("read");
            pair.client.pace(None);
            far.read_exact(&mut received[1..]).await.expect("read");
        };
        soon(async { tokio::join!(writing, reading) }).await;
        assert!(received == sent);
    }
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

#[tokio::test]
async fn a_thousand_flows_at_once_each_get_their_own_bytes() {
    let mut pair = Pair::new(2);
    let mut tasks = JoinSet::new();
    for number in 0..1000_u64 {
        let client = pair.client.clone();
        tasks.spawn(async move {
            let mut flow = client.open(Bytes::from_static(b"to")).await.expect("accepted").into_stream();
            flow.write_all(&pattern(2000, number)).await.expect("written");
            flow.shutdown().await.expect("finished");
            let mut got = Vec::new();
            flow.read_to_end(&mut got).await.expect("read to the end");
            assert!(got == pattern(2000, number));
        });
    }
    let serving = async {
        let mut echoes = JoinSet::new();
        for _ in 0..1000 {
            let mut flow = pair.incoming.next().await.expect("an offer").accept().into_stream();
            echoes.spawn(async move {
                let mut got = Vec::new();
                flow.read_to_end(&mut got).await.expect("read to the end");
                flow.write_all(&got).await.expect("written");
                flow.shutdown().await.expect("finished");
            });
        }
        echoes.join_all().await;
    };
    soon(async { tokio::join!(tasks.join_all(), serving) }).await;
    soon(pair.no_flows()).await;
}

#[tokio::test]
async fn a_program_that_does_not_read_holds_up_nobody_else() {
    let mut pair = Pair::new(1);
    let ([mut stalled, _unread], _ends) = soon(pair.spliced()).await;
    let ([mut near, mut far], _others) = soon(pair.spliced()).await;
    let stalling = tokio::spawn(async move { stalled.write_all(&vec![0; 64 << 20]).await });
    let sending = tokio::spawn(async move {
        near.write_all(&pattern(32 << 20, 5)).await.expect("written");
        near.shutdown().await.expect("half-closed");
        near
    });
    let mut got = Vec::new();
    soon(far.read_to_end(&mut got)).await.expect("read to the end");
    assert!(got == pattern(32 << 20, 5));
    soon(sending).await.expect("no panic");
    assert!(!stalling.is_finished(), "64 MiB fit into no window");
    assert!(pair.agent.stats().waiting <= 2 << 20, "what waits is bounded by the window");
    stalling.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_lives_through_the_loss_of_every_link() {
    const LEN: usize = 16 << 20;
    let mut pair = Pair::new(2);
    let ([mut near, mut far], ends) = soon(pair.spliced()).await;
    let sending = tokio::spawn(async move {
        near.write_all(&pattern(LEN, 9)).await.expect("written");
        near.shutdown().await.expect("half-closed");
        near
    });
    let mut got = vec![0; LEN];
    for (round, part) in got.chunks_mut(LEN / 8).enumerate() {
        soon(far.read_exact(part)).await.expect("no error though links are lost");
        pair.lose_links().await;
        pair.add_link(10 + round as u32);
        pair.add_link(30 + round as u32);
    }
    assert!(got == pattern(LEN, 9));
    assert_eq!(soon(far.read(&mut [0])).await.expect("a clean end"), 0);
    drop(far);
    let mut near = soon(sending).await.expect("no panic");
    assert_eq!(soon(near.read(&mut [0])).await.expect("a clean end"), 0);
    for end in ends {
        assert_eq!(soon(end).await.expect("no panic").end, FlowEnd::Finished);
    }
}

#[tokio::test]
async fn a_flow_opened_or_reset_while_no_link_lives_is_told_later() {
    let mut pair = Pair::new(0);
    let client = pair.client.clone();
    let opening = tokio::spawn(async move { client.open(Bytes::from_static(b"to")).await });
    tokio::task::yield_now().await;
    pair.add_link(0);
    let accepted = soon(pair.incoming.next()).await.expect("an offer").accept();
    let opened = soon(opening).await.expect("no panic").expect("accepted");
    pair.lose_links().await;
    drop(opened);
    pair.add_link(0);
    let mut stream = accepted.into_stream();
    let error = soon(stream.read_u8()).await.expect_err("reset");
    assert_eq!(error.kind(), io::ErrorKind::ConnectionAborted);
}

#[tokio::test]
async fn an_abandoned_download_stops_at_once() {
    let mut pair = Pair::new(2);
    let ([mut near, mut far], [near_end, far_end]) = soon(pair.spliced()).await;
    let sending = tokio::spawn(async move {
        let block = vec![1; 1 << 16];
        while far.write_all(&block).await.is_ok() {}
    });
    let mut block = vec![0; 1 << 20];
    soon(near.read_exact(&mut block)).await.expect("read");
    drop(near);
    soon(sending).await.expect("no panic");
    assert_eq!(soon(near_end).await.expect("no panic").end, FlowEnd::Reset(Reset::ResetByPeer));
    assert_eq!(soon(far_end).await.expect("no panic").end, FlowEnd::Reset(Reset::ResetByPeer));
}

#[tokio::test]
async fn dropping_a_splice_resets_both_programs() {
    let mut pair = Pair::new(2);
    let ([mut near, mut far], [near_end, far_end]) = soon(pair.spliced()).await;
    near.write_all(b"x").await.expect("written");
    assert_eq!(soon(far.read_u8()).await.expect("read"), b'x');
    near_end.abort();
    for socket in [&mut near, &mut far] {
        assert_eq!(soon(socket.read_u8()).await.expect_err("reset").kind(), io::ErrorKind::ConnectionReset);
    }
    assert_eq!(soon(far_end).await.expect("no panic").end, FlowEnd::Reset(Reset::Aborted));
    soon(pair.no_flows()).await;
}

#[tokio::test]
async fn an_offer_whose_opener_gave_up_is_withdrawn() {
    let mut pair = Pair::new(1);
    let client = pair.client.clone();
    let opening = tokio::spawn(async move { client.open(Bytes::from_static(b"to")).await });
    let offer = soon(pair.incoming.next()).await.expect("an offer");
    opening.abort();
    soon(offer.withdrawn()).await;
    drop(offer);
    soon(pair.no_flows()).await;
}

#[tokio::test]
async fn the_control_flow_is_there_from_the_start() {
    let pair = Pair::new(2);
    let (mut client, mut agent) = (pair.client.control(), pair.agent.control());
    client.write_all(b"question").await.expect("written");
    let mut question = [0; 8];
    soon(agent.read_exact(&mut question)).await.expect("read");
    agent.write_all(&question).await.expect("written");
    let mut answer = [0; 8];
    soon(client.read_exact(&mut answer)).await.expect("read");
    assert_eq!(&answer, b"question");
}

#[tokio::test]
async fn a_hello_that_does_not_please_ends_the_link_with_a_reason() {
    let (client, _incoming) = Endpoint::new(Role::Client, Config::default());
    let (agent, _offers) = Endpoint::new(Role::Agent, Config::default());
    let (near, far) = tokio::io::duplex(1 << 16);
    let refusing = agent.run_link(0, Way::Own, far, Bytes::from_static(b"agent"), |hello| {
        assert_eq!(hello, b"client");
        Err("too old".into())
    });
    let (near_end, far_end) = soon(async { tokio::join!(run_as(&client, near), refusing) }).await;
    assert!(matches!(far_end, LinkEnd::Refused(text) if text == "too old"));
    assert!(matches!(&near_end, LinkEnd::GoAway { text, .. } if text == "too old"), "{near_end}");
    assert_eq!((client.stats().links.len(), *client.live_links().borrow()), (0, 0));
}

async fn run_as(endpoint: &Endpoint, io: DuplexStream) -> LinkEnd {
    endpoint.run_link(0, Way::Own, io, Bytes::from_static(b"client"), |_| Ok(())).await
}

#[tokio::test]
async fn nonsense_ends_its_link_and_nothing_else() {
    let mut pair = Pair::new(1);
    let (mut near, far) = tokio::io::duplex(1 << 16);
    let agent = pair.agent.clone();
    let broken = tokio::spawn(run(agent, 1, Way::Own, far));
    near.write_all(&[0x55; 64]).await.expect("written");
    assert!(matches!(soon(broken).await.expect("no panic"), LinkEnd::Protocol(_)));
    let (opened, accepted) = soon(pair.flow()).await;
    let (mut opened, mut accepted) = (opened.into_stream(), accepted.into_stream());
    opened.write_all(b"x").await.expect("written");
    assert_eq!(soon(accepted.read_u8()).await.expect("read"), b'x');
}

#[tokio::test]
async fn closing_ends_every_flow_with_the_reason() {
    let mut pair = Pair::new(1);
    let ([mut near, mut far], [near_end, far_end]) = soon(pair.spliced()).await;
    pair.agent.close(Reset::TimedOut);
    assert!(soon(pair.incoming.next()).await.is_none());
    for socket in [&mut near, &mut far] {
        assert_eq!(soon(socket.read_u8()).await.expect_err("reset").kind(), io::ErrorKind::ConnectionReset);
    }
    for end in [near_end, far_end] {
        assert_eq!(soon(end).await.expect("no panic").end, FlowEnd::Reset(Reset::TimedOut));
    }
    assert_eq!(soon(pair.client.open(Bytes::new())).await.err(), Some(Reset::TimedOut));
    assert_eq!(soon(pair.agent.open(Bytes::new())).await.err(), Some(Reset::Aborted));
}

/// Passes on what comes, in order, each piece `delay` after it came.
async fn delayed(
    mut from: tokio::io::ReadHalf<DuplexStream>,
    mut to: tokio::io::WriteHalf<DuplexStream>,
    delay: Duration,
) {
    let (under_way, mut arriving) = tokio::sync::mpsc::unbounded_channel();
    let reading = async move {
        let mut piece = vec![0; 256 << 10];
        while let Ok(n @ 1..) = from.read(&mut piece).await {
            let _ = under_way.send((tokio::time::Instant::now() + delay, piece[..n].to_vec()));
        }
    };
    let writing = async move {
        while let Some((at, piece)) = arriving.recv().await {
            tokio::time::sleep_until(at).await;
            if to.write_all(&piece).await.is_err() {
                return;
            }
        }
    };
    tokio::join!(reading, writing);
}

#[tokio::test]
async fn on_a_long_path_more_than_the_first_window_is_under_way() {
    const DELAY: Duration = Duration::from_millis(10);
    let mut pair = Pair::new(0);
    for number in 0..2 {
        let (near, near_far) = tokio::io::duplex(1 << 20);
        let (far, far_near) = tokio::io::duplex(1 << 20);
        let ((near_read, near_write), (far_read, far_write)) = (tokio::io::split(near_far), tokio::io::split(far_near));
        tokio::spawn(delayed(near_read, far_write, DELAY));
        tokio::spawn(delayed(far_read, near_write, DELAY));
        pair.links.spawn(run(pair.client.clone(), number, Way::Own, near));
        pair.links.spawn(run(pair.agent.clone(), number, Way::Own, far));
    }
    let ([mut near, mut far], _ends) = soon(pair.spliced()).await;
    tokio::spawn(async move { while far.write_all(&[7; 64 << 10]).await.is_ok() {} });
    let (mut buffer, mut most) = (vec![0; 256 << 10], 0);
    while most < 3 << 20 {
        assert!(soon(near.read(&mut buffer)).await.expect("bytes") > 0);
        most = most.max(pair.agent.stats().retained);
    }
}
