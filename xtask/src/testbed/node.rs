//! What runs on each node: containerd, kubelet, kube-proxy; and the node's object, made before its kubelet starts.

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;
use serde_json::{Value, json};

use crate::shell;
use crate::testbed::addresses::{DNS_SERVICE, LAN_TO_NODES, Node, POD_RANGES};
use crate::testbed::machine::{Daemon, start};
use crate::testbed::process::{Process, wait_until};
use crate::testbed::state::{StateDir, write, write_json};

/// The image of the process that holds a pod's namespaces.
pub(crate) const PAUSE: &str = "localhost/pause:1";

impl Node {
    /// Of its containerd; reachable from outside the node too.
    pub(crate) fn containerd(self, state: &StateDir) -> PathBuf {
        state.join(self.name()).join("containerd.sock")
    }
}

/// Starts containerd and imports `images`.
pub(crate) fn start_runtime(state: &StateDir, node: Node, init: &Process, images: &[PathBuf]) -> Result<()> {
    let own = state.join(node.name());
    write(&own.join("containerd.toml"), &containerd_config(state, node))?;
    write(&own.join("cni/10-testbed.conflist"), &cni_config(node).to_string())?;
    let name = format!("containerd-{}", node.name());
    let line = format!("-c {}", own.join("containerd.toml").display());
    start(state, init, Daemon::new(state, &name, "/usr/bin/containerd", &line))?;
    let socket = node.containerd(state);
    wait_until(&format!("{name} does not listen"), Duration::from_secs(20), || UnixStream::connect(&socket).is_ok())?;
    images.iter().try_for_each(|image| import(state, node, image))
}

/// Imports an OCI archive; the image's name is the one its annotation tells.
pub(crate) fn import(state: &StateDir, node: Node, archive: &Path) -> Result<()> {
    let socket = node.containerd(state);
    let mut ctr = shell::command("ctr -n k8s.io");
    ctr.arg("-a").arg(socket).args(["images", "import"]).arg(archive);
    shell::output(&mut ctr).map(drop)
}

fn containerd_config(state: &StateDir, node: Node) -> String {
    let own = state.join(node.name());
    let own = own.display();
    // No CAP_SYS_RESOURCE on some machines: OOM scores may only be raised. Snapshots lie in memory, because unmounting
    // an overlay syncs the whole file system of its upper layer: `down` took 44 s while builds had 1.6 GB to write.
    format!(
        r#"version = 2
[grpc]
  address = "{own}/containerd.sock"
[plugins."io.containerd.internal.v1.opt"]
  path = "{own}/opt"
[plugins."io.containerd.snapshotter.v1.overlayfs"]
  root_path = "/run/snapshots"
[plugins."io.containerd.grpc.v1.cri"]
  # As containerd 2 has it from the start: pods may ping without capabilities.
  enable_unprivileged_icmp = true
  sandbox_image = "{PAUSE}"
  restrict_oom_score_adj = true
  stream_server_address = "127.0.0.1"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "{own}/cni"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
"#
    )
}

/// Every pod gets a link and a route of its own (`ptp`): with a bridge, answers of a Service's pod on the same node
/// would bypass the address translation.
fn cni_config(node: Node) -> Value {
    let ranges: Vec<_> = node.pod_ranges().iter().map(|range| json!([{ "subnet": range }])).collect();
    json!({
        "cniVersion": "1.0.0", "name": "testbed",
        "plugins": [
            { "type": "ptp", "ipMasq": false, "ipam": {
                "type": "host-local", "ranges": ranges, "routes": [{ "dst": "0.0.0.0/0" }, { "dst": "::/0" }] } },
            { "type": "portmap", "capabilities": { "portMappings": true } },
        ],
    })
}

/// Made by us, so that pod ranges are known before anything starts and follow the node's number.
pub(crate) fn object(node: Node) -> Value {
    let ranges = node.pod_ranges();
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": { "name": node.name(), "labels": { "kubernetes.io/hostname": node.name() } },
        "spec": { "podCIDR": ranges[0], "podCIDRs": ranges },
    })
}

pub(crate) fn start_kubelet(state: &StateDir, node: Node, init: &Process) -> Result<()> {
    let name = node.name();
    let own = state.join(&name);
    write(&own.join("resolv.conf"), &format!("nameserver {}\n", LAN_TO_NODES[0]))?; // nobody answers there
    write_json(&own.join("kubelet.json"), &kubelet_config(state, node))?;
    let program = |name: &str| state.join("components").join(name);
    let kubelet = format!(
        "--config={own}/kubelet.json --kubeconfig={} --hostname-override={name} --node-ip={}",
        state.kubeconfig(&name).display(),
        node.addresses().join(","),
        own = own.display()
    );
    start(state, init, Daemon::new(state, &format!("kubelet-{name}"), program("kubelet"), &kubelet))?;
    let proxy = format!(
        "--kubeconfig={} --hostname-override={name} --cluster-cidr={} --proxy-mode=iptables --oom-score-adj=0 \
         --conntrack-max-per-core=0 --conntrack-tcp-timeout-established=0 --conntrack-tcp-timeout-close-wait=0",
        state.kubeconfig("proxy").display(),
        POD_RANGES.join(",")
    );
    start(state, init, Daemon::new(state, &format!("proxy-{name}"), program("kube-proxy"), &proxy))?;
    Ok(())
}

/// Defaults stay where behaviour of pods depends on them (event relisting, sync, probes, streaming).
fn kubelet_config(state: &StateDir, node: Node) -> Value {
    let own = state.join(node.name());
    json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration",
        "authentication": {
            "x509": { "clientCAFile": state.pki("ca.crt") }, "webhook": { "enabled": true },
            "anonymous": { "enabled": false } },
        "authorization": { "mode": "Webhook" },
        "tlsCertFile": state.pki(&format!("{}.crt", node.name())),
        "tlsPrivateKeyFile": state.pki(&format!("{}.key", node.name())),
        "cgroupDriver": "cgroupfs", "cgroupsPerQOS": false, "enforceNodeAllocatable": [],
        "clusterDNS": [DNS_SERVICE], "clusterDomain": "cluster.local",
        "containerRuntimeEndpoint": format!("unix://{}", node.containerd(state).display()),
        "resolvConf": own.join("resolv.conf"), "volumePluginDir": own.join("volume-plugins"),
        "failSwapOn": false, "oomScoreAdj": 0, "maxPods": 100, "serializeImagePulls": false,
        // Images are few and dear: no collection. The disk belongs to the machine, not to us.
        "imageGCHighThresholdPercent": 100, "imageGCLowThresholdPercent": 99,
        "evictionHard": { "memory.available": "100Mi" }, "localStorageCapacityIsolation": false,
        "nodeStatusUpdateFrequency": "4s", "nodeLeaseDurationSeconds": 20,
    })
}
