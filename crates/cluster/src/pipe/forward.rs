//! Rung `forward`: the frames of [`super::websocket`] over an upgraded connection, as a byte pipe.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::io::poll_read_buf;

use super::upgrade::{Request, Upgraded};
use super::websocket::{self, Decoder, Incoming};
use crate::Cluster;
use crate::error::{Error, Right};

/// One message at most, so that neither side holds a link's bytes for long.
const LONGEST: usize = 256 << 10;
/// Room for a read.
const READ: usize = 64 << 10;

const PROTOCOL: &str = "v4.channel.k8s.io";

impl Cluster {
    pub(super) async fn forward(&self, pod: &str, port: u16) -> Result<Forwarded<Upgraded>, Error> {
        use base64::Engine as _;
        let key = base64::engine::general_purpose::STANDARD.encode(rand::random::<[u8; 16]>());
        let request = Request {
            path: format!("/api/v1/namespaces/{}/pods/{pod}/portforward?ports={port}", self.namespace()),
            upgrade: "websocket",
            headers: vec![
                ("Sec-WebSocket-Version", "13".to_owned()),
                ("Sec-WebSocket-Key", key),
                ("Sec-WebSocket-Protocol", PROTOCOL.to_owned()),
            ],
            // From 1.35 on the second is asked for, too.
            right: Right::core("pods/portforward", &["get", "create"]),
        };
        Ok(Forwarded::new(self.upgrade(pod, request).await?))
    }
}

pub(super) struct Forwarded<S> {
    io: S,
    decoder: Decoder,
    /// What came and was not read yet.
    data: Bytes,
    /// Whole frames, and what is left of the first.
    outgoing: BytesMut,
    closing: bool,
}

impl<S> Forwarded<S> {
    fn new(io: S) -> Self {
        Forwarded { io, decoder: Decoder::new(), data: Bytes::new(), outgoing: BytesMut::new(), closing: false }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Forwarded<S> {
    /// Ready when nothing waits to be written.
    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.outgoing.is_empty() {
            match ready!(Pin::new(&mut self.io).poll_write(cx, &self.outgoing))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                n => self.outgoing.advance(n),
            }
        }
        Poll::Ready(Ok(()))
    }

    fn poll_put<'a>(
        &mut self,
        cx: &mut Context<'_>,
        parts: impl Iterator<Item = &'a [u8]> + Clone,
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_drain(cx))?;
        let len = parts.clone().map(<[u8]>::len).sum::<usize>().min(LONGEST);
        let mut left = len;
        let cut = parts.map(|part| {
            let here = &part[..part.len().min(left)];
            left -= here.len();
            here
        });
        websocket::put_data(&mut self.outgoing, len, cut);
        // What does not go now goes with the next write or flush.
        if let Poll::Ready(Err(error)) = self.poll_drain(cx) {
            return Poll::Ready(Err(error));
        }
        Poll::Ready(Ok(len))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Forwarded<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        while this.data.is_empty() {
            match this.decoder.poll().map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))? {
                Some(Incoming::Data(data)) => this.data = data,
                Some(Incoming::Ping(payload)) => {
                    websocket::put_pong(&mut this.outgoing, &payload);
                    if let Poll::Ready(Err(error)) = this.poll_drain(cx) {
                        return Poll::Ready(Err(error));
                    }
                }
                Some(Incoming::End(why)) if why.is_empty() => return Poll::Ready(Ok(())),
                Some(Incoming::End(why)) => return Poll::Ready(Err(io::Error::other(why))),
                None => {
                    this.decoder.buffer().reserve(READ);
                    if ready!(poll_read_buf(Pin::new(&mut this.io), cx, this.decoder.buffer()))? == 0 {
                        return Poll::Ready(this.decoder.reason().map_or(Ok(()), |why| Err(io::Error::other(why))));
                    }
                }
            }
        }
        let n = this.data.len().min(buf.remaining());
        buf.put_slice(&this.data.split_to(n));
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Forwarded<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.get_mut().poll_put(cx, [buf].into_iter())
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.get_mut().poll_put(cx, bufs.iter().map(|buf| &buf[..]))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_drain(cx))?;
        Pin::new(&mut this.io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.closing {
            this.closing = true;
            websocket::put_close(&mut this.outgoing);
        }
        ready!(this.poll_drain(cx))?;
        Pin::new(&mut this.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};

    use super::*;

    #[tokio::test]
    async fn bytes_pass_both_ways_through_a_narrow_pipe_and_a_ping_is_answered() {
        let (near, mut far) = duplex(100);
        let mut pipe = Forwarded::new(near);
        let server = tokio::spawn(async move {
            far.write_all(b"\x82\x03\0\x01\x02\x89\x01p\x82\x04\0abc").await.expect("open");
            let mut sent = Vec::new();
            far.read_to_end(&mut sent).await.expect("open");
            sent
        });
        let mut came = [0; 3];
        pipe.read_exact(&mut came).await.expect("open");
        assert_eq!(&came, b"abc");
        let long = vec![9; 100_000];
        pipe.write_all(&long).await.expect("open");
        pipe.shutdown().await.expect("open");
        let sent = server.await.expect("no panic");
        assert_eq!(sent[..7], *b"\x8a\x81\0\0\0\0p");
        assert_eq!(sent.iter().filter(|byte| **byte == 9).count(), long.len());
        assert!(sent.ends_with(&[0x88, 0x82, 0, 0, 0, 0, 3, 232]));
    }

    #[tokio::test]
    async fn why_the_far_dial_failed_is_the_readers_error() {
        let (near, mut far) = duplex(100);
        let mut pipe = Forwarded::new(near);
        far.write_all(b"\x82\x03\x01\0\0\x82\x03\x01no").await.expect("open");
        drop(far);
        let error = pipe.read(&mut [0]).await.expect_err("refused");
        assert_eq!(error.to_string(), "no");
    }
}
