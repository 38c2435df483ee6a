use serde_json::{Value, json};

use super::*;
use crate::RELEASE;

/// Changes a pod to one that no agent may enter, and the word that says why.
type Spoil = (fn(&mut Value), &'static str);

fn workload(kind: WorkloadKind) -> Workload {
    Workload {
        kind,
        name: "web".into(),
        namespace: "ns".into(),
        uid: "w".into(),
        replicas: 1,
        selector: "app=web".into(),
        template: Default::default(),
    }
}

/// A ready pod of the ReplicaSet `owner`; `change` spoils it.
fn pod(name: &str, owner: &str, change: impl FnOnce(&mut Value)) -> Pod {
    let mut pod = json!({
        "metadata": {
            "name": name, "namespace": "ns", "uid": format!("uid-{name}"),
            "ownerReferences": [
                {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web-5d", "uid": owner, "controller": true}
            ],
        },
        "spec": {"nodeName": "node1", "containers": [{"name": "app"}, {"name": "proxy"}]},
        "status": {
            "phase": "Running", "podIP": "10.0.0.1", "podIPs": [{"ip": "10.0.0.1"}, {"ip": "fd00::1"}],
            "conditions": [{"type": "Ready", "status": "True"}],
            "containerStatuses": [
                status("app", json!({"running": {}})),
                status("proxy", json!({"running": {}})),
            ],
        },
    });
    change(&mut pod);
    serde_json::from_value(pod).expect("a pod")
}

fn status(name: &str, state: Value) -> Value {
    json!({
        "name": name, "ready": state["running"].is_object(), "restartCount": 0, "image": "i", "imageID": "",
        "containerID": format!("containerd://{name}-id"), "state": state,
    })
}

fn unready(state: Value) -> impl FnOnce(&mut Value) {
    move |pod| {
        pod["status"]["conditions"][0]["status"] = json!("False");
        pod["status"]["containerStatuses"][0] = status("app", state);
    }
}

fn agent(pod: &mut Value) {
    pod["spec"]["ephemeralContainers"] = json!([{
        "name": "stead-agent-1", "targetContainerName": "app", "image": "stead-agent:x",
        "env": [{"name": "STEAD_RELEASE", "value": RELEASE}],
    }]);
}

fn revision(uid: &str, number: u64) -> Revision {
    Revision { uid: uid.into(), number }
}

const READY: Choice<'static> = Choice { container: None, preferred: None, wanted: Wanted::Ready };

fn choose(pods: Vec<Pod>, revisions: &[Revision]) -> Result<Target, Error> {
    select(&workload(WorkloadKind::Deployment), pods, revisions, &READY)
}

#[test]
fn a_ready_pod_becomes_a_target_with_its_addresses_and_container_id() {
    let target = choose(vec![pod("web-5d-a", "rs1", |_| {})], &[revision("rs1", 1)]).expect("a target");
    assert_eq!((target.pod.as_str(), target.uid.as_str()), ("web-5d-a", "uid-web-5d-a"));
    assert_eq!((target.container.as_str(), target.container_id.as_str()), ("app", "app-id"));
    assert_eq!(target.ips, ["10.0.0.1", "fd00::1"].map(|ip| ip.parse::<IpAddr>().expect("an address")));
    assert!(!target.host_network);
}

#[test]
fn the_newest_revision_comes_before_an_older_one_with_an_agent() {
    let pods = vec![pod("a", "rs1", agent), pod("b", "rs2", |_| {})];
    assert_eq!(choose(pods, &[revision("rs1", 1), revision("rs2", 2)]).expect("a target").pod, "b");
}

#[test]
fn among_equals_the_pod_with_our_agent_is_taken() {
    let pods = vec![pod("a", "rs1", |_| {}), pod("b", "rs1", agent)];
    assert_eq!(choose(pods, &[revision("rs1", 1)]).expect("a target").pod, "b");
}

#[test]
fn the_preferred_pod_is_taken_unless_another_is_newer() {
    let pods = || vec![pod("a", "rs1", agent), pod("b", "rs1", |_| {}), pod("c", "rs2", |_| {})];
    let preferring = |revisions: &[Revision]| {
        let choice = Choice { preferred: Some("uid-b"), ..READY };
        select(&workload(WorkloadKind::Deployment), pods(), revisions, &choice).expect("a target").pod
    };
    assert_eq!(preferring(&[revision("rs1", 2), revision("rs2", 1)]), "b");
    assert_eq!(preferring(&[revision("rs1", 1), revision("rs2", 2)]), "c");
}

#[test]
fn while_none_is_ready_one_that_runs_will_do_where_that_was_asked_for() {
    let running = |pods: Vec<Pod>| {
        let choice = Choice { wanted: Wanted::Running, ..READY };
        select(&workload(WorkloadKind::Deployment), pods, &[revision("rs1", 1)], &choice).map(|target| target.pod)
    };
    let starting = || unready(json!({"running": {}}));
    let waiting = || unready(json!({"waiting": {"reason": "ContainerCreating"}}));
    assert_eq!(running(vec![pod("a", "rs1", waiting()), pod("b", "rs1", starting())]).expect("runs"), "b");
    assert_eq!(running(vec![pod("a", "rs1", starting()), pod("b", "rs1", |_| {})]).expect("ready"), "b");
    assert!(running(vec![pod("a", "rs1", waiting())]).is_err());
    assert!(choose(vec![pod("a", "rs1", starting())], &[revision("rs1", 1)]).is_err());
}

#[test]
fn pods_of_others_that_fit_the_selector_are_not_taken() {
    let pods = vec![pod("stand-in", "another", |_| {})];
    assert_eq!(choose(pods, &[revision("rs1", 1)]).expect_err("none").kind(), Kind::NoReadyPod);
}

#[test]
fn without_the_right_to_list_replicasets_their_names_tell() {
    let pods = vec![
        pod("other", "x", |pod| pod["metadata"]["ownerReferences"][0]["name"] = json!("api-7f")),
        pod("web-5d-a", "rs1", |_| {}),
    ];
    assert_eq!(choose(pods, &[]).expect("a target").pod, "web-5d-a");
}

#[test]
fn terminating_pods_are_not_ready_pods() {
    let gone = |pod: &mut Value| pod["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    let error = choose(vec![pod("a", "rs1", gone)], &[revision("rs1", 1)]).expect_err("none");
    assert_eq!(error.to_string(), "deploy/web has no ready pod: its pods are being deleted");
    assert_eq!(error.kind().exit_code(), 67);
}

#[test]
fn a_crash_loop_is_told_in_the_kubelets_words() {
    let crash = unready(json!({"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 5m0s"}}));
    let error = choose(vec![pod("a", "rs1", crash)], &[revision("rs1", 1)]).expect_err("none");
    let text = "deploy/web has no ready pod: pod a: container app: CrashLoopBackOff (back-off 5m0s)";
    assert_eq!(error.to_string(), text);
}

#[test]
fn an_unschedulable_pod_is_told_with_the_schedulers_message() {
    let pending = |pod: &mut Value| {
        pod["status"] = json!({"phase": "Pending", "conditions": [
            {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/2 nodes: cpu"}
        ]});
    };
    let error = choose(vec![pod("a", "rs1", pending)], &[revision("rs1", 1)]).expect_err("none");
    assert!(error.to_string().ends_with("Unschedulable: 0/2 nodes: cpu"), "{error}");
}

#[test]
fn a_workload_scaled_to_zero_is_said_to_be_so() {
    let zero = Workload { replicas: 0, ..workload(WorkloadKind::StatefulSet) };
    let error = select(&zero, Vec::new(), &[], &READY).expect_err("none");
    assert_eq!(error.to_string(), "sts/web has no ready pod: it is scaled to 0");
    assert_eq!(error.next_step(), Some("`kubectl scale sts/web --replicas=1`"));
}

#[test]
fn the_container_is_the_one_asked_for_or_annotated_or_the_first() {
    let wanted = |name| {
        select(
            &workload(WorkloadKind::Deployment),
            vec![pod("a", "rs1", |_| {})],
            &[revision("rs1", 1)],
            &Choice { container: Some(name), ..READY },
        )
    };
    assert_eq!(wanted("proxy").expect("a target").container, "proxy");
    let error = wanted("prxy").expect_err("unknown");
    assert_eq!(error.to_string(), "no container \"prxy\" in pod a");
    assert_eq!(error.next_step(), Some("near to it: proxy; all: app, proxy"));
    assert_eq!(error.kind().exit_code(), 66);

    let annotated = |pod: &mut Value| pod["metadata"]["annotations"] = json!({DEFAULT_CONTAINER: "proxy"});
    let target = choose(vec![pod("a", "rs1", annotated)], &[revision("rs1", 1)]).expect("a target");
    assert_eq!(target.container, "proxy");
}

#[test]
fn a_native_sidecar_is_a_container_too() {
    let sidecar = |pod: &mut Value| {
        pod["spec"]["initContainers"] = json!([{"name": "mesh", "restartPolicy": "Always"}, {"name": "migrate"}]);
        pod["status"]["initContainerStatuses"] = json!([status("mesh", json!({"running": {}}))]);
    };
    let found = pod("a", "rs1", sidecar);
    assert_eq!(enter(found.clone(), Some("mesh")).expect("a target").container, "mesh");
    assert_eq!(enter(found, Some("migrate")).expect_err("ends").kind(), Kind::NotFound);
}

#[test]
fn pods_that_no_agent_may_enter_are_refused_by_name() {
    let spoils: [Spoil; 5] = [
        (|pod| pod["spec"]["hostPID"] = json!(true), "hostPID"),
        (|pod| pod["metadata"]["annotations"] = json!({MIRROR: "x"}), "static pod"),
        (|pod| pod["spec"]["os"] = json!({"name": "windows"}), "Windows"),
        (|pod| pod["spec"]["nodeSelector"] = json!({"kubernetes.io/os": "windows"}), "Windows"),
        (|pod| pod["spec"]["runtimeClassName"] = json!("gvisor"), "runtimeClassName gvisor"),
    ];
    for (spoil, word) in spoils {
        let error = choose(vec![pod("web-5d-a", "rs1", spoil)], &[revision("rs1", 1)]).expect_err("refused");
        assert_eq!(error.kind().exit_code(), 73);
        assert!(error.to_string().contains("web-5d-a") && error.to_string().contains(word), "{error}");
    }
}

#[test]
fn a_pod_that_can_be_entered_is_taken_beside_one_that_cannot() {
    let pods = vec![
        pod("a", "rs1", |pod| pod["spec"]["runtimeClassName"] = json!("kata")),
        pod("b", "rs1", |pod| pod["spec"]["runtimeClassName"] = json!("nvidia")),
    ];
    assert_eq!(choose(pods, &[revision("rs1", 1)]).expect("a target").pod, "b");
}

#[test]
fn the_nodes_network_is_remembered() {
    let host = |pod: &mut Value| pod["spec"]["hostNetwork"] = json!(true);
    assert!(choose(vec![pod("a", "rs1", host)], &[revision("rs1", 1)]).expect("a target").host_network);
}

#[test]
fn revisions_are_those_of_the_deployment() {
    let metas: Vec<ObjectMeta> = serde_json::from_value(json!([
        {"name": "web-1", "uid": "rs1", "annotations": {REVISION: "3"}, "ownerReferences":
            [{"apiVersion": "apps/v1", "kind": "Deployment", "name": "web", "uid": "w", "controller": true}]},
        {"name": "api-1", "uid": "rs2", "annotations": {REVISION: "9"}, "ownerReferences":
            [{"apiVersion": "apps/v1", "kind": "Deployment", "name": "api", "uid": "a", "controller": true}]},
    ]))
    .expect("metadata");
    assert_eq!(revisions_of("w", metas.iter()), [revision("rs1", 3)]);
}
