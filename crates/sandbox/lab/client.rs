//! What runs inside the sandbox: plain blocking sockets, one line of outcome on stdout.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::Outcome;

pub(crate) fn client(arguments: &[String]) -> Outcome {
    let address = |index: usize| -> Result<SocketAddr, Box<dyn std::error::Error>> {
        Ok(arguments.get(index).ok_or("address missing")?.parse()?)
    };
    let what = arguments.first().map_or("", String::as_str);
    match what {
        "connect" => println!("{}", connect(address(1)?)),
        "timeout" => println!("{}", timeout(address(1)?)),
        "half-close" => println!("{}", half_close(address(1)?)?),
        "reset" => reset(address(1)?)?,
        "read" => println!("{}", read(address(1)?)),
        "many" => println!("{}", many(address(1)?, address(2)?)),
        "at-once" => println!("{}", at_once(address(1)?)?),
        "reuse" => println!("{}", reuse(address(1)?, address(2)?)?),
        "own" => println!("{}", own(address(1)?)?),
        "udp" => println!("{}", udp(address(1)?, arguments.get(2).map_or(Ok(1), |length| length.parse())?)?),
        "udp-connected" => println!("{}", udp_connected(address(1)?)),
        "serve" => serve(address(1)?, arguments.get(2).map_or(Ok(1), |count| count.parse())?)?,
        "ping" => println!("{}", ping(address(1)?)?),
        _ => return Err("unknown client".into()),
    }
    Ok(ExitCode::SUCCESS)
}

/// The error's name, or "ok".
fn name<T>(result: std::io::Result<T>) -> String {
    match result {
        Ok(_) => "ok".to_owned(),
        Err(error) => match error.raw_os_error() {
            Some(errno) => format!("{:?}", nix::errno::Errno::from_raw(errno)),
            None => format!("{:?}", error.kind()),
        },
    }
}

fn connect(to: SocketAddr) -> String {
    name(TcpStream::connect(to))
}

/// Greets so many callers and waits for each to go.
fn serve(at: SocketAddr, count: usize) -> std::io::Result<()> {
    for stream in std::net::TcpListener::bind(at)?.incoming().take(count) {
        let mut stream = stream?;
        stream.write_all(b"!")?;
        stream.shutdown(Shutdown::Write)?;
        stream.read_to_end(&mut Vec::new())?;
    }
    Ok(())
}

fn timeout(to: SocketAddr) -> String {
    let start = Instant::now();
    let result = name(TcpStream::connect_timeout(&to, Duration::from_millis(700)));
    format!("{result} {}", start.elapsed() >= Duration::from_millis(700))
}

/// Sends 1 MiB, closes that direction, then reads all that the echo server sends back after it saw the end.
fn half_close(to: SocketAddr) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(to)?;
    let mut reader = stream.try_clone()?;
    let sent: Vec<u8> = (0..1usize << 20).map(|i| ((i * 31) >> 3) as u8).collect();
    stream.write_all(&sent)?;
    stream.shutdown(Shutdown::Write)?;
    let mut received = Vec::new();
    reader.read_to_end(&mut received)?;
    Ok(format!("{} bytes, equal {}", received.len(), received == sent))
}

fn reset(to: SocketAddr) -> std::io::Result<()> {
    let mut stream = TcpStream::connect(to)?;
    stream.write_all(b"x")?;
    let mut answer = [0];
    stream.read_exact(&mut answer)?;
    socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO))
}

/// All that comes, then how it ended.
fn read(to: SocketAddr) -> String {
    let mut received = Vec::new();
    let end = TcpStream::connect(to).and_then(|mut stream| stream.read_to_end(&mut received));
    format!("{} {}", String::from_utf8_lossy(&received), name(end))
}

/// 32 threads: 8,000 connections that read one byte, 400 that must be refused. Counts what went otherwise.
fn many(good: SocketAddr, refused: SocketAddr) -> String {
    let wrong = AtomicUsize::new(0);
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..32 {
            scope.spawn(|| {
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    if index >= 8400 {
                        return;
                    }
                    let right = if index % 21 == 20 {
                        connect(refused) == "ECONNREFUSED"
                    } else {
                        let mut byte = [0];
                        TcpStream::connect(good).and_then(|mut s| s.read_exact(&mut byte)).is_ok() && byte == *b"!"
                    };
                    if !right {
                        wrong.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    format!("{} wrong", wrong.into_inner())
}

/// 20 connects begun at once without blocking, to a far side 50 ms away: milliseconds until all are made.
fn at_once(to: SocketAddr) -> Result<String, Box<dyn std::error::Error>> {
    let start = Instant::now();
    let mut sockets = Vec::new();
    for _ in 0..20 {
        let socket = socket2::Socket::new(socket2::Domain::for_address(to), socket2::Type::STREAM, None)?;
        socket.set_nonblocking(true)?;
        let begun = socket.connect(&to.into());
        if name(begun) != "EINPROGRESS" {
            return Ok("connect did not go on in the background".to_owned());
        }
        sockets.push(socket);
    }
    let begun = start.elapsed();
    for socket in sockets {
        use std::os::fd::AsFd;
        let mut ready = [nix::poll::PollFd::new(socket.as_fd(), nix::poll::PollFlags::POLLOUT)];
        nix::poll::poll(&mut ready, 5000u16)?;
        if let Some(error) = socket.take_error()? {
            return Ok(error.to_string());
        }
        socket.peer_addr()?;
    }
    Ok(format!("{} {}", begun.as_millis(), start.elapsed().as_millis()))
}

/// The same ports again and again: connections that were used and reset, and ones given up while being made, towards a
/// far side that is near and one that is 50 ms away.
fn reuse(near: SocketAddr, far: SocketAddr) -> std::io::Result<String> {
    const PORT: u16 = 40000;
    let socket = |blocking: bool| -> std::io::Result<socket2::Socket> {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
        socket.set_reuse_address(true)?;
        socket.set_linger(Some(Duration::ZERO))?;
        socket.set_nonblocking(!blocking)?;
        socket.bind(&SocketAddr::from(([198, 18, 0, 1], PORT)).into())?;
        Ok(socket)
    };
    let mut read = 0;
    for to in [near, far, near, far, far, near, near] {
        drop(socket(false)?.connect(&to.into()));
        let used = socket(true)?;
        used.connect(&to.into())?;
        let mut byte = [0];
        TcpStream::from(used).read_exact(&mut byte)?;
        read += usize::from(byte == *b"!");
    }
    Ok(format!("{read} read"))
}

/// Who answers where this program listens, too: it says `?`.
fn own(at: SocketAddr) -> std::io::Result<String> {
    let listener = std::net::TcpListener::bind(at)?;
    std::thread::spawn(move || listener.accept().and_then(|(mut stream, _)| stream.write_all(b"?")));
    let mut said = String::new();
    TcpStream::connect(at)?.read_to_string(&mut said)?;
    Ok(said)
}

/// Long enough for an answer on this machine, however busy it is.
const ANSWER: Duration = Duration::from_secs(5);

fn any(like: SocketAddr) -> SocketAddr {
    if like.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0u16; 8], 0).into() }
}

/// An unconnected socket, which sees who answers.
fn udp(to: SocketAddr, length: usize) -> std::io::Result<String> {
    let socket = std::net::UdpSocket::bind(any(to))?;
    socket.set_read_timeout(Some(ANSWER))?;
    let sent: Vec<u8> = (0..length).map(|i| i as u8).collect();
    socket.send_to(&sent, to)?;
    let mut buffer = vec![0; 1 << 16];
    let (length, from) = socket.recv_from(&mut buffer)?;
    Ok(format!("{} {from}", if buffer[..length] == sent[..] { "same" } else { "other" }))
}

/// A connected socket learns of errors.
fn udp_connected(to: SocketAddr) -> String {
    let exchange = || {
        let socket = std::net::UdpSocket::bind(any(to))?;
        socket.set_read_timeout(Some(ANSWER))?;
        socket.connect(to)?;
        socket.send(b"x")?;
        socket.recv(&mut [0; 8])
    };
    name(exchange())
}

/// As ping does without capabilities; the port is the sequence number.
fn ping(to: SocketAddr) -> std::io::Result<String> {
    use socket2::{Domain, Protocol, Socket, Type};
    let (domain, protocol, kind) = match to {
        SocketAddr::V4(_) => (Domain::IPV4, Protocol::ICMPV4, 8),
        SocketAddr::V6(_) => (Domain::IPV6, Protocol::ICMPV6, 128),
    };
    let socket = Socket::new(domain, Type::DGRAM, Some(protocol))?;
    socket.set_read_timeout(Some(ANSWER))?;
    let [high, low] = to.port().to_be_bytes();
    socket.send_to(&[kind, 0, 0, 0, 0, 0, high, low, b'h', b'i'], &SocketAddr::new(to.ip(), 0).into())?;
    let mut buffer = [0; 64];
    let length = (&socket).read(&mut buffer)?;
    Ok(format!("{} {} {:?}", buffer[0], u16::from_be_bytes([buffer[6], buffer[7]]), &buffer[8..length]))
}
