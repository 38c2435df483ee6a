//! The client's side of the running command: waiting, and signals both ways, so that a shell sees no difference.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::message::{self, Reply, Request};
use crate::{Error, sys};

/// The running command. While `wait` is polled, signals that reach this process go on to the command (unless the
/// terminal, or whoever sent them to the whole process group, sent them there too), and this process stops and goes on
/// with the command.
///
/// Dropping it does not end the command; dropping the `Sandbox` does.
pub struct Child {
    pid: u32,
    control: Arc<Control>,
    signals: Signals,
    status: Option<ExitStatus>,
}

impl Child {
    pub(crate) fn new(pid: i32, control: Arc<Control>, signals: Signals) -> Child {
        Child { pid: pid as u32, control, signals, status: None }
    }

    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Waits for the command's end; its descendants are gone then, too. Cancel safe.
    pub async fn wait(&mut self) -> Result<ExitStatus, Error> {
        while self.status.is_none() {
            tokio::select! {
                reply = self.control.receive() => match reply? {
                    Reply::Exited { status } => self.status = Some(ExitStatus::from_raw(status)),
                    Reply::Stopped { signal } => {
                        stop(signal)?;
                        self.control.send(&Request::Resumed)?;
                    }
                    _ => (),
                },
                signal = self.signals.next() => self.control.send(&Request::Forward(signal))?,
            }
        }
        self.status.ok_or(Error::GuardLost)
    }

    /// Sends a signal to the command alone. Nothing happens when it has ended.
    pub fn signal(&self, signal: i32) {
        let _ = self.control.send(&Request::Signal(signal));
    }
}

/// Ends this process as the command ended: with its exit code, or by its signal, so that whoever waits for this process
/// sees what it would have seen of the command. (A shell that loops stops at ^C only when the signal killed its child.)
/// A shell makes 128 + n of it.
pub fn end_like(status: ExitStatus) -> ! {
    if let Some(signal) = status.signal() {
        // The command has left its core file, if any; this process has none to give.
        let _ = rustix::process::setrlimit(
            rustix::process::Resource::Core,
            rustix::process::Rlimit { current: Some(0), maximum: Some(0) },
        );
        let _ = raise_default(signal);
        std::process::exit(128 + signal)
    }
    std::process::exit(status.code().unwrap_or(1))
}

/// The socket to the guard.
pub(crate) struct Control(AsyncFd<OwnedFd>);

impl Control {
    pub(crate) fn new(socket: OwnedFd) -> io::Result<Control> {
        rustix::io::ioctl_fionbio(&socket, true)?;
        Ok(Control(sys::async_readable(socket)?))
    }

    pub(crate) fn send(&self, request: &Request) -> Result<(), Error> {
        self.send_with(request, &[])
    }

    pub(crate) fn send_with(&self, request: &Request, descriptors: &[BorrowedFd]) -> Result<(), Error> {
        message::send(self.0.get_ref().as_fd(), &request.encode(), descriptors).map_err(|error| match error.kind() {
            io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => Error::GuardLost,
            _ => error.into(),
        })
    }

    pub(crate) async fn receive(&self) -> Result<Reply, Error> {
        let received = self.0.async_io(Interest::READABLE, |socket| message::receive(socket.as_fd())).await?;
        received.and_then(|(bytes, _)| Reply::decode(&bytes)).ok_or(Error::GuardLost)
    }

    /// Has the guard end everything and waits until it says so, at most `patience`; whether it did. Blocks, as it is for
    /// destructors. The guard sees the end of this side although a `Child` may hold the socket, too.
    pub(crate) fn end(&self, patience: Duration) -> bool {
        let socket = self.0.get_ref();
        let _ = rustix::net::shutdown(socket, rustix::net::Shutdown::Write);
        let start = Instant::now();
        while let Some(left) = patience.checked_sub(start.elapsed()) {
            let mut ready = [PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
            let _ = nix::poll::poll(&mut ready, PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO));
            match message::receive(socket.as_fd()) {
                Ok(Some((bytes, _))) if Reply::decode(&bytes) == Some(Reply::Gone) => return true,
                Ok(Some(_)) => (),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => (),
                Ok(None) | Err(_) => return false,
            }
        }
        // It hangs with a process that hangs in the kernel, and will end it when that can be.
        true
    }
}

/// Signals of this process that belong to the command.
pub(crate) struct Signals(Vec<(i32, Signal)>);

impl Signals {
    /// From now on none of them has its default effect on this process. SIGTTIN and SIGTTOU are ignored: they mean
    /// the whole process group, the command decides, and this process stops when it does.
    pub(crate) fn take() -> io::Result<Signals> {
        const FORWARDED: [i32; 7] =
            [libc::SIGINT, libc::SIGQUIT, libc::SIGTERM, libc::SIGHUP, libc::SIGTSTP, libc::SIGUSR1, libc::SIGUSR2];
        for number in [libc::SIGTTIN, libc::SIGTTOU] {
            sys::set_disposition(number, true)?;
        }
        let listen = |number: i32| Ok((number, signal(SignalKind::from_raw(number))?));
        Ok(Signals(FORWARDED.into_iter().map(listen).collect::<io::Result<_>>()?))
    }

    async fn next(&mut self) -> i32 {
        std::future::poll_fn(|context| {
            for (number, signal) in &mut self.0 {
                if signal.poll_recv(context).is_ready() {
                    return Poll::Ready(*number);
                }
            }
            Poll::Pending
        })
        .await
    }
}

/// Stops this process as the command was stopped, so that the shell that waits for it takes the terminal back. Returns
/// when it goes on. Nothing happens in an orphaned process group, where the kernel does not let it stop.
fn stop(signal: i32) -> io::Result<()> {
    if signal == libc::SIGSTOP {
        return sys::raise(signal);
    }
    raise_default(signal)
}

/// Raises a signal with its default effect, in this thread, and returns if that did not end the process.
fn raise_default(signal: i32) -> io::Result<()> {
    let before = sys::set_disposition(signal, false)?;
    let mask = sys::unblock(signal)?;
    let raised = sys::raise(signal);
    mask.thread_set_mask()?;
    sys::restore_disposition(signal, &before)?;
    raised
}
