//! Reads the client's HELLO before the link is run, since it names the session and the link; then gives the bytes back.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf, Bytes};
use link::frame::{HEADER_LEN, Header, Kind};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf};
use wire::Hello;

/// A HELLO has some 40 bytes; later releases may say more.
const LONGEST: u32 = 4096;

/// Reads the first frame, which must be a HELLO. The link's reader sees it again.
pub(crate) async fn greet<S: AsyncRead + Unpin>(mut io: S) -> io::Result<(Replayed<S>, Hello)> {
    let malformed = || io::Error::new(io::ErrorKind::InvalidData, "the link does not begin with a HELLO");
    let mut head = [0; HEADER_LEN];
    io.read_exact(&mut head).await?;
    let header = Header::decode(&head).map_err(io::Error::other)?;
    if header.kind != Kind::Hello || header.len > LONGEST {
        return Err(malformed());
    }
    let mut frame = head.to_vec();
    frame.resize(HEADER_LEN + header.len as usize, 0);
    io.read_exact(&mut frame[HEADER_LEN..]).await?;
    let hello = Hello::from_bytes(&frame[HEADER_LEN..]).ok_or_else(malformed)?;
    Ok((Replayed { first: frame.into(), io }, hello))
}

/// A stream whose first bytes were read already.
#[derive(Debug)]
pub(crate) struct Replayed<S> {
    first: Bytes,
    io: S,
}

impl<S: AsyncRead + Unpin> AsyncRead for Replayed<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.first.is_empty() {
            return Pin::new(&mut this.io).poll_read(cx, buf);
        }
        let len = this.first.len().min(buf.remaining());
        buf.put_slice(&this.first[..len]);
        this.first.advance(len);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Replayed<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().io).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().io).poll_write_vectored(cx, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use link::FlowId;

    use super::*;

    fn frame(kind: Kind, payload: &[u8]) -> Vec<u8> {
        let header = Header::new(FlowId::CONTROL, kind, payload.len() as u32, 0);
        [&header.encode(), payload].concat()
    }

    #[tokio::test]
    async fn a_hello_is_read_and_given_back() {
        let hello = Hello { protocol: 1, release: "0.1.0".into(), session: vec![7; 16], link: 3, shared_way: false };
        let bytes = [frame(Kind::Hello, &hello.to_bytes()), b"after".to_vec()].concat();
        let (mut replayed, read) = greet(bytes.as_slice()).await.expect("a hello");
        assert_eq!(read, hello);
        let mut again = Vec::new();
        replayed.read_to_end(&mut again).await.expect("readable");
        assert_eq!(again, bytes);
    }

    #[tokio::test]
    async fn what_is_no_hello_is_refused() {
        let long = frame(Kind::Hello, &[0; 4097]);
        for bytes in [&b"short"[..], &frame(Kind::Ping, b""), &frame(Kind::Hello, b"\xff"), &long, &[0x7f; 16]] {
            greet(bytes).await.expect_err("refused");
        }
    }
}
