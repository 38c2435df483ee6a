//! The writing side of a link: whoever has frames to send writes them, one at a time.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker};

use bytes::Bytes;
use futures::task::AtomicWaker;
use tokio::io::AsyncWrite;

use crate::frame::{FlowId, Header, Kind};
use crate::mux::{Frame, LinkId};

use super::{After, LinkEnd, Shared};

/// Most bytes and frames of one vectored write. Measured best with rustls' buffer of the same size.
const BATCH_BYTES: usize = 256 << 10;
const BATCH_FRAMES: usize = 64;

pub(super) struct Pipe {
    pub(super) id: LinkId,
    writer: Mutex<Writer>,
    /// Somebody queued frames; whoever has the writer looks again.
    wanted: AtomicBool,
    /// The pipe can be written again.
    writable: AtomicBool,
    /// The link's own future.
    pub(super) task: AtomicWaker,
    ended: Mutex<Option<LinkEnd>>,
}

struct Writer {
    io: Option<Pin<Box<dyn AsyncWrite + Send>>>,
    batch: Vec<Frame>,
    /// How far the batch is written: whole frames, and bytes of the next.
    frame: usize,
    within: usize,
    unflushed: bool,
    /// Nothing can be written until `writable` is set.
    blocked: bool,
    /// The batch holds the last frames.
    closing: bool,
}

impl Wake for Pipe {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.writable.store(true, Ordering::SeqCst);
        self.task.wake();
    }
}

impl Pipe {
    /// The HELLO goes first.
    pub(super) fn new(id: LinkId, io: impl AsyncWrite + Send + 'static, hello: Bytes) -> Self {
        let writer = Writer {
            io: Some(Box::pin(io)),
            batch: vec![frame(Kind::Hello, 0, hello)],
            frame: 0,
            within: 0,
            unflushed: false,
            blocked: false,
            closing: false,
        };
        Pipe {
            id,
            writer: Mutex::new(writer),
            wanted: AtomicBool::new(false),
            writable: AtomicBool::new(false),
            task: AtomicWaker::new(),
            ended: Mutex::new(None),
        }
    }

    /// Writes what the mux has for this link, unless somebody is at it, who will then write that too. Never waits: what
    /// a blocked pipe does not take is left to the link's future, whose waker the pipe gets.
    pub(super) fn drain(self: &Arc<Self>, shared: &Shared) {
        self.wanted.store(true, Ordering::SeqCst);
        while self.wanted.load(Ordering::SeqCst) {
            let Ok(mut writer) = self.writer.try_lock() else { return };
            self.wanted.store(false, Ordering::SeqCst);
            let waker = Waker::from(self.clone());
            if let Err(error) = self.write(&mut writer, shared, &mut Context::from_waker(&waker)) {
                writer.io = None;
                drop(writer);
                self.end(LinkEnd::Failed(error));
                return;
            }
        }
    }

    /// Lets the link end. The first reason counts.
    pub(super) fn end(&self, why: LinkEnd) {
        self.ended.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(why);
        self.task.wake();
    }

    pub(super) fn take_end(&self) -> Option<LinkEnd> {
        self.ended.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Queues the last frame of the link.
    pub(super) fn say_goodbye(&self, reason: u64, text: &str) {
        let mut writer = self.writer();
        let text = &text.as_bytes()[..text.len().min(1024)];
        writer.batch.push(frame(Kind::GoAway, reason, Bytes::copy_from_slice(text)));
        writer.closing = true;
    }

    /// Whether everything queued has gone out, or nothing can any more.
    pub(super) fn is_through(&self) -> bool {
        let writer = self.writer();
        writer.io.is_none() || (writer.batch.is_empty() && !writer.unflushed)
    }

    pub(super) fn close(&self) {
        self.writer().io = None;
    }

    fn writer(&self) -> MutexGuard<'_, Writer> {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self, writer: &mut Writer, shared: &Shared, cx: &mut Context<'_>) -> io::Result<()> {
        if writer.blocked && !self.writable.swap(false, Ordering::SeqCst) {
            return Ok(());
        }
        writer.blocked = false;
        loop {
            if writer.batch.is_empty() && !writer.closing {
                let mut after = After::default();
                let batch = &mut writer.batch;
                shared.with_after(&mut after, |core, now| {
                    core.mux.poll_transmit(self.id, batch, BATCH_BYTES, BATCH_FRAMES, now);
                });
            }
            match writer.poll_write(cx)? {
                Poll::Ready(true) => {}
                Poll::Ready(false) => return Ok(()),
                Poll::Pending => {
                    writer.blocked = true;
                    return Ok(());
                }
            }
        }
    }
}

impl Writer {
    /// Writes once, or flushes when everything is written. False: all is done.
    fn poll_write(&mut self, cx: &mut Context<'_>) -> io::Result<Poll<bool>> {
        let Some(io) = &mut self.io else { return Ok(Poll::Ready(false)) };
        if self.batch.is_empty() {
            if self.unflushed && io.as_mut().poll_flush(cx)?.is_pending() {
                return Ok(Poll::Pending);
            }
            self.unflushed = false;
            return Ok(Poll::Ready(false));
        }
        let mut slices = [IoSlice::new(&[]); 2 * BATCH_FRAMES];
        let mut count = 0;
        let mut skip = self.within;
        for frame in self.batch[self.frame..].iter().take(BATCH_FRAMES) {
            for part in [&frame.header[..], &frame.payload[..]] {
                if skip < part.len() {
                    slices[count] = IoSlice::new(&part[skip..]);
                    count += 1;
                }
                skip = skip.saturating_sub(part.len());
            }
        }
        match io.as_mut().poll_write_vectored(cx, &slices[..count])? {
            Poll::Ready(0) => Err(io::ErrorKind::WriteZero.into()),
            Poll::Ready(written) => {
                self.unflushed = true;
                self.advance(written);
                Ok(Poll::Ready(true))
            }
            Poll::Pending => Ok(Poll::Pending),
        }
    }

    fn advance(&mut self, written: usize) {
        self.within += written;
        while let Some(frame) = self.batch.get(self.frame) {
            let len = frame.header.len() + frame.payload.len();
            if self.within < len {
                return;
            }
            self.within -= len;
            self.frame += 1;
        }
        self.batch.clear();
        self.frame = 0;
    }
}

fn frame(kind: Kind, offset: u64, payload: Bytes) -> Frame {
    Frame { header: Header::new(FlowId::CONTROL, kind, payload.len() as u32, offset).encode(), payload }
}
