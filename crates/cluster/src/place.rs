//! Placing an agent in a pod as a plain ephemeral container (design 6.1a): no capability, the target's own uid and gid,
//! within Pod Security `restricted`. An agent that runs there already is used again.

use std::net::IpAddr;

use k8s_openapi::api::core::v1::{
    Capabilities, Container, ContainerStatus, EnvVar, EnvVarSource, EphemeralContainer, LinuxContainerUser,
    ObjectFieldSelector, Pod, PodSecurityContext, SeccompProfile, SecurityContext,
};
use kube::ResourceExt;
use kube::api::{Patch, PatchParams};
use serde_json::json;

use crate::error::{Error, Kind, Right, is_rbac};
use crate::ready::{Target, container_named, container_status};
use crate::{Cluster, normalized};

/// This release. Agents of another one are left alone.
pub const RELEASE: &str = env!("CARGO_PKG_VERSION");

const NAME_PREFIX: &str = "stead-agent-";
const ENV_RELEASE: &str = "STEAD_RELEASE";
const ENV_CONTAINER: &str = "STEAD_CONTAINER";
const ENV_POD_IPS: &str = "STEAD_POD_IPS";
/// The agent's container is a stand-in's: it ends with its last session.
pub(crate) const ENV_STAND_IN: &str = "STEAD_STAND_IN";

/// The uid for a target that must not be root and names no uid of its own ("nobody" of distroless images).
const NOT_ROOT: i64 = 65_532;

/// Two clients may take the same name at once; the loser looks again and takes the next.
const ATTEMPTS: usize = 5;

/// What is going on, for the user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress {
    /// An agent runs there already.
    Reusing {
        pod: String,
        container: String,
    },
    Placing {
        pod: String,
        container: String,
        image: String,
    },
    /// Why the agent's container does not run yet, in the kubelet's words (`ContainerCreating`).
    /// A stand-in, by a Job.
    Making {
        job: String,
        image: String,
    },
    Waiting {
        reason: String,
        message: String,
    },
    /// The agent answered.
    Ready,
}

/// An agent's container. It may not run yet: `Cluster::admit` waits for that.
#[derive(Clone, Debug)]
pub struct AgentContainer {
    pub namespace: String,
    pub pod: String,
    pub pod_uid: String,
    /// The pod's addresses.
    pub pod_ips: Vec<IpAddr>,
    /// Its own name, `stead-agent-<n>`.
    pub name: String,
    pub image: String,
    /// The container it looks into, or stands in for; empty for none.
    pub target: String,
    /// It was there before this session.
    pub reused: bool,
    /// The Job that made its pod, where that is a stand-in.
    pub job: Option<String>,
}

impl Cluster {
    /// Finds or makes the agent's container; returns when the API server took it, before it runs.
    pub async fn place(
        &self,
        target: &Target,
        image: &str,
        progress: &(dyn Fn(Progress) + Send + Sync),
    ) -> Result<AgentContainer, Error> {
        self.place_except(target, image, None, progress).await
    }

    /// As `place`, but never takes the agent container `gone`.
    pub(crate) async fn place_except(
        &self,
        target: &Target,
        image: &str,
        gone: Option<&str>,
        progress: &(dyn Fn(Progress) + Send + Sync),
    ) -> Result<AgentContainer, Error> {
        let mut target = target.clone();
        for _ in 0..ATTEMPTS {
            let agent = running_agent(&target.object, &target.container, Some(image)).filter(|name| gone != Some(name));
            if let Some(name) = agent {
                progress(Progress::Reusing { pod: target.pod.clone(), container: name.to_owned() });
                return Ok(agent_container(&target, name, image, true));
            }
            let container = placement(&target.object, &target.container, image)?;
            let name = container.name.clone();
            let (pod, image) = (target.pod.clone(), image.to_owned());
            progress(Progress::Placing { pod, container: name.clone(), image: image.clone() });
            // Merged by name, so that entries of others stay. An equal entry of the same name that another client made
            // meanwhile is then simply shared.
            let patch = json!({ "spec": { "ephemeralContainers": [container] } });
            let (pods, parameters, patch) = (self.api::<Pod>(), PatchParams::default(), Patch::Strategic(patch));
            let patching = pods.patch_ephemeral_containers(&target.pod, &parameters, &patch);
            match self.patient(format!("place an agent in pod {}", target.pod), patching).await? {
                Ok(_) => return Ok(agent_container(&target, &name, &image, false)),
                Err(error) if lost_the_name(&error) => target = self.refreshed(&target).await?,
                Err(error) => return Err(refusal(error, &target)),
            }
        }
        Err(Error::new(Kind::Internal, format!("cannot place an agent in pod {}", target.pod))
            .because("other clients kept changing the pod")
            .hint("try again"))
    }
}

fn agent_container(target: &Target, name: &str, image: &str, reused: bool) -> AgentContainer {
    AgentContainer {
        namespace: target.namespace.clone(),
        pod: target.pod.clone(),
        pod_uid: target.uid.clone(),
        pod_ips: target.ips.clone(),
        name: name.to_owned(),
        image: image.to_owned(),
        target: target.container.clone(),
        reused,
        job: None,
    }
}

/// Another client made a different entry of this name since the pod was read.
fn lost_the_name(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status)
        if status.code == 409 || (status.code == 422 && status.message.contains("may not be changed")))
}

fn refusal(error: kube::Error, target: &Target) -> Error {
    let doing = format!("place an agent in pod {}", target.pod);
    let right = Right::core("pods/ephemeralcontainers", &["patch"]);
    match error {
        kube::Error::Api(status) if status.code == 404 => {
            Error::new(Kind::NoReadyPod, format!("the pod {} is gone", target.pod))
                .hint("run the command again: another pod of the workload is taken")
        }
        kube::Error::Api(status)
            if !is_rbac(&status) && (matches!(status.code, 400 | 403 | 422) || status.message.contains("webhook")) =>
        {
            Error::new(Kind::PlacementRefused, format!("the cluster does not let an agent into pod {}", target.pod))
                .because(&status.message)
                .hint(
                    "a policy of the cluster (Pod Security, a quota, an admission webhook) refused the ephemeral \
                     container; its message names the rule",
                )
        }
        other => Error::from_kube(other, doing, right),
    }
}

/// The name of an agent container of this release for this target container that runs or is about to; with an image,
/// only one of that image.
pub(crate) fn running_agent<'a>(pod: &'a Pod, container: &str, image: Option<&str>) -> Option<&'a str> {
    let has = |agent: &EphemeralContainer, name: &str, value: &str| {
        agent.env.iter().flatten().any(|env| env.name == name && env.value.as_deref() == Some(value))
    };
    let same_image = |agent: &EphemeralContainer| match (image, &agent.image) {
        (Some(wanted), Some(image)) => normalized(wanted) == normalized(image),
        (wanted, _) => wanted.is_none(),
    };
    let all = pod.spec.as_ref()?.ephemeral_containers.as_ref()?;
    let mut fitting = all.iter().filter(|agent| {
        is_agent(&agent.name)
            && agent.target_container_name.as_deref() == Some(container)
            && has(agent, ENV_RELEASE, RELEASE)
            && same_image(agent)
            && !agent_status(pod, &agent.name).is_some_and(has_ended)
    });
    // The last one made: an older one is more likely about to exit.
    fitting.next_back().map(|agent| agent.name.as_str())
}

/// Whether a container of this name is an agent, of whatever release.
pub(crate) fn is_agent(name: &str) -> bool {
    name.starts_with(NAME_PREFIX)
}

/// Of an ephemeral container, or of the one in a stand-in.
pub(crate) fn agent_status<'a>(pod: &'a Pod, name: &str) -> Option<&'a ContainerStatus> {
    let status = pod.status.as_ref()?;
    let ephemeral = status.ephemeral_container_statuses.iter().flatten();
    ephemeral.chain(status.container_statuses.iter().flatten()).find(|status| status.name == name)
}

fn has_ended(status: &ContainerStatus) -> bool {
    status.state.as_ref().is_some_and(|state| state.terminated.is_some())
}

/// The agent's container for this target: the first free name, the target's environment and identity, and nothing more.
/// Pure.
pub fn placement(pod: &Pod, container: &str, image: &str) -> Result<EphemeralContainer, Error> {
    let spec = pod.spec.as_ref();
    let target = spec
        .and_then(|spec| container_named(spec, container))
        .ok_or_else(|| Error::new(Kind::NotFound, format!("no container \"{container}\" in pod {}", pod.name_any())))?;
    Ok(EphemeralContainer {
        name: free_name(pod),
        image: Some(image.to_owned()),
        image_pull_policy: Some("IfNotPresent".to_owned()),
        target_container_name: Some(container.to_owned()),
        stdin: Some(true),
        stdin_once: Some(false),
        tty: Some(false),
        env: Some(environment(target)),
        env_from: target.env_from.clone(),
        security_context: Some(security(pod, target)),
        ..EphemeralContainer::default()
    })
}

/// Names are never free again: an ephemeral container cannot be removed.
fn free_name(pod: &Pod) -> String {
    let taken = pod.spec.iter().flat_map(|spec| spec.ephemeral_containers.iter().flatten());
    let numbers = taken.filter_map(|it| it.name.strip_prefix(NAME_PREFIX)?.parse::<u32>().ok());
    format!("{NAME_PREFIX}{}", numbers.max().unwrap_or(0).saturating_add(1))
}

/// The target's environment, and what the agent itself needs to know.
pub(crate) fn environment(target: &Container) -> Vec<EnvVar> {
    let ours = [ENV_RELEASE, ENV_CONTAINER, ENV_POD_IPS, ENV_STAND_IN];
    let copied =
        target.env.iter().flatten().filter(|env| !ours.contains(&env.name.as_str())).cloned().map(|mut env| {
            let source = env.value_from.as_mut();
            if let Some(field) = source.and_then(|source| source.resource_field_ref.as_mut()) {
                // Without a name it would mean the agent's own limits.
                field.container_name.get_or_insert_with(|| target.name.clone());
            }
            env
        });
    let value =
        |name: &str, value: &str| EnvVar { name: name.to_owned(), value: Some(value.to_owned()), value_from: None };
    let field = ObjectFieldSelector { api_version: Some("v1".to_owned()), field_path: "status.podIPs".to_owned() };
    let pod_ips = EnvVar {
        name: ENV_POD_IPS.to_owned(),
        value: None,
        value_from: Some(EnvVarSource { field_ref: Some(field), ..EnvVarSource::default() }),
    };
    copied.chain([value(ENV_RELEASE, RELEASE), value(ENV_CONTAINER, &target.name), pod_ips]).collect()
}

fn security(pod: &Pod, target: &Container) -> SecurityContext {
    // The uid that the image itself names is known only to the runtime; newer kubelets report it.
    let reported = pod
        .status
        .as_ref()
        .and_then(|status| container_status(status, &target.name))
        .and_then(|status| status.user.as_ref()?.linux.as_ref());
    plain_security(pod.spec.as_ref().and_then(|spec| spec.security_context.as_ref()), target, reported, false)
}

/// No capability and the target's own uid and gid, as far as they are known; without one, `nobody` where the target must not
/// be root, or always.
pub(crate) fn plain_security(
    pods: Option<&PodSecurityContext>,
    target: &Container,
    reported: Option<&LinuxContainerUser>,
    or_nobody: bool,
) -> SecurityContext {
    let none = SecurityContext::default();
    let own = target.security_context.as_ref().unwrap_or(&none);
    let pods_none = PodSecurityContext::default();
    let pods = pods.unwrap_or(&pods_none);
    let run_as_non_root = own.run_as_non_root.or(pods.run_as_non_root);
    let run_as_user = own
        .run_as_user
        .or(pods.run_as_user)
        .or(reported.map(|user| user.uid))
        .or((or_nobody || run_as_non_root == Some(true)).then_some(NOT_ROOT));
    let run_as_group = own.run_as_group.or(pods.run_as_group).or(reported.map(|user| user.gid));
    SecurityContext {
        allow_privilege_escalation: Some(false),
        capabilities: Some(Capabilities { add: None, drop: Some(vec!["ALL".to_owned()]) }),
        privileged: Some(false),
        read_only_root_filesystem: Some(true),
        run_as_group,
        run_as_non_root,
        run_as_user,
        // The label decides on SELinux nodes whether the agent may look at the target's processes.
        se_linux_options: own.se_linux_options.clone(),
        seccomp_profile: Some(SeccompProfile { type_: "RuntimeDefault".to_owned(), localhost_profile: None }),
        ..SecurityContext::default()
    }
}

#[cfg(test)]
mod tests;
