//! Pure: what a stand-in is made of. From the workload's pod template with the agent in the target container's place, or,
//! without a workload, as small as a pod can be. It passes Pod Security `restricted` where the template does.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::batch::v1::{Job, JobSpec};
use k8s_openapi::api::core::v1::{
    Affinity, Container, EnvVar, PodSpec, PodTemplateSpec, ResourceRequirements, SecurityContext, Service, Volume,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::place::{ENV_STAND_IN, environment, plain_security};

/// Of everything of a session; its value is the session's id.
pub(crate) const SESSION: &str = "stead.dev/session";
pub(crate) const WORKLOAD: &str = "stead.dev/workload";

pub(crate) const AGENT: &str = "stead-agent-1";

/// Volumes that the service account's admission adds, and adds again.
const TOKEN_VOLUME: &str = "kube-api-access-";

/// Longest name of a Job, whose pods' names and labels are made from it.
const LONGEST_NAME: usize = 63;

/// A workload's pod template, and what it is known by.
#[derive(Clone, Debug, Default)]
pub(crate) struct Template {
    pub(crate) spec: PodSpec,
    pub(crate) labels: BTreeMap<String, String>,
    /// Labels by which the workload knows its pods.
    pub(crate) selected_by: BTreeSet<String>,
    /// The container that kubectl would take.
    pub(crate) default_container: Option<String>,
}

/// Whose place the agent takes.
pub(crate) struct Origin<'a> {
    /// `deploy/web`
    pub(crate) workload: String,
    pub(crate) template: &'a Template,
    pub(crate) target: &'a Container,
    /// Of the namespace; `None` where they may not be listed.
    pub(crate) services: Option<&'a [Service]>,
}

/// What the Job is for.
pub(crate) struct Purpose<'a> {
    pub(crate) name: &'a str,
    pub(crate) session: &'a str,
    pub(crate) image: &'a str,
    /// The Job ends then, unless the session was admitted and took the limit away. Seconds.
    pub(crate) deadline: i64,
}

/// `stead-<workload>-<6 characters>`
pub(crate) fn name(workload: Option<&str>, random: &str) -> String {
    let workload: String = workload.unwrap_or("session").replace('.', "-");
    // The pods' names get a dash and five characters more.
    let room = LONGEST_NAME - "stead--".len() - random.len() - 6;
    let cut = workload.get(..room).unwrap_or(&workload).trim_end_matches('-');
    format!("stead-{cut}-{random}")
}

pub(crate) fn job(purpose: &Purpose<'_>, origin: Option<&Origin<'_>>) -> Job {
    let mut labels = origin.map(kept_labels).unwrap_or_default();
    let own = [(SESSION.to_owned(), purpose.session.to_owned())];
    labels.extend(own.clone());
    let spec = match origin {
        Some(origin) => from_template(purpose, origin),
        None => minimal(purpose),
    };
    let annotations = origin.map(|origin| BTreeMap::from([(WORKLOAD.to_owned(), origin.workload.clone())]));
    let metadata = ObjectMeta {
        name: Some(purpose.name.to_owned()),
        labels: Some(own.into()),
        annotations: annotations.clone(),
        ..ObjectMeta::default()
    };
    let template = PodTemplateSpec {
        metadata: Some(ObjectMeta { labels: Some(labels), annotations, ..ObjectMeta::default() }),
        spec: Some(spec),
    };
    Job {
        metadata,
        spec: Some(JobSpec {
            active_deadline_seconds: Some(purpose.deadline),
            backoff_limit: Some(0),
            ttl_seconds_after_finished: Some(0),
            template,
            ..JobSpec::default()
        }),
        status: None,
    }
}

/// What a stand-in for this origin lacks, for the user.
pub(crate) fn left_out(origin: &Origin<'_>) -> Vec<String> {
    let spec = &origin.template.spec;
    let others = spec.containers.iter().filter(|it| it.name != origin.target.name);
    let containers = others.map(|it| format!("container {}", it.name));
    let init = spec.init_containers.iter().flatten().map(|it| format!("init container {}", it.name));
    let known: BTreeSet<&str> = spec.volumes.iter().flatten().map(|it| it.name.as_str()).collect();
    let mounts = origin.target.volume_mounts.iter().flatten();
    let claims = mounts.filter(|mount| !known.contains(mount.name.as_str()) && !mount.name.starts_with(TOKEN_VOLUME));
    let claims = claims.map(|mount| format!("volume {} (one of each replica's own)", mount.name));
    let network = (spec.host_network == Some(true)).then(|| "the node's network".to_owned());
    containers.chain(init).chain(claims).chain(network).collect()
}

fn from_template(purpose: &Purpose<'_>, origin: &Origin<'_>) -> PodSpec {
    let spec = &origin.template.spec;
    let volumes: Vec<Volume> =
        spec.volumes.iter().flatten().filter(|it| !it.name.starts_with(TOKEN_VOLUME)).cloned().collect();
    let known: BTreeSet<&str> = volumes.iter().map(|it| it.name.as_str()).collect();
    let target = origin.target;
    let mut mounts = target.volume_mounts.clone().unwrap_or_default();
    mounts.retain(|mount| known.contains(mount.name.as_str()));
    let container = Container {
        env: Some(environment(target).into_iter().chain([stand_in_mark()]).collect()),
        env_from: target.env_from.clone(),
        resources: Some(resources(target.resources.as_ref())),
        security_context: Some(plain_security(spec.security_context.as_ref(), target, None, true)),
        volume_mounts: Some(mounts),
        ..agent(purpose)
    };
    let affinity = spec.affinity.as_ref().and_then(|it| it.node_affinity.clone());
    PodSpec {
        affinity: affinity.map(|node_affinity| Affinity { node_affinity: Some(node_affinity), ..Affinity::default() }),
        automount_service_account_token: spec.automount_service_account_token,
        containers: vec![container],
        dns_config: spec.dns_config.clone(),
        dns_policy: spec.dns_policy.clone().filter(|policy| policy != "ClusterFirstWithHostNet"),
        enable_service_links: spec.enable_service_links,
        host_aliases: spec.host_aliases.clone(),
        image_pull_secrets: spec.image_pull_secrets.clone(),
        priority_class_name: spec.priority_class_name.clone(),
        runtime_class_name: spec.runtime_class_name.clone(),
        scheduler_name: spec.scheduler_name.clone(),
        security_context: spec.security_context.clone(),
        service_account_name: spec.service_account_name.clone(),
        tolerations: spec.tolerations.clone(),
        volumes: Some(volumes),
        node_selector: Some(linux(spec.node_selector.clone().unwrap_or_default())),
        ..pod()
    }
}

fn minimal(purpose: &Purpose<'_>) -> PodSpec {
    let nobody = Container::default();
    let security = SecurityContext { run_as_non_root: Some(true), ..plain_security(None, &nobody, None, true) };
    let container = Container {
        env: Some(environment(&nobody).into_iter().chain([stand_in_mark()]).collect()),
        resources: Some(resources(None)),
        security_context: Some(security),
        ..agent(purpose)
    };
    PodSpec {
        automount_service_account_token: Some(false),
        enable_service_links: Some(false),
        containers: vec![container],
        node_selector: Some(linux(BTreeMap::new())),
        ..pod()
    }
}

fn pod() -> PodSpec {
    PodSpec {
        restart_policy: Some("Never".to_owned()),
        // The agent ends at once when it is told to.
        termination_grace_period_seconds: Some(2),
        ..PodSpec::default()
    }
}

fn agent(purpose: &Purpose<'_>) -> Container {
    Container {
        name: AGENT.to_owned(),
        image: Some(purpose.image.to_owned()),
        image_pull_policy: Some("IfNotPresent".to_owned()),
        stdin: Some(true),
        stdin_once: Some(false),
        tty: Some(false),
        ..Container::default()
    }
}

fn stand_in_mark() -> EnvVar {
    EnvVar { name: ENV_STAND_IN.to_owned(), value: Some("1".to_owned()), value_from: None }
}

fn linux(mut selector: BTreeMap<String, String>) -> BTreeMap<String, String> {
    selector.insert("kubernetes.io/os".to_owned(), "linux".to_owned());
    selector
}

/// Little is asked for; the target's limits stay, since a quota may demand some.
fn resources(target: Option<&ResourceRequirements>) -> ResourceRequirements {
    let few = [("cpu", "10m"), ("memory", "16Mi")];
    ResourceRequirements {
        limits: target.and_then(|it| it.limits.clone()),
        requests: Some(few.map(|(name, amount)| (name.to_owned(), Quantity(amount.to_owned()))).into()),
        claims: None,
    }
}

/// The template's labels without those by which the workload or a Service finds its pods: network policies may go by the
/// others. Where Services may not be listed, none.
fn kept_labels(origin: &Origin<'_>) -> BTreeMap<String, String> {
    let Some(services) = origin.services else { return BTreeMap::new() };
    let Template { labels, selected_by, .. } = origin.template;
    let mut kept = labels.clone();
    kept.retain(|key, _| !selected_by.contains(key));
    for service in services {
        let selector = service.spec.as_ref().and_then(|spec| spec.selector.as_ref()).filter(|it| !it.is_empty());
        let Some(selector) = selector else { continue };
        if selector.iter().all(|(key, value)| kept.get(key) == Some(value)) {
            kept.retain(|key, _| !selector.contains_key(key));
        }
    }
    kept
}

#[cfg(test)]
mod tests;
