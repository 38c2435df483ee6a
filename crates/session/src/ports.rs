//! The command's listening ports on this machine's localhost: where a port is taken there, on the next free one.
//!
//! A connection is taken here before the command's listener has taken it: one that stopped listening a moment ago gives
//! a reset.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};

use sandbox::{Inside, Listening};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::{Error, Voice, machine, status};

/// Ports of this machine tried one after the other before the kernel is asked for any.
const NEAR: u16 = 100;
/// Ports below 1024 are not ours to take: 80 becomes 8080 or the next one free.
const FIRST_OPEN: u16 = 1024;
const PRIVILEGED_SHIFT: u16 = 8000;

/// Which port of the command is which one here. Shared with `status` and the dialer.
#[derive(Clone, Default)]
pub(crate) struct Ports(Arc<Mutex<BTreeMap<u16, Port>>>);

struct Port {
    /// Where the command takes connections: what to publish anew when it changes.
    inside: Vec<SocketAddr>,
    here: u16,
    /// The listeners here and their connections.
    _serving: JoinSet<()>,
}

impl Ports {
    /// Keeps every listening port published for as long as it listens. Fails only when `strict`, at the first port that is
    /// taken here.
    pub(crate) async fn publish(
        self,
        mut listening: watch::Receiver<Listening>,
        inside: Inside,
        strict: bool,
        voice: &dyn Voice,
    ) -> Result<Infallible, Error> {
        loop {
            let now = listening.borrow_and_update().clone();
            self.with(|ports| ports.retain(|port, published| now.get(port) == Some(&published.inside)));
            for (&port, addresses) in &now {
                if !self.with(|ports| ports.contains_key(&port)) {
                    self.begin(port, addresses, &inside, strict, voice)?;
                }
            }
            if listening.changed().await.is_err() {
                return std::future::pending().await;
            }
        }
    }

    fn begin(
        &self,
        port: u16,
        addresses: &[SocketAddr],
        inside: &Inside,
        strict: bool,
        voice: &dyn Voice,
    ) -> Result<(), Error> {
        let (here, listeners) = match listen(port, addresses, strict) {
            Ok(found) => found,
            Err(cause) if strict => return Err(Error::PortTaken { port, cause }),
            Err(error) => {
                voice.note(&format!("the command's port {port} is not on this machine's localhost: {error}"));
                return Ok(());
            }
        };
        if here != port {
            voice.note(&format!("the command's port {port} is 127.0.0.1:{here} here, as {port} is not free"));
        }
        let mut serving = JoinSet::new();
        for (listener, address) in listeners {
            serving.spawn(serve(listener, inside.clone(), address));
        }
        self.with(|ports| ports.insert(port, Port { inside: addresses.to_vec(), here, _serving: serving }));
        Ok(())
    }

    /// Whether connections to this port of the machine's localhost end in the command.
    pub(crate) fn is_published_as(&self, here: u16) -> bool {
        self.with(|ports| ports.values().any(|port| port.here == here))
    }

    pub(crate) fn status(&self) -> Vec<status::Port> {
        self.with(|ports| ports.iter().map(|(&port, is)| status::Port { port, machine_port: is.here }).collect())
    }

    /// A panic elsewhere leaves the table whole: each change of it is one call.
    fn with<T>(&self, look: impl FnOnce(&mut BTreeMap<u16, Port>) -> T) -> T {
        look(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Takes the first free number, for all families alike; with each listener the address inside that it leads to.
fn listen(port: u16, addresses: &[SocketAddr], strict: bool) -> io::Result<(u16, Vec<(TcpListener, SocketAddr)>)> {
    let mut refusal = None;
    for candidate in candidates(port, strict) {
        match bind(candidate, addresses) {
            Ok(found) => return Ok(found),
            Err(error) => refusal.get_or_insert(error),
        };
    }
    Err(refusal.unwrap_or_else(|| io::ErrorKind::AddrInUse.into()))
}

/// Pure: which ports of this machine are tried for one of the command's.
fn candidates(port: u16, strict: bool) -> impl Iterator<Item = u16> {
    let next = if port < FIRST_OPEN { port + PRIVILEGED_SHIFT } else { port.saturating_add(1) };
    let others = (next..next.saturating_add(NEAR)).chain([0]);
    [port].into_iter().chain(others.take(if strict { 0 } else { usize::MAX }))
}

fn bind(port: u16, addresses: &[SocketAddr]) -> io::Result<(u16, Vec<(TcpListener, SocketAddr)>)> {
    let mut number = port;
    let mut listeners = Vec::new();
    for &address in addresses {
        let localhost: IpAddr = if address.is_ipv4() { Ipv4Addr::LOCALHOST.into() } else { Ipv6Addr::LOCALHOST.into() };
        let listener = match std::net::TcpListener::bind((localhost, number)) {
            // A machine without IPv6.
            Err(error) if address.is_ipv6() && error.kind() != io::ErrorKind::AddrInUse => continue,
            listener => listener?,
        };
        listener.set_nonblocking(true)?;
        number = listener.local_addr()?.port();
        listeners.push((TcpListener::from_std(listener)?, address));
    }
    if listeners.is_empty() { Err(io::ErrorKind::AddrNotAvailable.into()) } else { Ok((number, listeners)) }
}

async fn serve(listener: TcpListener, inside: Inside, to: SocketAddr) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    let inside = inside.clone();
                    connections.spawn(async move {
                        let _ = stream.set_nodelay(true); // fails on a connection that was reset already
                        match inside.connect(to).await {
                            Ok(far) => machine::join(stream, far).await,
                            Err(error) => {
                                tracing::debug!(%to, %error, "the command took no connection");
                                machine::reset(stream);
                            }
                        }
                    });
                }
                Err(error) => {
                    // Out of descriptors, most likely: a connection that ends gives one back.
                    tracing::debug!(%to, %error, "accept failed");
                    if connections.join_next().await.is_none() {
                        return;
                    }
                }
            },
            Some(_) = connections.join_next(), if !connections.is_empty() => (),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_that_is_taken_gives_way_to_the_next_and_a_privileged_one_to_its_like() {
        let first = |port, strict| candidates(port, strict).take(3).collect::<Vec<_>>();
        assert_eq!(first(3000, false), [3000, 3001, 3002]);
        assert_eq!(first(80, false), [80, 8080, 8081]);
        assert_eq!(first(u16::MAX, false), [u16::MAX, 0]);
        assert_eq!(first(3000, true), [3000]);
        assert_eq!(candidates(3000, false).last(), Some(0));
    }

    #[tokio::test]
    async fn a_taken_number_is_not_used_for_any_family() {
        let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("loopback");
        let port = taken.local_addr().expect("bound").port();
        let addresses = [IpAddr::from(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()];
        let addresses = addresses.map(|ip| SocketAddr::new(ip, port));
        let error = listen(port, &addresses, true).expect_err("taken");
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
        let (here, listeners) = listen(port, &addresses, false).expect("another");
        assert_ne!(here, port);
        let all_alike = listeners.iter().all(|(listener, _)| listener.local_addr().is_ok_and(|at| at.port() == here));
        assert!(all_alike, "{listeners:?}");
    }
}
