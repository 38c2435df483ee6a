//! Every object that the API server lists, without what changes by itself.

use serde_json::Value;

use super::{AGENT, Parked, Picture};
use crate::lab::Api;

/// Lists all resources of all groups. Agents parked elsewhere than in `namespace` are somebody else's.
pub(super) fn take(api: &Api, namespace: &str, parked: Parked, picture: &mut Picture) -> anyhow::Result<()> {
    for base in group_versions(api)? {
        let resources = api.get(&base)?;
        for resource in resources["resources"].as_array().into_iter().flatten() {
            let name = resource["name"].as_str().unwrap_or_default();
            let can_list = resource["verbs"].as_array().is_some_and(|verbs| verbs.iter().any(|verb| verb == "list"));
            if !can_list || name.contains('/') || is_restless(name) {
                continue;
            }
            for object in api.list(&format!("{base}/{name}"))? {
                if !is_own_heartbeat(name, &object) {
                    let is_ours = object["metadata"]["namespace"] == namespace;
                    put(name, object, if is_ours { parked } else { Parked::Allowed }, picture);
                }
            }
        }
    }
    Ok(())
}

fn group_versions(api: &Api) -> anyhow::Result<Vec<String>> {
    let groups = api.get("/apis")?;
    let preferred = groups["groups"].as_array().into_iter().flatten();
    let named = preferred.filter_map(|group| group["preferredVersion"]["groupVersion"].as_str());
    Ok(["/api/v1".to_owned()].into_iter().chain(named.map(|version| format!("/apis/{version}"))).collect())
}

/// Kinds that come and go or only mirror others.
fn is_restless(resource: &str) -> bool {
    matches!(resource, "events" | "componentstatuses" | "podmetrics" | "nodemetrics")
}

/// The leases of nodes and of the control plane.
fn is_own_heartbeat(resource: &str, object: &Value) -> bool {
    resource == "leases" && matches!(object["metadata"]["namespace"].as_str(), Some("kube-node-lease" | "kube-system"))
}

fn put(resource: &str, mut object: Value, parked: Parked, picture: &mut Picture) {
    let name = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    let namespace = object["metadata"]["namespace"].as_str().map(|namespace| format!("{namespace}/"));
    if resource == "pods" {
        without_agents(&mut object, parked);
    }
    if resource == "endpointslices" && name == "kubernetes" {
        // An API server that starts takes itself out and puts itself in.
        remove(&mut object["metadata"], &["generation"]);
    }
    if resource == "nodes" {
        remove(&mut object["status"], &["images"]);
    }
    without_restless_fields(&mut object);
    let text = serde_json::to_string_pretty(&object).unwrap_or_default();
    picture.put(format!("object {resource} {}{name}", namespace.unwrap_or_default()), text);
}

/// Design 2.1: the entry of a finished ephemeral container stays until the pod goes, and an agent may be parked. An entry
/// whose image cannot be pulled never runs and cannot be removed either.
fn without_agents(pod: &mut Value, parked: Parked) {
    let is_agent = |entry: &Value| entry["name"].as_str().is_some_and(|name| name.starts_with(AGENT));
    let running: Vec<String> = pod["status"]["ephemeralContainerStatuses"]
        .as_array()
        .into_iter()
        .flatten()
        .filter(|status| is_agent(status) && !status["state"]["running"].is_null())
        .filter_map(|status| Some(status["name"].as_str()?.to_owned()))
        .collect();
    for path in ["/spec/ephemeralContainers", "/status/ephemeralContainerStatuses"] {
        let Some(entries) = pod.pointer_mut(path).and_then(Value::as_array_mut) else { continue };
        entries.retain(|entry| {
            let runs = running.iter().any(|name| entry["name"] == name.as_str());
            !is_agent(entry) || (runs && parked == Parked::Forbidden)
        });
        if entries.is_empty() {
            let (parent, key) = path.rsplit_once('/').unwrap_or(("", path));
            remove(pod.pointer_mut(parent).unwrap_or(&mut Value::Null), &[key]);
        }
    }
    // Both count edits of the spec, and an ephemeral container's entry is one.
    remove(&mut pod["metadata"], &["generation"]);
    remove(&mut pod["status"], &["observedGeneration"]);
    for condition in pod["status"]["conditions"].as_array_mut().into_iter().flatten() {
        remove(condition, &["observedGeneration"]);
    }
}

fn without_restless_fields(object: &mut Value) {
    remove(&mut object["metadata"], &["resourceVersion", "managedFields"]);
    for condition in object["status"]["conditions"].as_array_mut().into_iter().flatten() {
        remove(condition, &["lastHeartbeatTime", "lastProbeTime"]);
    }
}

fn remove(object: &mut Value, keys: &[&str]) {
    if let Some(map) = object.as_object_mut() {
        for key in keys {
            map.remove(*key);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(state: Value) -> Value {
        json!({
            "metadata": {"name": "web", "namespace": "n", "resourceVersion": "7", "generation": 2},
            "spec": {"ephemeralContainers": [{"name": "stead-agent-1"}]},
            "status": {"ephemeralContainerStatuses": [{"name": "stead-agent-1", "state": state}]},
        })
    }

    fn taken(pod: Value, parked: Parked) -> Picture {
        let mut picture = Picture::default();
        put("pods", pod, parked, &mut picture);
        picture
    }

    #[test]
    fn a_finished_agent_is_no_difference_and_a_running_one_is() {
        let clean = json!({"metadata": {"name": "web", "namespace": "n"}, "spec": {}, "status": {}});
        let clean = taken(clean, Parked::Forbidden);
        let finished = taken(pod(json!({"terminated": {"exitCode": 0}})), Parked::Forbidden);
        assert_eq!(clean, finished);
        let running = pod(json!({"running": {}}));
        assert_ne!(clean, taken(running.clone(), Parked::Forbidden));
        assert_eq!(clean, taken(running, Parked::Allowed));
    }
}
