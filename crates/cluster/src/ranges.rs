//! Which addresses belong to the cluster, as far as the user may know. Hints, never complete.

use std::net::IpAddr;
use std::time::Duration;

use futures::join;
use http::Request;
use ipnet::IpNet;
use k8s_openapi::api::core::v1::{Node, Pod, Service};
use kube::Api;
use kube::api::ListParams;
use serde_json::Value;
use tokio::time::timeout;

use crate::Cluster;
use crate::ready::addresses;

/// For each source; what has not come then is left out.
const PATIENCE: Duration = Duration::from_secs(1);

/// Names listed at most: a few tell the range, and a big cluster must not slow the start.
const LISTED: u32 = 500;

/// Ranges and addresses of Services and pods. Any may be empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ranges {
    /// From ServiceCIDR objects (Kubernetes 1.33).
    pub services: Vec<IpNet>,
    /// From the nodes.
    pub pods: Vec<IpNet>,
    /// Addresses of Services of this namespace and of the API server's own Service.
    pub service_ips: Vec<IpAddr>,
    /// Addresses of this namespace's pods, where their range is not known.
    pub pod_ips: Vec<IpAddr>,
}

impl Cluster {
    /// What the user's rights tell about the cluster's ranges, within a second; never fails.
    pub async fn ranges(&self) -> Ranges {
        let (services, (pods, pod_ips), mut service_ips, api_server) =
            join!(self.service_cidrs(), self.pods_or_their_ranges(), self.service_ips(), self.api_server_ips());
        service_ips.extend(api_server);
        Ranges { services, pods, service_ips: each_once(service_ips), pod_ips: each_once(pod_ips) }
    }

    async fn service_cidrs(&self) -> Vec<IpNet> {
        let Ok(request) = Request::get("/apis/networking.k8s.io/v1/servicecidrs").body(Vec::new()) else {
            return Vec::new();
        };
        let listed = best_effort(self.client().request::<Value>(request)).await.unwrap_or_default();
        let cidrs = listed["items"].as_array().into_iter().flatten();
        let cidrs = cidrs.flat_map(|item| item["spec"]["cidrs"].as_array().into_iter().flatten());
        cidrs.filter_map(|cidr| cidr.as_str()?.parse().ok()).collect()
    }

    async fn pod_cidrs(&self) -> Vec<IpNet> {
        let nodes = Api::<Node>::all(self.client().clone());
        let Some(list) = best_effort(nodes.list(&ListParams::default().limit(LISTED))).await else {
            return Vec::new();
        };
        let specs = list.items.iter().filter_map(|node| node.spec.as_ref());
        specs.flat_map(|spec| spec.pod_cidrs.iter().flatten()).filter_map(|cidr| cidr.parse().ok()).collect()
    }

    async fn service_ips(&self) -> Vec<IpAddr> {
        let services = self.api::<Service>();
        let list = best_effort(services.list(&ListParams::default().limit(LISTED))).await;
        list.iter().flat_map(|list| &list.items).flat_map(cluster_ips).collect()
    }

    /// Where the nodes may be asked, nobody needs to know each pod: these are many, and large to list.
    async fn pods_or_their_ranges(&self) -> (Vec<IpNet>, Vec<IpAddr>) {
        let ranges = self.pod_cidrs().await;
        if !ranges.is_empty() {
            return (ranges, Vec::new());
        }
        let list = best_effort(self.api::<Pod>().list(&ListParams::default().limit(LISTED))).await;
        let own_network = |pod: &&Pod| pod.spec.as_ref().is_none_or(|spec| spec.host_network != Some(true));
        let pods = list.iter().flat_map(|list| &list.items).filter(own_network);
        (ranges, pods.flat_map(addresses).collect())
    }

    async fn api_server_ips(&self) -> Vec<IpAddr> {
        let services = Api::<Service>::namespaced(self.client().clone(), "default");
        best_effort(services.get("kubernetes")).await.iter().flat_map(cluster_ips).collect()
    }
}

async fn best_effort<T>(asking: impl Future<Output = kube::Result<T>>) -> Option<T> {
    match timeout(PATIENCE, asking).await {
        Ok(Ok(answer)) => Some(answer),
        Ok(Err(error)) => {
            tracing::debug!(%error, "a source of address ranges is not open to this user");
            None
        }
        Err(_) => None,
    }
}

fn each_once(mut addresses: Vec<IpAddr>) -> Vec<IpAddr> {
    addresses.sort();
    addresses.dedup();
    addresses
}

/// None for headless Services ("None").
fn cluster_ips(service: &Service) -> Vec<IpAddr> {
    let ips = service.spec.iter().flat_map(|spec| spec.cluster_ips.iter().flatten());
    ips.filter_map(|ip| ip.parse().ok()).collect()
}
