//! The reading side of a link: cuts what comes into frames and passes it on.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, BytesMut};
use rustix::net::SendFlags;
use tokio::io::AsyncRead;
use tokio::net::TcpStream;

use crate::frame::{HEADER_LEN, Header, Kind, Reset};
use crate::mux::{LinkId, ProtocolError};

use super::patience::Carried;
use super::{LinkEnd, Shared};

/// What is read before it is passed on, and before other tasks of the thread have their turn.
const READ: usize = 64 << 10;

/// What a read came to.
pub(super) enum Read {
    /// Everything that was there, and whose data it brought; the task is woken when more comes.
    All(Carried),
    Part,
}

pub(super) struct Reader<'a, C> {
    shared: &'a Arc<Shared>,
    link: LinkId,
    buffer: BytesMut,
    /// The DATA frame that is being read: what is still to come of it.
    data: Option<Header>,
    /// How the pipe ended, until what came before is passed on.
    failed: Option<io::Error>,
    /// Taken when the HELLO came.
    check: Option<C>,
}

impl<'a, C> Reader<'a, C>
where
    C: FnOnce(&[u8]) -> Result<(), String>,
{
    pub(super) fn new(shared: &'a Arc<Shared>, link: LinkId, check: C) -> Self {
        Reader { shared, link, buffer: BytesMut::new(), data: None, failed: None, check: Some(check) }
    }

    /// Reads once and passes on what came.
    pub(super) fn poll<R>(&mut self, io: &mut R, now: Duration, cx: &mut Context<'_>) -> Poll<Result<Read, LinkEnd>>
    where
        R: AsyncRead + Unpin,
    {
        let all = ready!(self.poll_fill(io, cx)).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => LinkEnd::Closed,
            _ => LinkEnd::Failed(error),
        })?;
        let carried = self.pass_on(now)?;
        Poll::Ready(Ok(if all { Read::All(carried) } else { Read::Part }))
    }

    /// Reads what there is, up to about [`READ`], but waits only for the first byte. What came before the end of the pipe
    /// is passed on before the end is told. True: that was all.
    fn poll_fill(&mut self, io: &mut (impl AsyncRead + Unpin), cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        if let Some(error) = self.failed.take() {
            return Poll::Ready(Err(error));
        }
        let before = self.buffer.len();
        self.buffer.reserve(READ);
        while self.buffer.len() - before < READ * 3 / 4 {
            let error = match tokio_util::io::poll_read_buf(Pin::new(&mut *io), cx, &mut self.buffer) {
                Poll::Ready(Ok(0)) => io::ErrorKind::UnexpectedEof.into(),
                Poll::Ready(Ok(_)) => continue,
                Poll::Ready(Err(error)) => error,
                Poll::Pending if self.buffer.len() > before => return Poll::Ready(Ok(true)),
                Poll::Pending => return Poll::Pending,
            };
            if self.buffer.len() == before {
                return Poll::Ready(Err(error));
            }
            self.failed = Some(error);
            break;
        }
        Poll::Ready(Ok(false))
    }

    /// Passes on what is whole, and what there is of data. Returns the DATA data_frames begun.
    fn pass_on(&mut self, now: Duration) -> Result<Carried, LinkEnd> {
        let mut carried = Carried::Nothing;
        loop {
            if let Some(header) = &mut self.data {
                let len = self.buffer.len().min(header.len as usize);
                deliver(self.shared, self.link, header, &self.buffer[..len], now)?;
                self.buffer.advance(len);
                header.len -= len as u32;
                header.offset = header.offset.saturating_add(len as u64);
                if header.len > 0 {
                    return Ok(carried);
                }
                self.data = None;
            }
            let Some(header) = self.buffer.first_chunk::<HEADER_LEN>() else { return Ok(carried) };
            let header = Header::decode(header).map_err(ProtocolError::from)?;
            if header.kind == Kind::Data && self.check.is_none() {
                self.buffer.advance(HEADER_LEN);
                carried = carried.and(header.flow);
                self.data = Some(header).filter(|header| header.len > 0);
                continue;
            }
            let whole = HEADER_LEN + header.len as usize;
            if self.buffer.len() < whole {
                return Ok(carried);
            }
            let frame = self.buffer.split_to(whole);
            self.handle(header, &frame[HEADER_LEN..], now)?;
        }
    }

    fn handle(&mut self, header: Header, payload: &[u8], now: Duration) -> Result<(), LinkEnd> {
        match (header.kind, self.check.take()) {
            (Kind::GoAway, _) => {
                let text = String::from_utf8_lossy(payload).into_owned();
                Err(LinkEnd::GoAway { reason: header.offset, text })
            }
            (Kind::Hello, Some(check)) => check(payload).map_err(LinkEnd::Refused),
            (_, Some(_)) => Err(ProtocolError::Misplaced.into()),
            (_, None) => {
                self.shared.with(|core| core.mux.handle_frame(self.link, header, payload, now))?;
                Ok(())
            }
        }
    }
}

/// Passes bytes of a flow on: straight to its socket if they are next and it takes them, else to its queue.
fn deliver(shared: &Shared, link: LinkId, header: &Header, data: &[u8], now: Duration) -> Result<(), ProtocolError> {
    let id = header.flow;
    let direct = shared.with(|core| -> Result<_, ProtocolError> {
        let Some(skip) = core.mux.handle_data(link, id, header.offset, data, now)? else { return Ok(None) };
        let socket = core.flows.get(&id).and_then(|attached| attached.socket.clone());
        if socket.is_none() {
            core.mux.delivered(id, 0, &data[skip..], now);
        }
        Ok(socket.map(|socket| (socket, &data[skip..])))
    })?;
    if let Some((socket, data)) = direct {
        let (written, result) = send(&socket, data);
        shared.with(|core| {
            if result.is_err() {
                core.mux.reset(id, Reset::ResetByPeer);
            }
            core.mux.delivered(id, written, &data[written..], now);
        });
    }
    Ok(())
}

/// Writes what the socket takes. Goes past tokio's idea of readiness, which knows nothing of a socket just accepted;
/// the flow's own future uses that when it comes to waiting.
fn send(socket: &TcpStream, data: &[u8]) -> (usize, io::Result<()>) {
    let mut written = 0;
    while written < data.len() {
        match rustix::net::send(socket, &data[written..], SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
            Ok(sent) => written += sent,
            Err(rustix::io::Errno::AGAIN) => break,
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return (written, Err(error.into())),
        }
    }
    (written, Ok(()))
}
