//! Serves the sandbox's connections: reads SYNs from the TUN, has them dialled, hands them back to the kernel or answers
//! them, accepts what the kernel then connects, and runs the flows. One task owns all of it. Datagrams it passes on.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::future::{AbortHandle, Abortable, BoxFuture, FutureExt};
use futures::stream::{FuturesUnordered, StreamExt};
use tokio::io::unix::{AsyncFd, AsyncFdReadyGuard};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;
use tracing::{debug, trace, warn};

use crate::diag::Diag;
use crate::flows::{Dial, Ends, Flows, Opened, Verdict};
use crate::packet::{self, Datagram, Protocol, Unreachable};
use crate::{Connected, DialError, Dialer, sys};

/// How often the command's sockets are asked after, for connections not yet made. The kernel repeats a SYN only after
/// seconds, and says nothing when a program closes a socket that is still connecting.
const CHECK: Duration = Duration::from_millis(500);
/// Packets read from the TUN before other things get their turn.
const BURST: usize = 64;

pub(crate) struct Engine {
    tun: Arc<AsyncFd<OwnedFd>>,
    listener: TcpListener,
    listener_v6: Option<TcpListener>,
    diag: Diag,
    dialer: Arc<dyn Dialer>,
    replies: Replies,
    flows: Flows<AbortOnDrop, Connected>,
    dials: FuturesUnordered<Abortable<BoxFuture<'static, Dialled>>>,
    /// The open flows: they end with the engine.
    running: JoinSet<()>,
}

/// A dial's end.
struct Dialled {
    ends: Ends,
    dial: Dial,
    result: Result<Connected, DialError>,
}

struct AbortOnDrop(AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Engine {
    pub(crate) fn new(
        tun: OwnedFd,
        listener: OwnedFd,
        listener_v6: Option<OwnedFd>,
        diag: Diag,
        dialer: Arc<dyn Dialer>,
    ) -> io::Result<Engine> {
        let listen = |fd: OwnedFd| TcpListener::from_std(fd.into());
        let tun = Arc::new(sys::async_readable(tun)?);
        Ok(Engine {
            replies: Replies { tun: tun.clone() },
            tun,
            listener: listen(listener)?,
            listener_v6: listener_v6.map(listen).transpose()?,
            diag,
            dialer,
            flows: Flows::new(),
            dials: FuturesUnordered::new(),
            running: JoinSet::new(),
        })
    }

    /// Runs until the TUN fails. Dropping the future gives every dial up and resets every flow.
    pub(crate) async fn run(mut self) {
        let tun = self.tun.clone();
        let mut buffer = vec![0; 1 << 16];
        let mut check = tokio::time::interval(CHECK);
        check.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                ready = tun.readable() => {
                    if let Err(error) = ready.and_then(|ready| self.burst(ready, &mut buffer)) {
                        return warn!(%error, "the sandbox's TUN failed");
                    }
                }
                accepted = accept(&self.listener, self.listener_v6.as_ref()) => match accepted {
                    Ok((stream, from)) => self.accepted(stream, from),
                    Err(error) => debug!(%error, "accept failed"),
                },
                Some(dialled) = self.dials.next(), if !self.dials.is_empty() => {
                    if let Ok(dialled) = dialled {
                        self.dialled(dialled);
                    }
                }
                Some(ended) = self.running.join_next(), if !self.running.is_empty() => {
                    if let Err(error) = ended {
                        warn!(%error, "a flow's task failed");
                    }
                }
                _ = check.tick(), if !self.flows.is_empty() => self.give_up(),
            }
        }
    }

    /// The packets that are there.
    fn burst(&mut self, mut ready: AsyncFdReadyGuard<'_, OwnedFd>, buffer: &mut [u8]) -> io::Result<()> {
        for _ in 0..BURST {
            match ready.try_io(|tun| Ok(rustix::io::read(tun.get_ref(), &mut *buffer)?)) {
                Ok(length) => self.packet(&buffer[..length?]),
                Err(_would_block) => break,
            }
        }
        Ok(())
    }

    fn packet(&mut self, packet: &[u8]) {
        let Some(syn) = packet::syn(packet) else {
            // The kernel's own ICMP (errors, neighbours of IPv6) comes here, too, and is no one's.
            if let Some(datagram) = packet::datagram(packet) {
                self.dialer.datagram(&datagram, &self.replies);
            }
            return;
        };
        let mut packet = std::borrow::Cow::Borrowed(packet);
        if syn.to.ip().is_loopback() {
            if self.diag.is_listened_for(&(syn.from, syn.to)) {
                return self.write(&packet::with_hops(&packet, packet::INSIDE));
            }
            packet = packet::with_hops(&packet, packet::OUTSIDE).into();
        }
        match self.flows.syn(&syn) {
            Verdict::Known => trace!(to = %syn.to, "SYN repeated"),
            Verdict::Again => self.write(&packet),
            Verdict::New(dial) => {
                trace!(from = %syn.from, to = %syn.to, "SYN");
                let ends = (syn.from, syn.to);
                let future = self.dialer.dial(syn.from, syn.to).map(move |result| Dialled { ends, dial, result });
                let (abort, registration) = AbortHandle::new_pair();
                self.flows.begin(dial, syn, packet.into_owned(), AbortOnDrop(abort), Instant::now());
                self.dials.push(Abortable::new(future.boxed(), registration));
            }
        }
    }

    fn dialled(&mut self, Dialled { ends, dial, result }: Dialled) {
        let error = match result {
            Ok(far) => {
                if let Opened::Release(packet) = self.flows.opened(ends, dial, far, Instant::now()) {
                    self.write(&packet);
                }
                return;
            }
            Err(error) => error,
        };
        let Some((syn, packet)) = self.flows.failed(ends, dial) else { return };
        trace!(to = %syn.to, ?error, "dial failed");
        let answer = match error {
            DialError::Refused => Some(packet::refusal(&syn)),
            DialError::HostUnreachable => packet::unreachable(&packet, Unreachable::Host),
            DialError::NetworkUnreachable => packet::unreachable(&packet, Unreachable::Network),
            // The command's own timeout runs; its next SYN dials anew.
            DialError::TimedOut => None,
        };
        if let Some(answer) = answer {
            self.write(&answer);
        }
    }

    fn accepted(&mut self, stream: TcpStream, from: SocketAddr) {
        // A flow that just vanishes, with this process for one, shall end in a reset and never look complete.
        let prepared = stream.set_zero_linger().and_then(|()| stream.set_nodelay(true));
        let (Ok(()), Ok(to)) = (prepared, stream.local_addr()) else { return };
        match self.flows.accepted((from, to)) {
            Some(far) => drop(self.running.spawn(far(stream))),
            None => debug!(%to, "a connection came without its dial"),
        }
    }

    fn give_up(&mut self) {
        let Engine { flows, diag, .. } = self;
        let gone = flows.give_up(Instant::now(), CHECK, |ends| diag.is_wanted(ends));
        if gone > 0 {
            trace!(gone, left = flows.len(), "dials nobody waits for were given up");
        }
    }

    fn write(&self, packet: &[u8]) {
        self.replies.write(packet);
    }
}

/// Brings datagrams to the command, from anywhere. Once the sandbox is gone, nowhere.
#[derive(Clone)]
pub struct Replies {
    tun: Arc<AsyncFd<OwnedFd>>,
}

impl Replies {
    pub fn deliver(&self, datagram: &Datagram) {
        self.write(&packet::to_command(datagram));
    }

    /// The command's datagram to this peer was not delivered: a connected socket learns it.
    pub fn undelivered(&self, protocol: Protocol, command: SocketAddr, peer: SocketAddr, why: Unreachable) {
        self.write(&packet::undelivered(protocol, command, peer, why));
    }

    fn write(&self, packet: &[u8]) {
        if let Err(error) = rustix::io::write(self.tun.get_ref(), packet) {
            // A lost packet: the command's kernel repeats its SYN, a program its datagram.
            debug!(%error, "writing to the TUN failed");
        }
    }
}

async fn accept(v4: &TcpListener, v6: Option<&TcpListener>) -> io::Result<(TcpStream, SocketAddr)> {
    let v6 = async {
        match v6 {
            Some(listener) => listener.accept().await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        accepted = v4.accept() => accepted,
        accepted = v6 => accepted,
    }
}
