//! What of a namespace helps to understand a session that went wrong: pods, events and the agents' messages.
//!
//! Pods are described field by field, never copied: no values of variables, no arguments, no annotations.

use futures::future::join_all;
use k8s_openapi::api::core::v1::{Container, ContainerStatus, EnvVar, EphemeralContainer, Event, Pod, PodSpec};
use kube::ResourceExt as _;
use kube::api::{ListParams, LogParams};
use serde_json::{Value, json};

use crate::Cluster;
use crate::error::{Error, Right};
use crate::place::is_agent;
use crate::workload::Workload;

/// Pods described at most.
const PODS: usize = 20;
/// Lines of each agent's log.
const LINES: i64 = 2000;
/// Bytes of each agent's log.
const BYTES: i64 = 1 << 20;

/// Nothing in it is redacted yet.
#[derive(Clone, Debug, Default)]
pub struct Evidence {
    pub pods: Vec<Value>,
    pub events: Vec<Value>,
    /// `pod-container` and its messages, or why there are none.
    pub agent_logs: Vec<(String, String)>,
    /// Values of variables that stand in the pods' specs: not to be shown.
    pub values: Vec<String>,
    /// Names of nodes.
    pub nodes: Vec<String>,
    /// What could not be read, and why.
    pub missing: Vec<String>,
}

impl Cluster {
    /// The pods of the namespace in which an agent was placed, and those of the workload.
    pub async fn evidence(&self, workload: Option<&Workload>) -> Evidence {
        let mut evidence = Evidence::default();
        let right = Right::core("pods", &["get", "list"]);
        let pods = match self.ask("list pods", right, self.api::<Pod>().list(&ListParams::default())).await {
            Ok(pods) => pods.items,
            Err(error) => {
                evidence.missing.push(error.to_string());
                return evidence;
            }
        };
        let own = match workload {
            Some(workload) => self.names_of(workload).await.unwrap_or_else(|error| {
                evidence.missing.push(error.to_string());
                Vec::new()
            }),
            None => Vec::new(),
        };
        let chosen = |pod: &Pod| own.contains(&pod.name_any()) || agents(pod).next().is_some();
        let pods: Vec<Pod> = pods.into_iter().filter(chosen).take(PODS).collect();
        evidence.agent_logs = join_all(pods.iter().flat_map(|pod| agents(pod).map(|agent| self.log(pod, agent)))).await;
        match self.events_of(&pods).await {
            Ok(events) => evidence.events = events,
            Err(error) => evidence.missing.push(error.to_string()),
        }
        evidence.values = pods.iter().filter_map(|pod| pod.spec.as_ref()).flat_map(values).collect();
        evidence.nodes = pods.iter().filter_map(|pod| pod.spec.as_ref()?.node_name.clone()).collect();
        evidence.pods = pods.iter().map(describe).collect();
        evidence
    }

    async fn names_of(&self, workload: &Workload) -> Result<Vec<String>, Error> {
        if workload.selector.is_empty() {
            return Ok(vec![workload.name.clone()]);
        }
        let right = Right::core("pods", &["list"]);
        let parameters = ListParams::default().labels(&workload.selector);
        let doing = format!("list the pods of {workload}");
        let pods = self.ask(doing, right, self.api::<Pod>().list_metadata(&parameters)).await?;
        Ok(pods.items.into_iter().map(|pod| pod.name_any()).collect())
    }

    async fn log(&self, pod: &Pod, agent: &str) -> (String, String) {
        let pod = pod.name_any();
        let parameters = LogParams {
            container: Some(agent.to_owned()),
            tail_lines: Some(LINES),
            limit_bytes: Some(BYTES),
            timestamps: true,
            ..LogParams::default()
        };
        let right = Right::core("pods/log", &["get"]);
        let read = self.ask(format!("read the log of {pod}"), right, self.api::<Pod>().logs(&pod, &parameters)).await;
        (format!("{pod}-{agent}"), read.unwrap_or_else(|error| format!("{error}\n")))
    }

    async fn events_of(&self, pods: &[Pod]) -> Result<Vec<Value>, Error> {
        let right = Right::core("events", &["list"]);
        let parameters = ListParams::default().fields("involvedObject.kind=Pod");
        let events = self.ask("list events", right, self.api::<Event>().list(&parameters)).await?.items;
        let names: Vec<String> = pods.iter().map(|pod| pod.name_any()).collect();
        let mut of_pods: Vec<&Event> = events
            .iter()
            .filter(|event| event.involved_object.name.as_ref().is_some_and(|name| names.contains(name)))
            .collect();
        of_pods.sort_by_key(|event| event.last_timestamp.as_ref().map(|time| time.0));
        Ok(of_pods.into_iter().map(describe_event).collect())
    }
}

fn agents(pod: &Pod) -> impl Iterator<Item = &str> {
    let ephemeral = pod.spec.iter().flat_map(|spec| spec.ephemeral_containers.iter().flatten());
    ephemeral.map(|container| container.name.as_str()).filter(|name| is_agent(name))
}

/// Literal values of every container's variables.
fn values(spec: &PodSpec) -> Vec<String> {
    let of = |env: &Option<Vec<EnvVar>>| env.iter().flatten().filter_map(|it| it.value.clone()).collect::<Vec<_>>();
    let plain = spec.containers.iter().chain(spec.init_containers.iter().flatten()).flat_map(|it| of(&it.env));
    plain.chain(spec.ephemeral_containers.iter().flatten().flat_map(|it| of(&it.env))).collect()
}

fn describe(pod: &Pod) -> Value {
    let (spec, status) = (pod.spec.clone().unwrap_or_default(), pod.status.clone().unwrap_or_default());
    let ephemeral = spec.ephemeral_containers.iter().flatten().map(describe_ephemeral);
    let statuses = [&status.init_container_statuses, &status.container_statuses, &status.ephemeral_container_statuses];
    json!({
        "name": pod.name_any(), "uid": pod.uid(), "created": pod.creation_timestamp(),
        "deleted": pod.metadata.deletion_timestamp,
        "labels": pod.labels(), "owners": pod.owner_references().iter().map(|owner| format!("{}/{}", owner.kind, owner.name)).collect::<Vec<_>>(),
        "node": spec.node_name, "hostNetwork": spec.host_network, "hostPID": spec.host_pid,
        "shareProcessNamespace": spec.share_process_namespace, "runtimeClassName": spec.runtime_class_name,
        "securityContext": spec.security_context,
        "initContainers": spec.init_containers.iter().flatten().map(describe_container).collect::<Vec<_>>(),
        "containers": spec.containers.iter().map(describe_container).collect::<Vec<_>>(),
        "ephemeralContainers": ephemeral.collect::<Vec<_>>(),
        "phase": status.phase, "reason": status.reason, "message": status.message, "podIPs": status.pod_ips,
        "conditions": status.conditions,
        "statuses": statuses.into_iter().flatten().flatten().map(describe_status).collect::<Vec<_>>(),
    })
}

fn describe_container(container: &Container) -> Value {
    json!({
        "name": container.name, "image": container.image, "ports": container.ports,
        "restartPolicy": container.restart_policy, "securityContext": container.security_context,
        "resources": container.resources, "variables": names(&container.env),
    })
}

fn describe_ephemeral(container: &EphemeralContainer) -> Value {
    json!({
        "name": container.name, "image": container.image, "target": container.target_container_name,
        "securityContext": container.security_context, "variables": names(&container.env),
    })
}

fn names(env: &Option<Vec<EnvVar>>) -> Vec<&str> {
    env.iter().flatten().map(|it| it.name.as_str()).collect()
}

/// Without the termination message: the app wrote it.
fn describe_status(status: &ContainerStatus) -> Value {
    let state = |state: &Option<k8s_openapi::api::core::v1::ContainerState>| {
        let state = state.clone().unwrap_or_default();
        let waiting = state.waiting.map(|it| json!({"waiting": it.reason, "message": it.message}));
        let ended =
            state.terminated.map(|it| json!({"ended": it.reason, "exitCode": it.exit_code, "at": it.finished_at}));
        waiting.or(ended).or(state.running.map(|it| json!({"runningSince": it.started_at})))
    };
    json!({
        "name": status.name, "ready": status.ready, "restarts": status.restart_count, "imageID": status.image_id,
        "state": state(&status.state), "before": state(&status.last_state),
    })
}

fn describe_event(event: &Event) -> Value {
    json!({
        "pod": event.involved_object.name, "of": event.involved_object.field_path, "type": event.type_,
        "reason": event.reason, "message": event.message, "count": event.count,
        "first": event.first_timestamp, "last": event.last_timestamp,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_described_pod_names_variables_and_shows_no_value_argument_or_annotation() {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "web", "annotations": {"a": "XsecretX"}},
            "spec": {"containers": [{
                "name": "app", "image": "i", "command": ["XsecretX"], "args": ["XsecretX"],
                "env": [{"name": "PASSWORD", "value": "XsecretX"}],
                "livenessProbe": {"httpGet": {"port": 1, "httpHeaders": [{"name": "a", "value": "XsecretX"}]}},
                "lifecycle": {"preStop": {"exec": {"command": ["XsecretX"]}}},
            }]},
            "status": {"containerStatuses": [{
                "name": "app", "image": "i", "imageID": "i", "ready": false, "restartCount": 1,
                "lastState": {"terminated": {"exitCode": 3, "reason": "Error", "message": "XsecretX"}},
            }]},
        }))
        .expect("a pod");
        let text = describe(&pod).to_string();
        assert!(!text.contains("XsecretX"), "{text}");
        assert!(text.contains("PASSWORD") && text.contains("\"exitCode\":3"), "{text}");
        assert_eq!(values(&pod.spec.expect("a spec")), ["XsecretX"]);
    }
}
