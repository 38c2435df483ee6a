//! The guard: a process between client and command. It makes the namespaces, starts the command in them, and ends all
//! of the command's tree when the command or the client is gone. It moves no bytes and has one thread.
//!
//! Bound to the client's life by their socket pair: the kernel closes the client's end however the client dies. Bound
//! to the command's tree by being its subreaper: what daemonises becomes the guard's child. The command itself dies
//! with the guard (PDEATHSIG).
//!
//! Client, guard and command share one process group, so the terminal's signals reach the command without help. The
//! guard blocks all signals and reads them, which tells it what went to the whole group.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout};
use nix::sys::signal::{SigSet, SigmaskHow};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::process::{Signal, WaitOptions, WaitStatus};

use crate::command::Command;
use crate::files::Covers;
use crate::inside;
use crate::message::{self, Reply, Request, SpawnFailure};
use crate::setup::{self, Failure};
use crate::sys;

/// Runs the guard until the client is gone. In the forked child; the caller ends the process then.
pub(crate) fn run(socket: OwnedFd, sockets: OwnedFd, client: i32) {
    let Ok(mut guard) = Guard::new(socket, sockets, client) else { return };
    // Kept, so that the client's last close of it is not the one that takes the device away (10-15 ms).
    let _tun = match setup::namespaces() {
        Ok(handles) => {
            let mut descriptors =
                vec![&handles.tun, &handles.listener, &handles.dns_udp, &handles.dns_tcp, &handles.diag];
            descriptors.extend(handles.listener_v6.as_ref());
            let descriptors: Vec<BorrowedFd> = descriptors.into_iter().map(|fd| fd.as_fd()).collect();
            let ready = Reply::Ready { v6: handles.listener_v6.is_some() };
            if message::send(guard.socket.as_fd(), &ready.encode(), &descriptors).is_err() {
                return;
            }
            handles.tun
        }
        Err(Failure { step, detail, source }) => {
            let errno = source.raw_os_error().unwrap_or(libc::EIO);
            guard.reply(&Reply::Failed { step: step.to_owned(), detail, errno });
            return;
        }
    };
    guard.mounts = File::open("/proc/self/mountinfo").ok();
    while guard.turn() {}
    guard.end_descendants(None);
    guard.reply(&Reply::Gone);
}

/// How long the end of a command waits for its descendants to be gone before it is reported; they are only waited for
/// when a process cannot be killed at once (it hangs in the kernel).
const DESCENDANTS_PATIENCE: Duration = Duration::from_secs(1);
/// How often a stopped client is told to go on, until it says it does.
const NUDGE: u16 = 10;

/// How often a cover that could not be put back, as its path does not exist now, is tried again.
const COVER_AGAIN: u16 = 200;

struct Guard {
    socket: OwnedFd,
    /// Where the client asks for sockets; see `inside`.
    sockets: OwnedFd,
    client: i32,
    signals: SignalFd,
    /// As the command shall have them: those of the client when it started.
    mask: SigSet,
    child_disposition: sys::Disposition,
    /// Signals that came since the client last spoke of them, by number: sent to the whole process group.
    seen: [bool; 65],
    running: Option<Running>,
    files: Covers,
    /// /proc/self/mountinfo, which tells by poll(2) that mounts changed.
    mounts: Option<File>,
}

struct Running {
    pid: i32,
    stopped: bool,
    /// The client was told to stop and did not yet say that it runs again.
    resume_due: bool,
}

impl Guard {
    fn new(socket: OwnedFd, sockets: OwnedFd, client: i32) -> io::Result<Guard> {
        let mask = SigSet::all().thread_swap_mask(SigmaskHow::SIG_SETMASK)?;
        let signals = SignalFd::with_flags(&SigSet::all(), SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
        // A parent that ignores SIGCHLD would have the kernel reap our children unseen.
        let child_disposition = sys::set_disposition(libc::SIGCHLD, false)?;
        rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?;
        // The client's end is seen at the socket, but not by a guard that was stopped.
        rustix::process::set_parent_process_death_signal(Some(Signal::CONT))?;
        let _ = rustix::thread::set_name(c"stead-guard");
        Ok(Guard {
            socket,
            sockets,
            client,
            signals,
            mask,
            child_disposition,
            seen: [false; 65],
            running: None,
            files: Covers::default(),
            mounts: None,
        })
    }

    /// Waits for one thing to happen; false when the client is gone.
    fn turn(&mut self) -> bool {
        let nudging = self.running.as_ref().is_some_and(|r| r.resume_due && !r.stopped);
        let mut ready = vec![
            PollFd::new(self.socket.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.signals.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.sockets.as_fd(), PollFlags::POLLIN),
        ];
        ready.extend(self.mounts.as_ref().map(|mounts| PollFd::new(mounts.as_fd(), PollFlags::POLLPRI)));
        let timeout = match (nudging, self.files.lost()) {
            (true, _) => PollTimeout::from(NUDGE),
            (false, true) => PollTimeout::from(COVER_AGAIN),
            (false, false) => PollTimeout::NONE,
        };
        let count = nix::poll::poll(&mut ready, timeout).unwrap_or(0);
        let is_ready = |index: usize| ready.get(index).is_some_and(|fd: &PollFd| fd.any().unwrap_or(false));
        let (told, asked, mounts_changed) = (is_ready(0), is_ready(2), is_ready(3));
        if mounts_changed || self.files.lost() {
            self.files.cover_again();
        }
        if count == 0 && nudging {
            let _ = sys::kill(self.client, libc::SIGCONT);
        }
        self.read_signals();
        // Both ends of the client are closed at once.
        if asked && !inside::serve(self.sockets.as_fd()) {
            return false;
        }
        if !told {
            return true;
        }
        match message::receive(self.socket.as_fd()) {
            Ok(Some((bytes, descriptors))) => {
                if let Some(request) = Request::decode(&bytes) {
                    self.handle(request, descriptors);
                }
                true
            }
            Ok(None) => false,
            Err(error) => error.kind() == io::ErrorKind::WouldBlock,
        }
    }

    fn handle(&mut self, request: Request, descriptors: Vec<OwnedFd>) {
        match request {
            Request::Spawn => {
                let reply = match self.spawn(descriptors) {
                    Ok(pid) => Reply::Spawned { pid },
                    Err((what, errno, file)) => Reply::SpawnFailed { what, errno, file },
                };
                self.reply(&reply);
                // It may have ended meanwhile; its signal is read in the next turn.
            }
            Request::Signal(signal) => self.signal(signal),
            Request::Forward(signal) => self.forward(signal),
            Request::Resumed => self.resumed(),
        }
    }

    fn spawn(&mut self, mut descriptors: Vec<OwnedFd>) -> Result<i32, (SpawnFailure, i32, i32)> {
        if self.running.is_some() {
            return Err((SpawnFailure::Busy, 0, 0));
        }
        let start = |e: io::Error| (SpawnFailure::Start, e.raw_os_error().unwrap_or(libc::EIO), 0);
        let description = descriptors.pop().ok_or_else(|| start(io::ErrorKind::InvalidInput.into()))?;
        let command = Command::read(description).map_err(start)?;
        self.files
            .cover(&command.files)
            .map_err(|(file, e)| (SpawnFailure::Bind, e.raw_os_error().unwrap_or(libc::EIO), file as i32))?;
        let (mut failed, report) = io::pipe().map_err(start)?;
        // What came until now reached no command.
        self.read_signals();
        self.seen = [false; 65];
        let Some(pid) = sys::fork().map_err(start)? else { self.become_command(&command, report) };
        drop(report);
        let mut bytes = [0; 8];
        if failed.read_exact(&mut bytes).is_ok() {
            let _ = rustix::process::waitpid(rustix::process::Pid::from_raw(pid), WaitOptions::empty());
            let (what, errno) = bytes.split_at(4);
            let number = |bytes: &[u8]| i32::from_ne_bytes(bytes.try_into().expect("4 bytes"));
            return Err((SpawnFailure::decode(number(what)).unwrap_or(SpawnFailure::Start), number(errno), 0));
        }
        self.running = Some(Running { pid, stopped: false, resume_due: false });
        Ok(pid)
    }

    /// In the forked child: puts back what the guard changed for itself and executes the command.
    fn become_command(&self, command: &Command, mut report: io::PipeWriter) -> ! {
        let prepare = || -> io::Result<()> {
            sys::restore_disposition(libc::SIGCHLD, &self.child_disposition)?;
            // Rust's runtime ignores it, and a program started would inherit that.
            sys::set_disposition(libc::SIGPIPE, false)?;
            rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
            self.mask.thread_set_mask()?;
            Ok(())
        };
        let (what, errno) = match prepare() {
            Ok(()) => command.execute(),
            Err(_) => (SpawnFailure::Start, nix::errno::Errno::last()),
        };
        let _ = report.write_all(&[(what as i32).to_ne_bytes(), (errno as i32).to_ne_bytes()].concat());
        sys::exit_now(127)
    }

    fn signal(&self, signal: i32) {
        if let Some(running) = &self.running {
            let _ = sys::kill(running.pid, signal);
        }
    }

    /// Sends the client's signal on to the command, unless the command got it already: a signal to a process group
    /// reaches all of its members at once, so the guard has it by the time the client speaks of it.
    fn forward(&mut self, signal: i32) {
        let seen = self.seen.get_mut(signal as usize).is_some_and(std::mem::take);
        let Some(running) = &self.running else { return };
        let same_group = sys::process_group(running.pid).ok() == sys::process_group(0).ok();
        if !(seen && same_group) {
            self.signal(signal);
        }
    }

    fn resumed(&mut self) {
        if let Some(running) = &mut self.running {
            running.resume_due = false;
            if running.stopped {
                let _ = sys::kill(running.pid, libc::SIGCONT);
            }
        }
    }

    fn read_signals(&mut self) {
        while let Ok(Some(info)) = self.signals.read_signal() {
            if let Some(seen) = self.seen.get_mut(info.ssi_signo as usize) {
                *seen = true;
            }
        }
        self.reap();
    }

    /// Looks at every child that changed its state.
    fn reap(&mut self) {
        let options = WaitOptions::NOHANG | WaitOptions::UNTRACED | WaitOptions::CONTINUED;
        while let Ok(Some((pid, status))) = rustix::process::wait(options) {
            let Some(running) = self.running.as_mut().filter(|r| r.pid == pid.as_raw_nonzero().get()) else { continue };
            if let Some(signal) = status.stopping_signal() {
                running.stopped = true;
                running.resume_due = true;
                self.reply(&Reply::Stopped { signal });
            } else if status.continued() {
                running.stopped = false;
                if running.resume_due {
                    let _ = sys::kill(self.client, libc::SIGCONT);
                }
            } else {
                self.ended(status);
            }
        }
    }

    fn ended(&mut self, status: WaitStatus) {
        self.running = None;
        self.end_descendants(Some(DESCENDANTS_PATIENCE));
        self.reply(&Reply::Exited { status: status.as_raw() });
    }

    /// Kills and reaps until no child is left. Only children are killed, never a process id found deeper in the tree: a
    /// child's id cannot be used anew before it is reaped here, and the children of a killed one become ours.
    fn end_descendants(&self, patience: Option<Duration>) {
        let start = Instant::now();
        loop {
            children().for_each(|pid| drop(sys::kill(pid, libc::SIGKILL)));
            match rustix::process::wait(WaitOptions::NOHANG) {
                Ok(Some(_)) => (),
                Ok(None) if patience.is_some_and(|patience| start.elapsed() > patience) => return,
                Ok(None) => self.await_signal(),
                Err(_) => return,
            }
        }
    }

    /// Waits for a child's end, or for `NUDGE`, as a child that moves here under our hands sends no signal.
    fn await_signal(&self) {
        let _ = nix::poll::poll(&mut [PollFd::new(self.signals.as_fd(), PollFlags::POLLIN)], NUDGE);
        while let Ok(Some(_)) = self.signals.read_signal() {}
    }

    fn reply(&self, reply: &Reply) {
        // A client that is gone is seen at the next read.
        let _ = message::send(self.socket.as_fd(), &reply.encode(), &[]);
    }
}

/// The process ids of the guard's children.
fn children() -> impl Iterator<Item = i32> {
    let listed = std::fs::read_to_string("/proc/thread-self/children").unwrap_or_else(|_| children_by_search());
    listed.split_ascii_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<i32>>().into_iter()
}

/// For kernels without CONFIG_PROC_CHILDREN.
fn children_by_search() -> String {
    let own = std::process::id().to_string();
    let is_child = |pid: &String| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        // After the name in parentheses: state, parent.
        stat.rsplit_once(") ").and_then(|(_, rest)| rest.split(' ').nth(1)) == Some(own.as_str())
    };
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    let pids = names.filter(|name| name.bytes().all(|byte| byte.is_ascii_digit()));
    pids.filter(is_child).collect::<Vec<_>>().join(" ")
}
