//! Watching a placed agent's container for what keeps it from starting, and saying what it waits for.

use std::time::Duration;

use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::{ContainerStatus, Event, Pod};
use kube::api::{ListParams, LogParams, WatchEvent, WatchParams};
use tokio::sync::Notify;
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep, timeout};

use crate::Cluster;
use crate::admit::{Report, Trouble};
use crate::error::{Error, Kind};
use crate::place::{AgentContainer, Progress, agent_status};
use crate::ready::{end_of, unscheduled};

/// How long an agent container of another session may be in trouble before it is called so: the kubelet tries again
/// after 10 s, and an image that was missing may be there by then.
const GRACE: Duration = Duration::from_secs(15);

/// A start that takes longer is a pull, most likely; events tell, the container's status does not.
const ASK_EVENTS: Duration = Duration::from_millis(1500);

/// Reasons for which a container waits and that do not pass by themselves.
const IMAGE_TROUBLE: [&str; 7] = [
    "ErrImagePull",
    "ImagePullBackOff",
    "InvalidImageName",
    "ErrImageNeverPull",
    "ImageInspectError",
    "RegistryUnavailable",
    "SignatureValidationFailed",
];
const START_TROUBLE: [&str; 4] =
    ["CreateContainerConfigError", "CreateContainerError", "RunContainerError", "CrashLoopBackOff"];

/// How the kubelet's event about a failed pull begins.
const PULL_FAILED: &str = "Failed to pull image";

impl Cluster {
    /// Ends only when the agent's container cannot start, or has ended; says what it waits for, and when it runs.
    pub(crate) async fn observe(&self, agent: &AgentContainer, runs: &Notify, progress: Report<'_>) -> Trouble {
        let parameters = WatchParams::default().fields(&format!("metadata.name={}", agent.pod));
        let mut observer = Observer::new(agent, progress);
        let mut ticks = interval_at(Instant::now() + ASK_EVENTS, ASK_EVENTS);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            // "0": what the API server's cache has, then every change.
            let mut events = match self.api::<Pod>().watch(&parameters, "0").await {
                Ok(events) => events.boxed(),
                Err(error) => {
                    tracing::debug!(%error, "the pod cannot be watched; only the agent's answer will tell");
                    sleep(Duration::from_secs(2)).await;
                    continue;
                }
            };
            loop {
                let event = tokio::select! {
                    event = events.try_next() => event,
                    _ = ticks.tick() => {
                        observer.hear(self.events(agent).await);
                        match observer.lost_patience() {
                            Some(error) => return Trouble::Other(error),
                            None => continue,
                        }
                    }
                };
                // An ended or failed watch is begun anew.
                let Ok(Some(event)) = event else { break };
                match observer.see(event) {
                    Some(Seen::Running) => runs.notify_one(),
                    Some(Seen::Trouble(error)) => return Trouble::Other(error),
                    Some(Seen::Ended(why)) => return Trouble::Ended(self.ended(agent, &why).await),
                    None => {}
                }
            }
            sleep(Duration::from_millis(250)).await;
        }
    }

    /// The kubelet's words about this container; none where they may not be read.
    async fn events(&self, agent: &AgentContainer) -> Vec<Event> {
        let list = if agent.job.is_some() { "containers" } else { "ephemeralContainers" };
        let path = format!("spec.{list}{{{}}}", agent.name);
        let fields = format!("involvedObject.uid={},involvedObject.fieldPath={path}", agent.pod_uid);
        let listed = timeout(ASK_EVENTS, self.api::<Event>().list(&ListParams::default().fields(&fields))).await;
        listed.ok().and_then(Result::ok).map(|list| list.items).unwrap_or_default()
    }

    async fn ended(&self, agent: &AgentContainer, why: &str) -> Error {
        let parameters = LogParams { container: Some(agent.name.clone()), tail_lines: Some(3), ..LogParams::default() };
        let log = timeout(Duration::from_secs(1), self.api::<Pod>().logs(&agent.pod, &parameters)).await;
        let error = Error::new(Kind::AgentStart, format!("the agent {} in pod {} has ended", agent.name, agent.pod));
        let error = error.because(why);
        let error = match log {
            Ok(Ok(log)) if !log.trim().is_empty() => error.because(log.trim().replace('\n', " / ")),
            _ => error,
        };
        let hint = what_now(agent, &error.to_string());
        error.hint(hint)
    }
}

/// The next step after an agent's end.
fn what_now(agent: &AgentContainer, end: &str) -> String {
    if end.contains("exec format error") {
        return format!(
            "the image {} is for another architecture than the pod's node (`kubectl get nodes -L kubernetes.io/arch`): bring \
             one with the node's there, by `stead image load` or `stead image push`",
            agent.image
        );
    }
    format!("`kubectl logs {} -c {}` shows its messages; run the command again", agent.pod, agent.name)
}

struct Observer<'a> {
    agent: &'a AgentContainer,
    since: Instant,
    /// What keeps it from starting now, and may still pass.
    trouble: Option<Error>,
    /// Reason and message, each said once.
    told: (String, String),
    progress: Report<'a>,
}

enum Seen {
    Running,
    Trouble(Error),
    Ended(String),
}

impl<'a> Observer<'a> {
    fn new(agent: &'a AgentContainer, progress: Report<'a>) -> Self {
        Observer { agent, since: Instant::now(), trouble: None, told: Default::default(), progress }
    }

    fn see(&mut self, event: WatchEvent<Pod>) -> Option<Seen> {
        let pod = match event {
            WatchEvent::Added(pod) | WatchEvent::Modified(pod) => pod,
            WatchEvent::Deleted(_) => return Some(Seen::Trouble(self.pod_gone())),
            WatchEvent::Bookmark(_) | WatchEvent::Error(_) => return None,
        };
        if pod.metadata.uid.as_deref() != Some(&self.agent.pod_uid) {
            return Some(Seen::Trouble(self.pod_gone()));
        }
        self.trouble = None;
        let Some(status) = agent_status(&pod, &self.agent.name) else {
            // A stand-in that no node takes.
            self.waits(unscheduled(&pod));
            return None;
        };
        match State::of(status)? {
            State::Running => Some(Seen::Running),
            State::Ended(why) => Some(Seen::Ended(why)),
            State::Waiting { reason, message } => {
                self.trouble = start_trouble(self.agent, &reason, &message);
                self.waits(Some((reason, message)));
                self.lost_patience().map(Seen::Trouble)
            }
        }
    }

    /// A failed pull is in the events at once, in the container's status up to 15 s later (measured).
    fn hear(&mut self, events: Vec<Event>) {
        let last = events.iter().max_by_key(|event| event.last_timestamp.as_ref().map(|time| time.0));
        let Some(last) = last else { return };
        let failed = |event: &&Event| event.message.as_deref().is_some_and(|text| text.starts_with(PULL_FAILED));
        if matches!(last.reason.as_deref(), Some("Failed" | "BackOff"))
            && let Some(message) = events.iter().rfind(failed).and_then(|event| event.message.as_deref())
        {
            self.trouble = start_trouble(self.agent, IMAGE_TROUBLE[0], message);
        } else {
            let part = |text: &Option<String>| text.clone().unwrap_or_default();
            self.waits(Some((part(&last.reason), part(&last.message))));
        }
    }

    /// The trouble, once it may no more be hoped to pass.
    fn lost_patience(&mut self) -> Option<Error> {
        let patient = self.agent.reused && self.since.elapsed() < GRACE;
        self.trouble.take_if(|_| !patient)
    }

    fn waits(&mut self, why: Option<(String, String)>) {
        if let Some(why) = why.filter(|why| *why != self.told) {
            self.told.clone_from(&why);
            (self.progress)(Progress::Waiting { reason: why.0, message: why.1 });
        }
    }

    fn pod_gone(&self) -> Error {
        Error::new(Kind::NoReadyPod, format!("the pod {} went away", self.agent.pod))
            .hint("run the command again: another pod of the workload is taken")
    }
}

/// The error for a reason to wait that will not pass.
fn start_trouble(agent: &AgentContainer, reason: &str, message: &str) -> Option<Error> {
    let cause = if message.is_empty() { reason.to_owned() } else { format!("{reason}: {message}") };
    if IMAGE_TROUBLE.contains(&reason) {
        let error = Error::new(Kind::AgentStart, format!("the agent's image {} cannot be pulled", agent.image));
        return Some(error.because(cause).hint(
            "bring it to the nodes with `stead image load` (kind, k3d, minikube, containerd), or push it to a registry \
             of the cluster with `stead image push` and name it with --agent-image",
        ));
    }
    START_TROUBLE.contains(&reason).then(|| {
        Error::new(Kind::AgentStart, format!("the agent cannot start in pod {}", agent.pod))
            .because(cause)
            .hint(format!("`kubectl describe pod {}` shows the events of its container {}", agent.pod, agent.name))
    })
}

enum State {
    Waiting { reason: String, message: String },
    Running,
    Ended(String),
}

impl State {
    fn of(status: &ContainerStatus) -> Option<State> {
        let state = status.state.as_ref()?;
        if let Some(end) = end_of(status) {
            return Some(State::Ended(end));
        }
        if state.running.is_some() {
            return Some(State::Running);
        }
        let waiting = state.waiting.clone().unwrap_or_default();
        let (reason, message) = (waiting.reason.unwrap_or_default(), waiting.message.unwrap_or_default());
        Some(State::Waiting { reason, message })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use serde_json::{Value, json};

    use super::*;

    fn agent(reused: bool) -> AgentContainer {
        AgentContainer {
            namespace: "ns".into(),
            pod: "web".into(),
            pod_uid: "u".into(),
            pod_ips: Vec::new(),
            name: "stead-agent-1".into(),
            image: "stead-agent:1".into(),
            target: "app".into(),
            reused,
            job: None,
        }
    }

    fn event(uid: &str, state: Value) -> WatchEvent<Pod> {
        let pod = json!({
            "metadata": {"name": "web", "uid": uid},
            "status": {"ephemeralContainerStatuses": [
                {"name": "stead-agent-1", "ready": false, "restartCount": 0, "image": "", "imageID": "", "state": state}
            ]},
        });
        WatchEvent::Modified(serde_json::from_value(pod).expect("a pod"))
    }

    /// What is seen, and what was said meanwhile.
    fn see(reused: bool, events: Vec<WatchEvent<Pod>>) -> (Option<Seen>, Vec<Progress>) {
        let said = Mutex::new(Vec::new());
        let progress = |step| said.lock().expect("one thread").push(step);
        let agent = agent(reused);
        let mut observer = Observer::new(&agent, &progress);
        let seen = events.into_iter().map(|event| observer.see(event)).last().flatten();
        drop(observer);
        (seen, said.into_inner().expect("one thread"))
    }

    fn waiting(reason: &str) -> WatchEvent<Pod> {
        event("u", json!({"waiting": {"reason": reason}}))
    }

    #[test]
    fn each_reason_to_wait_is_said_once() {
        let (seen, said) = see(false, vec![waiting("ContainerCreating"), waiting("ContainerCreating")]);
        assert!(seen.is_none());
        assert_eq!(said, [Progress::Waiting { reason: "ContainerCreating".into(), message: String::new() }]);
    }

    #[test]
    fn an_image_that_cannot_be_pulled_is_named_with_the_next_step() {
        let (seen, _) = see(false, vec![waiting("ImagePullBackOff")]);
        let Some(Seen::Trouble(error)) = seen else { panic!("no trouble seen") };
        assert_eq!(error.kind().exit_code(), 68);
        assert!(error.to_string().contains("stead-agent:1"));
        assert!(error.next_step().is_some_and(|hint| hint.contains("stead image load")));
    }

    #[tokio::test(start_paused = true)]
    async fn an_older_agents_trouble_may_pass_but_not_forever() {
        let agent = agent(true);
        let mut observer = Observer::new(&agent, &|_| {});
        assert!(observer.see(waiting("ImagePullBackOff")).is_none());
        assert!(observer.lost_patience().is_none());
        tokio::time::advance(GRACE).await;
        assert!(observer.lost_patience().is_some_and(|error| error.kind() == Kind::AgentStart));
    }

    fn heard(reason: &str, message: &str, second: u8) -> Event {
        let event = json!({
            "metadata": {}, "involvedObject": {}, "reason": reason, "message": message,
            "lastTimestamp": format!("2026-01-01T00:00:{second:02}Z"),
        });
        serde_json::from_value(event).expect("an event")
    }

    #[test]
    fn a_failed_pull_is_heard_before_it_is_seen() {
        let agent = agent(false);
        let mut observer = Observer::new(&agent, &|_| {});
        observer.hear(vec![heard("Pulling", "Pulling image", 1)]);
        assert!(observer.lost_patience().is_none());
        let failed = heard("Failed", "Failed to pull image \"stead-agent:1\": no such host", 2);
        observer.hear(vec![heard("Pulling", "Pulling image", 1), failed, heard("Failed", "Error: ErrImagePull", 2)]);
        let error = observer.lost_patience().expect("trouble");
        assert_eq!(error.kind().exit_code(), 68);
        assert!(error.to_string().ends_with("no such host"), "{error}");
    }

    #[test]
    fn an_image_of_another_architecture_is_told_as_such() {
        let end = "the agent has ended: StartError: exec /stead-agent: exec format error";
        assert!(what_now(&agent(false), end).contains("is for another architecture"));
        assert!(what_now(&agent(false), "the agent has ended: Error, exit code 70").contains("kubectl logs"));
    }

    #[test]
    fn a_pod_of_the_same_name_is_not_the_pod() {
        let (seen, _) = see(false, vec![event("another", json!({"running": {}}))]);
        assert!(matches!(seen, Some(Seen::Trouble(error)) if error.kind() == Kind::NoReadyPod));
    }

    #[test]
    fn the_end_of_the_container_is_seen_with_its_exit_code() {
        let (seen, _) = see(false, vec![event("u", json!({"terminated": {"exitCode": 3, "reason": "Error"}}))]);
        assert!(matches!(seen, Some(Seen::Ended(why)) if why == "Error, exit code 3"));
        let (seen, _) = see(false, vec![event("u", json!({"running": {}}))]);
        assert!(matches!(seen, Some(Seen::Running)));
    }
}
