//! The processes of pods as this machine's /proc shows them: the testbed's nodes are namespaces, not machines.

use std::collections::HashMap;
use std::fs;

use serde_json::Value;

/// A container and its processes, by the ids that this machine knows them by.
#[derive(Clone, Debug)]
pub struct Container {
    pub pod: String,
    pub name: String,
    pub pids: Vec<u32>,
}

/// The running containers of the pods given, ephemeral ones too.
pub fn containers(pods: &[Value]) -> Vec<Container> {
    let by_id = pids_by_container();
    let mut found = Vec::new();
    for pod in pods {
        let kinds = ["containerStatuses", "initContainerStatuses", "ephemeralContainerStatuses"];
        for status in kinds.iter().filter_map(|kind| pod["status"][kind].as_array()).flatten() {
            let id = status["containerID"].as_str().unwrap_or_default().rsplit('/').next().unwrap_or_default();
            found.push(Container {
                pod: pod["metadata"]["name"].as_str().unwrap_or_default().to_owned(),
                name: status["name"].as_str().unwrap_or_default().to_owned(),
                pids: by_id.get(id).cloned().unwrap_or_default(),
            });
        }
    }
    found
}

/// Process ids by the 64 hex digits in their cgroup's path, which the container runtime puts there.
fn pids_by_container() -> HashMap<String, Vec<u32>> {
    let mut found: HashMap<String, Vec<u32>> = HashMap::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let Ok(cgroups) = fs::read_to_string(entry.path().join("cgroup")) else { continue };
        let id = cgroups.split(|c: char| !c.is_ascii_hexdigit()).find(|word| word.len() == 64);
        if let Some(id) = id {
            found.entry(id.to_owned()).or_default().push(pid);
        }
    }
    for pids in found.values_mut() {
        pids.sort_unstable();
    }
    found
}
