//! A flow joined to a kernel TCP socket. This is where bulk data passes.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use rustix::net::Shutdown;
use tokio::net::TcpStream;

use crate::frame::Reset;
use crate::mux::Phase;

use super::{Flow, Side};

/// A read of more than this is written on, while it is in the processor's cache, before the next one.
const TURN: usize = 64 << 10;

/// How a spliced flow ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlowEnd {
    /// Both sides finished.
    Finished,
    /// One side was reset, and so was the other.
    Reset(Reset),
}

/// What a spliced flow carried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spliced {
    /// Bytes from the socket.
    pub sent: u64,
    /// Bytes to the socket.
    pub received: u64,
    pub end: FlowEnd,
}

pub(super) struct Splice {
    flow: Flow,
    socket: Arc<TcpStream>,
    /// The socket has no more to read.
    read_ended: bool,
    /// The socket was told that no more is to come.
    write_ended: bool,
    /// The socket did not take everything; wait until it does.
    full: bool,
}

impl Splice {
    pub(super) fn new(flow: Flow, socket: TcpStream) -> Self {
        if let Err(error) = socket.set_nodelay(true) {
            tracing::debug!(flow = flow.id.0, %error, "no TCP_NODELAY");
        }
        let socket = Arc::new(socket);
        flow.shared.with(|core| core.attached(flow.id).socket = Some(socket.clone()));
        Splice { flow, socket, read_ended: false, write_ended: false, full: false }
    }

    /// From the socket to the flow, until one of them has nothing or wants nothing. `Ready`: it ended.
    fn poll_up(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.read_ended {
            return Poll::Ready(());
        }
        let (shared, id) = (&self.flow.shared, self.flow.id);
        let mut room = shared.lock().mux.room(id);
        while room > 0 {
            if let Err(error) = ready!(self.socket.poll_read_ready(cx)) {
                self.fail(&error);
                return Poll::Pending;
            }
            match shared.pool.read(&self.socket, room) {
                Ok(bytes) if bytes.is_empty() => {
                    self.read_ended = true;
                    shared.with(|core| core.mux.finish(id));
                    return Poll::Ready(());
                }
                Ok(bytes) => {
                    let much = bytes.len() > TURN;
                    room = shared.timed(|core, now| {
                        core.mux.write(id, bytes, now);
                        core.mux.room(id)
                    });
                    if much && room > 0 {
                        cx.waker().wake_by_ref();
                        return Poll::Pending;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => {
                    self.fail(&error);
                    return Poll::Pending;
                }
            }
        }
        Poll::Pending
    }

    /// From the flow to the socket: what the links' readers could not write on by themselves. `Ready`: it ended.
    fn poll_down(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.write_ended {
            return Poll::Ready(());
        }
        let (shared, id) = (&self.flow.shared, self.flow.id);
        loop {
            if self.full && ready!(self.socket.poll_write_ready(cx)).is_ok() {
                self.full = false;
            }
            let Some(bytes) = shared.lock().mux.take(id) else { break };
            let (written, result) = write(&self.socket, &bytes);
            shared.timed(|core, now| core.mux.delivered(id, written, &bytes[written..], now));
            match result {
                Ok(()) => self.full = written < bytes.len(),
                Err(error) => {
                    self.fail(&error);
                    return Poll::Pending;
                }
            }
        }
        if !shared.lock().mux.at_end(id) {
            return Poll::Pending;
        }
        match rustix::net::shutdown(&self.socket, Shutdown::Write) {
            Ok(()) => {
                self.write_ended = true;
                shared.timed(|core, now| core.mux.end_taken(id, now));
                Poll::Ready(())
            }
            Err(error) => {
                self.fail(&error.into());
                Poll::Pending
            }
        }
    }

    /// The socket failed: so does the flow.
    fn fail(&self, error: &io::Error) {
        tracing::trace!(flow = self.flow.id.0, %error, "socket failed");
        self.flow.shared.with(|core| core.mux.reset(self.flow.id, Reset::ResetByPeer));
    }

    fn ended(&self, end: FlowEnd) -> Spliced {
        let (sent, received) = self.flow.shared.lock().mux.totals(self.flow.id);
        Spliced { sent, received, end }
    }
}

impl Future for Splice {
    type Output = Spliced;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Spliced> {
        self.flow.shared.lock().attached(self.flow.id).watch(Side::Read, cx);
        let down = self.poll_down(cx);
        let up = self.poll_up(cx);
        let phase = self.flow.shared.lock().mux.phase(self.flow.id);
        if let Phase::Ended(why) = phase {
            return Poll::Ready(self.ended(FlowEnd::Reset(why)));
        }
        ready!(down);
        ready!(up);
        Poll::Ready(self.ended(FlowEnd::Finished))
    }
}

impl Drop for Splice {
    /// Unless both directions have ended, the program at the socket gets a reset: a plain close would look like the end
    /// of the data.
    fn drop(&mut self) {
        if !(self.read_ended && self.write_ended)
            && let Err(error) = self.socket.set_zero_linger()
        {
            tracing::debug!(flow = self.flow.id.0, %error, "socket could not be reset");
        }
    }
}

fn write(socket: &TcpStream, data: &[u8]) -> (usize, io::Result<()>) {
    let mut written = 0;
    while written < data.len() {
        match socket.try_write(&data[written..]) {
            Ok(sent) => written += sent,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(error) => return (written, Err(error)),
        }
    }
    (written, Ok(()))
}
