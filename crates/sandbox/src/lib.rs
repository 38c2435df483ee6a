//! The rootless sandbox that the developer's command runs in: user, network and mount namespaces of its own, the
//! kernel's own TCP, and a `Dialer` that is asked for each connection to the outside.
//!
//! Knows nothing of links, clusters or what names mean. Carries TCP, UDP and ICMP echo over IPv4 and IPv6; other protocols
//! are refused with EPERM. The name server's sockets are served by the caller. See `setup` for how packets go, `guard` for
//! what ends when.

mod child;
mod command;
mod diag;
mod engine;
mod error;
mod files;
mod flows;
mod guard;
mod inside;
mod listening;
mod message;
mod netlink;
mod nftables;
mod packet;
mod setup;
mod sweep;
mod sys;

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use nix::poll::{PollFd, PollFlags};
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::watch;
use tokio::task::JoinHandle;

pub use child::{Child, end_like};
use child::{Control, Signals};
pub use command::Command;
use diag::Diag;
use engine::Engine;
pub use engine::Replies;
pub use error::{Error, Setting};
pub use inside::Inside;
pub use listening::Listening;
use message::{Reply, Request, SpawnFailure};
pub use packet::{Datagram, Protocol, Unreachable};

/// Brings what the command sends to wherever it shall go.
pub trait Dialer: Send + Sync + 'static {
    /// Connects to `to`; the command's connect(2) completes only when this does. The future is dropped when the command
    /// gives the connection up. It is polled together with all others and must not block.
    fn dial(&self, from: SocketAddr, to: SocketAddr) -> BoxFuture<'static, Result<Connected, DialError>>;

    /// The command sent a datagram. It must not block; what comes back, at any time, is given to `replies`.
    fn datagram(&self, datagram: &Datagram<'_>, replies: &Replies);
}

/// Runs an open flow over the command's end of the connection, until both directions ended.
///
/// The socket comes with SO_LINGER 0 (and TCP_NODELAY): dropped, it resets the connection, so that a flow cut short
/// never looks complete to the command. Whoever runs the flow clears SO_LINGER once both directions ended cleanly.
pub type Connected = Box<dyn FnOnce(TcpStream) -> BoxFuture<'static, ()> + Send>;

/// How the command's connect(2) fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DialError {
    /// ECONNREFUSED
    Refused,
    /// EHOSTUNREACH
    HostUnreachable,
    /// ENETUNREACH
    NetworkUnreachable,
    /// No answer: the command's own timeout runs, and each SYN it repeats dials anew.
    TimedOut,
}

/// A guard that is setting the sandbox up.
pub struct Prepared {
    // Dropped first: its end ends the guard.
    socket: OwnedFd,
    /// Where the guard hands out sockets.
    sockets: OwnedFd,
    guard: Guard,
}

/// Forks the guard, which makes the namespaces meanwhile; whether it could is told by `start`.
///
/// `leftovers` are files, and folders if then empty, that the guard removes in this order when the client is gone, in
/// whatever way: what no namespace takes away.
/// The process must have one thread still: call it before the runtime is made.
pub fn prepare(leftovers: &[PathBuf]) -> Result<Prepared, Error> {
    let threads = std::fs::read_dir("/proc/self/task").map_or(1, Iterator::count);
    if threads != 1 {
        return Err(Error::Threads(threads));
    }
    let pair = || {
        rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
            .map_err(io::Error::from)
    };
    let ((ours, theirs), (sockets, their_sockets)) = (pair()?, pair()?);
    let client = rustix::process::getpid().as_raw_nonzero().get();
    match sys::fork()? {
        Some(pid) => Ok(Prepared { socket: ours, sockets, guard: Guard(pid) }),
        None => {
            drop((ours, sockets));
            // A panic must not unwind into a second life of the client's main function.
            let ended = std::panic::catch_unwind(AssertUnwindSafe(|| guard::run(theirs, their_sockets, client)));
            for path in leftovers {
                let _ = std::fs::remove_file(path).or_else(|_| std::fs::remove_dir(path));
            }
            sys::exit_now(i32::from(ended.is_err()))
        }
    }
}

impl Prepared {
    /// Waits for the namespaces (a few milliseconds) and serves their connections from a task. Inside a tokio runtime.
    pub fn start(self, dialer: Arc<dyn Dialer>) -> Result<Sandbox, Error> {
        let Prepared { socket, sockets, guard } = self;
        let Some((bytes, descriptors)) = message::receive(socket.as_fd())? else { return Err(Error::GuardLost) };
        let v6 = match Reply::decode(&bytes) {
            Some(Reply::Ready { v6 }) => v6,
            Some(Reply::Failed { step, detail, errno }) => {
                return Err(Error::of_setup(&step, detail, io::Error::from_raw_os_error(errno)));
            }
            _ => return Err(Error::GuardLost),
        };
        let mut descriptors = descriptors.into_iter();
        let mut next = || descriptors.next().ok_or(Error::GuardLost);
        let (tun, listener, udp, tcp, diag) = (next()?, next()?, next()?, next()?, next()?);
        let listener_v6 = if v6 { Some(next()?) } else { None };
        let diag = Diag::new(diag);
        let (listening_tx, listening) = watch::channel(Listening::new());
        tokio::spawn(listening::watch(diag.try_clone()?, listening_tx));
        let engine = Engine::new(tun, listener, listener_v6, diag, dialer)?;
        Ok(Sandbox {
            inside: Inside::new(sockets)?,
            listening,
            dns: Some((UdpSocket::from_std(udp.into())?, TcpListener::from_std(tcp.into())?)),
            control: Arc::new(Control::new(socket)?),
            engine: tokio::spawn(engine.run()),
            v6,
            namespace: sweep::network_namespace(guard.0),
            guard,
        })
    }
}

/// Whether `/dev/net/tun` opens for this user; no device is made.
pub fn try_tun() -> Result<(), Error> {
    let opened = std::fs::OpenOptions::new().read(true).write(true).open("/dev/net/tun");
    opened.map(drop).map_err(Error::tun)
}

/// Namespaces in which commands run. Dropping it ends what runs there and resets its connections.
pub struct Sandbox {
    dns: Option<(UdpSocket, TcpListener)>,
    control: Arc<Control>,
    inside: Inside,
    listening: watch::Receiver<Listening>,
    engine: JoinHandle<()>,
    v6: bool,
    /// By which its processes are known, should the guard be killed.
    namespace: Option<sweep::Namespace>,
    guard: Guard,
}

impl Sandbox {
    /// Where the command finds its name server, on port 53 of UDP and TCP: for the resolv.conf in `Command::files`.
    pub const NAME_SERVER: Ipv4Addr = setup::NAME_SERVER;

    /// The name server's sockets, to be served by the caller. `None` when they were taken before.
    pub fn dns(&mut self) -> Option<(UdpSocket, TcpListener)> {
        self.dns.take()
    }

    /// The ports that programs in here listen on, kept true within 50 ms, or 250 ms after half a minute without a change.
    pub fn listening(&self) -> watch::Receiver<Listening> {
        self.listening.clone()
    }

    pub fn inside(&self) -> Inside {
        self.inside.clone()
    }

    /// Starts a command, in this process's process group, with its terminal and its inherited descriptors. One at a
    /// time.
    ///
    /// From the first call on, this process takes SIGINT, SIGQUIT, SIGTERM, SIGHUP, SIGTSTP, SIGUSR1 and SIGUSR2 for the
    /// command (see `Child`); others may listen to them through tokio, too.
    pub async fn spawn(&mut self, command: Command) -> Result<Child, Error> {
        if command.has_zero_byte() {
            return Err(Error::ZeroByte);
        }
        let signals = Signals::take()?;
        let description = command.describe()?;
        self.control.send_with(&Request::Spawn, &[description.as_fd()])?;
        match self.control.receive().await? {
            Reply::Spawned { pid } => Ok(Child::new(pid, self.control.clone(), signals)),
            Reply::SpawnFailed { what, errno, file } => Err(spawn_error(command, what, errno, file)),
            _ => Err(Error::GuardLost),
        }
    }

    /// Whether the kernel gives it IPv6.
    pub fn has_v6(&self) -> bool {
        self.v6
    }

    /// The guard's process id, for those who look at what is left.
    pub fn guard_pid(&self) -> u32 {
        self.guard.0 as u32
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        /// The guard has a command's tree to kill; one that hangs in the kernel is left to it.
        const PATIENCE: Duration = Duration::from_millis(500);
        self.engine.abort();
        if !self.control.end(PATIENCE)
            && let Some(namespace) = self.namespace
        {
            sweep::end_processes_in(namespace);
        }
    }
}

fn spawn_error(mut command: Command, what: SpawnFailure, errno: i32, file: i32) -> Error {
    let source = io::Error::from_raw_os_error(errno);
    let program = command.argv.first().cloned().unwrap_or_default();
    match what {
        SpawnFailure::Busy => Error::Busy,
        SpawnFailure::Start => Error::Spawn(source),
        SpawnFailure::Directory => Error::Directory { path: command.cwd.take().unwrap_or_default(), source },
        SpawnFailure::NotFound => Error::NotFound { command: program },
        SpawnFailure::NotExecutable => Error::NotExecutable { command: program, source },
        SpawnFailure::Bind => {
            let path = command.files.get(file as usize).map(|(path, _)| path.clone()).unwrap_or_default();
            Error::Bind { path, source }
        }
    }
}

/// The guard's process id. Its exit is waited for, so that neither the device nor a zombie is left when this is dropped;
/// its socket must be closed or shut down by then.
struct Guard(i32);

impl Drop for Guard {
    fn drop(&mut self) {
        /// The kernel takes 10-15 ms to take the TUN away.
        const PATIENCE: u16 = 200;
        let Some(pid) = rustix::process::Pid::from_raw(self.0) else { return };
        if let Ok(handle) = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()) {
            let _ = nix::poll::poll(&mut [PollFd::new(handle.as_fd(), PollFlags::POLLIN)], PATIENCE);
        }
        let _ = rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::NOHANG);
    }
}
