//! Connections that lead outside the cluster: dialled by this machine as the command itself would, and joined to it.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd as _;
use std::time::Duration;

use ipnet::IpNet;
use tokio::net::TcpStream;

/// Bytes moved at once; a quarter of a window, so that one copy keeps the socket busy.
const CHUNK: usize = 64 << 10;

/// Networks this machine is attached to, loopback apart.
pub(crate) fn on_link() -> Vec<IpNet> {
    let Ok(interfaces) = nix::ifaddrs::getifaddrs() else { return Vec::new() };
    interfaces
        .filter_map(|i| {
            let (address, mask) = (ip(i.address?)?, ip(i.netmask?)?);
            if address.is_loopback() { None } else { IpNet::with_netmask(address, mask).ok() }
        })
        .map(|net| net.trunc())
        .collect()
}

fn ip(storage: nix::sys::socket::SockaddrStorage) -> Option<IpAddr> {
    let v4 = storage.as_sockaddr_in().map(|a| IpAddr::V4(a.ip()));
    v4.or_else(|| storage.as_sockaddr_in6().map(|a| IpAddr::V6(a.ip())))
}

pub(crate) async fn dial(to: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(to).await?;
    // Fails on a connection that was reset already, which its reader will tell better.
    let _ = stream.set_nodelay(true);
    Ok(stream)
}

/// Joins two connections until both directions ended. An end of one direction is passed on as such, a reset as a reset.
pub(crate) async fn join(command: TcpStream, far: TcpStream) {
    let joined = tokio::try_join!(pass(&command, &far), pass(&far, &command));
    if joined.is_err() {
        reset(command);
        reset(far);
    } else {
        // The sandbox set it, so that a client that dies in the middle gives a reset, not an early end.
        let _ = socket2::SockRef::from(&command).set_linger(None);
    }
}

async fn pass(from: &TcpStream, to: &TcpStream) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK];
    loop {
        from.readable().await?;
        let read = match from.try_read(&mut buffer) {
            Ok(0) => return Ok(rustix::net::shutdown(to.as_fd(), rustix::net::Shutdown::Write)?),
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            Err(error) => return Err(error),
        };
        let mut rest = &buffer[..read];
        while !rest.is_empty() {
            match to.try_write(rest) {
                Ok(written) => rest = &rest[written..],
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => to.writable().await?,
                Err(error) => return Err(error),
            }
        }
    }
}

/// Closes so that the other side sees a reset.
pub(crate) fn reset(stream: TcpStream) {
    let _ = socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO));
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;

    /// Two joined connections: (the command's own end, the far program's own end).
    async fn joined() -> (TcpStream, TcpStream, tokio::task::JoinHandle<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
        let address = listener.local_addr().expect("bound");
        let command = dial(address).await.expect("listening");
        let (command_far, _) = listener.accept().await.expect("connected");
        let far_near = dial(address).await.expect("listening");
        let (far, _) = listener.accept().await.expect("connected");
        (command, far, tokio::spawn(join(command_far, far_near)))
    }

    #[tokio::test]
    async fn a_half_close_stays_a_half_close() {
        let (mut command, mut far, join) = joined().await;
        command.write_all(b"question").await.expect("open");
        command.shutdown().await.expect("open");
        let mut question = Vec::new();
        far.read_to_end(&mut question).await.expect("ended, not reset");
        far.write_all(b"answer").await.expect("still open this way");
        drop(far);
        let mut answer = Vec::new();
        command.read_to_end(&mut answer).await.expect("ended, not reset");
        assert_eq!((question.as_slice(), answer.as_slice()), (&b"question"[..], &b"answer"[..]));
        join.await.expect("no panic");
    }

    #[tokio::test]
    async fn a_reset_stays_a_reset() {
        let (command, mut far, join) = joined().await;
        reset(command);
        let error = far.read(&mut [0; 1]).await.expect_err("reset");
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        join.await.expect("no panic");
    }
}
