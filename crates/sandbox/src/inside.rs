//! Connections into the sandbox. A socket belongs to the network it was made in, and only the guard is in there: it makes
//! sockets for the client, which connects them itself.
//!
//! One datagram asks for sockets of a family, one answers with some of them: a stock, so that most connections wait for
//! no answer.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::Mutex;

use crate::message::{self, DESCRIPTORS};
use crate::setup::MARK_INWARD;
use crate::sys;

/// Connects to what listens in the sandbox. Cheap to clone.
#[derive(Clone)]
pub struct Inside(Arc<Factory>);

struct Factory {
    guard: AsyncFd<OwnedFd>,
    /// Of IPv4 and IPv6. Locked while an answer is awaited, so that answers need no names.
    stock: Mutex<[Vec<OwnedFd>; 2]>,
}

impl Inside {
    pub(crate) fn new(guard: OwnedFd) -> io::Result<Inside> {
        rustix::io::ioctl_fionbio(&guard, true)?;
        Ok(Inside(Arc::new(Factory { guard: sys::async_readable(guard)?, stock: Mutex::default() })))
    }

    /// Connects as a program inside would.
    pub async fn connect(&self, to: SocketAddr) -> io::Result<TcpStream> {
        let socket = self.0.socket(to.is_ipv6()).await?;
        TcpSocket::from_std_stream(socket.into()).connect(to).await
    }
}

impl Factory {
    async fn socket(&self, v6: bool) -> io::Result<OwnedFd> {
        let stock = &mut self.stock.lock().await[usize::from(v6)];
        if stock.is_empty() {
            message::send(self.guard.get_ref().as_fd(), &[u8::from(v6)], &[])?;
            let received = self.guard.async_io(Interest::READABLE, |guard| message::receive(guard.as_fd())).await?;
            let (errno, sockets) = received.ok_or(io::ErrorKind::BrokenPipe)?;
            if sockets.is_empty() {
                let errno = errno.first_chunk().map_or(libc::EIO, |bytes| i32::from_ne_bytes(*bytes));
                return Err(io::Error::from_raw_os_error(errno));
            }
            stock.extend(sockets);
        }
        stock.pop().ok_or_else(|| io::ErrorKind::BrokenPipe.into())
    }
}

/// The guard's part: answers one question; false when nobody will ask again.
pub(crate) fn serve(client: BorrowedFd) -> bool {
    let Ok(Some((question, _))) = message::receive(client) else { return false };
    let v6 = question.first().is_some_and(|family| *family != 0);
    let sockets: io::Result<Vec<OwnedFd>> = (0..DESCRIPTORS).map(|_| socket(v6)).collect();
    let sent = match &sockets {
        Ok(sockets) => {
            let sockets: Vec<BorrowedFd> = sockets.iter().map(AsFd::as_fd).collect();
            message::send(client, &0i32.to_ne_bytes(), &sockets)
        }
        Err(error) => message::send(client, &error.raw_os_error().unwrap_or(libc::EIO).to_ne_bytes(), &[]),
    };
    sent.is_ok()
}

fn socket(v6: bool) -> io::Result<OwnedFd> {
    let domain = if v6 { Domain::IPV6 } else { Domain::IPV4 };
    let socket = Socket::new(domain, Type::STREAM, Some(Protocol::TCP))?;
    // Its SYN is not one of the command's, which would go out to the client.
    socket.set_mark(MARK_INWARD)?;
    socket.set_tcp_nodelay(true)?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}
