//! Tells that this machine's networks changed: addresses, routes, devices (rtnetlink's multicast groups).

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;
use tokio::time::sleep;

/// RTMGRP_LINK, RTMGRP_IPV4_IFADDR, RTMGRP_IPV4_ROUTE, RTMGRP_IPV6_IFADDR, RTMGRP_IPV6_ROUTE of linux/rtnetlink.h.
const GROUPS: u32 = 0x1 | 0x10 | 0x40 | 0x100 | 0x400;

/// A change comes as many messages.
const SETTLED: Duration = Duration::from_millis(300);

/// Counts the changes up, for as long as the machine tells them.
pub(super) async fn watch(changes: watch::Sender<u64>) {
    let socket = match listen() {
        Ok(socket) => socket,
        Err(error) => return tracing::debug!(%error, "changes of the network are not seen"),
    };
    let mut buffer = vec![0; 32 << 10];
    loop {
        let read = socket.async_io(Interest::READABLE, |socket| {
            Ok(rustix::net::recv(socket, buffer.as_mut_slice(), RecvFlags::empty()).map(|_| ())?)
        });
        match read.await {
            // More came than the socket keeps: that is a change, too.
            Err(error) if Errno::from_io_error(&error) != Some(Errno::NOBUFS) => {
                return tracing::debug!(%error, "changes of the network are no longer seen");
            }
            _ => {
                sleep(SETTLED).await;
                while rustix::net::recv(socket.get_ref(), buffer.as_mut_slice(), RecvFlags::empty()).is_ok() {}
                changes.send_modify(|count| *count += 1);
            }
        }
    }
}

fn listen() -> io::Result<AsyncFd<OwnedFd>> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    // NETLINK_ROUTE is 0.
    let socket = rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, None)?;
    rustix::net::bind(&socket, &SocketAddrNetlink::new(0, GROUPS))?;
    #[expect(deprecated, reason = "the descriptor is owned: nobody else closes it")]
    AsyncFd::with_interest(socket, Interest::READABLE)
}
