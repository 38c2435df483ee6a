//! Connects what the client asks for, or sends its datagrams, and says truthfully why not.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use datagram::{Protocol, Records, Socket};
use link::{Offer, Reset};
use rustix::io::Errno;
use tokio::net::TcpStream;
use tokio::time::timeout;
use wire::{Datagram, Delivery, Open, Transport};

use crate::describe::Sources;
use crate::listeners;

/// The kernel gives up a connect after 127 s (`tcp_syn_retries` 6); a pod may have other settings.
const CONNECT_LIMIT: Duration = Duration::from_secs(130);

/// What became of an offer, for the counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dialled {
    /// Connected; bytes from and to the client.
    Carried {
        from_client: u64,
        to_client: u64,
    },
    Refused(Reset),
    /// The client wanted it no more.
    Withdrawn,
}

/// Dials and carries one flow until it ends.
pub(crate) async fn serve(offer: Offer, sources: Arc<Sources>) -> Dialled {
    match destination(&offer.payload) {
        Ok(Wanted::Connection { to, unless_listened_by: own }) => {
            if own.is_empty() || is_of_another(sources, to.port(), own).await {
                connection(offer, to).await
            } else {
                refuse(offer, Reset::Refused)
            }
        }
        Ok(Wanted::Datagrams(protocol, any)) => match Socket::open(protocol, any) {
            Ok(socket) => datagrams(offer, socket).await,
            Err(error) => {
                tracing::debug!(?protocol, %error, "no socket");
                refuse(offer, reset_of(&error))
            }
        },
        Err(reset) => refuse(offer, reset),
    }
}

/// Reading all of a busy container's descriptors takes its time.
async fn is_of_another(sources: Arc<Sources>, port: u16, own: String) -> bool {
    let looking = tokio::task::spawn_blocking(move || listeners::is_of_another(&sources.proc, port, &own));
    looking.await.unwrap_or(false)
}

async fn connection(offer: Offer, to: SocketAddr) -> Dialled {
    let connected = tokio::select! {
        connected = connect(to) => connected,
        () = offer.withdrawn() => return Dialled::Withdrawn,
    };
    match connected {
        Ok(socket) => {
            let spliced = offer.accept().splice(socket).await;
            tracing::trace!(%to, sent = spliced.sent, received = spliced.received, end = ?spliced.end, "flow ended");
            Dialled::Carried { from_client: spliced.received, to_client: spliced.sent }
        }
        Err(error) => {
            tracing::debug!(%to, %error, "not connected");
            refuse(offer, reset_of(&error))
        }
    }
}

fn refuse(offer: Offer, reset: Reset) -> Dialled {
    offer.refuse(reset);
    Dialled::Refused(reset)
}

/// Sends and receives for one port of the command, until the client gives it up.
async fn datagrams(offer: Offer, mut socket: Socket) -> Dialled {
    let mut records = Records::new(offer.accept().into_stream());
    let (mut from_client, mut to_client) = (0, 0);
    loop {
        let came = tokio::select! {
            sent = records.next() => match sent {
                Ok(Some(Datagram { peer, what: Delivery::Payload(payload) })) => {
                    from_client += payload.len() as u64;
                    match socket.send(peer, &payload) {
                        Some(why) => Datagram { peer, what: Delivery::Undelivered(why) },
                        None => continue,
                    }
                }
                Ok(Some(_)) => continue,
                Ok(None) | Err(_) => break,
            },
            came = socket.receive() => match came {
                Ok(came) => came,
                Err(error) => {
                    tracing::debug!(%error, "datagrams' socket failed");
                    break;
                }
            },
        };
        if let Delivery::Payload(payload) = &came.what {
            to_client += payload.len() as u64;
        }
        records.send(&came);
    }
    Dialled::Carried { from_client, to_client }
}

#[derive(Debug, PartialEq, Eq)]
enum Wanted {
    Connection {
        to: SocketAddr,
        unless_listened_by: String,
    },
    /// The unspecified address of the family.
    Datagrams(Protocol, IpAddr),
}

/// A release that does not know a transport says so.
fn destination(payload: &[u8]) -> Result<Wanted, Reset> {
    let open = Open::from_bytes(payload).ok_or(Reset::NotAllowed)?;
    let to = open.socket_addr().ok_or(Reset::AddressNotAvailable);
    match open.transport() {
        Transport::Tcp => Ok(Wanted::Connection { to: to?, unless_listened_by: open.unless_listened_by }),
        Transport::Udp => Ok(Wanted::Datagrams(Protocol::Udp, to?.ip())),
        Transport::Echo => Ok(Wanted::Datagrams(Protocol::Echo, to?.ip())),
        Transport::Unspecified => Err(Reset::NotAllowed),
    }
}

async fn connect(to: SocketAddr) -> io::Result<TcpStream> {
    let socket = timeout(CONNECT_LIMIT, TcpStream::connect(to)).await??;
    // Fails on a connection that was reset already, which its reader will tell better.
    let _ = socket.set_nodelay(true);
    Ok(socket)
}

fn reset_of(error: &io::Error) -> Reset {
    if error.kind() == io::ErrorKind::TimedOut {
        return Reset::TimedOut;
    }
    match Errno::from_io_error(error) {
        Some(Errno::CONNREFUSED) => Reset::Refused,
        Some(Errno::HOSTUNREACH | Errno::HOSTDOWN) => Reset::HostUnreachable,
        // A pod without IPv6 has no family, no route, or no address for it.
        Some(Errno::NETUNREACH | Errno::NETDOWN | Errno::AFNOSUPPORT) => Reset::NetworkUnreachable,
        Some(Errno::CONNRESET | Errno::PIPE) => Reset::ResetByPeer,
        Some(Errno::ADDRNOTAVAIL | Errno::INVAL) => Reset::AddressNotAvailable,
        // A packet filter of the pod.
        Some(Errno::ACCESS | Errno::PERM) => Reset::NotAllowed,
        _ => Reset::Aborted,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_says_is_passed_on() {
        let cases = [
            (Errno::CONNREFUSED, Reset::Refused),
            (Errno::HOSTUNREACH, Reset::HostUnreachable),
            (Errno::NETUNREACH, Reset::NetworkUnreachable),
            (Errno::AFNOSUPPORT, Reset::NetworkUnreachable),
            (Errno::TIMEDOUT, Reset::TimedOut),
            (Errno::CONNRESET, Reset::ResetByPeer),
            (Errno::ADDRNOTAVAIL, Reset::AddressNotAvailable),
            (Errno::PERM, Reset::NotAllowed),
            (Errno::MFILE, Reset::Aborted),
        ];
        for (errno, reset) in cases {
            assert_eq!(reset_of(&io::Error::from(errno)), reset, "{errno}");
        }
        assert_eq!(reset_of(&io::ErrorKind::TimedOut.into()), Reset::TimedOut);
    }

    #[test]
    fn a_transport_that_is_not_known_and_an_address_that_is_none_are_refused() {
        let to: SocketAddr = "10.0.0.1:80".parse().expect("an address");
        let open = Open::tcp(to);
        let wanted = Wanted::Connection { to, unless_listened_by: String::new() };
        assert_eq!(destination(&open.to_bytes()), Ok(wanted));
        let any = IpAddr::from([0; 16]);
        let udp = Open::datagrams(Transport::Udp, any);
        assert_eq!(destination(&udp.to_bytes()), Ok(Wanted::Datagrams(Protocol::Udp, any)));
        let later = Open { transport: 99, ..open.clone() };
        assert_eq!(destination(&later.to_bytes()), Err(Reset::NotAllowed));
        let nowhere = Open { address: vec![1], ..open };
        assert_eq!(destination(&nowhere.to_bytes()), Err(Reset::AddressNotAvailable));
        assert_eq!(destination(b"\xff\xff"), Err(Reset::NotAllowed));
    }
}
