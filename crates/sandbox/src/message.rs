//! What client and guard say to each other: one datagram each over a SEQPACKET pair, descriptors beside it.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags,
};

/// From the client to the guard.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Request {
    /// Start the command that the memfd beside it describes (`command::Description`).
    Spawn,
    /// Send a signal to the command.
    Signal(i32),
    /// The client got this signal: send it on, unless it went to the whole process group and so to the command too.
    Forward(i32),
    /// The client was stopped with the command and runs again.
    Resumed,
}

/// From the guard to the client.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Reply {
    /// The sandbox stands; its descriptors are beside it.
    Ready {
        v6: bool,
    },
    /// It does not: step, detail, errno.
    Failed {
        step: String,
        detail: String,
        errno: i32,
    },
    Spawned {
        pid: i32,
    },
    /// `file` is an index into `Command::files`, for `SpawnFailure::Bind`.
    SpawnFailed {
        what: SpawnFailure,
        errno: i32,
        file: i32,
    },
    /// The command stopped itself or was stopped: the client has to stop too.
    Stopped {
        signal: i32,
    },
    /// The command ended, and so did its descendants. As wait(2) encodes it.
    Exited {
        status: i32,
    },
    /// All that ran in the sandbox is gone, and the guard ends.
    Gone,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum SpawnFailure {
    Busy = 1,
    /// The command's description could not be read, or no process could be made.
    Start = 2,
    Directory = 3,
    NotFound = 4,
    NotExecutable = 5,
    Bind = 6,
}

/// Most descriptors in one message.
pub(crate) const DESCRIPTORS: usize = 8;
/// Longest message.
pub(crate) const LONGEST: usize = 1024;

impl Request {
    pub(crate) fn encode(&self) -> Vec<u8> {
        match self {
            Request::Spawn => integers(1, &[]),
            Request::Signal(signal) => integers(2, &[*signal]),
            Request::Forward(signal) => integers(3, &[*signal]),
            Request::Resumed => integers(4, &[]),
        }
    }

    pub(crate) fn decode(bytes: &[u8]) -> Option<Request> {
        let (kind, rest) = bytes.split_first()?;
        match kind {
            1 => Some(Request::Spawn),
            2 => Some(Request::Signal(integer(rest, 0)?)),
            3 => Some(Request::Forward(integer(rest, 0)?)),
            4 => Some(Request::Resumed),
            _ => None,
        }
    }
}

impl Reply {
    pub(crate) fn encode(&self) -> Vec<u8> {
        match self {
            Reply::Ready { v6 } => integers(1, &[i32::from(*v6)]),
            Reply::Failed { step, detail, errno } => {
                let mut bytes = integers(2, &[*errno]);
                bytes.extend_from_slice(format!("{step}\0{detail}").as_bytes());
                bytes.truncate(LONGEST);
                bytes
            }
            Reply::Spawned { pid } => integers(3, &[*pid]),
            Reply::SpawnFailed { what, errno, file } => integers(4, &[*what as i32, *errno, *file]),
            Reply::Stopped { signal } => integers(5, &[*signal]),
            Reply::Exited { status } => integers(6, &[*status]),
            Reply::Gone => integers(7, &[]),
        }
    }

    pub(crate) fn decode(bytes: &[u8]) -> Option<Reply> {
        let (kind, rest) = bytes.split_first()?;
        let first = integer(rest, 0);
        Some(match kind {
            1 => Reply::Ready { v6: first? != 0 },
            2 => {
                let text = String::from_utf8_lossy(rest.get(4..)?).into_owned();
                let (step, detail) = text.split_once('\0')?;
                Reply::Failed { step: step.to_owned(), detail: detail.to_owned(), errno: first? }
            }
            3 => Reply::Spawned { pid: first? },
            4 => {
                let what = SpawnFailure::decode(first?)?;
                Reply::SpawnFailed { what, errno: integer(rest, 1)?, file: integer(rest, 2)? }
            }
            5 => Reply::Stopped { signal: first? },
            6 => Reply::Exited { status: first? },
            7 => Reply::Gone,
            _ => return None,
        })
    }
}

impl SpawnFailure {
    pub(crate) fn decode(number: i32) -> Option<SpawnFailure> {
        use SpawnFailure::*;
        [Busy, Start, Directory, NotFound, NotExecutable, Bind].into_iter().find(|f| *f as i32 == number)
    }
}

/// Sends one datagram. Interrupted calls are made again.
pub(crate) fn send(socket: BorrowedFd, bytes: &[u8], descriptors: &[BorrowedFd]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let parts = [IoSlice::new(bytes)];
    rustix::io::retry_on_intr(|| rustix::net::sendmsg(socket, &parts, &mut ancillary, SendFlags::NOSIGNAL))?;
    Ok(())
}

/// Receives one datagram; `None` when the other side is gone.
pub(crate) fn receive(socket: BorrowedFd) -> io::Result<Option<(Vec<u8>, Vec<OwnedFd>)>> {
    let mut bytes = vec![0; LONGEST];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let message = rustix::io::retry_on_intr(|| {
        rustix::net::recvmsg(socket, &mut [IoSliceMut::new(&mut bytes)], &mut ancillary, RecvFlags::CMSG_CLOEXEC)
    });
    let message = match message {
        Ok(message) => message,
        Err(rustix::io::Errno::CONNRESET) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    if message.bytes == 0 {
        return Ok(None);
    }
    if message.flags.contains(ReturnFlags::TRUNC) || message.flags.contains(ReturnFlags::CTRUNC) {
        return Err(io::ErrorKind::InvalidData.into());
    }
    bytes.truncate(message.bytes);
    let mut descriptors = Vec::new();
    for part in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = part {
            descriptors.extend(rights);
        }
    }
    Ok(Some((bytes, descriptors)))
}

fn integers(kind: u8, values: &[i32]) -> Vec<u8> {
    let mut bytes = vec![kind];
    values.iter().for_each(|value| bytes.extend_from_slice(&value.to_ne_bytes()));
    bytes
}

fn integer(bytes: &[u8], index: usize) -> Option<i32> {
    Some(i32::from_ne_bytes(*bytes.get(index * 4..)?.first_chunk()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_come_back_as_they_were() {
        for request in [Request::Spawn, Request::Signal(64), Request::Forward(15), Request::Resumed] {
            assert_eq!(Request::decode(&request.encode()), Some(request));
        }
        let failed = Reply::Failed { step: "a".into(), detail: "a of b".into(), errno: 13 };
        for reply in [
            Reply::Ready { v6: true },
            failed,
            Reply::Spawned { pid: 7 },
            Reply::SpawnFailed { what: SpawnFailure::Bind, errno: 2, file: 1 },
            Reply::Stopped { signal: 20 },
            Reply::Exited { status: 0x100 },
            Reply::Gone,
        ] {
            assert_eq!(Reply::decode(&reply.encode()), Some(reply));
        }
    }

    #[test]
    fn cut_messages_are_none() {
        assert_eq!(Request::decode(&[]), None);
        assert_eq!(Request::decode(&[2, 0, 0]), None);
        assert_eq!(Request::decode(&[9]), None);
        assert_eq!(Reply::decode(&[4, 1, 0, 0, 0]), None);
        assert_eq!(Reply::decode(&[2, 0, 0, 0, 0, b'x']), None);
    }
}
