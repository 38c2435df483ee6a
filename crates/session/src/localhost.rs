//! Pure: where a connection of the command to its own 127.0.0.1 leads when nothing in the sandbox listens. This machine's
//! services come first, as the command is at home here; then those of the pod's other containers, such as a database
//! proxy; and before both what the user named with `--to-pod`.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr};

use cluster::Neighbours;
use wire::Open;

/// Who is asked for one port of localhost.
#[derive(Debug, PartialEq)]
pub(crate) enum Way {
    Pod(Open),
    /// This machine, and where it refuses, the pod.
    Machine {
        then: Option<Open>,
    },
}

#[derive(Debug, Default)]
pub(crate) struct Localhost {
    to_pod: BTreeSet<u16>,
    neighbours: Neighbours,
    /// The runtime's id of the container whose place the command takes.
    container_id: String,
}

impl Localhost {
    pub(crate) fn new(to_pod: &[u16]) -> Localhost {
        Localhost { to_pod: to_pod.iter().copied().collect(), ..Localhost::default() }
    }

    /// The pod whose localhost it is.
    pub(crate) fn know(&mut self, neighbours: Neighbours, container_id: &str) {
        self.neighbours = neighbours;
        container_id.clone_into(&mut self.container_id);
    }

    /// The container's own listeners are never reached this way: the command stands in for them, and a script that waits
    /// for the command's server must not find the one it replaces.
    pub(crate) fn way(&self, port: u16) -> Way {
        let open = Open::tcp(SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
        let Neighbours { exist, ports, own_ports } = &self.neighbours;
        if self.to_pod.contains(&port) {
            Way::Pod(open)
        } else if !exist || own_ports.contains(&port) {
            Way::Machine { then: None }
        } else if ports.contains(&port) {
            Way::Machine { then: Some(open) }
        } else {
            Way::Machine { then: Some(open.unless_listened_by(&self.container_id)) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of_pod(port: u16) -> Open {
        Open::tcp(SocketAddr::from((Ipv4Addr::LOCALHOST, port)))
    }

    #[test]
    fn other_containers_are_reached_where_this_machine_refuses_and_the_own_one_never() {
        let mut localhost = Localhost::new(&[5432, 8080]);
        let neighbours = Neighbours { exist: true, ports: [5433].into(), own_ports: [8080, 8081].into() };
        localhost.know(neighbours, "abc");
        assert_eq!(localhost.way(5432), Way::Pod(of_pod(5432)));
        assert_eq!(localhost.way(8080), Way::Pod(of_pod(8080)), "the user's word goes before all");
        assert_eq!(localhost.way(8081), Way::Machine { then: None });
        assert_eq!(localhost.way(5433), Way::Machine { then: Some(of_pod(5433)) });
        assert_eq!(localhost.way(9), Way::Machine { then: Some(of_pod(9).unless_listened_by("abc")) });
    }

    #[test]
    fn a_container_alone_has_no_neighbours() {
        assert_eq!(Localhost::new(&[]).way(5433), Way::Machine { then: None });
    }
}
