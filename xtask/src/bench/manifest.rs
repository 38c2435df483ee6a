//! The benchmark's namespace: the server that all paths lead to, and the pod whose place the command takes.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use testkit::lab::{Lab, within};

use crate::arena::Arena;
use crate::dist;

pub(crate) const NAMESPACE: &str = "stead-bench";

/// Both pods on one node, so that every path has the same last hop; the API server runs on that node, too.
const MANIFEST: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: stead-bench}
---
apiVersion: v1
kind: Pod
metadata: {name: server, namespace: stead-bench, labels: {app: server}}
spec:
  terminationGracePeriodSeconds: 1
  nodeSelector: {kubernetes.io/hostname: node1}
  containers:
  - {name: server, image: $TESTAPP, imagePullPolicy: Never, args: [serve]}
  - {name: gohttp, image: $GOHTTP, imagePullPolicy: Never, args: [serve, ':9005']}
---
apiVersion: v1
kind: Service
metadata: {name: server, namespace: stead-bench}
spec: {selector: {app: server}, ports: [{name: raw, port: 9000}, {name: http, port: 9001}, {name: go, port: 9005}]}
---
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: stead-bench, labels: {app: web}}
spec:
  terminationGracePeriodSeconds: 1
  nodeSelector: {kubernetes.io/hostname: node1}
  containers:
  - {name: web, image: $TESTAPP, imagePullPolicy: Never, args: [serve]}
  - {name: pipe, image: $TESTPIPE, imagePullPolicy: Never, args: [agent]}
  - {name: gohttp, image: $GOHTTP, imagePullPolicy: Never, args: [serve, ':9005']}
";

/// The namespace while it is there.
pub(crate) struct Place {
    lab: Lab,
    /// The server pod's address.
    pub(crate) server: IpAddr,
    /// Of the Service before it.
    pub(crate) service: IpAddr,
    /// Of the raw pipe's agent, in hex.
    pub(crate) pin: String,
    pub(crate) testpipe: std::path::PathBuf,
    pub(crate) gohttp: std::path::PathBuf,
}

impl Place {
    pub(crate) fn make(arena: &Arena) -> Result<Place> {
        let testpipe = dist::program("cluster-tests", "testpipe")?;
        let gohttp = dist::go_program("gohttp")?;
        let pipe_image = arena.load_program("testpipe", &testpipe)?;
        let gohttp_image = arena.load_program("gohttp", &gohttp)?;
        let file = tempfile::Builder::new().suffix(".yaml").tempfile()?;
        let manifest = MANIFEST.replace("$TESTAPP", &arena.testapp_image);
        let manifest = manifest.replace("$TESTPIPE", &pipe_image).replace("$GOHTTP", &gohttp_image);
        std::fs::write(file.path(), manifest)?;
        let lab = arena.lab().clone();
        lab.kubectl(&["delete", "namespace", NAMESPACE, "--ignore-not-found", "--wait"])?;
        lab.apply(file.path())?;
        let ready = ["wait", "-n", NAMESPACE, "pod/web", "pod/server", "--for=condition=Ready", "--timeout=60s"];
        within(Duration::from_secs(60), || lab.kubectl(&ready))?;
        let address = |object: &str, field: &str| -> Result<IpAddr> {
            let path = format!("jsonpath={{{field}}}");
            let text = lab.kubectl(&["get", object, "-n", NAMESPACE, "-o", &path])?;
            text.trim().parse().with_context(|| format!("{object} has no address"))
        };
        let (server, service) =
            (address("pod/server", ".status.podIP")?, address("service/server", ".spec.clusterIP")?);
        let pin = lab.kubectl(&["logs", "-n", NAMESPACE, "web", "-c", "pipe"])?.trim().to_owned();
        Ok(Place { server, service, pin, testpipe, gohttp, lab })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // The testbed may be on its way down.
        let _ = self.lab.kubectl(&["delete", "namespace", NAMESPACE, "--wait=false"]);
    }
}
