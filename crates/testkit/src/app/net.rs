//! Small pieces of socket work that std lacks, and threads with small stacks.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread::JoinHandle;
use std::time::Duration;

use socket2::{Domain, SockRef, Socket, Type};

/// Long enough for any path a test has; a blocked test must end by itself.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Listens on `port` for IPv6 and IPv4 alike (IPv4 alone where the machine has no IPv6).
pub fn listen(port: u16) -> io::Result<TcpListener> {
    let socket = bind(port, Type::STREAM)?;
    socket.listen(4096)?;
    Ok(socket.into())
}

/// The same for datagrams.
pub fn bind_udp(port: u16) -> io::Result<UdpSocket> {
    bind(port, Type::DGRAM).map(UdpSocket::from)
}

fn bind(port: u16, kind: Type) -> io::Result<Socket> {
    let bind = |domain, any: IpAddr| -> io::Result<Socket> {
        let socket = Socket::new(domain, kind, None)?;
        socket.set_reuse_address(kind == Type::STREAM)?;
        if domain == Domain::IPV6 {
            socket.set_only_v6(false)?;
        }
        socket.bind(&SocketAddr::new(any, port).into())?;
        Ok(socket)
    };
    bind(Domain::IPV6, Ipv6Addr::UNSPECIFIED.into()).or_else(|_| bind(Domain::IPV4, Ipv4Addr::UNSPECIFIED.into()))
}

/// Connects with Nagle off.
pub fn connect(to: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(to)?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Connects, with limits on every later read and write, so that a hang becomes an error.
pub fn connect_patiently(to: SocketAddr) -> io::Result<TcpStream> {
    let stream = connect(to)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// It is going to be closed with a RST instead of a FIN.
pub fn reset(stream: &TcpStream) -> io::Result<()> {
    SockRef::from(stream).set_linger(Some(Duration::ZERO))
}

/// A thread with a stack small enough to have thousands.
pub fn spawn<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> io::Result<JoinHandle<T>> {
    std::thread::Builder::new().stack_size(128 << 10).spawn(work)
}

/// The name of an error's errno (`ECONNREFUSED`), as programs report it.
pub fn errno_name(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::ECONNREFUSED) => "ECONNREFUSED".into(),
        Some(libc::ECONNRESET) => "ECONNRESET".into(),
        Some(libc::EHOSTUNREACH) => "EHOSTUNREACH".into(),
        Some(libc::ENETUNREACH) => "ENETUNREACH".into(),
        Some(libc::ETIMEDOUT) => "ETIMEDOUT".into(),
        Some(libc::EPIPE) => "EPIPE".into(),
        Some(libc::EAGAIN) => "EAGAIN".into(),
        Some(libc::EADDRNOTAVAIL) => "EADDRNOTAVAIL".into(),
        Some(other) => format!("errno {other}"),
        None => format!("{:?}", error.kind()),
    }
}
