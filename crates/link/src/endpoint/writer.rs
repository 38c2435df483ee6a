//! The writing side of a link: takes what the mux has for it, in batches, and puts it on the pipe.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::AsyncWrite;

use crate::frame::{FlowId, Header, Kind};
use crate::mux::{Frame, LinkId};

use super::Shared;

/// Most bytes and frames of one vectored write: twice as much gains 3 % of bulk, and a small flow beside waits for it; half
/// of it loses a tenth.
const BATCH_BYTES: usize = 128 << 10;
const BATCH_FRAMES: usize = 64;

pub(super) struct Writer {
    batch: Vec<Frame>,
    /// How far the batch is written: whole frames, and bytes of the next.
    frame: usize,
    within: usize,
    unflushed: bool,
}

impl Writer {
    /// The HELLO goes first.
    pub(super) fn new(hello: Bytes) -> Self {
        Writer { batch: vec![frame(Kind::Hello, 0, hello)], frame: 0, within: 0, unflushed: false }
    }

    /// Writes what the mux has for the link. `Ready`: everything went out.
    pub(super) fn poll<W>(
        &mut self,
        io: &mut W,
        shared: &Shared,
        on: LinkId,
        now: Duration,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>>
    where
        W: AsyncWrite + Unpin,
    {
        loop {
            if self.batch.is_empty() {
                let batch = &mut self.batch;
                shared.with(|core| core.mux.poll_transmit(on, batch, BATCH_BYTES, BATCH_FRAMES, now));
            }
            let more = !self.batch.is_empty();
            ready!(self.poll_batch(io, cx))?;
            if !more {
                return Poll::Ready(Ok(()));
            }
        }
    }

    /// Writes what was begun, and the last frame of the link.
    pub(super) async fn say_goodbye<W>(&mut self, io: &mut W, reason: u64, text: &str) -> io::Result<()>
    where
        W: AsyncWrite + Unpin,
    {
        let text = &text.as_bytes()[..text.len().min(1024)];
        self.batch.push(frame(Kind::GoAway, reason, Bytes::copy_from_slice(text)));
        std::future::poll_fn(|cx| self.poll_batch(io, cx)).await
    }

    fn poll_batch<W: AsyncWrite + Unpin>(&mut self, io: &mut W, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.batch.is_empty() {
            let mut slices = [IoSlice::new(&[]); 2 * BATCH_FRAMES];
            let count = self.fill(&mut slices);
            match ready!(Pin::new(&mut *io).poll_write_vectored(cx, &slices[..count]))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                written => self.advance(written),
            }
            self.unflushed = true;
        }
        if self.unflushed {
            ready!(Pin::new(io).poll_flush(cx))?;
            self.unflushed = false;
        }
        Poll::Ready(Ok(()))
    }

    fn fill<'a>(&'a self, slices: &mut [IoSlice<'a>; 2 * BATCH_FRAMES]) -> usize {
        let (mut count, mut skip) = (0, self.within);
        for frame in self.batch[self.frame..].iter().take(BATCH_FRAMES) {
            for part in [&frame.header[..], &frame.payload[..]] {
                if skip < part.len() {
                    slices[count] = IoSlice::new(&part[skip..]);
                    count += 1;
                }
                skip = skip.saturating_sub(part.len());
            }
        }
        count
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
