//! A flow as a byte stream, for what ends in this process.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::frame::Reset;
use crate::mux::Phase;

use super::{Flow, Side};

/// Most bytes copied into one DATA frame.
const WRITE: usize = 64 << 10;

/// Reads and writes a flow. Shutting down finishes this side's direction; dropping it before both sides have finished
/// resets the flow.
pub struct FlowStream {
    flow: Flow,
    /// Taken from the mux, not read yet; and how long it was.
    current: Bytes,
    taken: usize,
}

impl FlowStream {
    pub(super) fn new(flow: Flow) -> Self {
        FlowStream { flow, current: Bytes::new(), taken: 0 }
    }

    pub fn id(&self) -> u32 {
        self.flow.id()
    }

    /// Resets the flow with a reason.
    pub fn reset(self, why: Reset) {
        self.flow.shared.with(|core| core.mux.reset(self.flow.id, why));
    }
}

impl AsyncRead for FlowStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let (shared, id) = (&this.flow.shared, this.flow.id);
        if this.current.is_empty() {
            let mut core = shared.lock();
            core.attached(id).watch(Side::Read, cx);
            match core.mux.take(id) {
                Some(bytes) => (this.taken, this.current) = (bytes.len(), bytes),
                None if core.mux.at_end(id) => {
                    drop(core);
                    shared.timed(|core, now| core.mux.end_taken(id, now));
                    return Poll::Ready(Ok(()));
                }
                None => {
                    return match core.mux.phase(id) {
                        Phase::Ended(why) => Poll::Ready(Err(error(why))),
                        _ => Poll::Pending,
                    };
                }
            }
        }
        let len = this.current.len().min(buf.remaining());
        buf.put_slice(&this.current[..len]);
        this.current.advance(len);
        if this.current.is_empty() {
            shared.timed(|core, now| core.mux.delivered(id, this.taken, &[], now));
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for FlowStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let id = self.flow.id;
        self.flow.shared.timed(|core, now| {
            core.attached(id).watch(Side::Write, cx);
            if let Phase::Ended(why) = core.mux.phase(id) {
                return Poll::Ready(Err(error(why)));
            }
            if core.mux.is_finished(id) {
                return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
            }
            let len = core.mux.room(id).min(data.len()).min(WRITE);
            if len == 0 && !data.is_empty() {
                return Poll::Pending;
            }
            core.mux.write(id, Bytes::copy_from_slice(&data[..len]), now);
            Poll::Ready(Ok(len))
        })
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.flow.shared.with(|core| core.mux.finish(self.flow.id));
        Poll::Ready(Ok(()))
    }
}

fn error(why: Reset) -> io::Error {
    let kind = match why {
        Reset::Refused => io::ErrorKind::ConnectionRefused,
        Reset::HostUnreachable => io::ErrorKind::HostUnreachable,
        Reset::NetworkUnreachable => io::ErrorKind::NetworkUnreachable,
        Reset::TimedOut => io::ErrorKind::TimedOut,
        Reset::ResetByPeer => io::ErrorKind::ConnectionReset,
        Reset::NotAllowed => io::ErrorKind::PermissionDenied,
        Reset::AddressNotAvailable => io::ErrorKind::AddrNotAvailable,
        Reset::Aborted | Reset::UnknownFlow => io::ErrorKind::ConnectionAborted,
    };
    io::Error::new(kind, why)
}
