//! What one row makes in the cluster and takes away again: objects of the rows' namespace, or a namespace of its own.

use std::time::Duration;

use anyhow::{Context, ensure};
use serde_json::Value;
use testkit::lab::within;

use crate::world::World;

/// Objects of a manifest, deleted when dropped, and waited for.
pub(crate) struct Scratch<'a> {
    world: &'a World,
    manifest: tempfile::NamedTempFile,
}

impl<'a> Scratch<'a> {
    /// Applies the manifest with `$NAMESPACE` and `$IMAGE` filled in.
    pub(crate) fn apply(world: &'a World, namespace: &str, text: &str) -> anyhow::Result<Scratch<'a>> {
        let manifest = tempfile::Builder::new().suffix(".yaml").tempfile()?;
        let text = text.replace("$NAMESPACE", namespace).replace("$IMAGE", world.testapp_image());
        std::fs::write(manifest.path(), text)?;
        // Before it is applied, so that a half-applied one is taken away, too.
        let scratch = Scratch { world, manifest };
        world.lab().apply(scratch.manifest.path())?;
        Ok(scratch)
    }
}

impl Drop for Scratch<'_> {
    fn drop(&mut self) {
        let file = self.manifest.path().to_str().unwrap_or_default();
        // What is left shows in the picture of the cluster.
        let _ = self.world.lab().kubectl(&["delete", "-f", file, "--ignore-not-found", "--wait"]);
    }
}

/// Pods of a label that are not on their way out, each as the API shows it.
pub(crate) fn pods_of(world: &World, namespace: &str, label: &str) -> anyhow::Result<Vec<Value>> {
    let path = format!("/api/v1/namespaces/{namespace}/pods?labelSelector={}", label.replace('=', "%3D"));
    let mut pods = world.camera().api().list(&path)?;
    pods.retain(|pod| pod["metadata"]["deletionTimestamp"].is_null());
    Ok(pods)
}

pub(crate) fn is_ready(pod: &Value) -> bool {
    let conditions = pod["status"]["conditions"].as_array();
    conditions.is_some_and(|all| all.iter().any(|it| it["type"] == "Ready" && it["status"] == "True"))
}

/// The name of the first ready pod of a label that is none of `not`.
pub(crate) fn ready_pod(world: &World, namespace: &str, label: &str, not: &[&str]) -> anyhow::Result<String> {
    within(Duration::from_secs(60), || {
        let pods = pods_of(world, namespace, label)?;
        let mut ready = pods.iter().filter(|pod| is_ready(pod)).filter_map(|pod| pod["metadata"]["name"].as_str());
        let found = ready.find(|name| !not.contains(name)).map(str::to_owned);
        found.with_context(|| format!("no pod of {label} is ready"))
    })
}

/// Nothing of a session's stand-ins is there, within `patience`.
pub(crate) fn no_stand_in(world: &World, namespace: &str, patience: Duration) -> anyhow::Result<()> {
    within(patience, || {
        for kind in ["api/v1", "apis/batch/v1"] {
            let plural = if kind == "api/v1" { "pods" } else { "jobs" };
            let path = format!("/{kind}/namespaces/{namespace}/{plural}?labelSelector=stead.dev%2Fsession");
            let left = world.camera().api().list(&path)?;
            ensure!(left.is_empty(), "{} {plural} of stand-ins are left", left.len());
        }
        Ok(())
    })
}
