//! The system calls that no safe wrapper covers. All of the crate's unsafe code.
#![expect(unsafe_code, reason = "fork, signal dispositions and one ioctl have no safe wrapper")]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use nix::sys::signal::{SigSet, SigmaskHow};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Forks. `None` in the child, its process id in the parent. The process must have one thread, or the child must do
/// nothing but async-signal-safe calls: `prepare` checks the first, the guard has one thread always.
pub(crate) fn fork() -> io::Result<Option<i32>> {
    // SAFETY: with one thread no lock can be held by another one that does not exist in the child.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(None),
        pid => Ok(Some(pid)),
    }
}

/// Ends the process without running destructors or flushing the parent's buffers a second time.
pub(crate) fn exit_now(code: i32) -> ! {
    // SAFETY: takes an integer, does not return.
    unsafe { libc::_exit(code) }
}

/// kill(2) with any signal number (the wrappers refuse real-time signals).
pub(crate) fn kill(pid: i32, signal: i32) -> io::Result<()> {
    // SAFETY: takes integers.
    check(unsafe { libc::kill(pid, signal) }).map(drop)
}

/// The process group of `pid`.
pub(crate) fn process_group(pid: i32) -> io::Result<i32> {
    // SAFETY: takes an integer.
    check(unsafe { libc::getpgid(pid) })
}

/// What a signal does.
#[derive(Clone, Copy)]
pub(crate) struct Disposition(libc::sigaction);

/// Makes `signal` do its default action, or be ignored; returns what it did before.
pub(crate) fn set_disposition(signal: i32, ignore: bool) -> io::Result<Disposition> {
    // SAFETY: an all-zero sigaction is a valid one (SIG_DFL, no flags, empty mask).
    let mut new: libc::sigaction = unsafe { std::mem::zeroed() };
    new.sa_sigaction = if ignore { libc::SIG_IGN } else { libc::SIG_DFL };
    swap_disposition(signal, &Disposition(new))
}

/// Puts back what `set_disposition` returned.
pub(crate) fn restore_disposition(signal: i32, old: &Disposition) -> io::Result<()> {
    swap_disposition(signal, old).map(drop)
}

fn swap_disposition(signal: i32, new: &Disposition) -> io::Result<Disposition> {
    // SAFETY: as above.
    let mut old: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: both point to valid structures; a handler in `new` was valid before, as the kernel returned it.
    check(unsafe { libc::sigaction(signal, &new.0, &mut old) })?;
    Ok(Disposition(old))
}

/// Sends `signal` to the calling thread; a stop signal at its default stops the whole process before this returns.
pub(crate) fn raise(signal: i32) -> io::Result<()> {
    // SAFETY: takes an integer.
    check(unsafe { libc::raise(signal) }).map(drop)
}

/// Lets `signal` through to this thread; returns the mask before. Any number, unlike the wrapper's `add`.
pub(crate) fn unblock(signal: i32) -> io::Result<SigSet> {
    // SAFETY: an all-zero sigset_t is an empty set, and sigaddset gets a valid one.
    let set = unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        check(libc::sigaddset(&mut set, signal))?;
        SigSet::from_sigset_t_unchecked(set)
    };
    Ok(set.thread_swap_mask(SigmaskHow::SIG_UNBLOCK)?)
}

/// Makes the open `/dev/net/tun` an interface named `name` that carries IP packets without a header before them.
pub(crate) fn tun_set_interface(tun: BorrowedFd, name: &str) -> io::Result<()> {
    // SAFETY: an all-zero ifreq is valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes().take(libc::IFNAMSIZ - 1)) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TUN | libc::IFF_NO_PI) as libc::c_short;
    // SAFETY: TUNSETIFF reads and writes one ifreq, which lives through the call.
    check(unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETIFF as _, &mut request) }).map(drop)
}

fn check(result: i32) -> io::Result<i32> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Makes a descriptor wait for readability in the runtime. `OwnedFd` names one open description until it is dropped, as
/// the wrapper asks for.
pub(crate) fn async_readable(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd always returns the same descriptor, and keeps it open as long as the AsyncFd owns it.
    unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }.map_err(Into::into)
}
