//! Records of datagrams over a byte stream, both ways in one task.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use wire::Datagram;

/// Bytes that may wait for a stream that takes no more; what comes then is lost, as it would be in a full queue of a router.
const WAITING: usize = 512 << 10;
const READ: usize = 64 << 10;

pub struct Records<S> {
    stream: S,
    incoming: BytesMut,
    outgoing: BytesMut,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Records<S> {
    pub fn new(stream: S) -> Self {
        Records { stream, incoming: BytesMut::new(), outgoing: BytesMut::new() }
    }

    /// Queues a datagram, or loses it where too much waits. It goes out while [`Records::next`] is polled.
    pub fn send(&mut self, datagram: &Datagram) {
        if self.outgoing.len() < WAITING {
            datagram.put(&mut self.outgoing);
        }
    }

    /// The next datagram of the other side; `None` when it has finished. Sends meanwhile what is queued. Can be dropped and
    /// called again without a loss.
    pub async fn next(&mut self) -> io::Result<Option<Datagram>> {
        std::future::poll_fn(|cx| self.poll_next(cx)).await
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Option<Datagram>>> {
        if let Poll::Ready(Err(error)) = self.poll_send(cx) {
            return Poll::Ready(Err(error));
        }
        loop {
            match Datagram::take(&mut self.incoming) {
                Ok(Some(datagram)) => return Poll::Ready(Ok(Some(datagram))),
                Ok(None) => {}
                Err(wire::Malformed) => return Poll::Ready(Err(io::ErrorKind::InvalidData.into())),
            }
            let before = self.incoming.len();
            self.incoming.resize(before + READ, 0);
            let mut buffer = ReadBuf::new(&mut self.incoming[before..]);
            let read = Pin::new(&mut self.stream).poll_read(cx, &mut buffer);
            let length = buffer.filled().len();
            self.incoming.truncate(before + length);
            ready!(read)?;
            if length == 0 {
                return Poll::Ready(Ok(None));
            }
        }
    }

    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.outgoing.is_empty() {
            match ready!(Pin::new(&mut self.stream).poll_write(cx, &self.outgoing))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                written => self.outgoing.advance(written),
            }
        }
        Pin::new(&mut self.stream).poll_flush(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use bytes::Bytes;
    use wire::Delivery;

    use super::*;

    fn datagram(length: usize) -> Datagram {
        let peer: SocketAddr = "10.0.0.1:53".parse().expect("a literal");
        Datagram { peer, what: Delivery::Payload(Bytes::from(vec![1; length])) }
    }

    #[tokio::test]
    async fn datagrams_pass_both_ways_through_a_narrow_stream() {
        let (near, far) = tokio::io::duplex(100);
        let (mut near, mut far) = (Records::new(near), Records::new(far));
        for length in [0, 1, 3000] {
            near.send(&datagram(length));
        }
        far.send(&datagram(7));
        let far = tokio::spawn(async move {
            let mut lengths = Vec::new();
            while let Some(Datagram { what: Delivery::Payload(payload), .. }) = far.next().await.expect("well formed") {
                lengths.push(payload.len());
            }
            lengths
        });
        assert_eq!(near.next().await.expect("well formed"), Some(datagram(7)));
        while !near.outgoing.is_empty() {
            std::future::poll_fn(|cx| near.poll_send(cx)).await.expect("written");
        }
        drop(near);
        assert_eq!(far.await.expect("ended"), [0, 1, 3000]);
    }

    #[tokio::test]
    async fn what_a_stream_does_not_take_is_lost_beyond_a_limit() {
        let (near, _far) = tokio::io::duplex(1);
        let mut near = Records::new(near);
        for _ in 0..1000 {
            near.send(&datagram(1000));
        }
        assert!(near.outgoing.len() < WAITING + 2000, "{}", near.outgoing.len());
    }
}
