//! Connects what the client asks for, and says truthfully why not.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use link::{Offer, Reset};
use rustix::io::Errno;
use tokio::net::TcpStream;
use tokio::time::timeout;
use wire::{Open, Transport};

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
pub(crate) async fn serve(offer: Offer) -> Dialled {
    let to = match destination(&offer.payload) {
        Ok(to) => to,
        Err(reset) => return refuse(offer, reset),
    };
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

/// UDP comes with a later protocol; a release that does not carry it says so.
fn destination(payload: &[u8]) -> Result<SocketAddr, Reset> {
    let open = Open::from_bytes(payload).ok_or(Reset::NotAllowed)?;
    if open.transport != Transport::Tcp as i32 {
        return Err(Reset::NotAllowed);
    }
    open.socket_addr().ok_or(Reset::AddressNotAvailable)
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
    fn only_tcp_is_dialled() {
        let to: SocketAddr = "10.0.0.1:80".parse().expect("an address");
        let open = Open::tcp(to);
        assert_eq!(destination(&open.to_bytes()), Ok(to));
        let udp = Open { transport: Transport::Udp as i32, ..open.clone() };
        assert_eq!(destination(&udp.to_bytes()), Err(Reset::NotAllowed));
        let nowhere = Open { address: vec![1], ..open };
        assert_eq!(destination(&nowhere.to_bytes()), Err(Reset::AddressNotAvailable));
        assert_eq!(destination(b"\xff\xff"), Err(Reset::NotAllowed));
    }
}
