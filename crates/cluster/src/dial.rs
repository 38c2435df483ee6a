//! One connection to the API server: name, TCP, TLS. Used by the pool of API requests and by the byte pipes.
//!
//! Names are resolved by `dns::lookup`, never by `getaddrinfo`, which a static binary must not call. A proxy in front of
//! the API server (`proxy-url`, HTTPS_PROXY) is not used yet: the direct way is tried, and the error says so.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use hyper_util::client::legacy::connect::{Connected, Connection};
use kube::Config;
use kube::client::ConfigExt;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, BufReader, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::error::{Error, Kind};

/// From the name to the end of the TLS handshake.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// How long one address may be silent before the next is tried beside it (RFC 8305 section 8).
const NEXT_ADDRESS: Duration = Duration::from_millis(250);

/// How to reach the API server. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Dialer {
    server: Arc<Server>,
}

struct Server {
    host: String,
    port: u16,
    /// `None` for a plain `http` server (`kubectl proxy`).
    tls: Option<(Arc<ClientConfig>, ServerName<'static>)>,
    /// A proxy that the user configured and that is not used, for the error.
    proxy: Option<String>,
}

impl Dialer {
    /// May run the kubeconfig's exec plugin, and so block.
    pub(crate) fn new(config: &Config) -> Result<Self, Error> {
        let unusable = |why: String| {
            Error::new(Kind::Kubeconfig, "the kubeconfig's cluster entry cannot be used")
                .because(why)
                .hint("check server, certificate-authority and tls-server-name of its cluster")
        };
        let url = &config.cluster_url;
        let host = url.host().ok_or_else(|| unusable(format!("{url} names no host")))?;
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let encrypted = match url.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => return Err(unusable(format!("{url} is neither https nor http"))),
        };
        let port = url.port_u16().unwrap_or(if encrypted { 443 } else { 80 });
        let tls = if encrypted {
            let mut tls = config
                .rustls_client_config()
                .map_err(|error| Error::known(&error).unwrap_or_else(|| unusable(crate::error::root_cause(&error))))?;
            tls.alpn_protocols = vec![b"http/1.1".to_vec()];
            let name = config.tls_server_name.clone().unwrap_or_else(|| host.clone());
            let name = ServerName::try_from(name).map_err(|error| unusable(error.to_string()))?;
            Some((Arc::new(tls), name))
        } else {
            None
        };
        let proxy = config.proxy_url.as_ref().map(ToString::to_string);
        Ok(Dialer { server: Arc::new(Server { host, port, tls, proxy }) })
    }

    /// Connects with the given read buffer under TLS, in bytes; large ones save system calls on bulk pipes.
    pub(crate) async fn dial(&self, buffer: usize) -> Result<Stream, DialError> {
        match timeout(CONNECT_TIMEOUT, self.dial_inner(buffer)).await {
            Ok(result) => result.map_err(|why| self.failed(why)),
            Err(_) => Err(self.failed(Why::TimedOut)),
        }
    }

    async fn dial_inner(&self, buffer: usize) -> Result<Stream, Why> {
        let server = &*self.server;
        let addresses = match server.host.parse::<IpAddr>() {
            Ok(address) => vec![address],
            Err(_) => dns::lookup(&server.host).await.map_err(Why::Name)?,
        };
        let tcp =
            connect_any(addresses.into_iter().map(|ip| SocketAddr::new(ip, server.port))).await.map_err(Why::Tcp)?;
        tcp.set_nodelay(true).map_err(Why::Tcp)?;
        let tcp = BufReader::with_capacity(buffer, tcp);
        let Some((tls, name)) = &server.tls else {
            return Ok(Stream::Plain(tcp));
        };
        let stream = TlsConnector::from(tls.clone())
            .connect_with(name.clone(), tcp, |session| session.set_buffer_limit(Some(buffer)))
            .await
            .map_err(Why::Tls)?;
        Ok(Stream::Tls(Box::new(stream)))
    }

    fn failed(&self, why: Why) -> DialError {
        let Server { host, port, proxy, .. } = &*self.server;
        DialError { server: format!("{host}:{port}"), proxy: proxy.clone(), why }
    }
}

/// The first of the addresses that answers; each next one joins the race when the one before is slow or failed.
pub(crate) async fn connect_any(addresses: impl Iterator<Item = SocketAddr>) -> io::Result<TcpStream> {
    let mut waiting = addresses.peekable();
    let mut racing = FuturesUnordered::new();
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    loop {
        racing.extend(waiting.next().map(TcpStream::connect));
        let step = match waiting.peek() {
            Some(_) => timeout(NEXT_ADDRESS, racing.next()).await,
            None => Ok(racing.next().await),
        };
        match step {
            Ok(Some(Ok(stream))) => return Ok(stream),
            Ok(Some(Err(error))) => last = error,
            Ok(None) => return Err(last),
            Err(_) => {}
        }
    }
}

/// Why the API server could not be reached.
#[derive(Debug, thiserror::Error)]
#[error("cannot connect to {server}: {why}")]
pub(crate) struct DialError {
    server: String,
    proxy: Option<String>,
    why: Why,
}

#[derive(Debug, thiserror::Error)]
enum Why {
    #[error("its name cannot be resolved: {0}")]
    Name(io::Error),
    #[error("{0}")]
    Tcp(io::Error),
    #[error("TLS: {0}")]
    Tls(io::Error),
    #[error("no answer within {} s", CONNECT_TIMEOUT.as_secs())]
    TimedOut,
}

impl DialError {
    pub(crate) fn to_error(&self) -> Error {
        if let Why::Tls(error) = &self.why
            && let Some(rustls) = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>())
            && let rustls::Error::InvalidCertificate(_) | rustls::Error::AlertReceived(_) = rustls
        {
            let message = match rustls {
                rustls::Error::InvalidCertificate(_) => "the API server's certificate is not trusted",
                _ => "the API server refused the TLS handshake",
            };
            return Error::new(Kind::Kubeconfig, message)
                .because(format!("{}: {rustls}", self.server))
                .hint("check certificate-authority, tls-server-name and client certificate of this context");
        }
        let hint = match &self.proxy {
            Some(proxy) => format!(
                "the proxy {proxy} is configured, and this release connects directly only: the API server must be \
                 reachable without it"
            ),
            None => {
                "check that the cluster runs and that VPN or network are up; `kubectl version` asks the same server"
                    .to_owned()
            }
        };
        Error::new(Kind::Unreachable, format!("the API server {} cannot be reached", self.server))
            .because(&self.why)
            .hint(hint)
    }
}

/// A connection to the API server.
pub(crate) enum Stream {
    Plain(BufReader<TcpStream>),
    Tls(Box<TlsStream<BufReader<TcpStream>>>),
}

impl Connection for Stream {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Plain(io) => Pin::new(io).poll_read(cx, buf),
            Stream::Tls(io) => Pin::new(io).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Stream::Plain(io) => Pin::new(io).poll_write(cx, buf),
            Stream::Tls(io) => Pin::new(io).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Stream::Plain(io) => Pin::new(io).poll_write_vectored(cx, bufs),
            Stream::Tls(io) => Pin::new(io).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Stream::Plain(io) => io.is_write_vectored(),
            Stream::Tls(io) => io.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Plain(io) => Pin::new(io).poll_flush(cx),
            Stream::Tls(io) => Pin::new(io).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Plain(io) => Pin::new(io).poll_shutdown(cx),
            Stream::Tls(io) => Pin::new(io).poll_shutdown(cx),
        }
    }
}
