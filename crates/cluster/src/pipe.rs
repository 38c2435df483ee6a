//! The byte pipes to an agent, one way (rung) each: `direct` to the pod's address, `proxy` and `forward` through the API
//! server. What passes is encrypted end to end by `link::tls`; half-close is not carried: one side's end closes all.

mod forward;
mod upgrade;
mod websocket;

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use crate::Cluster;
use crate::dial::connect_any;
use crate::error::{Error, Kind};
use forward::Forwarded;
use upgrade::Upgraded;

/// A way to carry a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Rung {
    /// TCP to the pod's address, where it can be reached.
    Direct,
    /// An HTTP upgrade through the API server's `pods/NAME:PORT/proxy`.
    Proxy,
    /// `pods/portforward`, through API server, kubelet and container runtime.
    Forward,
}

impl fmt::Display for Rung {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Rung::Direct => "direct",
            Rung::Proxy => "proxy",
            Rung::Forward => "forward",
        })
    }
}

/// Bytes to and from the agent. Vectored writes are passed through.
pub struct Pipe(Way);

enum Way {
    Direct(TcpStream),
    Proxy(Upgraded),
    Forward(Box<Forwarded<Upgraded>>),
}

impl Cluster {
    /// Opens a pipe to the agent's port. `addresses` are the pod's own.
    pub async fn pipe(&self, rung: Rung, pod: &str, addresses: &[IpAddr], port: u16) -> Result<Pipe, Error> {
        Ok(Pipe(match rung {
            Rung::Direct => Way::Direct(direct(pod, addresses, port).await?),
            Rung::Proxy => Way::Proxy(self.proxy(pod, port).await?),
            Rung::Forward => Way::Forward(Box::new(self.forward(pod, port).await?)),
        }))
    }
}

async fn direct(pod: &str, addresses: &[IpAddr], port: u16) -> Result<TcpStream, Error> {
    let addresses: Vec<SocketAddr> = addresses.iter().map(|ip| SocketAddr::new(*ip, port)).collect();
    let connected = connect_any(addresses.into_iter()).await;
    let stream = connected.map_err(|error| {
        Error::new(Kind::Unreachable, format!("this machine does not reach the address of pod {pod}"))
            .because(error)
            .hint("it does only with a route into the pods' network, such as a VPN")
    })?;
    let _ = stream.set_nodelay(true); // fails on a connection that was reset already, which its reader will tell better
    Ok(stream)
}

macro_rules! each_way {
    ($pipe:expr, $io:ident => $call:expr) => {
        match &mut $pipe.get_mut().0 {
            Way::Direct(io) => {
                let $io = Pin::new(io);
                $call
            }
            Way::Proxy(io) => {
                let $io = Pin::new(io);
                $call
            }
            Way::Forward(io) => {
                let $io = Pin::new(io.as_mut());
                $call
            }
        }
    };
}

impl AsyncRead for Pipe {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        each_way!(self, io => io.poll_read(cx, buf))
    }
}

impl AsyncWrite for Pipe {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        each_way!(self, io => io.poll_write(cx, buf))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        each_way!(self, io => io.poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        match &self.0 {
            Way::Direct(io) => io.is_write_vectored(),
            Way::Proxy(io) => io.is_write_vectored(),
            Way::Forward(io) => io.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each_way!(self, io => io.poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each_way!(self, io => io.poll_shutdown(cx))
    }
}
