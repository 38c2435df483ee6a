use serde_json::{Value, json};

use super::*;

const PURPOSE: Purpose<'static> =
    Purpose { name: "stead-web-abc234", session: "5e", image: "stead-agent:1", deadline: 180 };

fn template(spec: Value) -> Template {
    Template {
        spec: serde_json::from_value(spec).expect("a pod's spec"),
        labels: [("app", "web"), ("tier", "front"), ("team", "a")].map(|(k, v)| (k.to_owned(), v.to_owned())).into(),
        selected_by: ["app".to_owned()].into(),
        default_container: None,
    }
}

fn rich() -> Value {
    json!({
        "serviceAccountName": "web", "automountServiceAccountToken": false, "hostNetwork": true, "nodeName": "node1",
        "securityContext": {"runAsNonRoot": true, "seccompProfile": {"type": "RuntimeDefault"}},
        "nodeSelector": {"disk": "fast"}, "imagePullSecrets": [{"name": "pull"}],
        "tolerations": [{"key": "dedicated", "operator": "Exists"}],
        "volumes": [{"name": "config", "configMap": {"name": "web"}}, {"name": "kube-api-access-x"}],
        "initContainers": [{"name": "migrate"}],
        "containers": [
            {
                "name": "app", "image": "app:1", "command": ["x"], "args": ["y"], "ports": [{"containerPort": 80}],
                "env": [{"name": "GREETING", "value": "hi"}], "envFrom": [{"secretRef": {"name": "s"}}],
                "volumeMounts": [
                    {"name": "config", "mountPath": "/etc/web"}, {"name": "data", "mountPath": "/data"},
                    {"name": "kube-api-access-x", "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount"},
                ],
                "livenessProbe": {"tcpSocket": {"port": 80}}, "lifecycle": {"preStop": {"exec": {"command": ["z"]}}},
                "resources": {"limits": {"cpu": "2"}, "requests": {"cpu": "1", "memory": "4Gi"}},
            },
            {"name": "proxy"},
        ],
    })
}

fn made(template: &Template, services: Option<&[Service]>) -> Value {
    let target = &template.spec.containers[0];
    let origin = Origin { workload: "deploy/web".into(), template, target, services };
    serde_json::to_value(job(&PURPOSE, Some(&origin))).expect("json")
}

#[test]
fn a_job_ends_by_itself_and_is_tried_once() {
    let job = made(&template(rich()), None);
    assert_eq!(job["spec"]["ttlSecondsAfterFinished"], 0);
    assert_eq!(job["spec"]["backoffLimit"], 0);
    assert_eq!(job["spec"]["activeDeadlineSeconds"], 180);
    assert_eq!(job["metadata"]["labels"], json!({"stead.dev/session": "5e"}));
    assert_eq!(job["metadata"]["annotations"], json!({"stead.dev/workload": "deploy/web"}));
}

#[test]
fn the_pod_keeps_what_decides_what_it_reaches_and_reads() {
    let job = made(&template(rich()), None);
    let spec = &job["spec"]["template"]["spec"];
    assert_eq!(spec["serviceAccountName"], "web");
    assert_eq!(spec["automountServiceAccountToken"], false);
    assert_eq!(spec["volumes"], json!([{"name": "config", "configMap": {"name": "web"}}]));
    assert_eq!(spec["nodeSelector"], json!({"disk": "fast", "kubernetes.io/os": "linux"}));
    assert_eq!(spec["tolerations"], rich()["tolerations"]);
    assert_eq!(spec["imagePullSecrets"], rich()["imagePullSecrets"]);
    assert_eq!(spec["securityContext"], rich()["securityContext"]);
    let agent = &spec["containers"][0];
    assert_eq!(agent["volumeMounts"], json!([{"name": "config", "mountPath": "/etc/web"}]));
    assert_eq!(agent["envFrom"], rich()["containers"][0]["envFrom"]);
    let env = agent["env"].as_array().expect("a list");
    assert!(env.contains(&json!({"name": "GREETING", "value": "hi"})), "{env:?}");
    assert!(env.contains(&json!({"name": "STEAD_STAND_IN", "value": "1"})), "{env:?}");
}

#[test]
fn the_pod_drops_what_is_the_apps_or_its_nodes() {
    let job = made(&template(rich()), None);
    let spec = &job["spec"]["template"]["spec"];
    assert_eq!(spec["restartPolicy"], "Never");
    assert_eq!(spec["containers"].as_array().map(Vec::len), Some(1));
    for gone in ["initContainers", "hostNetwork", "nodeName"] {
        assert!(spec[gone].is_null(), "{gone}: {spec}");
    }
    let agent = &spec["containers"][0];
    assert_eq!(
        (&agent["name"], &agent["image"], &agent["stdin"]),
        (&json!(AGENT), &json!("stead-agent:1"), &json!(true))
    );
    for gone in ["command", "args", "ports", "livenessProbe", "lifecycle"] {
        assert!(agent[gone].is_null(), "{gone}: {agent}");
    }
    let expected = json!({"limits": {"cpu": "2"}, "requests": {"cpu": "10m", "memory": "16Mi"}});
    assert_eq!(agent["resources"], expected);
}

#[test]
fn the_agent_passes_restricted_where_the_template_does() {
    for job in [made(&template(rich()), None), serde_json::to_value(job(&PURPOSE, None)).expect("json")] {
        let spec = &job["spec"]["template"]["spec"];
        let security = &spec["containers"][0]["securityContext"];
        assert_eq!(security["allowPrivilegeEscalation"], false);
        assert_eq!(security["capabilities"], json!({"drop": ["ALL"]}));
        assert_eq!(security["seccompProfile"]["type"], "RuntimeDefault");
        assert_eq!(security["runAsUser"], 65_532);
        let non_root = [&security["runAsNonRoot"], &spec["securityContext"]["runAsNonRoot"]];
        assert!(non_root.contains(&&json!(true)), "{spec}");
    }
}

#[test]
fn what_a_stand_in_lacks_is_told() {
    let template = template(rich());
    let target = &template.spec.containers[0];
    let origin = Origin { workload: "deploy/web".into(), template: &template, target, services: None };
    let expected =
        ["container proxy", "init container migrate", "volume data (one of each replica's own)", "the node's network"];
    assert_eq!(left_out(&origin), expected);
}

fn service(selector: Value) -> Service {
    serde_json::from_value(json!({"metadata": {"name": "s"}, "spec": {"selector": selector}})).expect("a Service")
}

#[test]
fn no_service_and_not_the_workload_finds_the_pod_by_its_labels() {
    let template = template(rich());
    let labels =
        |services: Option<&[Service]>| made(&template, services)["spec"]["template"]["metadata"]["labels"].clone();
    let session = "stead.dev/session";
    let front = service(json!({"tier": "front"}));
    let other = service(json!({"tier": "back"}));
    assert_eq!(labels(Some(&[front, other.clone()])), json!({"team": "a", session: "5e"}));
    assert_eq!(labels(Some(&[other])), json!({"team": "a", "tier": "front", session: "5e"}));
    assert_eq!(labels(Some(&[service(json!({}))])), json!({"team": "a", "tier": "front", session: "5e"}));
    assert_eq!(labels(None), json!({session: "5e"}), "unknown Services may select anything");
}

#[test]
fn names_are_made_of_the_workloads_and_fit() {
    assert_eq!(name(Some("web"), "abc234"), "stead-web-abc234");
    assert_eq!(name(None, "abc234"), "stead-session-abc234");
    let long = name(Some(&"x".repeat(253)), "abc234");
    assert_eq!(long.len(), 63 - 6);
    assert_eq!(name(Some("db.v2"), "abc234"), "stead-db-v2-abc234");
}
