//! First state: from names on a command line to an agent in a pod that admitted this session. And again, when that agent is
//! gone.

use std::sync::Arc;
use std::time::Duration;

use cluster::{AgentContainer, Cluster, Progress, Ranges, Rung, Target, Workload};
use link::tls::Identity;
use link::{Config, Endpoint, Role};
use tokio::time::sleep;
use wire::{Admit, Admitted, RELEASE, SessionId};

use crate::linking::{Destination, Dial, RungChoice};
use crate::{Error, Options, Voice};

/// After an attempt to enter a pod failed. It grows, since each may leave an ended container in the list of a pod.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// What stays the same from one agent to the next.
pub(crate) struct Attacher {
    pub(crate) cluster: Arc<Cluster>,
    pub(crate) workload: Workload,
    id: SessionId,
    identity: Identity,
    container: Option<String>,
    image: String,
    rung: RungChoice,
    lease: Duration,
    park: Duration,
}

/// An agent that admitted the session.
pub(crate) struct Entered {
    pub(crate) target: Target,
    pub(crate) agent: AgentContainer,
    pub(crate) admitted: Admitted,
}

/// Finds the workload and a ready pod, and has the session admitted there.
pub(crate) async fn attach(
    id: SessionId,
    options: &Options,
    voice: &dyn Voice,
) -> Result<(Attacher, Entered, Ranges), Error> {
    voice.step("connecting to the cluster");
    let cluster = Arc::new(Cluster::connect(&options.connect).await?);
    voice.step(&format!("looking for {} in namespace {}", options.workload, cluster.namespace()));
    let ranges = tokio::spawn({
        let cluster = cluster.clone();
        async move { cluster.ranges().await }
    });
    let workload = cluster.workload(&options.workload).await?;
    let target = cluster.ready_pod(&workload, options.container.as_deref(), None).await?;
    let identity = Identity::generate().map_err(|e| Error::Link { pod: target.pod.clone(), cause: e.to_string() })?;
    let attacher = Attacher {
        cluster,
        workload,
        id,
        identity,
        container: options.container.clone(),
        image: options.image.clone(),
        rung: options.rung,
        lease: options.lease,
        park: options.park,
    };
    let entered = attacher.enter(target, &|progress| voice.step(&in_words(&progress))).await?;
    // The task makes no change; when it failed, ranges are simply unknown.
    let ranges = ranges.await.unwrap_or_default();
    Ok((attacher, entered, ranges))
}

impl Attacher {
    async fn enter(&self, target: Target, report: &(dyn Fn(Progress) + Send + Sync)) -> Result<Entered, Error> {
        let (agent, admitted) = self.cluster.enter(&target, &self.image, &self.admission(), report).await?;
        Ok(Entered { target, agent, admitted })
    }

    /// Another agent in the place of `gone`: in its pod where that is ready, else in another ready one, whenever there is
    /// one. `waiting` is told what it waits for.
    pub(crate) async fn enter_again(&self, gone: &AgentContainer, waiting: &(dyn Fn(&str) + Send + Sync)) -> Entered {
        let mut pause = FIRST_PAUSE;
        loop {
            let (wanted, preferred) = (self.container.as_deref(), Some(gone.pod_uid.as_str()));
            let (_, target) = self.cluster.await_ready_pod(&self.workload, wanted, preferred, waiting).await;
            match self.enter(target, &|progress| tracing::debug!(?progress, "entering again")).await {
                Ok(entered) => return entered,
                Err(error) => waiting(&format!("{error}; tried again in {} s", pause.as_secs())),
            }
            sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// Asks an agent to admit the session again. Its answer says whether it still knew it.
    pub(crate) async fn admit_again(&self, agent: &AgentContainer) -> Result<Admitted, Error> {
        Ok(self.cluster.admit(agent, &self.admission()).await?)
    }

    /// What links to this agent are dialled with. Its endpoint is new: an agent that does not know the session knows none
    /// of its flows.
    pub(crate) fn dial(&self, agent: &AgentContainer, admitted: Admitted) -> Dial {
        // The agent opens no flows yet: what it offers is refused.
        let (endpoint, _incoming) = Endpoint::new(Role::Client, Config::default());
        let (cluster, identity) = (self.cluster.clone(), self.identity.clone());
        let to = Destination { pod: agent.pod.clone(), addresses: agent.pod_ips.clone(), admitted };
        Dial::new(cluster, to, self.rung, self.id, identity, endpoint)
    }

    fn admission(&self) -> Admit {
        let seconds = |d: Duration| u32::try_from(d.as_secs()).unwrap_or(u32::MAX);
        Admit {
            session: self.id.0.to_vec(),
            key_hash: self.identity.hash().to_vec(),
            nonce: rand::random::<[u8; 16]>().to_vec(),
            release: RELEASE.to_owned(),
            lease_seconds: seconds(self.lease),
            pod_address: self.rung != RungChoice::Only(Rung::Forward),
            park_seconds: seconds(self.park),
        }
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
