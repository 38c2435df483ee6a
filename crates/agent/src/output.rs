//! Writes lines to stdout and stderr without ever waiting.
//!
//! Both are pipes that a container runtime copies to whoever is attached: one reader that stands still would hold up
//! every session. A pipe that polls writable takes `PIPE_BUF` bytes (4,096) at once and in one piece (pipe(7)); when it
//! is full, the line is lost.

use std::io;
use std::os::fd::AsFd;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tracing_subscriber::fmt::MakeWriter;

const PIPE_BUF: usize = 4096;

/// Writes at most `PIPE_BUF` bytes of `line`. False when it was lost.
pub fn write_now(to: impl AsFd, line: &[u8]) -> bool {
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    let mut polled = [PollFd::new(&to, PollFlags::OUT)];
    let ready = poll(&mut polled, Some(&now)).is_ok_and(|ready| ready > 0);
    ready && polled[0].revents().contains(PollFlags::OUT) && write_line(&to, line)
}

fn write_line(to: impl AsFd, line: &[u8]) -> bool {
    match line.get(..PIPE_BUF) {
        // Cut, but still a line.
        Some(head) => rustix::io::write(to, &[&head[..PIPE_BUF - 1], b"\n"].concat()).is_ok(),
        None => rustix::io::write(to, line).is_ok(),
    }
}

/// Where log lines go.
#[derive(Clone, Copy, Debug)]
pub struct Stderr;

impl<'a> MakeWriter<'a> for Stderr {
    type Writer = Stderr;

    fn make_writer(&'a self) -> Stderr {
        Stderr
    }
}

impl io::Write for Stderr {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        write_now(rustix::stdio::stderr(), line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_pipe_loses_lines_and_holds_up_nobody() {
        let (from, to) = rustix::pipe::pipe().expect("a pipe");
        let mut written = 0;
        while write_now(&to, &[b'x'; 1000]) {
            written += 1000;
            assert!(written < 10 << 20, "a pipe has 64 KiB");
        }
        assert!(written >= 4096);
        let mut read = vec![0; written];
        let mut got = 0;
        while got < written {
            got += rustix::io::read(&from, &mut read[got..]).expect("readable");
        }
        assert!(write_now(&to, b"again\n"));
    }

    #[test]
    fn an_overlong_line_is_cut() {
        let (from, to) = rustix::pipe::pipe().expect("a pipe");
        assert!(write_now(&to, &[b'x'; 10_000]));
        let mut read = vec![0; 20_000];
        let len = rustix::io::read(&from, &mut read).expect("readable");
        assert_eq!((len, read[len - 1]), (PIPE_BUF, b'\n'));
    }
}
