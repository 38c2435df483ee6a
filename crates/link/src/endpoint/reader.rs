//! A link's own future: reads frames and passes them on, keeps time, and writes on when the pipe was blocked.

use std::future::{Future, poll_fn};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use rustix::net::SendFlags;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep};

use crate::frame::{FlowId, HEADER_LEN, Header, Kind};
use crate::mux::ProtocolError;

use super::pipe::Pipe;
use super::{After, LinkEnd, Reset, Shared};

/// What is read before it is passed on.
const READ: usize = 256 << 10;
/// Reads in one go, before other tasks of the thread have their turn: some milliseconds.
const TURNS: usize = 16;
/// How long a GOAWAY may take to go out.
const GOODBYE: Duration = Duration::from_secs(1);

/// GOAWAY's reasons.
const BROKEN_PROTOCOL: u64 = 1;
const REFUSED: u64 = 2;

pub(super) async fn run<S>(
    shared: &Arc<Shared>,
    number: u32,
    io: S,
    hello: Bytes,
    check: impl FnOnce(&[u8]) -> Result<(), String>,
) -> LinkEnd
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (read, write) = tokio::io::split(io);
    let Some(link) = Link::new(shared, number, write, hello) else { return LinkEnd::NumberTaken };
    let mut reader =
        Reader { link: &link, io: read, buffer: BytesMut::new(), data: None, failed: None, check: Some(check) };
    let mut sleep = std::pin::pin!(tokio::time::sleep(Duration::ZERO));
    let end = poll_fn(|cx| {
        link.pipe.task.register(cx.waker());
        link.poll_time(sleep.as_mut(), cx);
        link.pipe.drain(shared);
        // What the other side said last tells more than that it does not listen any more.
        match reader.poll(cx) {
            Poll::Pending => link.pipe.take_end().map_or(Poll::Pending, Poll::Ready),
            ended => ended,
        }
    })
    .await;
    match &end {
        LinkEnd::Protocol(error) => link.say_goodbye(BROKEN_PROTOCOL, &error.to_string()).await,
        LinkEnd::Refused(text) => link.say_goodbye(REFUSED, text).await,
        _ => {}
    }
    tracing::debug!(link = number, %end, "link ended");
    end
}

/// A link known to the mux; dropping it takes it away again.
struct Link<'a> {
    shared: &'a Arc<Shared>,
    pipe: Arc<Pipe>,
}

impl<'a> Link<'a> {
    fn new(
        shared: &'a Arc<Shared>,
        number: u32,
        write: impl AsyncWrite + Send + 'static,
        hello: Bytes,
    ) -> Option<Self> {
        let pipe = shared.with(|core, now| {
            let id = core.mux.link_up(number, now)?;
            let pipe = Arc::new(Pipe::new(id, write, hello));
            if core.links.len() <= id.index() {
                core.links.resize(id.index() + 1, None);
            }
            core.links[id.index()] = Some(pipe.clone());
            Some(pipe)
        })?;
        shared.live.send_modify(|live| *live += 1);
        Some(Link { shared, pipe })
    }

    fn poll_time(&self, mut sleep: Pin<&mut Sleep>, cx: &mut Context<'_>) {
        while sleep.as_mut().poll(cx).is_ready() {
            let next = self.shared.with(|core, now| {
                core.mux.handle_timeout(now);
                core.mux.poll_timeout()
            });
            let next = next.unwrap_or(self.shared.now() + GOODBYE);
            // Not before a millisecond has passed, whatever the mux says.
            let at = self.shared.started + next.max(self.shared.now() + Duration::from_millis(1));
            sleep.as_mut().reset(Instant::from_std(at));
        }
    }

    async fn say_goodbye(&self, reason: u64, text: &str) {
        self.pipe.say_goodbye(reason, text);
        let through = poll_fn(|cx| {
            self.pipe.task.register(cx.waker());
            self.pipe.drain(self.shared);
            if self.pipe.is_through() { Poll::Ready(()) } else { Poll::Pending }
        });
        // Whether it arrives or not, the link ends.
        let _ = tokio::time::timeout(GOODBYE, through).await;
    }
}

impl Drop for Link<'_> {
    fn drop(&mut self) {
        self.pipe.close();
        self.shared.with(|core, _| {
            core.links[self.pipe.id.index()] = None;
            core.mux.link_lost(self.pipe.id);
        });
        self.shared.live.send_modify(|live| *live -= 1);
    }
}

struct Reader<'a, R, C> {
    link: &'a Link<'a>,
    io: R,
    buffer: BytesMut,
    /// The DATA frame that is being read: what is still to come of it.
    data: Option<Header>,
    /// How the pipe ended, until what came before is passed on.
    failed: Option<io::Error>,
    /// Taken when the HELLO came.
    check: Option<C>,
}

impl<R, C> Reader<'_, R, C>
where
    R: AsyncRead + Unpin,
    C: FnOnce(&[u8]) -> Result<(), String>,
{
    /// Reads and passes on until the pipe has nothing more, or other tasks should have their turn.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<LinkEnd> {
        for _ in 0..TURNS {
            if let Err(error) = ready!(self.poll_fill(cx)) {
                return Poll::Ready(match error.kind() {
                    io::ErrorKind::UnexpectedEof => LinkEnd::Closed,
                    _ => LinkEnd::Failed(error),
                });
            }
            let mut after = After::default();
            let result = self.pass_on(&mut after);
            self.link.shared.finish(after);
            if let Err(end) = result {
                return Poll::Ready(end);
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Reads what there is, up to about [`READ`], but waits only for the first byte. What came before the end of the pipe
    /// is passed on before the end is told.
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let Some(error) = self.failed.take() {
            return Poll::Ready(Err(error));
        }
        let before = self.buffer.len();
        self.buffer.reserve(READ);
        while self.buffer.len() - before < READ * 3 / 4 {
            let error = match tokio_util::io::poll_read_buf(Pin::new(&mut self.io), cx, &mut self.buffer) {
                Poll::Ready(Ok(0)) => io::ErrorKind::UnexpectedEof.into(),
                Poll::Ready(Ok(_)) => continue,
                Poll::Ready(Err(error)) => error,
                Poll::Pending if self.buffer.len() > before => break,
                Poll::Pending => return Poll::Pending,
            };
            if self.buffer.len() == before {
                return Poll::Ready(Err(error));
            }
            self.failed = Some(error);
            break;
        }
        Poll::Ready(Ok(()))
    }

    fn pass_on(&mut self, after: &mut After) -> Result<(), LinkEnd> {
        loop {
            if let Some(header) = &mut self.data {
                let len = self.buffer.len().min(header.len as usize);
                self.link.deliver(header.flow, header.offset, &self.buffer[..len], after)?;
                self.buffer.advance(len);
                header.len -= len as u32;
                header.offset = header.offset.saturating_add(len as u64);
                if header.len > 0 {
                    return Ok(());
                }
                self.data = None;
            }
            let Some(header) = self.buffer.first_chunk::<HEADER_LEN>() else { return Ok(()) };
            let header = Header::decode(header).map_err(ProtocolError::from)?;
            if header.kind == Kind::Data && self.check.is_none() {
                self.buffer.advance(HEADER_LEN);
                self.data = Some(header).filter(|header| header.len > 0);
                continue;
            }
            let whole = HEADER_LEN + header.len as usize;
            if self.buffer.len() < whole {
                return Ok(());
            }
            let frame = self.buffer.split_to(whole);
            self.handle(header, &frame[HEADER_LEN..], after)?;
        }
    }

    fn handle(&mut self, header: Header, payload: &[u8], after: &mut After) -> Result<(), LinkEnd> {
        match (header.kind, self.check.take()) {
            (Kind::GoAway, _) => {
                let text = String::from_utf8_lossy(payload).into_owned();
                Err(LinkEnd::GoAway { reason: header.offset, text })
            }
            (Kind::Hello, Some(check)) => check(payload).map_err(LinkEnd::Refused),
            (_, Some(_)) => Err(ProtocolError::Misplaced.into()),
            (_, None) => {
                let (link, shared) = (self.link.pipe.id, self.link.shared);
                shared.with_after(after, |core, now| core.mux.handle_frame(link, header, payload, now))?;
                Ok(())
            }
        }
    }
}

impl Link<'_> {
    /// Passes bytes of a flow on: straight to its socket if they are next and it takes them, else to its queue.
    fn deliver(&self, id: FlowId, offset: u64, data: &[u8], after: &mut After) -> Result<(), ProtocolError> {
        let direct = self.shared.with_after(after, |core, now| -> Result<_, ProtocolError> {
            let Some(skip) = core.mux.handle_data(self.pipe.id, id, offset, data, now)? else { return Ok(None) };
            let socket = core.flows.get(&id).and_then(|attached| attached.socket.clone());
            if socket.is_none() {
                core.mux.delivered(id, 0, &data[skip..], now);
            }
            Ok(socket.map(|socket| (socket, &data[skip..])))
        })?;
        if let Some((socket, data)) = direct {
            let (written, result) = send(&socket, data);
            self.shared.with_after(after, |core, now| {
                if result.is_err() {
                    core.mux.reset(id, Reset::ResetByPeer);
                }
                core.mux.delivered(id, written, &data[written..], now);
            });
        }
        Ok(())
    }
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
