//! Choosing the pod and the container that a session enters.

use std::cmp::Reverse;
use std::net::IpAddr;

use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::core::v1::{Container, ContainerStatus, Pod, PodSpec, PodStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::ResourceExt;
use kube::api::ListParams;

use crate::Cluster;
use crate::error::{Error, Kind, Right};
use crate::near::near;
use crate::place::running_agent;
use crate::workload::{Workload, WorkloadKind};

pub(crate) const DEFAULT_CONTAINER: &str = "kubectl.kubernetes.io/default-container";
const MIRROR: &str = "kubernetes.io/config.mirror";
const REVISION: &str = "deployment.kubernetes.io/revision";

/// Runtime classes that run containers as processes of the node; every other one may be a sandbox (gVisor, Kata), where
/// an ephemeral container sees nothing of its neighbours.
const PLAIN_RUNTIMES: [&str; 7] = ["runc", "crun", "containerd", "docker", "nvidia", "nvidia-cdi", "nvidia-legacy"];

/// A container of a ready pod.
#[derive(Clone, Debug)]
pub struct Target {
    pub namespace: String,
    pub pod: String,
    pub uid: String,
    /// All addresses of the pod, the primary one first.
    pub ips: Vec<IpAddr>,
    pub node: String,
    pub container: String,
    /// The runtime's id, without its scheme (`containerd://`).
    pub container_id: String,
    /// The pod has its node's network: it may be observed only.
    pub host_network: bool,
    /// The pod as it was when it was chosen.
    pub(crate) object: Box<Pod>,
}

impl Cluster {
    /// A ready pod of the workload: of the newest ReplicaSet, and there rather the pod with the uid `preferred`, or else
    /// one that runs an agent of this release.
    pub async fn ready_pod(
        &self,
        workload: &Workload,
        container: Option<&str>,
        preferred: Option<&str>,
    ) -> Result<Target, Error> {
        self.pod(workload, container, preferred, Wanted::Ready).await
    }

    pub(crate) async fn pod(
        &self,
        workload: &Workload,
        container: Option<&str>,
        preferred: Option<&str>,
        wanted: Wanted,
    ) -> Result<Target, Error> {
        let choice = Choice { container, preferred, wanted };
        let doing = format!("list the pods of {workload}");
        let right = Right::core("pods", &["get", "list"]);
        let pods = self.api::<Pod>();
        if workload.kind == WorkloadKind::Pod {
            let found = self.ask(&doing, right, pods.get_opt(&workload.name)).await?;
            return select(workload, found.into_iter().collect(), &[], &choice);
        }
        let parameters = ListParams::default().labels(&workload.selector);
        let revisions = async { Ok(self.revisions(workload, &parameters).await) };
        let (pods, revisions) = futures::try_join!(self.ask(&doing, right, pods.list(&parameters)), revisions)?;
        select(workload, pods.items, &revisions, &choice)
    }

    /// The pod of `target` as it is now, same container.
    pub(crate) async fn refreshed(&self, target: &Target) -> Result<Target, Error> {
        let right = Right::core("pods", &["get", "list"]);
        let pods = self.api::<Pod>();
        let found = self.ask(format!("look at pod {}", target.pod), right, pods.get_opt(&target.pod)).await?;
        match found {
            Some(pod) if pod.uid().as_deref() == Some(&target.uid) => enter(pod, Some(&target.container)),
            _ => Err(Error::new(Kind::NoReadyPod, format!("the pod {} is gone", target.pod))
                .hint("run the command again: another pod of the workload is taken")),
        }
    }

    /// ReplicaSets of a Deployment; empty for other kinds, and where they may not be listed.
    async fn revisions(&self, workload: &Workload, parameters: &ListParams) -> Vec<Revision> {
        if workload.kind != WorkloadKind::Deployment {
            return Vec::new();
        }
        let sets = self.api::<ReplicaSet>();
        let right = Right { group: "apps", resource: "replicasets", verbs: &["list"] };
        match self.ask("list ReplicaSets", right, sets.list_metadata(parameters)).await {
            Ok(list) => revisions_of(&workload.uid, list.items.iter().map(|item| &item.metadata)),
            Err(error) => {
                tracing::debug!(%error, "ReplicaSets cannot be listed; the newest pod is taken for the newest revision");
                Vec::new()
            }
        }
    }
}

/// A ReplicaSet of the Deployment, and how new it is.
#[derive(Debug, PartialEq)]
struct Revision {
    uid: String,
    number: u64,
}

fn revisions_of<'a>(deployment: &str, sets: impl Iterator<Item = &'a ObjectMeta>) -> Vec<Revision> {
    sets.filter(|meta| controller(meta).is_some_and(|owner| owner.uid == deployment))
        .filter_map(|meta| {
            let number = meta.annotations.as_ref().and_then(|all| all.get(REVISION)).and_then(|n| n.parse().ok());
            Some(Revision { uid: meta.uid.clone()?, number: number.unwrap_or(0) })
        })
        .collect()
}

fn controller(meta: &ObjectMeta) -> Option<&OwnerReference> {
    meta.owner_references.iter().flatten().find(|owner| owner.controller == Some(true))
}

/// Which of a workload's pods is wanted.
struct Choice<'a> {
    container: Option<&'a str>,
    /// Its uid.
    preferred: Option<&'a str>,
    wanted: Wanted,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wanted {
    Ready,
    /// While none is ready, one whose container runs will do: what goes out through it needs no readiness.
    Running,
}

fn select(workload: &Workload, pods: Vec<Pod>, revisions: &[Revision], choice: &Choice<'_>) -> Result<Target, Error> {
    let Choice { container, preferred, wanted } = *choice;
    let own: Vec<Pod> = pods.into_iter().filter(|pod| belongs(workload, &pod.metadata, revisions)).collect();
    let mut ready: Vec<&Pod> = own.iter().filter(|pod| is_ready(pod)).collect();
    if ready.is_empty() && wanted == Wanted::Running {
        ready.extend(own.iter().filter(|pod| runs(pod, container)));
    }
    if ready.is_empty() {
        return Err(none_ready(workload, &own));
    }
    let mut enterable: Vec<&Pod> = ready.iter().copied().filter(|pod| unsuitable(pod).is_none()).collect();
    let newest_first = |pod: &Pod| {
        let owner = controller(&pod.metadata).map(|owner| owner.uid.as_str());
        let revision = revisions.iter().find(|revision| Some(revision.uid.as_str()) == owner);
        let agent = pod_spec(pod)
            .and_then(|spec| chosen_container(pod, spec, container))
            .is_some_and(|chosen| running_agent(pod, &chosen.name, None).is_some());
        let is_preferred = preferred.is_some() && pod.metadata.uid.as_deref() == preferred;
        let number = revision.map_or(0, |revision| revision.number);
        (Reverse(number), Reverse(is_preferred), Reverse(agent), pod.name_any())
    };
    enterable.sort_by_cached_key(|pod| newest_first(pod));
    match enterable.first() {
        Some(pod) => enter((*pod).clone(), container),
        None => Err(refused(ready[0])),
    }
}

/// Whether the workload's controller made this pod: its selector alone may fit pods of others (a stand-in's).
fn belongs(workload: &Workload, pod: &ObjectMeta, revisions: &[Revision]) -> bool {
    let Some(owner) = controller(pod) else {
        return workload.kind == WorkloadKind::Pod;
    };
    match workload.kind {
        WorkloadKind::Pod => true,
        WorkloadKind::Deployment if revisions.is_empty() => {
            owner.kind == "ReplicaSet" && owner.name.starts_with(&format!("{}-", workload.name))
        }
        WorkloadKind::Deployment => revisions.iter().any(|revision| revision.uid == owner.uid),
        _ => owner.uid == workload.uid,
    }
}

fn is_ready(pod: &Pod) -> bool {
    let ready = |status: &PodStatus| {
        status.conditions.iter().flatten().any(|condition| condition.type_ == "Ready" && condition.status == "True")
    };
    pod.metadata.deletion_timestamp.is_none() && pod.status.as_ref().is_some_and(ready)
}

/// Whether the container to enter runs in a pod that stays.
fn runs(pod: &Pod, container: Option<&str>) -> bool {
    let status = || {
        let chosen = chosen_container(pod, pod_spec(pod)?, container)?;
        container_status(pod.status.as_ref()?, &chosen.name)?.state.as_ref()
    };
    pod.metadata.deletion_timestamp.is_none() && status().is_some_and(|state| state.running.is_some())
}

/// Why no agent may enter this pod, where that is so (design 6).
fn unsuitable(pod: &Pod) -> Option<String> {
    let spec = pod_spec(pod)?;
    let windows_selector = |(key, value): (&String, &String)| key == "kubernetes.io/os" && value == "windows";
    if spec.os.as_ref().is_some_and(|os| os.name == "windows")
        || spec.node_selector.iter().flatten().any(windows_selector)
    {
        return Some("it runs on Windows, and the agent is a Linux program".to_owned());
    }
    if pod.annotations().contains_key(MIRROR) {
        return Some("it is a static pod, which the API server cannot change".to_owned());
    }
    if spec.host_pid == Some(true) {
        return Some("it shares its node's processes (hostPID), which an agent must not see".to_owned());
    }
    match &spec.runtime_class_name {
        Some(class) if !PLAIN_RUNTIMES.contains(&class.as_str()) => Some(format!(
            "it runs in a sandbox (runtimeClassName {class}), where an agent sees nothing of the container"
        )),
        _ => None,
    }
}

fn refused(pod: &Pod) -> Error {
    let why = unsuitable(pod).unwrap_or_default();
    Error::new(Kind::PlacementRefused, format!("no agent may be placed in pod {}", pod.name_any()))
        .because(why)
        .hint("choose another workload; nothing was changed")
}

fn pod_spec(pod: &Pod) -> Option<&PodSpec> {
    pod.spec.as_ref()
}

/// The containers that live as long as the pod: its own and its native sidecars.
fn containers(spec: &PodSpec) -> impl Iterator<Item = &Container> {
    let sidecars = spec.init_containers.iter().flatten().filter(|it| it.restart_policy.as_deref() == Some("Always"));
    spec.containers.iter().chain(sidecars)
}

pub(crate) fn container_named<'a>(spec: &'a PodSpec, name: &str) -> Option<&'a Container> {
    containers(spec).find(|container| container.name == name)
}

pub(crate) fn container_status<'a>(status: &'a PodStatus, name: &str) -> Option<&'a ContainerStatus> {
    let own = status.container_statuses.iter().flatten();
    own.chain(status.init_container_statuses.iter().flatten()).find(|status| status.name == name)
}

fn chosen_container<'a>(pod: &Pod, spec: &'a PodSpec, wanted: Option<&str>) -> Option<&'a Container> {
    if let Some(name) = wanted {
        return container_named(spec, name);
    }
    let by_annotation = pod.annotations().get(DEFAULT_CONTAINER).and_then(|name| container_named(spec, name));
    by_annotation.or(spec.containers.first())
}

/// The target in this pod, or why it cannot be one.
fn enter(pod: Pod, wanted: Option<&str>) -> Result<Target, Error> {
    let name = pod.name_any();
    let incomplete = || Error::new(Kind::Internal, format!("the API server's pod {name} lacks its spec or status"));
    let spec = pod.spec.as_ref().ok_or_else(incomplete)?;
    let status = pod.status.as_ref().ok_or_else(incomplete)?;
    let Some(container) = chosen_container(&pod, spec, wanted) else {
        return Err(no_container(&name, spec, wanted.unwrap_or_default()));
    };
    let running = container_status(status, &container.name)
        .filter(|status| status.state.as_ref().is_some_and(|state| state.running.is_some()));
    let Some(running) = running else {
        let why = container_status(status, &container.name).and_then(trouble).unwrap_or("it is not running".to_owned());
        return Err(Error::new(Kind::NoReadyPod, format!("container {} of pod {name} is not running", container.name))
            .because(why)
            .hint(format!("`kubectl describe pod {name}` tells more")));
    };
    let id = running.container_id.as_deref().unwrap_or_default();
    let ips = addresses(&pod);
    Ok(Target {
        namespace: pod.namespace().unwrap_or_default(),
        pod: name,
        uid: pod.uid().unwrap_or_default(),
        ips,
        node: spec.node_name.clone().unwrap_or_default(),
        container: container.name.clone(),
        container_id: id.split_once("://").map_or(id, |(_, id)| id).to_owned(),
        host_network: spec.host_network == Some(true),
        object: Box::new(pod),
    })
}

/// All addresses of the pod, the primary one first.
pub(crate) fn addresses(pod: &Pod) -> Vec<IpAddr> {
    let Some(status) = &pod.status else { return Vec::new() };
    let all: Vec<IpAddr> = status.pod_ips.iter().flatten().filter_map(|ip| ip.ip.parse().ok()).collect();
    if all.is_empty() { status.pod_ip.iter().filter_map(|ip| ip.parse().ok()).collect() } else { all }
}

fn no_container(pod: &str, spec: &PodSpec, wanted: &str) -> Error {
    let names: Vec<&str> = containers(spec).map(|container| container.name.as_str()).collect();
    let close = near(wanted, names.iter().copied());
    let hint = match close.first() {
        Some(name) => format!("near to it: {name}; all: {}", names.join(", ")),
        None => format!("it has: {}", names.join(", ")),
    };
    Error::new(Kind::NotFound, format!("no container \"{wanted}\" in pod {pod}")).hint(hint)
}

/// Why none of the workload's pods is ready, by the one that says most.
fn none_ready(workload: &Workload, pods: &[Pod]) -> Error {
    let error = Error::new(Kind::NoReadyPod, format!("{workload} has no ready pod"));
    let living: Vec<&Pod> = pods.iter().filter(|pod| pod.metadata.deletion_timestamp.is_none()).collect();
    if living.is_empty() {
        return match (workload.replicas, pods.is_empty()) {
            (0, _) if workload.kind == WorkloadKind::DaemonSet => error.because("no node takes its pods"),
            (0, _) => error.because("it is scaled to 0").hint(format!("`kubectl scale {workload} --replicas=1`")),
            (_, false) => error.because("its pods are being deleted").hint("try again when new ones are ready"),
            (_, true) => error
                .because("its controller has made no pod yet")
                .hint(format!("`kubectl describe {workload}` shows the controller's events (quota, admission)")),
        };
    }
    let worst = living.iter().find_map(|pod| pod_trouble(pod).map(|why| (pod, why)));
    let (pod, why) = worst.unwrap_or((&living[0], "it does not pass its readiness probe yet".to_owned()));
    let name = pod.name_any();
    error.because(format!("pod {name}")).because(why).hint(format!("`kubectl describe pod {name}` tells more"))
}

fn pod_trouble(pod: &Pod) -> Option<String> {
    let status = pod.status.as_ref()?;
    if let Some(phase) = status.phase.as_deref().filter(|phase| matches!(*phase, "Succeeded" | "Failed")) {
        let message = status.message.as_ref().or(status.reason.as_ref()).map(|why| format!(": {why}"));
        return Some(format!("it has ended ({phase}{})", message.unwrap_or_default()));
    }
    if let Some((reason, message)) = unscheduled(pod) {
        return Some(format!("{reason}: {message}"));
    }
    let init = status.init_container_statuses.iter().flatten().filter(|it| !it.ready);
    init.chain(status.container_statuses.iter().flatten().filter(|it| !it.ready)).find_map(trouble)
}

/// Why no node takes the pod: the scheduler's reason and message.
pub(crate) fn unscheduled(pod: &Pod) -> Option<(String, String)> {
    let conditions = pod.status.as_ref()?.conditions.as_ref()?;
    let condition = conditions.iter().find(|it| it.type_ == "PodScheduled" && it.status == "False")?;
    let reason = condition.reason.as_deref().unwrap_or("not scheduled");
    let message = condition.message.as_deref().unwrap_or("no node was found for it");
    Some((reason.to_owned(), message.to_owned()))
}

/// How a container ended, where it has.
pub(crate) fn end_of(status: &ContainerStatus) -> Option<String> {
    let ended = status.state.as_ref()?.terminated.as_ref()?;
    let reason = ended.reason.as_deref().unwrap_or("ended");
    let message = ended.message.as_deref().map(|message| format!(": {message}")).unwrap_or_default();
    Some(format!("{reason}, exit code {}{message}", ended.exit_code))
}

/// What keeps a container from running.
fn trouble(status: &ContainerStatus) -> Option<String> {
    let state = status.state.as_ref()?;
    let name = &status.name;
    if let Some(waiting) = &state.waiting {
        let reason = waiting.reason.as_deref().unwrap_or("waiting");
        let message = waiting.message.as_ref().map(|message| format!(" ({message})")).unwrap_or_default();
        return Some(format!("container {name}: {reason}{message}"));
    }
    Some(format!("container {name}: {}", end_of(status)?))
}

#[cfg(test)]
mod tests;
