//! The command's datagrams: for each of its ports an association with the side that its datagrams go to, made by the first
//! one and given up when nothing has passed for a while.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use datagram::{Protocol, Records, Socket};
use link::Reset;
use sandbox::{Replies, Unreachable};
use tokio::sync::mpsc;
use tokio::time::timeout;
use wire::{Datagram, Delivery, Open, Transport, Undelivered};

use crate::agent::Outbound;
use crate::dialer::Counters;
use crate::router::Side;

/// As long as a kernel's connection tracking remembers a UDP stream.
const IDLE: Duration = Duration::from_secs(120);
/// Datagrams that wait for their association; what comes beyond is lost.
const QUEUE: usize = 512;

/// Whose datagrams, and to which side.
type Port = (sandbox::Protocol, SocketAddr, Side);

#[derive(Default)]
pub(crate) struct Associations {
    table: Mutex<HashMap<Port, mpsc::Sender<Datagram>>>,
}

impl Associations {
    /// Takes one of the command's datagrams to its side.
    pub(crate) fn send(
        &self,
        sent: &sandbox::Datagram<'_>,
        side: Side,
        outbound: &Outbound,
        counters: &Arc<Counters>,
        replies: &Replies,
    ) {
        let datagram = Datagram { peer: sent.peer, what: Delivery::Payload(Bytes::copy_from_slice(sent.payload)) };
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        let port = (sent.protocol, sent.command, side);
        if table.get(&port).is_none_or(mpsc::Sender::is_closed) {
            table.retain(|_, queue| !queue.is_closed());
            let (queue, queued) = mpsc::channel(QUEUE);
            let association =
                Association { protocol: sent.protocol, command: sent.command, replies: replies.clone(), queued };
            let (outbound, counters) = (outbound.clone(), counters.clone());
            tokio::spawn(async move {
                counters.asked(side);
                let ended = match side {
                    Side::Pod => association.through_pod(&outbound).await,
                    Side::Machine => association.by_machine().await,
                };
                if let Err(error) = ended {
                    counters.refused();
                    tracing::debug!(command = %port.1, %error, "datagrams are not carried");
                }
            });
            table.insert(port, queue);
        }
        if let Some(queue) = table.get(&port) {
            // Full: lost, as in any queue of a network.
            let _ = queue.try_send(datagram);
        }
    }
}

/// One port of the command, and one side.
struct Association {
    protocol: sandbox::Protocol,
    command: SocketAddr,
    replies: Replies,
    queued: mpsc::Receiver<Datagram>,
}

impl Association {
    async fn through_pod(mut self, outbound: &Outbound) -> io::Result<()> {
        let transport = match self.protocol {
            sandbox::Protocol::Udp => Transport::Udp,
            sandbox::Protocol::Echo => Transport::Echo,
        };
        let open = Open::datagrams(transport, any(self.command));
        let flow = match outbound.open(Bytes::from(open.to_bytes())).await {
            Ok(flow) => flow,
            Err(reset) => {
                self.none_delivered(from_reset(reset));
                return Err(io::Error::other(format!("{reset:?}")));
            }
        };
        let mut records = Records::new(flow.into_stream());
        while let Ok(next) = timeout(IDLE, async {
            tokio::select! {
                sent = self.queued.recv() => Ok(sent.map(Either::Sent)),
                came = records.next() => came.map(|came| came.map(Either::Came)),
            }
        })
        .await
        {
            match next? {
                Some(Either::Sent(datagram)) => records.send(&datagram),
                Some(Either::Came(datagram)) => self.came(&datagram),
                None => break,
            }
        }
        Ok(())
    }

    async fn by_machine(mut self) -> io::Result<()> {
        let protocol = match self.protocol {
            sandbox::Protocol::Udp => Protocol::Udp,
            sandbox::Protocol::Echo => Protocol::Echo,
        };
        let mut socket = match Socket::open(protocol, any(self.command)) {
            Ok(socket) => socket,
            Err(error) => {
                self.none_delivered(Undelivered::Prohibited);
                return Err(error);
            }
        };
        while let Ok(next) = timeout(IDLE, async {
            tokio::select! {
                sent = self.queued.recv() => Ok(sent.map(Either::Sent)),
                came = socket.receive() => came.map(|came| Some(Either::Came(came))),
            }
        })
        .await
        {
            match next? {
                Some(Either::Sent(Datagram { peer, what: Delivery::Payload(payload) })) => {
                    if let Some(why) = socket.send(peer, &payload) {
                        self.undelivered(peer, why);
                    }
                }
                Some(Either::Sent(_)) => {}
                Some(Either::Came(datagram)) => self.came(&datagram),
                None => break,
            }
        }
        Ok(())
    }

    fn came(&self, datagram: &Datagram) {
        match &datagram.what {
            Delivery::Undelivered(why) => self.undelivered(datagram.peer, *why),
            Delivery::Payload(payload) if datagram.peer.is_ipv4() == self.command.is_ipv4() => {
                let Association { protocol, command, .. } = *self;
                self.replies.deliver(&sandbox::Datagram { protocol, command, peer: datagram.peer, payload });
            }
            Delivery::Payload(_) => {}
        }
    }

    fn undelivered(&self, peer: SocketAddr, why: Undelivered) {
        let why = match why {
            Undelivered::Port => Unreachable::Port,
            Undelivered::Host => Unreachable::Host,
            Undelivered::Network => Unreachable::Network,
            Undelivered::Prohibited => Unreachable::Prohibited,
        };
        if peer.is_ipv4() == self.command.is_ipv4() {
            self.replies.undelivered(self.protocol, self.command, peer, why);
        }
    }

    /// What waits cannot leave.
    fn none_delivered(&mut self, why: Undelivered) {
        while let Ok(datagram) = self.queued.try_recv() {
            self.undelivered(datagram.peer, why);
        }
    }
}

enum Either {
    Sent(Datagram),
    Came(Datagram),
}

fn any(like: SocketAddr) -> IpAddr {
    if like.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() }
}

fn from_reset(reset: Reset) -> Undelivered {
    match reset {
        Reset::NotAllowed => Undelivered::Prohibited,
        Reset::NetworkUnreachable | Reset::AddressNotAvailable => Undelivered::Network,
        _ => Undelivered::Host,
    }
}
