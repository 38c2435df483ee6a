//! The sending direction of a flow: what was written, what went out, what the peer has not acknowledged.

use std::collections::VecDeque;

use bytes::Bytes;

/// Bytes of one flow that may wait to be put on a link. Enough for the largest batch of a link's writer (256 KiB), so
/// that one flow alone keeps a link busy; more would only add to the delay of what comes after.
const QUEUE_LIMIT: u64 = 256 << 10;
/// Pieces of one flow that may wait; bounds memory when a program writes single bytes.
const QUEUE_PIECES: usize = 1024;

#[derive(Debug)]
pub(super) struct Sending {
    /// From `base` on: what was written and not yet acknowledged. Refcounts of the buffers that were read.
    pieces: VecDeque<Bytes>,
    /// Offset of the first byte of `pieces`; at most `acked`.
    base: u64,
    acked: u64,
    /// What goes out next: its offset, and the same place as (index into `pieces`, position within it).
    next: u64,
    cursor: (usize, usize),
    /// The furthest byte that ever went out; the peer cannot acknowledge more.
    reached: u64,
    /// Offset after the last byte written.
    end: u64,
    /// Offset up to which the peer allows sending.
    limit: u64,
    /// Most bytes kept for one flow, however much credit the peer gives.
    retained_limit: u64,
    finished: bool,
    fin_sent: bool,
    fin_acked: bool,
    /// Whether the writer was told to wait.
    pub blocked: bool,
}

/// What to put on the wire next.
#[derive(Debug)]
pub(super) enum Next {
    Data { offset: u64, bytes: Bytes },
    Fin { length: u64 },
}

impl Sending {
    pub(super) fn new(window: u64, retained_limit: u64) -> Self {
        Sending {
            pieces: VecDeque::new(),
            base: 0,
            acked: 0,
            next: 0,
            cursor: (0, 0),
            reached: 0,
            end: 0,
            limit: window,
            retained_limit,
            finished: false,
            fin_sent: false,
            fin_acked: false,
            blocked: false,
        }
    }

    /// Bytes that may be written now.
    pub(super) fn room(&self) -> usize {
        if self.finished || self.pieces.len().saturating_sub(self.cursor.0) >= QUEUE_PIECES {
            return 0;
        }
        let allowed = self.limit.saturating_sub(self.end);
        let queue = QUEUE_LIMIT.saturating_sub(self.end - self.next);
        let retained = self.retained_limit.saturating_sub(self.end - self.acked);
        usize::try_from(allowed.min(queue).min(retained)).unwrap_or(usize::MAX)
    }

    pub(super) fn write(&mut self, bytes: Bytes) {
        self.end += bytes.len() as u64;
        self.pieces.push_back(bytes);
    }

    pub(super) fn finish(&mut self) {
        self.finished = true;
    }

    pub(super) fn has_next(&self) -> bool {
        self.next < self.end || (self.finished && !self.fin_sent)
    }

    /// At most `max` bytes, or the FIN after the last of them.
    pub(super) fn next(&mut self, max: usize) -> Option<Next> {
        if self.next == self.end {
            let due = self.finished && !self.fin_sent;
            self.fin_sent |= due;
            return due.then_some(Next::Fin { length: self.end });
        }
        let (index, position) = self.cursor;
        let piece = &self.pieces[index];
        let len = (piece.len() - position).min(max);
        let bytes = piece.slice(position..position + len);
        self.cursor = if position + len == piece.len() { (index + 1, 0) } else { (index, position + len) };
        let offset = self.next;
        self.next += len as u64;
        self.reached = self.reached.max(self.next);
        Some(Next::Data { offset, bytes })
    }

    /// The peer took everything before `offset` and allows `window` more; a window of 0 at the end of the stream says
    /// that it took the FIN as well. False when the numbers cannot be true.
    #[must_use]
    pub(super) fn credit(&mut self, offset: u64, window: u64) -> bool {
        let Some(limit) = offset.checked_add(window) else { return false };
        if offset > self.reached {
            return false;
        }
        self.limit = self.limit.max(limit);
        if window == 0 && self.finished && offset == self.end {
            self.fin_acked = true;
        }
        if offset > self.acked {
            self.acked = offset;
            self.drop_acked();
            if self.next < offset {
                self.seek(offset);
            }
        }
        true
    }

    /// Sends again from `offset`, which the peer says it has received up to. False when that cannot be true.
    #[must_use]
    pub(super) fn rewind(&mut self, offset: u64) -> bool {
        if offset > self.reached {
            return false;
        }
        self.seek(offset.max(self.acked));
        self.fin_sent = self.fin_acked;
        true
    }

    pub(super) fn is_finished(&self) -> bool {
        self.finished
    }

    /// Every byte and the FIN reached the peer's socket.
    pub(super) fn is_done(&self) -> bool {
        self.fin_acked
    }

    pub(super) fn end(&self) -> u64 {
        self.end
    }

    pub(super) fn reached(&self) -> u64 {
        self.reached
    }

    /// Bytes kept until the peer acknowledges them.
    pub(super) fn retained(&self) -> u64 {
        self.end - self.acked
    }

    /// Forgets everything; nothing more goes out.
    pub(super) fn abort(&mut self) {
        let limit = self.retained_limit;
        let (end, reached) = (self.end, self.reached);
        *self = Sending::new(0, limit);
        (self.base, self.acked, self.next, self.end, self.reached) = (end, end, end, end, reached);
        (self.finished, self.fin_sent) = (true, true);
    }

    fn drop_acked(&mut self) {
        while let Some(piece) = self.pieces.front() {
            let after = self.base + piece.len() as u64;
            if after > self.acked {
                break;
            }
            self.base = after;
            self.pieces.pop_front();
            self.cursor = match self.cursor.0.checked_sub(1) {
                Some(index) => (index, self.cursor.1),
                None => (0, 0),
            };
        }
    }

    fn seek(&mut self, offset: u64) {
        self.next = offset;
        let mut start = self.base;
        for (index, piece) in self.pieces.iter().enumerate() {
            let after = start + piece.len() as u64;
            if offset < after {
                self.cursor = (index, (offset - start) as usize);
                return;
            }
            start = after;
        }
        self.cursor = (self.pieces.len(), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sending(pieces: &[&'static str]) -> Sending {
        let mut sending = Sending::new(1000, 1000);
        for piece in pieces {
            sending.write(Bytes::from_static(piece.as_bytes()));
        }
        sending
    }

    fn drain(sending: &mut Sending, max: usize) -> Vec<(u64, String)> {
        let mut out = Vec::new();
        while let Some(next) = sending.next(max) {
            match next {
                Next::Data { offset, bytes } => out.push((offset, String::from_utf8_lossy(&bytes).into_owned())),
                Next::Fin { length } => out.push((length, "FIN".into())),
            }
        }
        out
    }

    #[test]
    fn pieces_go_out_in_order_and_once() {
        let mut sending = sending(&["abc", "defgh"]);
        sending.finish();
        assert_eq!(drain(&mut sending, 4), [(0, "abc".into()), (3, "defg".into()), (7, "h".into()), (8, "FIN".into())]);
    }

    #[test]
    fn a_rewind_sends_again_what_was_not_received_and_the_fin() {
        let mut sending = sending(&["abc", "def"]);
        sending.finish();
        drain(&mut sending, 10);
        assert!(sending.credit(2, 100));
        assert!(sending.rewind(4));
        assert_eq!(drain(&mut sending, 10), [(4, "ef".into()), (6, "FIN".into())]);
        assert!(sending.rewind(0), "an old offset is no harm");
        assert_eq!(drain(&mut sending, 10), [(2, "c".into()), (3, "def".into()), (6, "FIN".into())]);
    }

    #[test]
    fn credit_in_the_middle_of_a_rewind_skips_what_was_taken() {
        let mut sending = sending(&["abc", "def", "ghi"]);
        drain(&mut sending, 10);
        assert!(sending.rewind(1));
        assert!(sending.credit(5, 100));
        assert_eq!(drain(&mut sending, 10), [(5, "f".into()), (6, "ghi".into())]);
        assert_eq!(sending.retained(), 4);
        assert!(sending.credit(9, 100));
        assert_eq!(sending.retained(), 0);
        assert!(sending.pieces.is_empty());
    }

    #[test]
    fn credit_for_bytes_never_sent_is_a_lie() {
        let mut sending = sending(&["abc"]);
        assert!(!sending.credit(1, 100));
        drain(&mut sending, 10);
        assert!(sending.credit(1, 100));
        assert!(!sending.credit(3, u64::MAX));
        assert!(!sending.rewind(4));
    }

    #[test]
    fn only_a_window_of_zero_at_the_end_acknowledges_the_fin() {
        let mut sending = sending(&["abc"]);
        sending.finish();
        drain(&mut sending, 10);
        assert!(sending.credit(3, 100));
        assert!(!sending.is_done());
        assert!(sending.credit(3, 0));
        assert!(sending.is_done());
    }

    #[test]
    fn room_is_bounded_by_credit_queue_and_retention() {
        let mut sending = Sending::new(10, 1 << 30);
        assert_eq!(sending.room(), 10);
        sending.write(Bytes::from_static(b"1234"));
        assert_eq!(sending.room(), 6);
        drain(&mut sending, 10);
        assert!(sending.credit(4, u64::from(u32::MAX)));
        assert_eq!(sending.room() as u64, QUEUE_LIMIT);
        sending.finish();
        assert_eq!(sending.room(), 0);
        let mut sending = Sending::new(1 << 40, 100);
        assert_eq!(sending.room(), 100);
        sending.write(Bytes::from_static(b"1234"));
        drain(&mut sending, 10);
        assert_eq!(sending.room(), 96, "kept until acknowledged");
    }
}
