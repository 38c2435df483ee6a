//! The receiving direction of a flow: puts bytes of several links in order, and decides what credit to give.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};

use super::ProtocolError;

/// Out-of-order stretches of one flow. Each link delivers in order, so an honest peer makes one for each change of
/// link; more is an attempt to make us keep books.
const EARLY_LIMIT: usize = 1024;
/// Pieces in order are joined up to this size, so that a peer that sends single bytes cannot make us keep more books
/// than bytes.
const JOIN_LIMIT: usize = 64 << 10;
/// Credit is given at the latest after so many DATA frames, so that a peer that sends little ones keeps few.
const CREDIT_FRAMES: u32 = 256;

#[derive(Debug)]
pub(super) struct Receiving {
    /// Everything before it came, in order.
    received: u64,
    /// Everything before it was written on.
    taken: u64,
    /// The offset and the limit that the last CREDIT told.
    credited: u64,
    limit: u64,
    window: u64,
    /// In order, not written on yet.
    ready: VecDeque<BytesMut>,
    /// Beyond a gap, by offset; never overlapping each other or `received`.
    early: BTreeMap<u64, BytesMut>,
    /// Somebody is writing the bytes from `taken` on; nobody else may.
    lent: bool,
    length: Option<u64>,
    fin_taken: bool,
    /// DATA frames since the last CREDIT.
    frames: u32,
    /// Start of the current measurement of the rate: when, and `taken` then.
    measured: (Duration, u64),
}

impl Receiving {
    pub(super) fn new(window: u64, now: Duration) -> Self {
        Receiving {
            received: 0,
            taken: 0,
            credited: 0,
            limit: window,
            window,
            ready: VecDeque::new(),
            early: BTreeMap::new(),
            lent: false,
            length: None,
            fin_taken: false,
            frames: 0,
            measured: (now, 0),
        }
    }

    /// Takes bytes in. `Some(n)`: what follows the first `n` bytes of `data` is next and has not been kept, the caller
    /// writes it on itself and then says [`Receiving::delivered`].
    pub(super) fn data(&mut self, offset: u64, data: &[u8]) -> Result<Option<usize>, ProtocolError> {
        let end = offset.checked_add(data.len() as u64).ok_or(ProtocolError::Overrun)?;
        if end > self.limit {
            return Err(ProtocolError::Overrun);
        }
        if self.length.is_some_and(|length| end > length) {
            return Err(ProtocolError::PastTheEnd);
        }
        self.frames += 1;
        if end <= self.received {
            return Ok(None);
        }
        if offset > self.received {
            self.keep_early(offset, data)?;
            return Ok(None);
        }
        let known = (self.received - offset) as usize;
        let direct = !self.lent && self.ready.is_empty();
        if direct {
            self.lent = true;
        } else {
            self.keep(&data[known..]);
        }
        self.received = end;
        self.join_early();
        Ok(direct.then_some(known))
    }

    /// The stream has `length` bytes.
    pub(super) fn fin(&mut self, length: u64) -> Result<(), ProtocolError> {
        let furthest = self.early.last_key_value().map_or(self.received, |(at, bytes)| at + bytes.len() as u64);
        if length < furthest || length > self.limit || self.length.is_some_and(|known| known != length) {
            return Err(ProtocolError::PastTheEnd);
        }
        self.length = Some(length);
        Ok(())
    }

    /// Lends the next bytes to be written on, unless somebody is at it.
    pub(super) fn take(&mut self) -> Option<Bytes> {
        if self.lent {
            return None;
        }
        let bytes = self.ready.pop_front()?.freeze();
        self.lent = true;
        Some(bytes)
    }

    /// Of what was lent, `written` bytes were written on; `rest` was not.
    pub(super) fn delivered(&mut self, written: usize, rest: &[u8]) {
        self.lent = false;
        self.taken += written as u64;
        if !rest.is_empty() {
            self.ready.push_front(BytesMut::from(rest));
        }
    }

    pub(super) fn has_ready(&self) -> bool {
        !self.lent && !self.ready.is_empty()
    }

    /// The peer finished and every byte was written on.
    pub(super) fn at_end(&self) -> bool {
        self.length == Some(self.taken)
    }

    /// The end was passed on too. False when it was before, or cannot be yet.
    pub(super) fn take_fin(&mut self) -> bool {
        let first = self.at_end() && !self.fin_taken;
        self.fin_taken |= first;
        first
    }

    pub(super) fn is_done(&self) -> bool {
        self.fin_taken
    }

    pub(super) fn received(&self) -> u64 {
        self.received
    }

    pub(super) fn taken(&self) -> u64 {
        self.taken
    }

    pub(super) fn window(&self) -> u64 {
        self.window
    }

    /// Bytes held here, in order or not.
    pub(super) fn held(&self) -> usize {
        self.ready.iter().map(BytesMut::len).sum::<usize>() + self.early.values().map(BytesMut::len).sum::<usize>()
    }

    /// Enough was taken to tell the peer now.
    pub(super) fn credit_due(&self) -> bool {
        self.taken - self.credited >= self.window / 4 || (self.frames >= CREDIT_FRAMES && self.credit_owed())
    }

    /// Something was taken that the peer does not know of.
    pub(super) fn credit_owed(&self) -> bool {
        self.taken > self.credited
    }

    /// What CREDIT says now: offset and window. A window of 0 says that the FIN was taken.
    pub(super) fn credit(&mut self) -> (u64, u64) {
        self.credited = self.taken;
        self.frames = 0;
        if self.fin_taken {
            return (self.taken, 0);
        }
        // A limit once given stays given: the window never shrinks, so this only grows.
        self.limit = self.taken + self.window;
        (self.taken, self.window)
    }

    /// What the window should be: twice what arrives in a round trip, if that is more than it is. Measured over at
    /// least one round trip.
    pub(super) fn wanted_window(&mut self, now: Duration, round_trip: Duration) -> Option<u64> {
        let (since, taken) = self.measured;
        let elapsed = now.saturating_sub(since);
        if elapsed < round_trip.max(Duration::from_millis(1)) {
            return None;
        }
        self.measured = (now, self.taken);
        let rate = (self.taken - taken) as f64 / elapsed.as_secs_f64();
        let wanted = (2.0 * rate * round_trip.as_secs_f64()) as u64;
        (wanted > self.window).then_some(wanted)
    }

    pub(super) fn grow(&mut self, window: u64) {
        self.window = self.window.max(window);
    }

    /// Forgets what is held.
    pub(super) fn abort(&mut self) {
        self.ready.clear();
        self.early.clear();
    }

    /// Forgets what lies beyond a gap, which nobody will fill any more.
    pub(super) fn cut(&mut self) {
        self.early.clear();
    }

    fn keep(&mut self, data: &[u8]) {
        match self.ready.back_mut() {
            Some(last) if last.len() + data.len() <= JOIN_LIMIT => last.extend_from_slice(data),
            _ => self.ready.push_back(BytesMut::from(data)),
        }
    }

    fn keep_early(&mut self, offset: u64, mut data: &[u8]) -> Result<(), ProtocolError> {
        let mut at = offset;
        while !data.is_empty() {
            let before = self.early.range_mut(..=at).next_back();
            let before_end = before.as_ref().map_or(0, |(start, bytes)| **start + bytes.len() as u64);
            if before_end > at {
                let known = usize::try_from(before_end - at).unwrap_or(usize::MAX).min(data.len());
                data.advance(known);
                at += known as u64;
                continue;
            }
            let touching = before.filter(|_| before_end == at).map(|(start, _)| *start);
            let gap = self.early.range(at..).next().map_or(u64::MAX, |(next, _)| next - at);
            let len = usize::try_from(gap).unwrap_or(usize::MAX).min(data.len());
            if touching.is_none() && self.early.len() >= EARLY_LIMIT {
                return Err(ProtocolError::TooManyGaps);
            }
            self.early.entry(touching.unwrap_or(at)).or_default().extend_from_slice(&data[..len]);
            data.advance(len);
            at += len as u64;
        }
        Ok(())
    }

    fn join_early(&mut self) {
        while let Some(entry) = self.early.first_entry() {
            if *entry.key() > self.received {
                break;
            }
            let (start, mut bytes) = entry.remove_entry();
            let known = usize::try_from(self.received - start).unwrap_or(usize::MAX).min(bytes.len());
            bytes.advance(known);
            if !bytes.is_empty() {
                self.received += bytes.len() as u64;
                self.ready.push_back(bytes);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn receiving(window: u64) -> Receiving {
        Receiving::new(window, Duration::ZERO)
    }

    fn take_all(receiving: &mut Receiving) -> String {
        let mut all = String::new();
        while let Some(bytes) = receiving.take() {
            all.push_str(&String::from_utf8_lossy(&bytes));
            receiving.delivered(bytes.len(), &[]);
        }
        all
    }

    #[test]
    fn bytes_in_order_are_handed_on_without_a_copy() {
        let mut receiving = receiving(100);
        assert_eq!(receiving.data(0, b"abc"), Ok(Some(0)));
        assert_eq!(receiving.data(3, b"def"), Ok(None), "while the first are being written");
        receiving.delivered(1, b"bc");
        assert_eq!(take_all(&mut receiving), "bcdef");
        assert_eq!(receiving.data(4, b"efgh"), Ok(Some(2)), "what is known is skipped");
        receiving.delivered(2, &[]);
        assert_eq!((receiving.received(), receiving.taken(), receiving.held()), (8, 8, 0));
    }

    #[test]
    fn bytes_of_several_links_are_put_in_order_whatever_overlaps() {
        let text = b"abcdefghijklmnop";
        let mut receiving = receiving(100);
        for (from, to) in [(4, 6), (10, 12), (5, 11), (3, 16), (2, 3), (0, 2)] {
            if let Some(skip) = receiving.data(from, &text[from as usize..to]).expect("within the window") {
                receiving.delivered(0, &text[from as usize + skip..to]);
            }
        }
        assert_eq!(take_all(&mut receiving), "abcdefghijklmnop");
    }

    #[test]
    fn lies_about_offsets_are_errors() {
        let mut receiving = receiving(10);
        assert_eq!(receiving.data(5, b"123456"), Err(ProtocolError::Overrun));
        assert_eq!(receiving.data(u64::MAX, b"1"), Err(ProtocolError::Overrun));
        assert_eq!(receiving.data(5, b"12345"), Ok(None));
        assert_eq!(receiving.fin(9), Err(ProtocolError::PastTheEnd));
        assert_eq!(receiving.fin(10), Ok(()));
        assert_eq!(receiving.fin(11), Err(ProtocolError::PastTheEnd));
        assert_eq!(receiving.fin(10), Ok(()), "sent again after a loss");
    }

    #[test]
    fn gaps_are_bounded() {
        let mut receiving = receiving(1 << 20);
        let mut result = Ok(None);
        for at in 1..2000_u64 {
            result = receiving.data(at * 2, b"x");
            if result.is_err() {
                break;
            }
        }
        assert_eq!(result, Err(ProtocolError::TooManyGaps));
    }

    #[test]
    fn credit_counts_what_was_taken_and_ends_with_the_fin() {
        let mut receiving = receiving(16);
        assert_eq!(receiving.data(0, b"abcd"), Ok(Some(0)));
        assert!(!receiving.credit_owed());
        receiving.delivered(3, b"d");
        assert!(receiving.credit_owed() && !receiving.credit_due());
        assert_eq!(take_all(&mut receiving), "d");
        assert!(receiving.credit_due());
        assert_eq!(receiving.credit(), (4, 16));
        receiving.fin(4).expect("honest");
        assert!(receiving.take_fin() && !receiving.take_fin());
        assert_eq!(receiving.credit(), (4, 0));
    }

    #[test]
    fn single_bytes_are_joined() {
        let mut receiving = receiving(1000);
        for at in 0..100 {
            if receiving.data(at, b"x").expect("within the window").is_some() {
                receiving.delivered(0, b"x");
            }
        }
        assert_eq!((receiving.held(), receiving.ready.len()), (100, 1));
    }

    #[test]
    fn the_window_wanted_is_twice_rate_times_round_trip() {
        let mut receiving = receiving(1 << 20);
        receiving.taken = 1 << 20;
        let round_trip = Duration::from_millis(20);
        assert_eq!(receiving.wanted_window(Duration::from_millis(19), round_trip), None);
        assert_eq!(receiving.wanted_window(Duration::from_millis(20), round_trip), Some(2 << 20));
        assert_eq!(receiving.wanted_window(Duration::from_millis(60), round_trip), None, "nothing came");
    }
}
