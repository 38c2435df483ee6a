//! The client: prepares, starts, spawns, waits, and ends as the command ended.

use std::ffi::OsString;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::future::{BoxFuture, FutureExt};
use sandbox::{Command, Connected, Datagram, DialError, Dialer, Error, Protocol, Replies, Unreachable};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::Outcome;

pub(crate) fn run(arguments: &[String]) -> Outcome {
    let (options, argv) = split(arguments)?;
    let start = Instant::now();
    let prepared = sandbox::prepare(&[])?;
    let forked = start.elapsed();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let status = runtime.block_on(async {
        let mut sandbox = prepared.start(Arc::new(Loopback)).inspect_err(|e| {
            if let Some(hint) = e.hint() {
                eprintln!("hint: {hint}");
            }
        })?;
        let started = start.elapsed();
        let mut child = match sandbox.spawn(command(options, argv)?).await {
            Ok(child) => child,
            Err(error) => {
                eprintln!("sandbox-lab: {error}");
                let code = match error {
                    Error::NotFound { .. } => 127,
                    Error::NotExecutable { .. } => 126,
                    _ => 70,
                };
                return Ok(ExitStatus::from_raw(code << 8));
            }
        };
        let spawned = start.elapsed();
        if options.iter().any(|o| o == "--visit") {
            tokio::spawn(visit(sandbox.inside(), sandbox.listening()));
        }
        let status = child.wait().await?;
        let ended = start.elapsed();
        drop(sandbox);
        if options.iter().any(|o| o == "--timings") {
            let end = start.elapsed();
            eprintln!("forked {forked:?} started {started:?} spawned {spawned:?} ended {ended:?} gone {end:?}");
        }
        Ok::<ExitStatus, Box<dyn std::error::Error>>(status)
    })?;
    sandbox::end_like(status)
}

/// Connects to every port that is listened on, and says what came from it.
async fn visit(inside: sandbox::Inside, mut listening: tokio::sync::watch::Receiver<sandbox::Listening>) {
    let mut known = std::collections::BTreeSet::new();
    loop {
        let now = listening.borrow_and_update().clone();
        for to in now.into_values().flatten() {
            if known.insert(to) {
                let mut came = String::new();
                let read = async {
                    let mut stream = inside.connect(to).await?;
                    stream.read_to_string(&mut came).await.map(|_| stream)
                };
                // The command ends when the stream is dropped.
                let visited = read.await;
                println!("{to} {came} {:?}", visited.as_ref().map(|_| ()).map_err(std::io::Error::kind));
            }
        }
        if listening.changed().await.is_err() {
            return;
        }
    }
}

pub(crate) fn plain(arguments: &[String]) -> Outcome {
    let (_, argv) = split(arguments)?;
    let argv = with_own_path(argv)?;
    let (program, rest) = argv.split_first().ok_or("no command")?;
    Err(std::process::Command::new(program).args(rest).exec().into())
}

fn with_own_path(argv: &[String]) -> std::io::Result<Vec<OsString>> {
    let own = std::env::current_exe()?;
    Ok(argv.iter().map(|a| if a == "@self" { own.clone().into() } else { a.into() }).collect())
}

fn command(options: &[String], argv: &[String]) -> Result<Command, Box<dyn std::error::Error>> {
    let mut command = Command { argv: with_own_path(argv)?, env: std::env::vars_os().collect(), ..Command::default() };
    let mut options = options.iter();
    while let Some(option) = options.next() {
        match option.as_str() {
            "--file" => {
                let (path, content) = options.next().and_then(|f| f.split_once('=')).ok_or("--file PATH=CONTENT")?;
                command.files.push((path.into(), content.into()));
            }
            "--cwd" => command.cwd = options.next().map(PathBuf::from),
            _ => (),
        }
    }
    Ok(command)
}

fn split(arguments: &[String]) -> Result<(&[String], &[String]), &'static str> {
    let index = arguments.iter().position(|item| item == "--").ok_or("missing --")?;
    Ok((&arguments[..index], &arguments[index + 1..]))
}

struct Loopback;

impl Dialer for Loopback {
    fn dial(&self, _from: SocketAddr, to: SocketAddr) -> BoxFuture<'static, Result<Connected, DialError>> {
        async move {
            let host: IpAddr = match to.ip() {
                IpAddr::V4(a) => match a.octets() {
                    [10, 96, 255, 1] => return Err(DialError::HostUnreachable),
                    [10, 96, 255, 2] => return pending(to).await,
                    [10, 96, 255, 3] => return Err(DialError::NetworkUnreachable),
                    [10, 96, 255, 4] => return Err(DialError::TimedOut),
                    [10, 96, 254, _] => {
                        tokio::time::sleep(Duration::from_millis(50)).await;
                        Ipv4Addr::LOCALHOST.into()
                    }
                    [10, 96, ..] | [127, ..] => Ipv4Addr::LOCALHOST.into(),
                    _ => return Err(DialError::NetworkUnreachable),
                },
                IpAddr::V6(a) if a.segments()[0] == 0xfd96 => Ipv6Addr::LOCALHOST.into(),
                IpAddr::V6(_) => return Err(DialError::HostUnreachable),
            };
            match TcpStream::connect((host, to.port())).await {
                Ok(far) => {
                    let relay: Connected = Box::new(|near| relay(near, far).boxed());
                    Ok(relay)
                }
                // It was made, and reset before we looked.
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => {
                    let reset: Connected = Box::new(|near| async move { drop(near) }.boxed());
                    Ok(reset)
                }
                Err(_) => Err(DialError::Refused),
            }
        }
        .boxed()
    }

    /// A machine that sends every datagram back, but for those to port 1, where nobody listens.
    fn datagram(&self, datagram: &Datagram<'_>, replies: &Replies) {
        match (datagram.protocol, datagram.peer.port()) {
            (Protocol::Udp, 1) => {
                replies.undelivered(datagram.protocol, datagram.command, datagram.peer, Unreachable::Port);
            }
            _ => replies.deliver(datagram),
        }
    }
}

/// Never answers; says so on stderr when it is given up.
async fn pending(to: SocketAddr) -> Result<Connected, DialError> {
    struct Told(SocketAddr);
    impl Drop for Told {
        fn drop(&mut self) {
            eprintln!("dial of {} dropped", self.0);
        }
    }
    let _told = Told(to);
    std::future::pending().await
}

/// Copies both ways; half-closes stay half-closes, resets resets.
async fn relay(near: TcpStream, far: TcpStream) {
    let _ = far.set_nodelay(true);
    let _ = socket2::SockRef::from(&far).set_linger(Some(Duration::ZERO));
    let clean = {
        let ((near_read, near_write), (far_read, far_write)) = (Half::of(&near), Half::of(&far));
        tokio::try_join!(near_read.copy(far_write), far_read.copy(near_write)).is_ok()
    };
    if clean {
        let _ = socket2::SockRef::from(&near).set_linger(None);
        let _ = socket2::SockRef::from(&far).set_linger(None);
    }
    let (mut near, mut far) = (near, far);
    if clean {
        let _ = near.shutdown().await;
        let _ = far.shutdown().await;
    }
}

#[derive(Clone, Copy)]
struct Half<'a>(&'a TcpStream);

impl<'a> Half<'a> {
    fn of(stream: &'a TcpStream) -> (Half<'a>, Half<'a>) {
        (Half(stream), Half(stream))
    }

    async fn copy(self, to: Half<'_>) -> std::io::Result<()> {
        use std::io::ErrorKind::WouldBlock;
        let mut buffer = vec![0; 256 << 10];
        loop {
            self.0.readable().await?;
            let length = match self.0.try_read(&mut buffer) {
                Ok(0) => return socket2::SockRef::from(to.0).shutdown(std::net::Shutdown::Write),
                Ok(length) => length,
                Err(error) if error.kind() == WouldBlock => continue,
                Err(error) => return Err(error),
            };
            let mut sent = 0;
            while sent < length {
                match to.0.try_write(&buffer[sent..length]) {
                    Ok(count) => sent += count,
                    Err(error) if error.kind() == WouldBlock => to.0.writable().await?,
                    Err(error) => return Err(error),
                }
            }
        }
    }
}
