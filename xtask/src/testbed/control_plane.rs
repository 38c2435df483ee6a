//! etcd, API server, controller manager and scheduler, all on the first node; and kubectl for our own calls.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::Result;

use crate::shell;
use crate::testbed::addresses::{Node, POD_RANGES, SERVICE_RANGES};
use crate::testbed::machine::{Daemon, start};
use crate::testbed::net;
use crate::testbed::process::{Process, wait_until};
use crate::testbed::state::StateDir;

/// Starts what the API needs; it answers some seconds later ([`wait_for_api`]).
pub(crate) fn start_api(state: &StateDir, first: &Process) -> Result<()> {
    let program = |name: &str| state.join("components").join(name);
    // Not synced to disk: the data need not outlive a crash, and syncing costs most of etcd's time.
    let etcd = format!(
        "--data-dir {} --unsafe-no-fsync --listen-client-urls http://127.0.0.1:2379 --log-level warn \
         --advertise-client-urls http://127.0.0.1:2379 --listen-peer-urls http://127.0.0.1:2380",
        state.join("etcd").display()
    );
    start(state, first, Daemon::new(state, "etcd", program("etcd"), &etcd))?;
    start(state, first, Daemon::new(state, "apiserver", program("kube-apiserver"), &api_flags(state)))?;
    Ok(())
}

fn api_flags(state: &StateDir) -> String {
    let pki = state.join("pki");
    let pki = pki.display();
    let [address, _] = Node { index: 1 }.addresses();
    let services = SERVICE_RANGES.join(",");
    format!(
        "--etcd-servers=http://127.0.0.1:2379 --bind-address=:: --secure-port=6443 --advertise-address={address} \
         --service-cluster-ip-range={services} --allow-privileged=true \
         --tls-cert-file={pki}/apiserver.crt --tls-private-key-file={pki}/apiserver.key --client-ca-file={pki}/ca.crt \
         --kubelet-client-certificate={pki}/kubelet-client.crt --kubelet-client-key={pki}/kubelet-client.key \
         --kubelet-certificate-authority={pki}/ca.crt --kubelet-preferred-address-types=InternalIP \
         --service-account-issuer=https://kubernetes.default.svc.cluster.local \
         --service-account-key-file={pki}/sa.pub --service-account-signing-key-file={pki}/sa.key \
         --authorization-mode=Node,RBAC --enable-admission-plugins=NodeRestriction \
         --requestheader-client-ca-file={pki}/ca.crt --requestheader-allowed-names=front-proxy-client \
         --requestheader-extra-headers-prefix=X-Remote-Extra- --requestheader-group-headers=X-Remote-Group \
         --requestheader-username-headers=X-Remote-User --proxy-client-cert-file={pki}/front.crt \
         --proxy-client-key-file={pki}/front.key --enable-aggregator-routing=true"
    )
}

pub(crate) fn wait_for_api(state: &StateDir) -> Result<()> {
    wait_until("the API server is not ready", Duration::from_secs(60), || {
        kubectl(state, "get --raw /readyz --request-timeout=5s", None).is_ok()
    })
}

/// Starts what acts on objects. Leaders are not elected: there is one of each.
pub(crate) fn start_controllers(state: &StateDir, first: &Process) -> Result<()> {
    let pki = state.join("pki");
    let pki = pki.display();
    let program = |name: &str| state.join("components").join(name);
    // A node is given up later than rows let the API server stand still (30 s, and 10 s between heartbeats).
    let controllers = format!(
        "--kubeconfig={} --leader-elect=false --use-service-account-credentials=true --root-ca-file={pki}/ca.crt \
         --service-account-private-key-file={pki}/sa.key --cluster-signing-cert-file={pki}/ca.crt \
         --cluster-signing-key-file={pki}/ca.key --allocate-node-cidrs=false --cluster-cidr={} \
         --service-cluster-ip-range={} --node-monitor-grace-period=60s",
        state.kubeconfig("controllers").display(),
        POD_RANGES.join(","),
        SERVICE_RANGES.join(",")
    );
    start(state, first, Daemon::new(state, "controllers", program("kube-controller-manager"), &controllers))?;
    let scheduler = format!("--kubeconfig={} --leader-elect=false", state.kubeconfig("scheduler").display());
    start(state, first, Daemon::new(state, "scheduler", program("kube-scheduler"), &scheduler))?;
    Ok(())
}

/// The embedded kubectl as admin, on the first node (so that no delay line slows it); `input` goes to stdin.
pub(crate) fn kubectl(state: &StateDir, line: &str, input: Option<&str>) -> Result<String> {
    let mut command = Command::new(state.bin().join("kubectl"));
    command
        .args(line.split_whitespace())
        .env("KUBECONFIG", state.kubeconfig("admin"))
        .env("HOME", Path::new("/nonexistent"));
    net::inside("node1", || match input {
        Some(input) => shell::output_with_input(&mut command, input),
        None => shell::output(&mut command),
    })
}
