//! Whether an agent is gone for good, as the API server tells. Silence never counts: a network that is lost comes back,
//! and the agent with it.

use std::fmt;
use std::time::Duration;

use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use kube::api::{WatchEvent, WatchParams};
use tokio::time::{sleep, timeout};

use crate::Cluster;
use crate::place::{AgentContainer, agent_status};
use crate::ready::end_of;

/// For one look at the pod. Short, since a connection of the pool may be one that the network has forgotten.
const LOOK: Duration = Duration::from_secs(3);

/// Between two looks, without the right to watch; longer and longer while they fail.
const PAUSE: Duration = Duration::from_secs(2);
const LONGEST_PAUSE: Duration = Duration::from_secs(8);

/// The API server ends a watch after 290 s; a watch that is silent for longer has lost its connection.
const WATCH: Duration = Duration::from_secs(300);

/// Why an agent will not come back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Gone {
    /// The pod is deleted, is being deleted, or has ended.
    Pod(&'static str),
    /// The agent's container has ended; in the kubelet's words.
    Agent(String),
}

impl fmt::Display for Gone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Gone::Pod(why) => f.write_str(why),
            Gone::Agent(why) => write!(f, "its container has ended ({why})"),
        }
    }
}

impl Cluster {
    /// Returns when the API server says that the agent is gone. It is looked at anew at first, so a caller that has reason
    /// to doubt an old watch begins again.
    pub async fn gone(&self, agent: &AgentContainer) -> Gone {
        let pods = self.api::<Pod>();
        let mut pause = PAUSE;
        loop {
            let looked = timeout(LOOK, pods.get_opt(&agent.pod)).await;
            let version = match looked {
                Ok(Ok(pod)) => match judge(pod.as_ref(), agent) {
                    Some(gone) => return gone,
                    None => pod.and_then(|pod| pod.resource_version()),
                },
                Ok(Err(error)) => {
                    tracing::debug!(%error, "the agent's pod cannot be looked at");
                    None
                }
                Err(_) => None,
            };
            let is_seen = version.is_some();
            if let Some(version) = version
                && let Some(gone) = self.gone_since(agent, &version).await
            {
                return gone;
            }
            sleep(pause).await;
            pause = if is_seen { PAUSE } else { (pause * 2).min(LONGEST_PAUSE) };
        }
    }

    /// `None` when the watch ended before the agent did.
    async fn gone_since(&self, agent: &AgentContainer, version: &str) -> Option<Gone> {
        let parameters = WatchParams::default().fields(&format!("metadata.name={}", agent.pod));
        let watching = async {
            let mut events = self.api::<Pod>().watch(&parameters, version).await?.boxed();
            while let Some(event) = events.try_next().await? {
                let gone = match event {
                    WatchEvent::Added(pod) | WatchEvent::Modified(pod) => judge(Some(&pod), agent),
                    WatchEvent::Deleted(_) => judge(None, agent),
                    WatchEvent::Bookmark(_) => None,
                    WatchEvent::Error(_) => break,
                };
                if gone.is_some() {
                    return Ok(gone);
                }
            }
            Ok::<_, kube::Error>(None)
        };
        match timeout(WATCH, watching).await {
            Ok(Ok(gone)) => gone,
            Ok(Err(error)) => {
                tracing::debug!(%error, "the agent's pod cannot be watched");
                None
            }
            Err(_) => None,
        }
    }
}

fn judge(pod: Option<&Pod>, agent: &AgentContainer) -> Option<Gone> {
    let Some(pod) = pod.filter(|pod| pod.metadata.uid.as_deref() == Some(&agent.pod_uid)) else {
        return Some(Gone::Pod("the pod was deleted"));
    };
    if pod.metadata.deletion_timestamp.is_some() {
        return Some(Gone::Pod("the pod is being deleted"));
    }
    if let Some(end) = agent_status(pod, &agent.name).and_then(end_of) {
        return Some(Gone::Agent(end));
    }
    // A pod that was evicted keeps no statuses of its containers.
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed")).then_some(Gone::Pod("the pod has ended"))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn judged(change: impl FnOnce(&mut Value)) -> Option<Gone> {
        let mut pod = json!({
            "metadata": {"name": "web", "uid": "u"},
            "status": {
                "phase": "Running",
                "ephemeralContainerStatuses": [{
                    "name": "stead-agent-1", "ready": false, "restartCount": 0, "image": "", "imageID": "",
                    "state": {"running": {}},
                }],
            },
        });
        change(&mut pod);
        judge(Some(&serde_json::from_value(pod).expect("a pod")), &agent())
    }

    fn agent() -> AgentContainer {
        AgentContainer {
            namespace: "ns".into(),
            pod: "web".into(),
            pod_uid: "u".into(),
            pod_ips: Vec::new(),
            name: "stead-agent-1".into(),
            image: "stead-agent:1".into(),
            target: "app".into(),
            reused: false,
            job: None,
        }
    }

    #[test]
    fn an_agent_that_runs_or_whose_status_is_unknown_is_there() {
        assert_eq!(judged(|_| {}), None);
        assert_eq!(judged(|pod| pod["status"] = json!({"phase": "Running"})), None);
        assert_eq!(judged(|pod| pod["status"]["conditions"] = json!([{"type": "Ready", "status": "False"}])), None);
    }

    #[test]
    fn an_agent_whose_container_ended_is_gone_and_the_kubelet_says_why() {
        let ended = json!({"terminated": {"exitCode": 137, "reason": "Error"}});
        let gone = judged(|pod| pod["status"]["ephemeralContainerStatuses"][0]["state"] = ended);
        assert_eq!(gone, Some(Gone::Agent("Error, exit code 137".into())));
    }

    #[test]
    fn a_pod_that_goes_takes_its_agent_with_it() {
        let leaving = judged(|pod| pod["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z"));
        assert_eq!(leaving, Some(Gone::Pod("the pod is being deleted")));
        let successor = judged(|pod| pod["metadata"]["uid"] = json!("another"));
        assert_eq!(successor, Some(Gone::Pod("the pod was deleted")));
        assert_eq!(judged(|pod| pod["status"] = json!({"phase": "Failed"})), Some(Gone::Pod("the pod has ended")));
        assert_eq!(judge(None, &agent()), Some(Gone::Pod("the pod was deleted")));
    }
}
