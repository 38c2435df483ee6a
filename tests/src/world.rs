//! The namespace that the rows run against, and what they need to know of it.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, ensure};
use serde_json::Value;
use testkit::lab::{Lab, Shell, checked, within};
use testkit::snapshot::Camera;

use crate::clients::Clients;
use crate::stead::Run;

pub(crate) const NAMESPACE: &str = "stead-rows";
/// Of most rows' sessions; the defaults are a minute and ten.
pub(crate) const LEASE: Duration = Duration::from_secs(5);
pub(crate) const PARK: Duration = Duration::from_secs(8);

const MANIFEST: &str = include_str!("../world.yaml");
const READY_PATIENCE: Duration = Duration::from_secs(90);

/// The running testbed with the world in it. The namespace is deleted when this is dropped.
pub(crate) struct World {
    lab: Lab,
    camera: Camera,
    clients: Clients,
    stead: PathBuf,
    testapp: PathBuf,
    agent_image: String,
    testapp_image: String,
}

impl World {
    /// Applies the manifest and waits until every pod that can be ready is.
    pub(crate) fn make() -> anyhow::Result<World> {
        let lab = Lab::from_env()?;
        let image = variable("STEAD_TESTAPP_IMAGE")?;
        let manifest = MANIFEST.replace("$NAMESPACE", NAMESPACE).replace("$IMAGE", &image);
        let file = tempfile::Builder::new().suffix(".yaml").tempfile()?;
        std::fs::write(file.path(), manifest)?;
        lab.kubectl(&["delete", "namespace", NAMESPACE, "--ignore-not-found", "--wait"])?;
        lab.apply(file.path())?;
        let clients = Clients::make()?;
        let camera = Camera::new(&lab, NAMESPACE)?;
        let world = World {
            camera,
            clients,
            stead: variable("STEAD_BIN")?.into(),
            testapp: variable("STEAD_TESTAPP")?.into(),
            agent_image: variable("STEAD_AGENT_IMAGE")?,
            testapp_image: image,
            lab,
        };
        within(READY_PATIENCE, || world.check_ready())?;
        Ok(world)
    }

    fn check_ready(&self) -> anyhow::Result<()> {
        let pods = self.pods()?;
        ensure!(pods.len() >= 8, "{} pods are there", pods.len());
        for pod in pods {
            let name = pod["metadata"]["name"].as_str().unwrap_or_default();
            let conditions = pod["status"]["conditions"].as_array();
            let is_ready =
                conditions.is_some_and(|all| all.iter().any(|c| c["type"] == "Ready" && c["status"] == "True"));
            let runs = pod["status"]["phase"] == "Running";
            let is_enough = is_ready || (runs && name.starts_with("stuck-"));
            ensure!(is_enough, "pod {name} is not ready: {}", pod["status"]["containerStatuses"]);
        }
        Ok(())
    }

    pub(crate) fn lab(&self) -> &Lab {
        &self.lab
    }

    pub(crate) fn camera(&self) -> &Camera {
        &self.camera
    }

    pub(crate) fn clients(&self) -> &Clients {
        &self.clients
    }

    /// The test program's path, for commands in a sandbox.
    pub(crate) fn testapp(&self) -> &str {
        self.testapp.to_str().unwrap_or_default()
    }

    pub(crate) fn stead(&self) -> &str {
        self.stead.to_str().unwrap_or_default()
    }

    pub(crate) fn agent_image(&self) -> &str {
        &self.agent_image
    }

    pub(crate) fn testapp_image(&self) -> &str {
        &self.testapp_image
    }

    /// A session's command line to be filled in.
    pub(crate) fn run<'a>(&'a self, workload: &'a str) -> Run<'a> {
        Run::new(self, Some(workload))
    }

    /// A session's command line without a workload.
    pub(crate) fn run_alone(&self) -> Run<'_> {
        Run::new(self, None)
    }

    /// A session on `web` whose command is a shell that takes lines.
    pub(crate) fn shell(&self) -> anyhow::Result<Shell> {
        self.run("deploy/web").shell()
    }

    /// The namespace's pods as the API shows them.
    pub(crate) fn pods(&self) -> anyhow::Result<Vec<Value>> {
        self.camera.api().list(&format!("/api/v1/namespaces/{NAMESPACE}/pods"))
    }

    /// One pod.
    pub(crate) fn pod(&self, name: &str) -> anyhow::Result<Value> {
        self.camera.api().get(&format!("/api/v1/namespaces/{NAMESPACE}/pods/{name}"))
    }

    /// A pod's addresses, IPv4 first.
    pub(crate) fn pod_addresses(&self, name: &str) -> anyhow::Result<Vec<IpAddr>> {
        addresses(&self.pod(name)?["status"]["podIPs"], "ip")
    }

    /// A Service's addresses, IPv4 first.
    pub(crate) fn service(&self, name: &str) -> anyhow::Result<Vec<IpAddr>> {
        let service = self.camera.api().get(&format!("/api/v1/namespaces/{NAMESPACE}/services/{name}"))?;
        let ips = service["spec"]["clusterIPs"].as_array().cloned().unwrap_or_default();
        let parsed = ips.iter().filter_map(|ip| ip.as_str()?.parse().ok());
        sorted(parsed.collect())
    }

    /// Where the pods' first node is.
    pub(crate) fn node_address(&self) -> anyhow::Result<IpAddr> {
        let node = self.camera.api().get("/api/v1/nodes/node1")?;
        let addresses = node["status"]["addresses"].as_array().into_iter().flatten();
        let mut internal = addresses.filter(|address| address["type"] == "InternalIP");
        internal.find_map(|address| address["address"].as_str()?.parse().ok()).context("the node has no address")
    }

    /// `stead status` of the only session.
    pub(crate) fn status(&self) -> anyhow::Result<Value> {
        let text = checked(&mut self.lab.user([self.stead(), "status", "-o", "json"]))?;
        let all: Value = serde_json::from_str(&text)?;
        all.get(0).cloned().context("no session is listed")
    }

    /// Runs the test program in somebody else's pod.
    pub(crate) fn stranger(&self, words: &[&str]) -> anyhow::Result<Value> {
        let text = self.lab.in_pod(NAMESPACE, "stranger", &[&["/testapp"], words].concat())?;
        serde_json::from_str(&text).context("the stranger gave no JSON")
    }
}

impl Drop for World {
    fn drop(&mut self) {
        // The testbed may be gone already, by ^C.
        let words = ["kubectl", "delete", "namespace", NAMESPACE, "--ignore-not-found", "--wait=false"];
        let _ = checked(&mut self.lab.root(words));
    }
}

fn addresses(list: &Value, key: &str) -> anyhow::Result<Vec<IpAddr>> {
    let items = list.as_array().cloned().unwrap_or_default();
    sorted(items.iter().filter_map(|item| item[key].as_str()?.parse().ok()).collect())
}

fn sorted(mut addresses: Vec<IpAddr>) -> anyhow::Result<Vec<IpAddr>> {
    ensure!(!addresses.is_empty(), "no addresses");
    addresses.sort();
    Ok(addresses)
}

fn variable(name: &str) -> anyhow::Result<String> {
    std::env::var(name).with_context(|| format!("{name} is not set: run `cargo xtask test cluster`"))
}
