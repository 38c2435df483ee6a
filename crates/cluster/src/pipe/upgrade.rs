//! An HTTP upgrade through the API server, which then copies bytes: rung `proxy` as it is, and what `forward` is made of.
//!
//! It has a connection of its own, apart from the pool of API requests: buffers of 256 KiB cost the least CPU per byte
//! (0.7 s/GB less than 64 KiB).

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use http::{HeaderMap, Uri, header};
use kube::core::Status;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::time::timeout;

use crate::Cluster;
use crate::dial::Stream;
use crate::error::{Error, Kind, Right};

/// Under TLS and in rustls, bytes.
const BUFFER: usize = 256 << 10;

/// From the request to the whole head of the answer. The API server itself gives up on a silent pod after 30 s.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(35);

/// Head of an answer; the API server's and the agent's are below 1 KiB.
const HEAD_LIMIT: usize = 16 << 10;

/// Body of a refusal, kept for its message.
const BODY_LIMIT: usize = 16 << 10;

/// The token of the upgrade (docs/decisions/0001-wire.md).
const PROTOCOL: &str = "stead-1";

/// An upgraded connection. Vectored writes are passed through to TLS.
pub(super) struct Upgraded {
    /// What came behind the head of the answer.
    early: Bytes,
    io: Stream,
}

/// What is asked of the API server.
pub(super) struct Request {
    pub(super) path: String,
    /// The protocol's name.
    pub(super) upgrade: &'static str,
    /// Beside those of the credentials.
    pub(super) headers: Vec<(&'static str, String)>,
    /// What it needs.
    pub(super) right: Right,
}

impl Cluster {
    pub(super) async fn proxy(&self, pod: &str, port: u16) -> Result<Upgraded, Error> {
        let request = Request {
            path: format!("/api/v1/namespaces/{}/pods/{pod}:{port}/proxy/stead", self.namespace()),
            upgrade: PROTOCOL,
            headers: Vec::new(),
            right: Right::core("pods/proxy", &["get"]),
        };
        self.upgrade(pod, request).await
    }

    pub(super) async fn upgrade(&self, pod: &str, request: Request) -> Result<Upgraded, Error> {
        let ((uri, headers), mut io) = tokio::try_join!(self.head(&request.path), self.dial(BUFFER))?;
        let lost = |error: io::Error| {
            Error::new(Kind::Io, "the API server closed the connection before the pipe was open")
                .because(error)
                .hint("try again; `kubectl get --raw /readyz` shows whether the API server is well")
        };
        io.write_all(&head_of(&uri, &headers, &request)).await.map_err(lost)?;
        io.flush().await.map_err(lost)?;
        let answer = timeout(ANSWER_TIMEOUT, read_head(&mut io)).await.map_err(|_| {
            Error::new(
                Kind::TimedOut,
                format!("no answer to the pipe to pod {pod} within {} s", ANSWER_TIMEOUT.as_secs()),
            )
            .hint("the API server may not reach pod addresses; ask the cluster's admin")
        })?;
        let (head, mut rest) = answer.map_err(lost)?;
        if head.status == 101 {
            return Ok(Upgraded { early: rest.freeze(), io });
        }
        read_body(&mut io, &head, &mut rest).await;
        if head.status == 401 {
            self.renew().await;
        }
        Err(refusal(head.status, &rest, pod, request.right))
    }
}

fn head_of(uri: &Uri, headers: &HeaderMap, request: &Request) -> Vec<u8> {
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    let authority = uri.authority().map_or("", |authority| authority.as_str());
    let mut head = format!(
        "GET {path} HTTP/1.1\r\nHost: {authority}\r\nConnection: Upgrade\r\nUpgrade: {}\r\nUser-Agent: stead/{}\r\n",
        request.upgrade,
        crate::RELEASE
    )
    .into_bytes();
    let mut put = |name: &str, value: &[u8]| {
        head.extend_from_slice(&[name.as_bytes(), b": ", value, b"\r\n"].concat());
    };
    request.headers.iter().for_each(|(name, value)| put(name, value.as_bytes()));
    for (name, value) in headers {
        if name == header::HOST || name == header::CONNECTION || name == header::UPGRADE {
            continue;
        }
        put(name.as_str(), value.as_bytes());
    }
    head.extend_from_slice(b"\r\n");
    head
}

#[derive(Debug, PartialEq)]
struct Head {
    status: u16,
    body: Body,
}

#[derive(Debug, PartialEq)]
enum Body {
    Length(usize),
    /// Chunked, or until the end of the connection.
    Open,
}

async fn read_head(io: &mut Stream) -> io::Result<(Head, BytesMut)> {
    let mut buffer = BytesMut::with_capacity(HEAD_LIMIT);
    loop {
        if let Some((head, len)) = parse_head(&buffer)? {
            buffer.advance(len);
            return Ok((head, buffer));
        }
        if buffer.len() >= HEAD_LIMIT {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the head of the answer is too long"));
        }
        if io.read_buf(&mut buffer).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}

/// The head and its length, its empty line included; `None` until it is whole.
fn parse_head(bytes: &[u8]) -> io::Result<Option<(Head, usize)>> {
    let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") else {
        return Ok(None);
    };
    let malformed = || io::Error::new(io::ErrorKind::InvalidData, "the answer is not HTTP/1.1");
    let text = std::str::from_utf8(&bytes[..end]).map_err(|_| malformed())?;
    let mut lines = text.split("\r\n");
    let status_line = lines.next().unwrap_or_default();
    let status = status_line.strip_prefix("HTTP/1.").and_then(|rest| rest.get(2..5)).and_then(|code| code.parse().ok());
    let length = lines
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
        .and_then(|(_, value)| value.trim().parse().ok());
    let body = length.map_or(Body::Open, Body::Length);
    Ok(Some((Head { status: status.ok_or_else(malformed)?, body }, end + 4)))
}

/// Reads what is worth reading of a refusal; a body that does not end is cut.
async fn read_body(io: &mut Stream, head: &Head, body: &mut BytesMut) {
    let wanted = match head.body {
        Body::Length(length) => length.min(BODY_LIMIT),
        Body::Open => BODY_LIMIT,
    };
    let reading = async { while body.len() < wanted && io.read_buf(body).await.is_ok_and(|n| n > 0) {} };
    // A keep-alive connection with a chunked body stays open: a second is ample for what was sent with the head.
    let _ = timeout(Duration::from_secs(1), reading).await;
    body.truncate(wanted);
}

fn refusal(code: u16, body: &[u8], pod: &str, right: Right) -> Error {
    let message = match serde_json::from_slice::<Status>(body) {
        Ok(status) if !status.message.is_empty() => status.message,
        _ => String::from_utf8_lossy(body).trim().chars().take(300).collect(),
    };
    let doing = format!("open a pipe to the agent in pod {pod}");
    let gone = || {
        Error::new(Kind::AgentStart, format!("the agent in pod {pod} is gone"))
            .hint("run the command again: another agent is placed")
    };
    match code {
        401 | 403 => {
            let status = Status::failure(&message, "").with_code(code);
            Error::from_status(&status, doing, right)
        }
        404 => gone().because(message),
        _ if message.contains("connection refused") || message.contains("connection reset") => gone().because(message),
        500..=599 => Error::new(Kind::Unreachable, format!("the API server cannot reach pod {pod}"))
            .because(if message.is_empty() { format!("HTTP status {code}") } else { message })
            .hint(
                "it must reach pod addresses for this rung: a network policy, a firewall between control plane and \
                 nodes, or an egress proxy may be in between",
            ),
        _ => Error::new(Kind::Protocol, format!("cannot {doing}"))
            .because(format!("HTTP status {code} instead of 101 {message}")),
    }
}

impl AsyncRead for Upgraded {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.early.is_empty() {
            return Pin::new(&mut self.io).poll_read(cx, buf);
        }
        let n = self.early.len().min(buf.remaining());
        buf.put_slice(&self.early.split_to(n));
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Upgraded {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests;
