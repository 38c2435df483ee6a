use kube::core::Status;
use serde_json::{Value, json};

use super::*;

fn pod(change: impl FnOnce(&mut Value)) -> Pod {
    let mut pod = json!({
        "metadata": {"name": "web", "namespace": "ns"},
        "spec": {"containers": [{"name": "app", "image": "app:1"}]},
        "status": {},
    });
    change(&mut pod);
    serde_json::from_value(pod).expect("a pod")
}

fn placed(change: impl FnOnce(&mut Value)) -> Value {
    let container = placement(&pod(change), "app", "stead-agent:1").expect("placed");
    serde_json::to_value(container).expect("json")
}

fn agent(name: &str) -> Value {
    json!({
        "name": name, "targetContainerName": "app", "image": "stead-agent:1",
        "env": [{"name": ENV_RELEASE, "value": RELEASE}],
    })
}

fn with_agent(agent: Value, state: Value) -> Pod {
    pod(|pod| {
        let name = agent["name"].clone();
        pod["spec"]["ephemeralContainers"] = json!([agent]);
        pod["status"]["ephemeralContainerStatuses"] =
            json!([{"name": name, "ready": false, "restartCount": 0, "image": "", "imageID": "", "state": state}]);
    })
}

#[test]
fn a_placement_is_within_pod_security_restricted() {
    let security = &placed(|_| {})["securityContext"];
    assert_eq!(
        security,
        &json!({
            "allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}, "privileged": false,
            "readOnlyRootFilesystem": true, "seccompProfile": {"type": "RuntimeDefault"},
        })
    );
}

#[test]
fn a_placement_has_nothing_that_ephemeral_containers_must_not_have() {
    let container = placed(|pod| {
        pod["spec"]["containers"][0] = json!({
            "name": "app", "ports": [{"containerPort": 80}], "resources": {"limits": {"cpu": "1"}},
            "livenessProbe": {"tcpSocket": {"port": 80}}, "lifecycle": {}, "command": ["x"], "args": ["y"],
        });
    });
    let mut keys: Vec<&String> = container.as_object().expect("an object").keys().collect();
    keys.sort();
    let expected = [
        "env",
        "image",
        "imagePullPolicy",
        "name",
        "securityContext",
        "stdin",
        "stdinOnce",
        "targetContainerName",
        "tty",
    ];
    assert_eq!(keys, expected);
    assert_eq!((&container["stdin"], &container["stdinOnce"]), (&json!(true), &json!(false)));
}

#[test]
fn the_containers_identity_wins_over_the_pods() {
    let security = placed(|pod| {
        pod["spec"]["securityContext"] = json!({"runAsUser": 1, "runAsGroup": 2, "runAsNonRoot": true});
        pod["spec"]["containers"][0]["securityContext"] =
            json!({"runAsUser": 1000, "seLinuxOptions": {"level": "s0:c1"}});
    });
    let security = &security["securityContext"];
    assert_eq!((&security["runAsUser"], &security["runAsGroup"]), (&json!(1000), &json!(2)));
    assert_eq!(security["runAsNonRoot"], json!(true));
    assert_eq!(security["seLinuxOptions"]["level"], json!("s0:c1"));
}

#[test]
fn a_target_that_names_no_user_is_root_only_where_it_may_be() {
    assert_eq!(placed(|_| {})["securityContext"]["runAsUser"], Value::Null);
    let non_root = placed(|pod| pod["spec"]["securityContext"] = json!({"runAsNonRoot": true}));
    assert_eq!(non_root["securityContext"]["runAsUser"], json!(NOT_ROOT));
    let reported = placed(|pod| {
        pod["status"]["containerStatuses"] = json!([{
            "name": "app", "ready": true, "restartCount": 0, "image": "", "imageID": "",
            "user": {"linux": {"uid": 101, "gid": 102}},
        }]);
    });
    assert_eq!(reported["securityContext"]["runAsUser"], json!(101));
    assert_eq!(reported["securityContext"]["runAsGroup"], json!(102));
}

#[test]
fn the_environment_is_copied_as_the_kubelet_will_resolve_it() {
    let container = placed(|pod| {
        pod["spec"]["containers"][0]["env"] = json!([
            {"name": "A", "value": "1"},
            {"name": "LIMIT", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu"}}},
            {"name": ENV_RELEASE, "value": "not ours"},
        ]);
        pod["spec"]["containers"][0]["envFrom"] = json!([{"secretRef": {"name": "s"}}]);
    });
    assert_eq!(
        container["env"],
        json!([
            {"name": "A", "value": "1"},
            {"name": "LIMIT", "valueFrom": {"resourceFieldRef": {"containerName": "app", "resource": "limits.cpu"}}},
            {"name": ENV_RELEASE, "value": RELEASE},
            {"name": ENV_CONTAINER, "value": "app"},
            {"name": ENV_POD_IPS, "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": "status.podIPs"}}},
        ])
    );
    assert_eq!(container["envFrom"], json!([{"secretRef": {"name": "s"}}]));
}

#[test]
fn a_name_is_never_used_twice_in_a_pod() {
    let container = placed(|pod| {
        pod["spec"]["ephemeralContainers"] =
            json!([agent("stead-agent-2"), {"name": "debugger"}, agent("stead-agent-10")]);
    });
    assert_eq!(container["name"], json!("stead-agent-11"));
    assert_eq!(placed(|_| {})["name"], json!("stead-agent-1"));
}

#[test]
fn an_agent_that_runs_or_is_about_to_is_used_again() {
    for state in [json!({"running": {}}), json!({"waiting": {"reason": "ContainerCreating"}}), json!({})] {
        let pod = with_agent(agent("stead-agent-1"), state);
        assert_eq!(running_agent(&pod, "app", Some("docker.io/library/stead-agent:1")), Some("stead-agent-1"));
    }
    let not_seen_yet = pod(|pod| pod["spec"]["ephemeralContainers"] = json!([agent("stead-agent-1")]));
    assert_eq!(running_agent(&not_seen_yet, "app", None), Some("stead-agent-1"));
}

#[test]
fn another_agent_is_not_used_again() {
    let running = || json!({"running": {}});
    let ended = with_agent(agent("stead-agent-1"), json!({"terminated": {"exitCode": 0}}));
    assert_eq!(running_agent(&ended, "app", None), None);
    let pod = with_agent(agent("stead-agent-1"), running());
    assert_eq!(running_agent(&pod, "proxy", None), None);
    assert_eq!(running_agent(&pod, "app", Some("stead-agent:2")), None);
    let mut older = agent("stead-agent-1");
    older["env"][0]["value"] = json!("0.0.1");
    assert_eq!(running_agent(&with_agent(older, running()), "app", None), None);
    let mut foreign = agent("debugger");
    foreign["name"] = json!("debugger");
    assert_eq!(running_agent(&with_agent(foreign, running()), "app", None), None);
}

#[test]
fn refusals_of_rbac_and_of_policies_have_their_own_exit_codes() {
    let target = Target {
        namespace: "ns".into(),
        pod: "web".into(),
        uid: "u".into(),
        ips: Vec::new(),
        node: String::new(),
        container: "app".into(),
        container_id: String::new(),
        host_network: false,
        object: Box::default(),
    };
    let refused = |code: u16, message: &str| {
        let status = Status::failure(message, "Forbidden").with_code(code);
        refusal(kube::Error::Api(Box::new(status)), &target)
    };
    let rbac = refused(403, "User \"u\" cannot patch resource \"pods/ephemeralcontainers\" in API group \"\"");
    assert_eq!(rbac.kind().exit_code(), 77);
    assert!(rbac.next_step().is_some_and(|hint| hint.contains("aggregate-to-edit")));
    for (code, message) in [
        (403, "pods \"web\" is forbidden: violates PodSecurity \"restricted:latest\""),
        (403, "pods \"web\" is forbidden: exceeded quota"),
        (400, "admission webhook \"p\" denied the request: no"),
        (422, "Pod \"web\" is invalid"),
    ] {
        let error = refused(code, message);
        assert_eq!(error.kind().exit_code(), 73, "{message}");
        assert!(error.to_string().ends_with(message));
    }
    assert_eq!(refused(404, "gone").kind(), Kind::NoReadyPod);
}
