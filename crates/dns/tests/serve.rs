//! The sandbox's name server over loopback sockets, with upstreams made here. Rows R1, R2, R6 as far as they are its.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use dns::{Policy, Upstream};
use futures::FutureExt as _;
use futures::future::BoxFuture;
use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::A;
use hickory_proto::rr::{Name, RData, Record, RecordType};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::{Notify, Semaphore};
use tokio::task::JoinHandle;

const WAIT: Duration = Duration::from_secs(20);

/// Knows names, counts questions, and answers only when the gate is open.
struct Zone {
    names: Vec<(String, usize)>,
    asked: AtomicUsize,
    came: Notify,
    gate: Semaphore,
    lost: bool,
}

impl Zone {
    fn new(names: &[(&str, usize)]) -> Arc<Zone> {
        Zone::with(names, Semaphore::MAX_PERMITS, false)
    }

    fn with(names: &[(&str, usize)], permits: usize, lost: bool) -> Arc<Zone> {
        let names = names.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect();
        let (asked, came, gate) = (AtomicUsize::new(0), Notify::new(), Semaphore::new(permits));
        Arc::new(Zone { names, asked, came, gate, lost })
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}

struct Shared(Arc<Zone>);

impl Upstream for Shared {
    fn ask(&self, query: Bytes) -> BoxFuture<'static, io::Result<Bytes>> {
        let zone = self.0.clone();
        async move {
            zone.asked.fetch_add(1, Ordering::SeqCst);
            zone.came.notify_one();
            if zone.lost {
                return Err(io::ErrorKind::NotConnected.into());
            }
            zone.gate.acquire().await.expect("never closed").forget();
            let query = Message::from_vec(&query).expect("a question");
            let mut response = Message::response(query.metadata.id, OpCode::Query);
            let asked = query.queries[0].clone();
            let text = asked.name().to_ascii().to_ascii_lowercase();
            match zone.names.iter().find(|(name, _)| *name == text) {
                Some((_, count)) => {
                    for i in 0..*count {
                        let address = RData::A(A::new(10, 0, (i >> 8) as u8, i as u8));
                        response.add_answer(Record::from_rdata(asked.name().clone(), 30, address));
                    }
                }
                None => response.metadata.response_code = ResponseCode::NXDomain,
            }
            response.add_query(asked);
            Ok(response.to_vec().expect("encodes").into())
        }
        .boxed()
    }
}

type Seen = Arc<Mutex<Vec<(IpAddr, Duration)>>>;

struct Served {
    at: SocketAddr,
    seen: Seen,
    task: JoinHandle<()>,
}

impl Drop for Served {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(cluster: &Arc<Zone>, host: &Arc<Zone>) -> Served {
    let tcp = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
    let at = tcp.local_addr().expect("bound");
    let udp = UdpSocket::bind(at).await.expect("the same port");
    let policy = Policy {
        cluster_domain: "cluster.local".into(),
        search: vec!["shop.svc.cluster.local".into(), "svc.cluster.local".into(), "cluster.local".into()],
        ..Policy::default()
    };
    let seen = Seen::default();
    let answers = {
        let seen = seen.clone();
        move |ip, ttl| seen.lock().expect("no panic inside").push((ip, ttl))
    };
    let (cluster, host) = (Arc::new(Shared(cluster.clone())), Arc::new(Shared(host.clone())));
    let task = tokio::spawn(dns::serve(udp, tcp, policy, cluster, host, answers));
    Served { at, seen, task }
}

fn question(id: u16, name: &str, buffer: Option<u16>) -> Vec<u8> {
    let mut message = Message::new(id, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).expect("a name"), RecordType::A));
    if let Some(buffer) = buffer {
        let mut edns = Edns::new();
        edns.set_max_payload(buffer);
        message.set_edns(edns);
    }
    message.to_vec().expect("encodes")
}

async fn client(at: SocketAddr) -> UdpSocket {
    let socket = UdpSocket::bind("127.0.0.1:0").await.expect("loopback");
    socket.connect(at).await.expect("loopback");
    socket
}

async fn receive(socket: &UdpSocket) -> Message {
    let mut buffer = vec![0; 65_535];
    let len = tokio::time::timeout(WAIT, socket.recv(&mut buffer)).await.expect("answered").expect("received");
    Message::from_vec(&buffer[..len]).expect("well formed")
}

async fn ask(at: SocketAddr, name: &str) -> Message {
    let socket = client(at).await;
    socket.send(&question(4711, name, None)).await.expect("sent");
    let response = receive(&socket).await;
    assert_eq!(response.metadata.id, 4711);
    response
}

#[tokio::test]
async fn each_name_is_answered_by_the_side_that_has_it() {
    let cluster = Zone::new(&[("web.shop.svc.cluster.local.", 1), ("private.example.", 2)]);
    let host = Zone::new(&[("example.com.", 1)]);
    let served = serve(&cluster, &host).await;
    for (name, code, addresses) in [
        ("web.shop.svc.cluster.local.", ResponseCode::NoError, 1),
        ("example.com.", ResponseCode::NoError, 1),
        ("private.example.", ResponseCode::NoError, 2),
        ("gone.example.", ResponseCode::NXDomain, 0),
        ("gone.shop.svc.cluster.local.", ResponseCode::NXDomain, 0),
        ("example.com.shop.svc.cluster.local.", ResponseCode::NXDomain, 0),
    ] {
        let response = ask(served.at, name).await;
        assert_eq!((response.metadata.response_code, response.answers.len()), (code, addresses), "{name}");
    }
    // The host saw no name of the cluster, the cluster none that the host knew.
    assert_eq!((cluster.asked(), host.asked()), (5, 3));
    // Only what the cluster answered is reported, with its own time to live.
    let seen = served.seen.lock().expect("no panic inside").clone();
    assert_eq!(seen.len(), 3);
    assert!(seen.iter().all(|(_, ttl)| *ttl == Duration::from_secs(30)));
}

#[tokio::test]
async fn the_same_question_in_flight_is_asked_once_and_each_asker_gets_its_own_case() {
    let cluster = Zone::with(&[("web.cluster.local.", 1)], 0, false);
    let served = serve(&cluster, &Zone::new(&[])).await;
    let askers = [client(served.at).await, client(served.at).await];
    for (i, (socket, name)) in askers.iter().zip(["web.cluster.local.", "WEB.Cluster.local."]).enumerate() {
        socket.send(&question(i as u16, name, None)).await.expect("sent");
    }
    tokio::time::timeout(WAIT, cluster.came.notified()).await.expect("asked");
    // A question that the server answers itself, through the same socket, shows that both before it were taken.
    let third = client(served.at).await;
    third.send(&question(3, "x.", None)[..14]).await.expect("sent");
    assert_eq!(receive(&third).await.metadata.response_code, ResponseCode::FormErr);
    cluster.gate.add_permits(1);
    for (i, (socket, name)) in askers.iter().zip(["web.cluster.local.", "WEB.Cluster.local."]).enumerate() {
        let response = receive(socket).await;
        assert_eq!(usize::from(response.metadata.id), i);
        assert_eq!(response.queries[0].name().to_ascii(), name);
    }
    assert_eq!(ask(served.at, "web.cluster.local.").await.answers.len(), 1);
    assert_eq!(cluster.asked(), 1);
}

#[tokio::test]
async fn a_lost_cluster_fails_at_once_and_the_hosts_names_go_on() {
    let cluster = Zone::with(&[], 0, true);
    let served = serve(&cluster, &Zone::new(&[("example.com.", 1)])).await;
    assert_eq!(ask(served.at, "web.cluster.local.").await.metadata.response_code, ResponseCode::ServFail);
    assert_eq!(ask(served.at, "example.com.").await.answers.len(), 1);
    assert_eq!(ask(served.at, "gone.example.").await.metadata.response_code, ResponseCode::NXDomain);
    // Not remembered: the next question is asked again.
    ask(served.at, "web.cluster.local.").await;
    assert_eq!(cluster.asked(), 3);
}

#[tokio::test]
async fn what_is_cut_over_udp_comes_whole_over_tcp_and_questions_may_be_pipelined() {
    let cluster = Zone::new(&[("many.cluster.local.", 600), ("one.cluster.local.", 1)]);
    let served = serve(&cluster, &Zone::new(&[])).await;
    let socket = client(served.at).await;
    for (buffer, cut) in [(None, true), (Some(1232), true), (Some(65_000), false)] {
        socket.send(&question(1, "many.cluster.local.", buffer)).await.expect("sent");
        let response = receive(&socket).await;
        assert_eq!(response.metadata.truncation, cut);
        assert_eq!(response.answers.len(), if cut { 0 } else { 600 });
    }
    let mut stream = TcpStream::connect(served.at).await.expect("listening");
    let mut bytes = Vec::new();
    for id in 0..200_u16 {
        let message = question(id, ["many.cluster.local.", "one.cluster.local."][usize::from(id % 2)], None);
        bytes.extend_from_slice(&(message.len() as u16).to_be_bytes());
        bytes.extend_from_slice(&message);
    }
    let (mut from, mut to) = stream.split();
    let read = async {
        let mut ids = Vec::new();
        while let Ok(len) = from.read_u16().await {
            let mut message = vec![0; len.into()];
            from.read_exact(&mut message).await.expect("whole");
            let message = Message::from_vec(&message).expect("well formed");
            assert_eq!(message.answers.len(), if message.metadata.id.is_multiple_of(2) { 600 } else { 1 });
            ids.push(message.metadata.id);
        }
        ids.sort_unstable();
        ids
    };
    let write = async {
        to.write_all(&bytes).await.expect("sent");
        to.shutdown().await.expect("half-closed");
    };
    let (ids, ()) = tokio::time::timeout(WAIT, async { tokio::join!(read, write) }).await.expect("in time");
    assert_eq!(ids, (0..200).collect::<Vec<_>>());
}

#[tokio::test]
async fn garbage_is_told_so_or_ignored_and_does_no_harm() {
    let served = serve(&Zone::new(&[("one.cluster.local.", 1)]), &Zone::new(&[])).await;
    let socket = client(served.at).await;
    socket.send(b"hello").await.expect("sent");
    socket.send(&question(9, "one.cluster.local.", None)[..20]).await.expect("sent");
    let response = receive(&socket).await;
    assert_eq!((response.metadata.id, response.metadata.response_code), (9, ResponseCode::FormErr));
    let mut stream = TcpStream::connect(served.at).await.expect("listening");
    stream.write_all(b"\0\x05hello").await.expect("sent");
    let closed = tokio::time::timeout(WAIT, stream.read_u8()).await.expect("closed, not left open");
    assert_eq!(closed.expect_err("no answer").kind(), io::ErrorKind::UnexpectedEof);
    assert_eq!(ask(served.at, "one.cluster.local.").await.answers.len(), 1);
}
