//! An agent and clients of it, in one process over loopback. Rows R4, F7 and design 4 "Admission and keys" as far as
//! they are the agent's.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use agent::{Config, Sources};
use bytes::Bytes;
use link::tls::{Identity, TlsStream, client_tls};
use link::{Endpoint, Incoming, LinkEnd, Reset, Role};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::net::{TcpListener, TcpSocket, TcpStream, UdpSocket};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use wire::{
    Admit, Admitted, Answer, ControlDecoder, Datagram, Delivery, Hello, Open, Request, Transport, Undelivered, answer,
    encode_control, request,
};

/// Longer than anything here takes, shorter than a patience of the test runner.
const WAIT: Duration = Duration::from_secs(30);

async fn soon<T>(work: impl Future<Output = T>) -> T {
    timeout(WAIT, work).await.expect("in time")
}

struct Agent {
    stdin: DuplexStream,
    stdout: mpsc::UnboundedReceiver<String>,
    task: JoinHandle<io::Result<()>>,
    terminate: Option<oneshot::Sender<()>>,
    _dir: tempfile::TempDir,
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Agent {
    fn start() -> Agent {
        Agent::with(vec![Ipv4Addr::LOCALHOST.into()], 53)
    }

    fn with(pod_ips: Vec<IpAddr>, dns_port: u16) -> Agent {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let resolv_conf = dir.path().join("resolv.conf");
        std::fs::write(&resolv_conf, "nameserver 127.0.0.1\nsearch shop.svc.cluster.local\n").expect("written");
        let environment = vec![("DATABASE".into(), "db:5432".into()), ("STEAD_RELEASE".into(), "1".into())];
        let sources = Sources { proc: dir.path().into(), resolv_conf, dns_port, environment };
        let (stdin, theirs) = tokio::io::duplex(4096);
        let (lines, stdout) = mpsc::unbounded_channel();
        let config = Config { pod_ips, sources, stand_in: false };
        let (terminate, told) = oneshot::channel::<()>();
        let answer = move |line: &str| {
            let _ = lines.send(line.to_owned());
        };
        let terminated = async {
            if told.await.is_err() {
                std::future::pending().await
            }
        };
        let task = tokio::spawn(agent::run(config, theirs, answer, terminated));
        Agent { stdin, stdout, task, terminate: Some(terminate), _dir: dir }
    }

    async fn ask(&mut self, admit: &Admit) -> Admitted {
        self.stdin.write_all(admit.to_line().expect("short").as_bytes()).await.expect("read");
        let line = soon(self.stdout.recv()).await.expect("answered");
        let admitted = Admitted::from_line(&line).expect("well formed");
        assert_eq!(admitted.nonce, admit.nonce);
        admitted
    }

    async fn admit(&mut self, client: &Client) -> Admitted {
        let admitted = self.ask(&client.admit).await;
        assert_eq!(admitted.error, "");
        admitted
    }

    /// As a SIGTERM does.
    fn terminate(&mut self) {
        self.terminate.take().and_then(|tell| tell.send(()).ok()).expect("not yet told");
    }

    /// Waits until the agent has ended by itself.
    async fn ended(&mut self) {
        soon(&mut self.task).await.expect("no panic").expect("no error");
    }
}

struct Client {
    identity: Identity,
    admit: Admit,
    endpoint: Endpoint,
    _incoming: Incoming,
}

impl Client {
    fn new(byte: u8) -> Client {
        let identity = Identity::generate().expect("randomness");
        let (endpoint, incoming) = Endpoint::new(Role::Client, link::Config::default());
        let admit = Admit {
            session: vec![byte; 16],
            key_hash: identity.hash().to_vec(),
            nonce: vec![byte; 16],
            release: "0.1.0".into(),
            lease_seconds: 60,
            pod_address: false,
            park_seconds: 0,
        };
        Client { identity, admit, endpoint, _incoming: incoming }
    }

    async fn connect(&self, admitted: &Admitted) -> io::Result<TlsStream<TcpStream>> {
        let pipe = TcpStream::connect((Ipv4Addr::LOCALHOST, port(admitted))).await?;
        self.shake_hands(pipe, admitted).await
    }

    async fn shake_hands(&self, pipe: TcpStream, admitted: &Admitted) -> io::Result<TlsStream<TcpStream>> {
        let pin = admitted.key_hash.as_slice().try_into().expect("32 bytes");
        soon(link::tls::connect(pipe, client_tls(&self.identity, pin))).await
    }

    fn run_link(&self, number: u32, io: TlsStream<TcpStream>) -> JoinHandle<LinkEnd> {
        let session = self.admit.session.clone();
        let hello =
            Hello { protocol: wire::PROTOCOL, release: "0.1.0".into(), session, link: number, shared_way: false };
        let endpoint = self.endpoint.clone();
        tokio::spawn(
            async move { endpoint.run_link(number, link::Way::Own, io, hello.to_bytes().into(), |_| Ok(())).await },
        )
    }

    async fn link(&self, number: u32, admitted: &Admitted) -> JoinHandle<LinkEnd> {
        let io = self.connect(admitted).await.expect("admitted");
        self.run_link(number, io)
    }

    async fn open(&self, to: SocketAddr) -> Result<link::FlowStream, Reset> {
        soon(self.endpoint.open(Open::tcp(to).to_bytes().into())).await.map(link::Flow::into_stream)
    }

    async fn request(&self, id: u64, kind: request::Kind) -> answer::Kind {
        let mut control = self.endpoint.control();
        let bytes = encode_control(&Request { id, kind: Some(kind) });
        control.write_all(&bytes).await.expect("open");
        control.flush().await.expect("open");
        let mut decoder = ControlDecoder::default();
        let mut buffer = [0; 1024];
        loop {
            if let Some(message) = decoder.next_message().expect("well formed") {
                let Some(request::Kind::Answer(Answer { kind: Some(kind) })) = message.kind else {
                    panic!("{message:?}")
                };
                assert_eq!(message.id, id);
                return kind;
            }
            let len = soon(control.read(&mut buffer)).await.expect("open");
            assert_ne!(len, 0, "the control flow ended");
            decoder.push(&buffer[..len]);
        }
    }
}

fn port(admitted: &Admitted) -> u16 {
    admitted.port.try_into().expect("a port")
}

/// Sends back what comes, and ends when the other side has.
async fn echo() -> (SocketAddr, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
    let at = listener.local_addr().expect("bound");
    let task = tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut from, mut to) = stream.split();
                let _ = tokio::io::copy(&mut from, &mut to).await;
                let _ = to.shutdown().await;
            });
        }
    });
    (at, task)
}

async fn closed_port() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
    listener.local_addr().expect("bound")
}

async fn round_trip(client: &Client, to: SocketAddr, bytes: usize) {
    let flow = client.open(to).await.expect("connected");
    let (mut from, mut into) = tokio::io::split(flow);
    let sent: Vec<u8> = (0..bytes).map(|i| (i / 7) as u8).collect();
    let write = async {
        into.write_all(&sent).await.expect("sent");
        into.shutdown().await.expect("half-closed");
    };
    let mut received = Vec::new();
    let ((), read) = soon(async { tokio::join!(write, from.read_to_end(&mut received)) }).await;
    read.expect("ended well");
    assert!(received == sent, "{} bytes came back of {bytes}", received.len());
}

#[tokio::test]
async fn an_admitted_session_reaches_what_the_agent_reaches() {
    let (echo, echo_task) = echo().await;
    let mut agent = Agent::start();
    let client = Client::new(1);
    let admitted = agent.admit(&client).await;
    assert_eq!(admitted.release, wire::RELEASE);
    let links = [client.link(0, &admitted).await, client.link(1, &admitted).await];

    round_trip(&client, echo, 0).await;
    round_trip(&client, echo, 5).await;
    round_trip(&client, echo, 3 << 20).await;
    assert_eq!(client.open(closed_port().await).await.err(), Some(Reset::Refused));
    let later = Open { transport: 99, ..Open::tcp(echo) };
    let refused = soon(client.endpoint.open(later.to_bytes().into())).await;
    assert_eq!(refused.err(), Some(Reset::NotAllowed));
    let garbage = soon(client.endpoint.open(Bytes::from_static(b"\xff\xff"))).await;
    assert_eq!(garbage.err(), Some(Reset::NotAllowed));

    drop(links);
    echo_task.abort();
}

#[tokio::test]
async fn datagrams_reach_what_the_agent_reaches_and_the_refused_are_told() {
    let server = UdpSocket::bind("127.0.0.1:0").await.expect("loopback");
    let (open, closed) = (server.local_addr().expect("bound"), closed_udp().await);
    let mut agent = Agent::start();
    let client = Client::new(1);
    let admitted = agent.admit(&client).await;
    let _link = client.link(0, &admitted).await;
    let any = Open::datagrams(Transport::Udp, Ipv4Addr::UNSPECIFIED.into());
    let flow = soon(client.endpoint.open(any.to_bytes().into())).await.expect("open");
    let mut records = datagram::Records::new(flow.into_stream());
    let payload = |bytes: &'static [u8]| Delivery::Payload(Bytes::from_static(bytes));
    records.send(&Datagram { peer: closed, what: payload(b"x") });
    let told = Datagram { peer: closed, what: Delivery::Undelivered(Undelivered::Port) };
    assert_eq!(soon(records.next()).await.expect("lives"), Some(told));
    records.send(&Datagram { peer: open, what: payload(b"ask") });
    let answered = async {
        let mut buffer = [0; 8];
        let (length, from) = server.recv_from(&mut buffer).await.expect("asked");
        assert_eq!(&buffer[..length], b"ask");
        server.send_to(b"answer", from).await.expect("answered");
    };
    let (came, ()) = soon(async { tokio::join!(records.next(), answered) }).await;
    assert_eq!(came.expect("lives"), Some(Datagram { peer: open, what: payload(b"answer") }));
}

async fn closed_udp() -> SocketAddr {
    UdpSocket::bind("127.0.0.1:0").await.and_then(|socket| socket.local_addr()).expect("loopback")
}

#[tokio::test]
async fn requests_are_answered_and_leaving_ends_session_and_agent() {
    let server = UdpSocket::bind("127.0.0.1:0").await.expect("loopback");
    let dns_port = server.local_addr().expect("bound").port();
    let mut agent = Agent::with(vec![], dns_port);
    let client = Client::new(1);
    let admitted = agent.admit(&client).await;
    let link = client.link(0, &admitted).await;

    // The agent passes the question on as it is and the response back as it came: header, `web.`, A, IN; then a TXT.
    let query = Bytes::from_static(b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x03web\x00\x00\x01\x00\x01");
    let mut response = query.to_vec();
    response[2] |= 0x80;
    response[7] = 1;
    response.extend_from_slice(b"\xc0\x0c\x00\x10\x00\x01\x00\x00\x00\x05\x00\x03\x02hi");
    let serve = async {
        let mut buffer = [0; 512];
        let (len, from) = server.recv_from(&mut buffer).await.expect("asked");
        assert_eq!(&buffer[..len], &query[..]);
        server.send_to(&response, from).await.expect("sent");
    };
    let resolve = request::Kind::Resolve(wire::Resolve { query: query.clone() });
    let (answer, ()) = soon(async { tokio::join!(client.request(1, resolve), serve) }).await;
    assert_eq!(answer, answer::Kind::Resolved(wire::Resolved { response: response.clone().into() }));
    drop(server);
    let resolve = request::Kind::Resolve(wire::Resolve { query: query.clone() });
    assert!(matches!(client.request(2, resolve).await, answer::Kind::Failure(_)), "a closed port is said at once");

    let describe = request::Kind::DescribeContainer(wire::DescribeContainer { container_id: "0".repeat(64) });
    let answer::Kind::Description(description) = client.request(3, describe).await else { panic!("not described") };
    assert!(description.resolv_conf.contains("search shop.svc.cluster.local"));
    let names: Vec<_> = description.kubelet_env.iter().map(|entry| entry.name.clone()).collect();
    assert_eq!(names, [b"DATABASE"]);

    let left = client.request(4, request::Kind::Leave(wire::Leave {})).await;
    assert_eq!(left, answer::Kind::Done(wire::Done {}));
    link.abort();
    // `park_seconds` is 0.
    agent.ended().await;
}

#[tokio::test]
async fn a_session_that_vanished_ends_with_its_lease_and_its_flows_with_it() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
    let mut agent = Agent::start();
    let mut client = Client::new(1);
    client.admit.lease_seconds = 1;
    let admitted = agent.admit(&client).await;
    let link = client.link(0, &admitted).await;
    let flow = client.open(listener.local_addr().expect("bound")).await.expect("connected");
    let (mut far, _) = soon(listener.accept()).await.expect("accepted");
    link.abort();
    agent.ended().await;
    let mut byte = [0];
    let end = soon(far.read(&mut byte)).await;
    assert_eq!(end.expect_err("reset, not an orderly end").kind(), io::ErrorKind::ConnectionReset);
    drop(flow);
}

#[tokio::test]
async fn the_answer_says_whether_the_agent_knew_the_session() {
    let mut agent = Agent::start();
    let (client, other) = (Client::new(1), Client::new(2));
    assert!(!agent.admit(&client).await.renewed);
    assert!(agent.admit(&client).await.renewed);
    assert!(!agent.admit(&other).await.renewed);
}

#[tokio::test]
async fn a_terminated_agent_serves_its_links_to_their_end_and_waits_for_nobody_else() {
    let (echo, echo_task) = echo().await;
    let mut agent = Agent::start();
    let mut client = Client::new(1);
    client.admit.park_seconds = 600;
    let admitted = agent.admit(&client).await;
    let link = client.link(0, &admitted).await;
    round_trip(&client, echo, 1000).await;
    agent.terminate();
    round_trip(&client, echo, 1000).await;
    assert!(!agent.task.is_finished());
    link.abort();
    agent.ended().await;
    let mut unused = Agent::start();
    unused.terminate();
    unused.ended().await;
    echo_task.abort();
}

#[tokio::test]
async fn the_end_of_stdin_ends_no_session() {
    let (echo, echo_task) = echo().await;
    let mut agent = Agent::start();
    let client = Client::new(1);
    let admitted = agent.admit(&client).await;
    agent.stdin.shutdown().await.expect("ended");
    let _link = client.link(0, &admitted).await;
    round_trip(&client, echo, 1000).await;
    echo_task.abort();
}

#[tokio::test]
async fn only_pinned_and_admitted_keys_get_in() {
    let mut agent = Agent::start();
    let client = Client::new(1);
    let admitted = agent.admit(&client).await;

    // The client does not speak with another agent.
    let other = Admitted { key_hash: vec![9; 32], ..admitted.clone() };
    client.connect(&other).await.map(drop).expect_err("not the agent's key");

    // The agent does not speak with another client. In TLS 1.3 the client learns of it by the first read.
    let stranger = Client::new(2);
    let refused = match stranger.connect(&admitted).await {
        Ok(mut io) => soon(io.read_u8()).await.map(drop),
        Err(error) => Err(error),
    };
    refused.expect_err("not admitted");

    // Nor with one that was admitted and names another session.
    let mut liar = Client::new(3);
    agent.admit(&liar).await;
    liar.admit.session = client.admit.session.clone();
    let link = liar.link(0, &admitted).await;
    let end = soon(link).await.expect("no panic");
    assert!(matches!(end, LinkEnd::GoAway { .. } | LinkEnd::Closed), "{end:?}");

    // A key or an id of somebody else's is not admitted.
    let thief = Client::new(1);
    assert_ne!(agent.ask(&thief.admit).await.error, "");
    let io = client.connect(&admitted).await.expect("still admitted");
    client.run_link(0, io).abort();
}

#[tokio::test]
async fn a_client_that_left_does_not_get_in_again() {
    let mut agent = Agent::start();
    let (stays, leaves) = (Client::new(1), Client::new(2));
    agent.admit(&stays).await;
    let admitted = agent.admit(&leaves).await;
    let link = leaves.link(0, &admitted).await;
    leaves.request(1, request::Kind::Leave(wire::Leave {})).await;
    // The agent closes the link itself if the client does not.
    soon(link).await.expect("no panic");
    let refused = match leaves.connect(&admitted).await {
        Ok(mut io) => soon(io.read_u8()).await.map(drop),
        Err(error) => Err(error),
    };
    refused.expect_err("its admission is forgotten");
    stays.connect(&admitted).await.map(drop).expect("the other session is served");
}

#[tokio::test]
async fn a_new_link_takes_the_place_of_a_lost_one_of_its_number() {
    let (echo, echo_task) = echo().await;
    let mut agent = Agent::start();
    let client = Client::new(1);
    let admitted = agent.admit(&client).await;
    // The first link's pipe stays open and silent, as one does behind an API server whose client has gone.
    let mut silent = client.connect(&admitted).await.expect("admitted");
    let hello = Hello {
        protocol: 1,
        release: "0.1.0".into(),
        session: client.admit.session.clone(),
        link: 0,
        shared_way: false,
    };
    let hello = hello.to_bytes();
    let header = link::frame::Header::new(link::FlowId::CONTROL, link::frame::Kind::Hello, hello.len() as u32, 0);
    silent.write_all(&[&header.encode(), hello.as_slice()].concat()).await.expect("sent");
    silent.flush().await.expect("sent");
    let mut theirs = [0; 16];
    soon(silent.read_exact(&mut theirs)).await.expect("the agent's hello: the link runs");

    let _link = client.link(0, &admitted).await;
    round_trip(&client, echo, 1000).await;
    let mut rest = Vec::new();
    let _ = soon(silent.read_to_end(&mut rest)).await;
    echo_task.abort();
}

async fn answer_to(port: u16, bytes: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.expect("listening");
    stream.write_all(bytes).await.expect("sent");
    let mut answer = Vec::new();
    // A reset is a close too: the agent does not read what it does not want.
    let _ = soon(stream.read_to_end(&mut answer)).await;
    answer
}

#[tokio::test]
async fn strangers_are_closed_and_told_nothing() {
    let mut agent = Agent::start();
    let client = Client::new(1);
    let admitted = agent.admit(&client).await;
    let port = port(&admitted);
    for garbage in [&b"SSH-2.0-x\r\n"[..], b"\0", b"\x16\x03\x01\x00\x05hello", b"POST /stead HTTP/1.1\r\n\r\n"] {
        let answer = answer_to(port, garbage).await;
        // TLS may answer by an alert (type 21, 7 bytes); others get nothing.
        assert!(answer.is_empty() || garbage[0] == 0x16 && answer[0] == 21 && answer.len() == 7, "{garbage:?}");
    }
    for (request, status) in [("/ HTTP/1.1", "404"), ("/stead HTTP/1.1", "426"), ("/stead HTTP/1.0", "400")] {
        let answer = answer_to(port, format!("GET {request}\r\nHost: x\r\n\r\n").as_bytes()).await;
        assert_eq!(String::from_utf8_lossy(&answer[9..12]), status);
        assert!(answer.len() < 200);
    }
}

#[tokio::test]
async fn the_api_servers_upgrade_leads_to_the_same_handshake() {
    let mut agent = Agent::start();
    let mut client = Client::new(1);
    client.admit.pod_address = true;
    let admitted = agent.admit(&client).await;
    let mut pipe = TcpStream::connect((Ipv4Addr::LOCALHOST, port(&admitted))).await.expect("listening");
    let head = b"GET /stead HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: stead-1\r\n\r\n";
    pipe.write_all(head).await.expect("sent");
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        answer.push(soon(pipe.read_u8()).await.expect("answered"));
    }
    assert!(answer.starts_with(b"HTTP/1.1 101 "));
    let io = client.shake_hands(pipe, &admitted).await.expect("admitted");
    let _link = client.run_link(0, io);
    assert_eq!(client.open(closed_port().await).await.err(), Some(Reset::Refused));
}

/// Row F7: a slow third pod does not hinder the session.
#[tokio::test]
async fn those_who_wait_are_bounded_and_do_not_hinder_others() {
    let mut agent = Agent::start();
    let client = Client::new(1);
    let admitted = agent.admit(&client).await;
    let to = SocketAddr::from((Ipv4Addr::LOCALHOST, port(&admitted)));
    let mut waiting = Vec::new();
    for i in 0..100_u8 {
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.bind((Ipv4Addr::new(127, 0, 1, i % 8), 0).into()).expect("loopback");
        waiting.push(socket.connect(to).await.expect("listening"));
    }
    // Admitted though a hundred wait, and from an address that is not theirs.
    let io = client.connect(&admitted).await.expect("admitted");
    client.run_link(0, io);
    assert_eq!(client.open(closed_port().await).await.err(), Some(Reset::Refused));
    // The oldest had to go: 64 may wait.
    for (i, stream) in waiting.iter_mut().take(100 - 64).enumerate() {
        let mut byte = [0];
        assert_eq!(soon(stream.read(&mut byte)).await.unwrap_or(0), 0, "connection {i} is closed");
    }
    // The others go after five seconds.
    for stream in waiting.iter_mut().skip(100 - 64) {
        let mut byte = [0];
        assert_eq!(soon(stream.read(&mut byte)).await.unwrap_or(0), 0);
    }
}

#[tokio::test]
async fn the_pods_address_is_opened_only_when_a_session_asks() {
    let mut agent = Agent::with(vec![Ipv4Addr::new(127, 0, 0, 9).into()], 53);
    let (quiet, mut direct) = (Client::new(1), Client::new(2));
    let admitted = agent.admit(&quiet).await;
    let at = |admitted: &Admitted| SocketAddr::from((Ipv4Addr::new(127, 0, 0, 9), port(admitted)));
    let refused = TcpStream::connect(at(&admitted)).await.expect_err("not listening");
    assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
    direct.admit.pod_address = true;
    let admitted = agent.admit(&direct).await;
    let pipe = TcpStream::connect(at(&admitted)).await.expect("listening");
    direct.shake_hands(pipe, &admitted).await.map(drop).expect("admitted");

    // An address that is not the pod's: the user is told.
    let mut agent = Agent::with(vec![Ipv4Addr::new(192, 0, 2, 1).into()], 53);
    let admitted = agent.ask(&direct.admit).await;
    assert!(admitted.error.contains("pod's address"), "{}", admitted.error);
}
