//! The admission lines on stdin. (The answers are lines of `wire::Admitted`, each one write of `output`.)
//!
//! Everybody whom the API server lets attach writes here, so a line is read up to its limit and judged alone: what is
//! no admission is passed over. The end of stdin means that nobody is attached now; the agent runs on.

use std::collections::VecDeque;

use tokio::io::{AsyncRead, AsyncReadExt as _};
use wire::{Admit, LINE_LIMIT, LineError};

/// Splits what comes into lines. Pure.
#[derive(Default)]
struct Lines {
    buffer: Vec<u8>,
    /// The line under way is too long: its rest is dropped.
    skipping: bool,
}

impl Lines {
    /// Takes bytes and returns the admissions that they completed.
    fn push(&mut self, mut bytes: &[u8]) -> Vec<Admit> {
        let mut found = Vec::new();
        while let Some(end) = bytes.iter().position(|&b| b == b'\n') {
            self.extend(&bytes[..=end]);
            bytes = &bytes[end + 1..];
            if !std::mem::take(&mut self.skipping) {
                found.extend(read(&self.buffer));
            }
            self.buffer.clear();
        }
        self.extend(bytes);
        found
    }

    fn extend(&mut self, bytes: &[u8]) {
        if self.skipping || self.buffer.len() + bytes.len() > LINE_LIMIT {
            if !self.skipping {
                tracing::warn!("overlong line on stdin dropped");
            }
            self.skipping = true;
            self.buffer.clear();
        } else {
            self.buffer.extend_from_slice(bytes);
        }
    }
}

fn read(line: &[u8]) -> Option<Admit> {
    let text = std::str::from_utf8(line).map_err(|_| LineError::NotOurs);
    // A line cut short by a lost attach leaves its head before the next line, which is whole.
    let text = text.map(|text| text.rfind("stead-admit-1 ").map_or(text, |at| &text[at..]));
    match text.and_then(Admit::from_line) {
        Ok(admit) => Some(admit),
        Err(error) => {
            tracing::warn!(%error, "line on stdin passed over");
            None
        }
    }
}

/// Reads admissions. After the end of input it waits for ever.
pub(crate) struct AdmissionLines<R> {
    input: R,
    lines: Lines,
    ready: VecDeque<Admit>,
    ended: bool,
}

impl<R: AsyncRead + Unpin> AdmissionLines<R> {
    pub(crate) fn new(input: R) -> Self {
        AdmissionLines { input, lines: Lines::default(), ready: VecDeque::new(), ended: false }
    }

    /// The next admission. May be dropped and called again.
    pub(crate) async fn next(&mut self) -> Admit {
        let mut chunk = [0; 1024];
        loop {
            if let Some(admit) = self.ready.pop_front() {
                return admit;
            }
            if self.ended {
                return std::future::pending().await;
            }
            match self.input.read(&mut chunk).await {
                Ok(0) => self.end("end of input"),
                Ok(len) => self.ready.extend(self.lines.push(&chunk[..len])),
                Err(error) => self.end(&error.to_string()),
            }
        }
    }

    fn end(&mut self, why: &str) {
        tracing::warn!(why, "no more admissions are read: sessions that are admitted go on");
        self.ended = true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admit(byte: u8) -> Admit {
        Admit { session: vec![byte; 16], key_hash: vec![byte; 32], nonce: vec![byte; 16], ..Admit::default() }
    }

    fn line(byte: u8) -> String {
        admit(byte).to_line().expect("short")
    }

    #[test]
    fn lines_are_found_however_they_are_cut() {
        let text = line(1) + &line(2);
        for cut in 1..text.len() {
            let mut lines = Lines::default();
            let found: Vec<_> = text.as_bytes().chunks(cut).flat_map(|part| lines.push(part)).collect();
            assert_eq!(found, [admit(1), admit(2)]);
        }
    }

    #[test]
    fn what_is_no_admission_is_passed_over() {
        let mut lines = Lines::default();
        let text = [b"hello\n\xff\xfe\n\n\r\nstead-admit-1 ???\n".as_slice(), line(3).as_bytes()].concat();
        assert_eq!(lines.push(&text), [admit(3)]);
    }

    #[test]
    fn an_overlong_line_is_dropped_whole_and_nothing_is_kept_of_it() {
        let mut lines = Lines::default();
        for _ in 0..1000 {
            assert!(lines.push(&[b'x'; 1000]).is_empty());
            assert!(lines.buffer.len() <= LINE_LIMIT);
        }
        assert_eq!(lines.push(format!("stead-admit-1 x\n{}", line(4)).as_bytes()), [admit(4)]);
    }

    #[test]
    fn the_head_of_a_line_that_was_cut_does_not_spoil_the_next() {
        let mut lines = Lines::default();
        assert!(lines.push(&line(5).as_bytes()[..40]).is_empty());
        assert_eq!(lines.push(line(6).as_bytes()), [admit(6)]);
    }

    #[tokio::test]
    async fn after_the_end_of_input_nothing_comes_and_nothing_ends() {
        let text = line(7);
        let mut admissions = AdmissionLines::new(text.as_bytes());
        assert_eq!(admissions.next().await, admit(7));
        tokio::select! {
            biased;
            admit = admissions.next() => panic!("{admit:?}"),
            () = std::future::ready(()) => {}
        }
        assert!(admissions.ended);
    }
}
