//! Connects what the command dials, and passes its datagrams on: through the pod or from this machine, as the router
//! decides.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Instant;

use bytes::Bytes;
use futures::future::BoxFuture;
use link::{Endpoint, Reset};
use sandbox::{Connected, Datagram, DialError, Replies};
use wire::Open;

use crate::datagrams::Associations;
use crate::machine;
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
    pub(crate) endpoint: Endpoint,
    pub(crate) router: Arc<RwLock<Router>>,
    pub(crate) counters: Arc<Counters>,
    pub(crate) associations: Associations,
}

/// A panic elsewhere leaves the table whole: each change of it is one insertion.
pub(crate) fn read(router: &RwLock<Router>) -> RwLockReadGuard<'_, Router> {
    router.read().unwrap_or_else(PoisonError::into_inner)
}

pub(crate) fn write(router: &RwLock<Router>) -> RwLockWriteGuard<'_, Router> {
    router.write().unwrap_or_else(PoisonError::into_inner)
}

impl sandbox::Dialer for Dialer {
    fn dial(&self, from: SocketAddr, to: SocketAddr) -> BoxFuture<'static, Result<Connected, DialError>> {
        let side = read(&self.router).side(to.ip(), Instant::now());
        tracing::trace!(%from, %to, ?side, "dial");
        let (endpoint, counters) = (self.endpoint.clone(), self.counters.clone());
        Box::pin(async move {
            counters.asked(side);
            let dialled = match side {
                Side::Pod => through_pod(&endpoint, to).await,
                Side::Machine => from_machine(to).await,
            };
            if dialled.is_err() {
                counters.refused();
            }
            dialled
        })
    }

    fn datagram(&self, datagram: &Datagram<'_>, replies: &Replies) {
        let side = read(&self.router).side(datagram.peer.ip(), Instant::now());
        self.associations.send(datagram, side, &self.endpoint, &self.counters, replies);
    }
}

async fn through_pod(endpoint: &Endpoint, to: SocketAddr) -> Result<Connected, DialError> {
    match endpoint.open(Bytes::from(Open::tcp(to).to_bytes())).await {
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

async fn from_machine(to: SocketAddr) -> Result<Connected, DialError> {
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
