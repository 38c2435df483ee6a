//! First state: from names on a command line to an agent in a pod that admitted this session.

use std::sync::Arc;

use cluster::{AgentContainer, Cluster, Progress, Ranges, Target, Workload};
use link::tls::Identity;
use wire::{Admit, Admitted, RELEASE, SessionId};

use crate::{Error, Options, Voice};

/// A session that an agent answers.
pub(crate) struct Attached {
    pub(crate) cluster: Arc<Cluster>,
    pub(crate) workload: Workload,
    pub(crate) target: Target,
    pub(crate) agent: AgentContainer,
    pub(crate) admitted: Admitted,
    pub(crate) identity: Identity,
    pub(crate) ranges: Ranges,
}

pub(crate) async fn attach(id: SessionId, options: &Options, voice: &dyn Voice) -> Result<Attached, Error> {
    voice.step("connecting to the cluster");
    let cluster = Arc::new(Cluster::connect(&options.connect).await?);
    voice.step(&format!("looking for {} in namespace {}", options.workload, cluster.namespace()));
    let ranges = tokio::spawn({
        let cluster = cluster.clone();
        async move { cluster.ranges().await }
    });
    let workload = cluster.workload(&options.workload).await?;
    let target = cluster.ready_pod(&workload, options.container.as_deref()).await?;
    let identity = Identity::generate().map_err(|e| Error::Link { pod: target.pod.clone(), cause: e.to_string() })?;
    let report = |progress: Progress| voice.step(&in_words(&progress));
    let (agent, admitted) = cluster.enter(&target, &options.image, &admission(id, &identity, options), &report).await?;
    // The task makes no change; when it failed, ranges are simply unknown.
    let ranges = ranges.await.unwrap_or_default();
    Ok(Attached { cluster, workload, target, agent, admitted, identity, ranges })
}

fn admission(id: SessionId, identity: &Identity, options: &Options) -> Admit {
    let seconds = |d: std::time::Duration| u32::try_from(d.as_secs()).unwrap_or(u32::MAX);
    Admit {
        session: id.0.to_vec(),
        key_hash: identity.hash().to_vec(),
        nonce: rand::random::<[u8; 16]>().to_vec(),
        release: RELEASE.to_owned(),
        lease_seconds: seconds(options.lease),
        pod_address: true,
        park_seconds: seconds(options.park),
    }
}

fn in_words(progress: &Progress) -> String {
    match progress {
        Progress::Reusing { pod, container } => format!("asking the agent in pod {pod} (container {container})"),
        Progress::Placing { pod, image, .. } => format!("starting the agent ({image}) in pod {pod}"),
        Progress::Waiting { reason, message } if message.is_empty() => format!("waiting for the agent: {reason}"),
        Progress::Waiting { reason, message } => format!("waiting for the agent: {reason}: {message}"),
        Progress::Ready => "the agent is ready".to_owned(),
    }
}
