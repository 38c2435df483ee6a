//! What else runs in the target's pod, on the localhost that they share.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{Container, PodSpec};

use crate::ready::Target;

/// The other containers of a pod, as its spec declares them. Programs may listen on more ports than these.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Neighbours {
    pub exist: bool,
    /// TCP ports that other containers declare and the target does not.
    pub ports: BTreeSet<u16>,
    /// TCP ports that the target declares.
    pub own_ports: BTreeSet<u16>,
}

impl Target {
    /// None where the pod has its node's network: what listens there is not the pod's.
    pub fn neighbours(&self) -> Neighbours {
        match &self.object.spec {
            Some(spec) if !self.host_network => neighbours(spec, &self.container),
            _ => Neighbours::default(),
        }
    }
}

fn neighbours(spec: &PodSpec, target: &str) -> Neighbours {
    // Init containers that keep running are sidecars.
    let init = spec.init_containers.iter().flatten().filter(|it| it.restart_policy.as_deref() == Some("Always"));
    let (own, others): (Vec<_>, Vec<_>) = spec.containers.iter().chain(init).partition(|it| it.name == target);
    let own_ports: BTreeSet<u16> = own.into_iter().flat_map(ports).collect();
    let ports = others.iter().flat_map(|other| ports(other)).filter(|port| !own_ports.contains(port)).collect();
    Neighbours { exist: !others.is_empty(), ports, own_ports }
}

fn ports(container: &Container) -> impl Iterator<Item = u16> {
    let declared = container.ports.iter().flatten();
    let tcp = declared.filter(|port| port.protocol.as_deref().is_none_or(|protocol| protocol == "TCP"));
    tcp.filter_map(|port| u16::try_from(port.container_port).ok())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn sidecars_of_both_kinds_are_neighbours_and_finished_init_containers_are_not() {
        let spec: PodSpec = serde_json::from_value(json!({
            "containers": [
                { "name": "web", "ports": [{ "containerPort": 80 }, { "containerPort": 81, "protocol": "UDP" }] },
                { "name": "proxy", "ports": [{ "containerPort": 80 }, { "containerPort": 5432, "protocol": "TCP" }] },
            ],
            "initContainers": [
                { "name": "migrate", "ports": [{ "containerPort": 1 }] },
                { "name": "mesh", "restartPolicy": "Always", "ports": [{ "containerPort": 15001 }] },
            ],
        }))
        .expect("a spec");
        let expected = Neighbours { exist: true, ports: [5432, 15001].into(), own_ports: [80].into() };
        assert_eq!(neighbours(&spec, "web"), expected);
    }

    #[test]
    fn a_container_alone_has_none() {
        let spec = serde_json::from_value(json!({ "containers": [{ "name": "web" }] })).expect("a spec");
        assert_eq!(neighbours(&spec, "web"), Neighbours::default());
    }
}
