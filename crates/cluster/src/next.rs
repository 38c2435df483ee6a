//! Waiting for a workload to have a pod that may be entered (again).

use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{ListParams, WatchEvent, WatchParams};
use tokio::time::{sleep, timeout};

use crate::ready::{Target, Wanted};
use crate::{Cluster, Workload, WorkloadKind};

/// Where the pods may not be watched, or the watch failed.
const PAUSE: Duration = Duration::from_secs(1);

/// A look that takes longer is of a network that is gone.
const LOOK: Duration = Duration::from_secs(5);

/// Looked at again in any case: a deleted workload may be made anew with other labels.
const WATCH: Duration = Duration::from_secs(30);

impl Cluster {
    /// As `ready_pod`, but waits until there is one, and while none is ready takes one whose container runs. `waiting` is told why there is none, whenever that changes.
    pub async fn await_pod(
        &self,
        workload: &Workload,
        container: Option<&str>,
        preferred: Option<&str>,
        mut waiting: impl FnMut(&str),
    ) -> (Workload, Target) {
        let (mut workload, mut told) = (workload.clone(), String::new());
        loop {
            // Before the look, so that what changes after it is seen.
            let version = timeout(LOOK, self.pods_version(&workload)).await.ok().flatten();
            let look = async {
                // It may have been deleted and made anew since.
                workload = self.workload(&workload.to_string()).await?;
                self.pod(&workload, container, preferred, Wanted::Running).await
            };
            let why = match timeout(LOOK, look).await {
                Ok(Ok(target)) => return (workload, target),
                Ok(Err(error)) => error.to_string(),
                Err(_) => "the API server does not answer".to_owned(),
            };
            if why != told {
                waiting(&why);
                told = why;
            }
            match version {
                Some(version) => self.pods_changed(&workload, &version).await,
                None => sleep(PAUSE).await,
            }
        }
    }

    async fn pods_version(&self, workload: &Workload) -> Option<String> {
        let parameters = scope(workload).limit(1);
        let list = self.api::<Pod>().list_metadata(&parameters).await.ok()?;
        list.metadata.resource_version
    }

    /// Returns when a pod of the workload has changed since `version`, or it is time to look in any case.
    async fn pods_changed(&self, workload: &Workload, version: &str) {
        let ListParams { label_selector, field_selector, .. } = scope(workload);
        let parameters = WatchParams { label_selector, field_selector, ..WatchParams::default() };
        let changed = timeout(WATCH, async {
            let mut events = self.api::<Pod>().watch_metadata(&parameters, version).await.ok()?.boxed();
            events.next().await?.ok().filter(|event| !matches!(event, WatchEvent::Error(_)))
        });
        if let Ok(None) = changed.await {
            sleep(PAUSE).await;
        }
    }
}

fn scope(workload: &Workload) -> ListParams {
    match workload.kind {
        WorkloadKind::Pod => ListParams::default().fields(&format!("metadata.name={}", workload.name)),
        _ => ListParams::default().labels(&workload.selector),
    }
}
