//! Connects what the command dials, and passes its datagrams on: through the pod or from this machine, as the router
//! decides.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Instant;

use bytes::Bytes;
use futures::future::BoxFuture;
use link::Reset;
use sandbox::{Connected, Datagram, DialError, Replies};
use wire::Open;

use crate::agent::Outbound;
use crate::datagrams::Associations;
use crate::localhost::{Localhost, Way};
use crate::machine;
use crate::ports::Ports;
use crate::router::{Router, Side};

/// Flows by who was asked for them, and the failed ones. Shared with `status`.
#[derive(Default)]
pub(crate) struct Counters {
    pub(crate) through_pod: AtomicU64,
    pub(crate) by_machine: AtomicU64,
    pub(crate) refused: AtomicU64,
}

impl Counters {
    pub(crate) fn asked(&self, side: Side) {
        let counter = match side {
            Side::Pod => &self.through_pod,
            Side::Machine => &self.by_machine,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn refused(&self) {
        self.refused.fetch_add(1, Ordering::Relaxed);
    }
}

pub(crate) struct Dialer {
    pub(crate) outbound: Outbound,
    pub(crate) router: Arc<RwLock<Router>>,
    pub(crate) counters: Arc<Counters>,
    pub(crate) associations: Associations,
    pub(crate) ports: Ports,
    pub(crate) localhost: Arc<RwLock<Localhost>>,
}

/// A panic elsewhere leaves the tables whole: each change of them is one insertion.
pub(crate) fn read<T>(table: &RwLock<T>) -> RwLockReadGuard<'_, T> {
    table.read().unwrap_or_else(PoisonError::into_inner)
}

pub(crate) fn write<T>(table: &RwLock<T>) -> RwLockWriteGuard<'_, T> {
    table.write().unwrap_or_else(PoisonError::into_inner)
}

impl sandbox::Dialer for Dialer {
    fn dial(&self, from: SocketAddr, to: SocketAddr) -> BoxFuture<'static, Result<Connected, DialError>> {
        let way = self.way(to);
        tracing::trace!(%from, %to, ?way, "dial");
        let (outbound, counters) = (self.outbound.clone(), self.counters.clone());
        Box::pin(async move {
            let dialled = match way {
                None => Err(DialError::Refused),
                Some(Way::Pod(open)) => through_pod(&outbound, open, &counters).await,
                Some(Way::Machine { then }) => match (from_machine(to, &counters).await, then) {
                    (Err(DialError::Refused), Some(open)) => through_pod(&outbound, open, &counters).await,
                    (dialled, _) => dialled,
                },
            };
            if dialled.is_err() {
                counters.refused();
            }
            dialled
        })
    }

    fn datagram(&self, datagram: &Datagram<'_>, replies: &Replies) {
        let side = read(&self.router).side(datagram.peer.ip(), Instant::now());
        self.associations.send(datagram, side, &self.outbound, &self.counters, replies);
    }
}

impl Dialer {
    /// `None` where the machine's localhost would lead back to the command.
    fn way(&self, to: SocketAddr) -> Option<Way> {
        if to.ip().is_loopback() {
            let way = read(&self.localhost).way(to.port());
            let is_circle = matches!(way, Way::Machine { .. }) && self.ports.is_published_as(to.port());
            return (!is_circle).then_some(way);
        }
        Some(match read(&self.router).side(to.ip(), Instant::now()) {
            Side::Pod => Way::Pod(Open::tcp(to)),
            Side::Machine => Way::Machine { then: None },
        })
    }
}

async fn through_pod(outbound: &Outbound, open: Open, counters: &Counters) -> Result<Connected, DialError> {
    counters.asked(Side::Pod);
    match outbound.open(Bytes::from(open.to_bytes())).await {
        Ok(flow) => Ok(Box::new(move |command| {
            Box::pin(async move {
                flow.splice(command).await;
            })
        })),
        Err(Reset::ResetByPeer) => Ok(reset_at_once()),
        Err(reset) => Err(from_reset(reset)),
    }
}

/// The far side took the connection and reset it before anybody looked: the command, too, is connected and then reset,
/// as its socket comes with SO_LINGER 0.
fn reset_at_once() -> Connected {
    Box::new(|command| Box::pin(async move { drop(command) }))
}

async fn from_machine(to: SocketAddr, counters: &Counters) -> Result<Connected, DialError> {
    counters.asked(Side::Machine);
    match machine::dial(to).await {
        Ok(far) => Ok(Box::new(move |command| Box::pin(machine::join(command, far)))),
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Ok(reset_at_once()),
        Err(error) => Err(from_errno(&error)),
    }
}

fn from_reset(reset: Reset) -> DialError {
    match reset {
        Reset::Refused => DialError::Refused,
        Reset::NetworkUnreachable | Reset::AddressNotAvailable => DialError::NetworkUnreachable,
        Reset::TimedOut => DialError::TimedOut,
        Reset::HostUnreachable | Reset::ResetByPeer | Reset::Aborted | Reset::NotAllowed | Reset::UnknownFlow => {
            DialError::HostUnreachable
        }
    }
}

fn from_errno(error: &io::Error) -> DialError {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => DialError::Refused,
        io::ErrorKind::NetworkUnreachable | io::ErrorKind::AddrNotAvailable => DialError::NetworkUnreachable,
        io::ErrorKind::TimedOut => DialError::TimedOut,
        _ => DialError::HostUnreachable,
    }
}
