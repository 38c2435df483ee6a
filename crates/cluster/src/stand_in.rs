//! A stand-in: a pod of ours, made by a Job, that is a session's end in the cluster where there is no workload, or no
//! agent may be placed in its pods (design 6.2).
//!
//! Nothing of it outlives the session: the client deletes the Job when it leaves; without the client the agent ends with
//! the session's lease, the Job is complete, and its time to live is zero. Until a session is admitted, which the agent
//! may never live to see, a deadline bounds the Job.

mod manifest;

use std::fmt::Write as _;
use std::net::IpAddr;
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{Event, Pod, Service};
use kube::ResourceExt;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams, WatchEvent, WatchParams};
use serde_json::json;
use tokio::time::{Instant, sleep, timeout};
use wire::{Admit, Admitted};

use crate::admit::{Report, START_TIMEOUT};
use crate::error::{Error, Kind, Right, is_rbac};
use crate::place::{AgentContainer, Progress};
use crate::ready::addresses;
use crate::{Cluster, Workload, near};

pub(crate) use manifest::Template;
use manifest::{AGENT, Origin, Purpose};

/// Of the Job until a session is admitted: as long as an agent's start may take, and the client's own time beside it.
const DEADLINE: Duration = Duration::from_secs(START_TIMEOUT.as_secs() + 60);

/// From the Job to its pod. The Job controller takes a second at most, unless something forbids the pod.
const POD_TIMEOUT: Duration = Duration::from_secs(20);

/// Between two looks at what the Job controller says.
const LOOK: Duration = Duration::from_secs(1);

const JOB_NAME: &str = "batch.kubernetes.io/job-name";

const JOBS: Right = Right { group: "batch", resource: "jobs", verbs: &["create", "patch", "delete"] };

/// What a stand-in is to be made for.
#[derive(Clone, Debug)]
pub struct StandIn {
    /// Of its Job.
    pub name: String,
    /// What it lacks of the workload's pods, for the user.
    pub left_out: Vec<String>,
    /// The container whose place the agent takes; empty without a workload.
    target: String,
    job: Box<Job>,
}

impl Cluster {
    /// Plans a stand-in for the workload's container, or for no workload. Nothing is changed yet.
    pub async fn stand_in(
        &self,
        workload: Option<&Workload>,
        container: Option<&str>,
        session: &str,
        image: &str,
    ) -> Result<StandIn, Error> {
        let name = manifest::name(workload.map(|it| it.name.as_str()), &random_suffix());
        let purpose = Purpose { name: &name, session, image, deadline: DEADLINE.as_secs() as i64 };
        let Some(workload) = workload else {
            let job = Box::new(manifest::job(&purpose, None));
            return Ok(StandIn { name: name.clone(), left_out: Vec::new(), target: String::new(), job });
        };
        let template = &*workload.template;
        let chosen = match container {
            Some(wanted) => template.spec.containers.iter().find(|it| it.name == wanted),
            None => default_container(workload).or(template.spec.containers.first()),
        };
        let Some(target) = chosen else { return Err(no_container(workload, container.unwrap_or_default())) };
        let services = self.api::<Service>();
        let services = timeout(LOOK, services.list(&ListParams::default())).await.ok().and_then(Result::ok);
        let services = services.as_ref().map(|list| list.items.as_slice());
        let origin = Origin { workload: workload.to_string(), template, target, services };
        let job = Box::new(manifest::job(&purpose, Some(&origin)));
        Ok(StandIn { name, left_out: manifest::left_out(&origin), target: target.name.clone(), job })
    }

    /// Makes the stand-in and admits the session to its agent. When that fails, the Job is deleted again.
    pub async fn enter_stand_in(
        &self,
        plan: &StandIn,
        image: &str,
        admit: &Admit,
        progress: Report<'_>,
    ) -> Result<(AgentContainer, Admitted), Error> {
        self.try_pod(plan).await?;
        progress(Progress::Making { job: plan.name.clone(), image: image.to_owned() });
        let jobs = self.api::<Job>();
        let parameters = PostParams::default();
        self.ask(format!("make the stand-in {}", plan.name), JOBS, jobs.create(&parameters, &plan.job)).await?;
        let entered = self.enter_job(plan, image, admit, progress).await;
        if entered.is_err() {
            self.remove_stand_in(&plan.name).await;
        }
        entered
    }

    async fn enter_job(
        &self,
        plan: &StandIn,
        image: &str,
        admit: &Admit,
        progress: Report<'_>,
    ) -> Result<(AgentContainer, Admitted), Error> {
        let pod = self.pod_of(&plan.name).await?;
        let mut agent = AgentContainer {
            namespace: self.namespace().to_owned(),
            pod: pod.name_any(),
            pod_uid: pod.uid().unwrap_or_default(),
            name: AGENT.to_owned(),
            image: image.to_owned(),
            target: plan.target.clone(),
            pod_ips: Vec::new(),
            reused: false,
            job: Some(plan.name.clone()),
        };
        let admitted = self.start(&agent, admit, progress).await.map_err(crate::admit::Trouble::into_error)?;
        // From here on the agent sees to the Job's end.
        let patch = Patch::Merge(json!({ "spec": { "activeDeadlineSeconds": null } }));
        let jobs = self.api::<Job>();
        let parameters = PatchParams::default();
        let doing = format!("let the stand-in {} live as long as the session", plan.name);
        let freed = self.ask(doing, JOBS, jobs.patch(&plan.name, &parameters, &patch));
        let (_, addresses) = futures::try_join!(freed, self.addressed(&agent.pod))?;
        agent.pod_ips = addresses;
        Ok((agent, admitted))
    }

    /// Whether the API server would take the pod: what forbids it (Pod Security, a quota) is then said at once, while a Job
    /// would wait in silence.
    async fn try_pod(&self, plan: &StandIn) -> Result<(), Error> {
        let Some(template) = plan.job.spec.as_ref().map(|spec| spec.template.clone()) else { return Ok(()) };
        let mut metadata = template.metadata.unwrap_or_default();
        metadata.name = Some(plan.name.clone());
        let pod = Pod { metadata, spec: template.spec, status: None };
        let parameters = PostParams { dry_run: true, ..PostParams::default() };
        let pods = self.api::<Pod>();
        let trying = self.patient(format!("make the stand-in {}", plan.name), pods.create(&parameters, &pod));
        match trying.await? {
            Err(kube::Error::Api(status)) if is_rbac(&status) => {
                tracing::debug!(status.message, "pods may not be tried; the Job's events will tell");
                Ok(())
            }
            Err(kube::Error::Api(status)) if matches!(status.code, 400 | 403 | 422 | 500) => {
                Err(refused(&status.message))
            }
            Err(error) => Err(Error::from_kube(error, format!("make the stand-in {}", plan.name), JOBS)),
            Ok(_) => Ok(()),
        }
    }

    /// The Job's pod, as soon as the controller has made it.
    async fn pod_of(&self, job: &str) -> Result<Pod, Error> {
        let labels = format!("{JOB_NAME}={job}");
        let watched = WatchParams::default().labels(&labels);
        let listed = ListParams::default().labels(&labels);
        let since = Instant::now();
        while since.elapsed() < POD_TIMEOUT {
            if let Some(pod) = self.pod_that(&watched, &listed, |_| true).await {
                return Ok(pod);
            }
            if let Some(why) = self.creation_failed(job).await {
                return Err(refused(&why));
            }
        }
        Err(Error::new(Kind::AgentStart, format!("the stand-in {job} got no pod within {} s", POD_TIMEOUT.as_secs()))
            .hint(format!("`kubectl describe job {job}` would show why; the cluster's Job controller may not run")))
    }

    /// The pod's addresses, once the API server knows them, which its kubelet tells up to a second after the start: without
    /// it, no pipe can be opened.
    async fn addressed(&self, pod: &str) -> Result<Vec<IpAddr>, Error> {
        let fields = format!("metadata.name={pod}");
        let watched = WatchParams::default().fields(&fields);
        let listed = ListParams::default().fields(&fields);
        let since = Instant::now();
        while since.elapsed() < POD_TIMEOUT {
            let found = self.pod_that(&watched, &listed, |pod| !addresses(pod).is_empty()).await;
            if let Some(pod) = found {
                return Ok(addresses(&pod));
            }
        }
        Err(Error::new(Kind::AgentStart, format!("the pod {pod} got no address within {} s", POD_TIMEOUT.as_secs()))
            .hint(format!("`kubectl describe pod {pod}` shows what its network waits for")))
    }

    /// The first pod that is as wanted, for a moment: it is watched, or, where that is not allowed, looked for.
    async fn pod_that(&self, watched: &WatchParams, listed: &ListParams, wanted: impl Fn(&Pod) -> bool) -> Option<Pod> {
        let pods = self.api::<Pod>();
        let watching = timeout(LOOK, async {
            // Begins with what is there.
            let mut events = pods.watch(watched, "0").await.ok()?.boxed();
            while let Some(Ok(event)) = events.next().await {
                if let WatchEvent::Added(pod) | WatchEvent::Modified(pod) = event
                    && wanted(&pod)
                {
                    return Some(pod);
                }
            }
            None
        });
        match watching.await {
            Ok(None) => {
                sleep(LOOK).await;
                pods.list(listed).await.ok()?.items.into_iter().find(wanted)
            }
            found => found.ok().flatten(),
        }
    }

    /// The Job controller's words about a pod that it may not make.
    async fn creation_failed(&self, job: &str) -> Option<String> {
        let fields = format!("involvedObject.name={job},reason=FailedCreate");
        let listed = timeout(LOOK, self.api::<Event>().list(&ListParams::default().fields(&fields))).await;
        listed.ok()?.ok()?.items.into_iter().find_map(|event| event.message)
    }

    /// Deletes a stand-in's Job and, in the background, its pod. What is gone already is no error; what cannot be deleted
    /// goes with the lease.
    pub async fn remove_stand_in(&self, job: &str) {
        let removing = timeout(POD_TIMEOUT, async {
            let jobs = self.api::<Job>();
            jobs.delete(job, &DeleteParams::background()).await
        });
        match removing.await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => tracing::debug!(%error, job, "the stand-in is not deleted"),
            Err(_) => tracing::debug!(job, "the stand-in is not deleted in time"),
        }
    }
}

fn default_container(workload: &Workload) -> Option<&k8s_openapi::api::core::v1::Container> {
    let name = workload.template.default_container.as_deref()?;
    workload.template.spec.containers.iter().find(|it| it.name == name)
}

fn no_container(workload: &Workload, wanted: &str) -> Error {
    let names: Vec<&str> = workload.template.spec.containers.iter().map(|it| it.name.as_str()).collect();
    let mut hint = String::new();
    if let Some(close) = near::near(wanted, names.iter().copied()).first() {
        let _ = write!(hint, "near to it: {close}; ");
    }
    let _ = write!(hint, "it has: {}", names.join(", "));
    Error::new(Kind::NotFound, format!("no container \"{wanted}\" in {workload}")).hint(hint)
}

fn refused(why: &str) -> Error {
    let error = Error::new(Kind::PlacementRefused, "the cluster does not let a stand-in pod be made").because(why);
    if why.contains("exceeded quota") {
        return error.hint("free some of the namespace's quota (`kubectl describe quota`), or ask its admin for more");
    }
    error.hint(
        "a policy of the cluster (Pod Security, a quota, an admission webhook) refused it; its message names the rule",
    )
}

/// Six characters that names may have.
fn random_suffix() -> String {
    const LETTERS: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    let bytes: [u8; 6] = rand::random();
    bytes.iter().map(|byte| char::from(LETTERS[usize::from(*byte) % LETTERS.len()])).collect()
}
