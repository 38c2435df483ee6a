//! First state: from names on a command line to an agent in a pod that admitted this session. And again, when that agent is
//! gone.

use std::num::NonZeroU64;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use cluster::{ATTACH, AgentContainer, Cluster, EPHEMERAL, NEEDS, Progress, Ranges, Rung, Target, Workload};
use link::tls::Identity;
use link::{Config, Endpoint, Role};
use tokio::time::{sleep, timeout};
use wire::{Admit, Admitted, RELEASE, SessionId};

use crate::agent::Agent;
use crate::explain::{Known, explain};
use crate::linking::{Destination, Dial, RungChoice};
use crate::{Error, Options, Voice};

/// For the deletion of a stand-in by a client that ends.
const REMOVAL: Duration = Duration::from_secs(2);

/// After an attempt to enter a pod failed. It grows, since each may leave an ended container in the list of a pod.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// What stays the same from one agent to the next.
pub(crate) struct Attacher {
    pub(crate) cluster: Arc<Cluster>,
    /// `None`: the session has a stand-in for no workload.
    pub(crate) workload: Option<Workload>,
    id: SessionId,
    identity: Identity,
    container: Option<String>,
    image: String,
    rung: RungChoice,
    links: u32,
    api_rate: Option<NonZeroU64>,
    lease: Duration,
    park: Duration,
    made: Made,
}

/// An agent that admitted the session.
pub(crate) struct Entered {
    pub(crate) agent: AgentContainer,
    pub(crate) admitted: Admitted,
    /// Where the agent looks into a workload's pod.
    pub(crate) target: Option<Target>,
    /// Why a stand-in serves and not an agent in the workload's pod.
    instead: Option<String>,
}

/// The stand-in that the session has made, from before its Job is asked for: it must not stay when the session does not
/// come to its start.
#[derive(Clone, Default)]
pub(crate) struct Made(Arc<Mutex<Option<Job>>>);

struct Job {
    cluster: Arc<Cluster>,
    name: String,
}

impl Made {
    fn note(&self, cluster: &Arc<Cluster>, job: &str) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) =
            Some(Job { cluster: cluster.clone(), name: job.to_owned() });
    }

    /// Deletes it, where there is one; without the API server, its lease does.
    pub(crate) async fn remove(&self) {
        let made = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(Job { cluster, name }) = made {
            let _ = timeout(REMOVAL, cluster.remove_stand_in(&name)).await;
        }
    }
}

/// Finds the workload, and has the session admitted to an agent in a ready pod of it or in a stand-in.
pub(crate) async fn attach(
    id: SessionId,
    options: &Options,
    made: Made,
    voice: &dyn Voice,
) -> Result<(Attacher, Entered, Ranges), Error> {
    voice.step("connecting to the cluster");
    let cluster = Arc::new(Cluster::connect(&options.connect).await?);
    let ranges = tokio::spawn({
        let cluster = cluster.clone();
        async move { cluster.ranges().await }
    });
    let finding = async {
        let Some(name) = &options.workload else { return Ok(None) };
        voice.step(&format!("looking for {name} in namespace {}", cluster.namespace()));
        cluster.workload(name).await.map(Some)
    };
    // Before anything is touched.
    let (workload, ()) = futures::try_join!(finding, cluster.require(&ATTACH))?;
    let identity =
        Identity::generate().map_err(|e| Error::Link { pod: "of the session".to_owned(), cause: e.to_string() })?;
    let attacher = Attacher {
        cluster,
        workload,
        id,
        identity,
        container: options.container.clone(),
        image: options.image.clone(),
        rung: options.rung,
        links: options.links,
        api_rate: options.api_rate,
        lease: options.lease,
        park: options.park,
        made,
    };
    let entered = attacher.enter(voice).await?;
    // The task makes no change; when it failed, ranges are simply unknown.
    let ranges = ranges.await.unwrap_or_default();
    Ok((attacher, entered, ranges))
}

impl Attacher {
    /// By the first placement that serves.
    async fn enter(&self, voice: &dyn Voice) -> Result<Entered, Error> {
        let report = |progress| voice.step(&in_words(&progress));
        let Some(workload) = &self.workload else { return self.enter_stand_in(None, voice).await };
        let target = self.cluster.ready_pod(workload, self.container.as_deref(), None).await?;
        match self.cluster.enter(&target, &self.image, &self.admission(), &report).await {
            Ok((agent, admitted)) => Ok(Entered { agent, admitted, target: Some(target), instead: None }),
            Err(error) if error.refuses_ephemeral() => self.enter_stand_in(Some(in_short(&error)), voice).await,
            Err(error) => Err(error.into()),
        }
    }

    /// `instead`: why none of the workload's pods serves.
    async fn enter_stand_in(&self, instead: Option<String>, voice: &dyn Voice) -> Result<Entered, Error> {
        let report = |progress| voice.step(&in_words(&progress));
        let (workload, container) = (self.workload.as_ref(), self.container.as_deref());
        let plan = self.cluster.stand_in(workload, container, &self.id.to_string(), &self.image).await?;
        if let (Some(workload), Some(why)) = (workload, &instead) {
            voice.note(&format!("{why}: {}", in_its_place(workload, &plan.left_out)));
        }
        self.made.note(&self.cluster, &plan.name);
        let (agent, admitted) = self.cluster.enter_stand_in(&plan, &self.image, &self.admission(), &report).await?;
        Ok(Entered { agent, admitted, target: None, instead })
    }

    /// Another agent in the place of `gone`: in its pod where that is ready, else in another ready one, whenever there is
    /// one; or another stand-in. The voice's steps say what it waits for.
    pub(crate) async fn enter_again(&self, gone: &AgentContainer, voice: &dyn Voice) -> Entered {
        let mut pause = FIRST_PAUSE;
        loop {
            let error = match self.try_again(gone, voice).await {
                Ok(entered) => return entered,
                Err(error) => error,
            };
            voice.step(&format!("{error}; tried again in {} s", pause.as_secs()));
            sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    async fn try_again(&self, gone: &AgentContainer, voice: &dyn Voice) -> Result<Entered, Error> {
        let Some(workload) = self.workload.as_ref().filter(|_| gone.job.is_none()) else {
            self.made.remove().await;
            return self.enter_stand_in(None, voice).await;
        };
        let (wanted, preferred) = (self.container.as_deref(), Some(gone.pod_uid.as_str()));
        let waiting = |what: &str| voice.step(what);
        let (_, target) = self.cluster.await_pod(workload, wanted, preferred, waiting).await;
        let report = |progress| voice.step(&in_words(&progress));
        let (agent, admitted) = self.cluster.enter(&target, &self.image, &self.admission(), &report).await?;
        Ok(Entered { agent, admitted, target: Some(target), instead: None })
    }

    /// How the session reaches the cluster, and why so.
    pub(crate) async fn explain(&self, entered: &Entered, ranges: &Ranges) -> String {
        let asked = NEEDS.iter().map(|need| async move { (need, self.cluster.may(need).await.ok()) });
        let rights = futures::future::join_all(asked).await;
        explain(&Known {
            namespace: self.cluster.namespace(),
            agent: &entered.agent,
            instead: entered.instead.as_deref(),
            rights: &rights,
            ranges,
        })
    }

    /// Asks an agent to admit the session again. Its answer says whether it still knew it.
    pub(crate) async fn admit_again(&self, agent: &AgentContainer) -> Result<Admitted, Error> {
        Ok(self.cluster.admit(agent, &self.admission()).await?)
    }

    /// Opens the links to this agent. Its endpoint is new: an agent that does not know the session knows none of its flows.
    pub(crate) async fn link(&self, agent: AgentContainer, admitted: Admitted) -> Result<Arc<Agent>, Error> {
        // The agent opens no flows yet: what it offers is refused.
        let (endpoint, _incoming) =
            Endpoint::new(Role::Client, Config { max_links: self.links as usize, ..Config::default() });
        let (cluster, identity) = (self.cluster.clone(), self.identity.clone());
        let to = Destination { pod: agent.pod.clone(), addresses: agent.pod_ips.clone(), admitted };
        Agent::start(agent, Dial::new(cluster, to, self.rung, self.id, identity, endpoint), self.api_rate).await
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

fn in_short(refusal: &cluster::Error) -> String {
    match refusal.kind() {
        cluster::Kind::MissingRight => format!("no right to {EPHEMERAL} (--explain shows who gives it)"),
        _ => refusal.to_string(),
    }
}

/// What serves in the place of the workload's pods, and what the session lacks by it.
fn in_its_place(workload: &Workload, left_out: &[String]) -> String {
    let mut text = format!(
        "a stand-in pod serves for {workload}, with the environment, volumes and service account of its pods, without their \
         processes, localhost and addresses"
    );
    if !left_out.is_empty() {
        text += &format!("; left out: {}", left_out.join(", "));
    }
    text
}

fn in_words(progress: &Progress) -> String {
    match progress {
        Progress::Reusing { pod, container } => format!("asking the agent in pod {pod} (container {container})"),
        Progress::Placing { pod, image, .. } => format!("starting the agent ({image}) in pod {pod}"),
        Progress::Making { job, image } => format!("starting the agent ({image}) in the stand-in {job}"),
        Progress::Waiting { reason, message } if message.is_empty() => format!("waiting for the agent: {reason}"),
        Progress::Waiting { reason, message } => format!("waiting for the agent: {reason}: {message}"),
        Progress::Ready => "the agent is ready".to_owned(),
    }
}
