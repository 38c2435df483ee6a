//! Which TCP ports programs in the sandbox listen on. The kernel tells nobody when a program begins to listen, so it is
//! asked again and again.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior};

use crate::diag::{Diag, Listener};
use crate::setup;

/// Where each port is reached from inside: one address of IPv4, one of IPv6, or both.
pub type Listening = BTreeMap<u16, Vec<SocketAddr>>;

/// Between questions (20-40 us each) while ports come and go: what a developer who restarts a server does not notice.
const OFTEN: Duration = Duration::from_millis(50);
/// Between questions when nothing has changed for [`LIVELY`], to let an idle machine sleep.
const SELDOM: Duration = Duration::from_millis(250);
const LIVELY: Duration = Duration::from_secs(30);

/// Keeps `listening` true until nobody looks at it any more.
pub(crate) async fn watch(diag: Diag, listening: watch::Sender<Listening>) {
    let mut ticks = tokio::time::interval(OFTEN);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut changed = Instant::now();
    loop {
        tokio::select! {
            _ = ticks.tick() => (),
            () = listening.closed() => return,
        }
        // A kernel that does not say leaves what was known.
        let Ok(listeners) = diag.listeners() else { continue };
        let now = by_port(&listeners);
        let is_new = listening.send_if_modified(|known| {
            let is_new = *known != now;
            *known = now;
            is_new
        });
        if is_new {
            changed = Instant::now();
        }
        let pace = if changed.elapsed() < LIVELY { OFTEN } else { SELDOM };
        if ticks.period() != pace {
            ticks = tokio::time::interval_at(Instant::now() + pace, pace);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        }
    }
}

/// Pure. What listens on other addresses is the sandbox's own: its listener and name server.
fn by_port(listeners: &[Listener]) -> Listening {
    let mut ports = Listening::new();
    let mut add = |port: u16, address: IpAddr| {
        let addresses = ports.entry(port).or_default();
        if !addresses.iter().any(|known| known.is_ipv4() == address.is_ipv4()) {
            addresses.push(SocketAddr::new(address, port));
            addresses.sort();
        }
    };
    for Listener { at, v6_only } in listeners {
        let (ip, port) = (at.ip().to_canonical(), at.port());
        match ip {
            IpAddr::V4(ip) if ip.is_unspecified() || ip == Ipv4Addr::LOCALHOST => {
                add(port, Ipv4Addr::LOCALHOST.into());
            }
            IpAddr::V4(own) if own.is_loopback() || own == setup::COMMAND => add(port, own.into()),
            IpAddr::V6(ip) if ip.is_unspecified() => {
                add(port, Ipv6Addr::LOCALHOST.into());
                if !v6_only {
                    add(port, Ipv4Addr::LOCALHOST.into());
                }
            }
            IpAddr::V6(own) if own.is_loopback() || own == setup::COMMAND_V6 => add(port, own.into()),
            _ => (),
        }
    }
    ports
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ports(listeners: &[(&str, bool)]) -> Vec<String> {
        let parsed = |&(at, v6_only): &(&str, bool)| Listener { at: at.parse().expect("a literal"), v6_only };
        let listeners: Vec<_> = listeners.iter().map(parsed).collect();
        let found = by_port(&listeners);
        found.values().flatten().map(ToString::to_string).collect()
    }

    #[test]
    fn a_port_is_reached_where_its_listener_takes_connections() {
        assert_eq!(ports(&[("0.0.0.0:80", false)]), ["127.0.0.1:80"]);
        assert_eq!(ports(&[("127.0.0.1:80", false), ("[::1]:80", true)]), ["127.0.0.1:80", "[::1]:80"]);
        assert_eq!(ports(&[("[::]:80", false)]), ["127.0.0.1:80", "[::1]:80"]);
        assert_eq!(ports(&[("[::]:80", true)]), ["[::1]:80"]);
        assert_eq!(ports(&[("[::ffff:127.0.0.1]:80", false)]), ["127.0.0.1:80"]);
        assert_eq!(ports(&[("198.18.0.1:80", false)]), ["198.18.0.1:80"]);
    }

    #[test]
    fn the_sandboxs_own_listeners_are_not_the_commands() {
        assert!(ports(&[("198.18.0.2:53", false), ("198.18.0.5:64999", false)]).is_empty());
    }
}
