//! R13, F6, F8 and stand-ins: where the agent sits for users with few rights and in namespaces with rules, what is said when
//! it may sit nowhere, and that nothing of it stays.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use super::input::{expect, expect_said};
use super::{Row, at, row};
use crate::scratch::{Scratch, no_stand_in, ready_pod};
use crate::stead::Run;
use crate::world::{LEASE, NAMESPACE, World};

pub(super) const ROWS: &[Row] = &[
    row("R13", "a user bound to edit alone, under baseline and restricted: by a stand-in", edit_alone),
    row("R13", "the same with the right to ephemeral containers: in the workload's pod", edit_and_ephemeral),
    row("STAND", "a session without a workload, and nothing is left of it", without_workload),
    row("STAND", "kill -9 of its client: nothing is left within lease + 5 s", stand_in_killed),
    row(
        "STAND",
        "no Service sends traffic to a stand-in, and it is not counted as the workload's",
        stand_in_is_nobodys,
    ),
    row("F6", "a full quota, an image that cannot be pulled and Pod Security are said at once", refused),
    row("F8", "a second user with edit cannot use an agent he was not admitted to", not_admitted),
];

const EDITOR: &str = "stead-editor";
const SPACE: &str = "stead-rows-strict";

/// A namespace with rules, a workload that obeys them, and a user bound to `edit` in it alone.
const STRICT: &str = r#"
apiVersion: v1
kind: Namespace
metadata: {name: $NAMESPACE, labels: {pod-security.kubernetes.io/enforce: baseline}}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: editor, namespace: $NAMESPACE}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: edit}
subjects: [{apiGroup: rbac.authorization.k8s.io, kind: User, name: stead-editor}]
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: $NAMESPACE}
spec:
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 1
      securityContext: {runAsNonRoot: true, runAsUser: 1234, seccompProfile: {type: RuntimeDefault}}
      containers:
      - name: web
        image: $IMAGE
        imagePullPolicy: Never
        args: [serve]
        env: [{name: GREETING, value: hi}]
        readinessProbe: {tcpSocket: {port: 9001}, periodSeconds: 1}
        securityContext: {allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: $NAMESPACE}
spec: {selector: {app: web}, ports: [{name: raw, port: 9000}, {name: http, port: 80, targetPort: 9001}]}
"#;

/// Beside it: what the default role lacks.
const EPHEMERAL: &str = r#"
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: stead-rows-ephemeral}
rules: [{apiGroups: [""], resources: [pods/ephemeralcontainers], verbs: [patch]}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: ephemeral, namespace: $NAMESPACE}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: stead-rows-ephemeral}
subjects: [{apiGroup: rbac.authorization.k8s.io, kind: User, name: stead-editor}]
"#;

fn edit_alone(world: &World) -> anyhow::Result<()> {
    let _space = Scratch::apply(world, SPACE, STRICT)?;
    for level in ["baseline", "restricted"] {
        enforce(world, level)?;
        let said = works(world)?;
        ensure!(
            said.contains("no right to patch pods/ephemeralcontainers"),
            "{level}: what is lost is not said: {said}"
        );
        no_stand_in(world, SPACE, Duration::from_secs(5))?;
    }
    Ok(())
}

fn edit_and_ephemeral(world: &World) -> anyhow::Result<()> {
    let _space = Scratch::apply(world, SPACE, STRICT)?;
    let _right = Scratch::apply(world, SPACE, EPHEMERAL)?;
    for level in ["baseline", "restricted"] {
        enforce(world, level)?;
        let said = works(world)?;
        ensure!(!said.contains("stand-in"), "{level}: a stand-in was taken: {said}");
    }
    Ok(())
}

fn enforce(world: &World, level: &str) -> anyhow::Result<()> {
    let label = format!("pod-security.kubernetes.io/enforce={level}");
    world.lab().kubectl(&["label", "--overwrite", "namespace", SPACE, &label]).map(drop)
}

/// As the user bound to `edit`.
fn editors<'a>(world: &'a World, workload: &'a str) -> Run<'a> {
    world.run(workload).flags(&["-n", SPACE, "--as", EDITOR, "--park", "0s"])
}

/// Run, environment, names, Services and pods by address; what the session said.
fn works(world: &World) -> anyhow::Result<String> {
    let pod = ready_pod(world, SPACE, "app=web", &[])?;
    let address =
        world.camera().api().get(&format!("/api/v1/namespaces/{SPACE}/pods/{pod}"))?["status"]["podIP"].take();
    // Its own addresses alone, so that no guess about private ones helps.
    let mut shell = editors(world, "deploy/web").flags(&["--egress", "cluster"]).shell()?;
    ensure!(shell.ok("echo $GREETING")? == "hi", "the environment is not the container's");
    let found = shell.ok("getent ahostsv4 web")?;
    let service = found.split_whitespace().next().context("no address")?.to_owned();
    for target in [format!("{service}:80"), format!("{}:9001", address.as_str().context("no address")?)] {
        let hello: Value = shell.json(&format!("{} probe get {target} /hello", world.testapp()))?;
        ensure!(hello.as_str().is_some_and(|hello| hello.starts_with("hello from web-")), "{target}: {hello}");
    }
    Ok(shell.said())
}

fn without_workload(world: &World) -> anyhow::Result<()> {
    let mut shell = world.run_alone().shell()?;
    let one = at(&world.service("one")?, 80)[0];
    let hello: Value = shell.json(&format!("{} probe get {one} /hello", world.testapp()))?;
    ensure!(hello.as_str().is_some_and(|hello| hello.starts_with("hello from db-0")), "{hello}");
    ensure!(shell.ok("getent ahostsv4 one").is_ok(), "names are not resolved");
    let status = world.status()?;
    ensure!(status["attachments"] == serde_json::json!([]), "{status}");
    ensure!(shell.ok("echo ${STEAD_WORKLOAD-none}")? == "none", "it says that it has a workload");
    drop(shell);
    no_stand_in(world, NAMESPACE, Duration::from_secs(5))
}

fn stand_in_killed(world: &World) -> anyhow::Result<()> {
    let mut shell = world.run_alone().shell()?;
    kill(Pid::from_raw(i32::try_from(shell.pid())?), Signal::SIGKILL)?;
    let killed = Instant::now();
    shell.wait(Duration::from_secs(1))?;
    no_stand_in(world, NAMESPACE, LEASE + Duration::from_secs(5))?;
    println!(
        "       gone {:.1} s after the client, with a lease of {} s",
        killed.elapsed().as_secs_f64(),
        LEASE.as_secs()
    );
    Ok(())
}

fn stand_in_is_nobodys(world: &World) -> anyhow::Result<()> {
    let _space = Scratch::apply(world, SPACE, STRICT)?;
    ready_pod(world, SPACE, "app=web", &[])?;
    let path = format!("/apis/discovery.k8s.io/v1/namespaces/{SPACE}/endpointslices");
    let endpoints = || -> anyhow::Result<Vec<Value>> {
        let slices = world.camera().api().list(&path)?;
        Ok(slices.iter().flat_map(|slice| slice["endpoints"].as_array().cloned().unwrap_or_default()).collect())
    };
    let before = endpoints()?;
    let mut shell = editors(world, "deploy/web").shell()?;
    ready_pod(world, SPACE, "stead.dev/session", &[])?;
    shell.ok("true")?;
    let now = endpoints()?;
    ensure!(before.len() == now.len(), "endpoints before {before:?}, and with a stand-in {now:?}");
    let deployment = world.camera().api().get(&format!("/apis/apps/v1/namespaces/{SPACE}/deployments/web"))?;
    ensure!(deployment["status"]["replicas"] == 1, "{}", deployment["status"]);
    Ok(())
}

const QUOTA: &str = r#"
apiVersion: v1
kind: ResourceQuota
metadata: {name: full, namespace: $NAMESPACE}
spec: {hard: {pods: "0"}}
"#;

/// Pod Security `restricted` allows none.
const UNRULY: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: unruly, namespace: $NAMESPACE, labels: {app: unruly}}
spec:
  terminationGracePeriodSeconds: 1
  containers: [{name: unruly, image: $IMAGE, imagePullPolicy: Never, args: [serve]}]
"#;

fn refused(world: &World) -> anyhow::Result<()> {
    let _space = Scratch::apply(world, SPACE, STRICT)?;
    let _unruly = Scratch::apply(world, SPACE, UNRULY)?;
    ready_pod(world, SPACE, "app=unruly", &[])?;
    enforce(world, "restricted")?;
    let started = Instant::now();
    // Its pod may not be given another container, and no pod of its template may be made.
    let run = world.run("pod/unruly").flags(&["-n", SPACE]);
    let said = expect_said(run.command(&["true"]), 73, &["PodSecurity", "restricted"])?;
    ensure!(said.contains("a stand-in pod serves"), "the next placement is not said: {said}");
    {
        let _quota = Scratch::apply(world, SPACE, QUOTA)?;
        within_quota(world)?;
    }
    // A pull that nothing answers ends by itself; the name is no host's.
    let image = ["-n", SPACE, "--agent-image", "localhost/no-such-image:1"];
    expect(world.run_alone().flags(&image).command(&["true"]), 68, &["localhost/no-such-image:1"])?;
    ensure!(started.elapsed() < Duration::from_secs(30), "it took {:?} to say", started.elapsed());
    no_stand_in(world, SPACE, Duration::from_secs(5))
}

/// The quota counts what is there before it refuses.
fn within_quota(world: &World) -> anyhow::Result<()> {
    testkit::lab::within(Duration::from_secs(10), || {
        let path = format!("/api/v1/namespaces/{SPACE}/resourcequotas/full");
        let quota = world.camera().api().get(&path)?;
        ensure!(!quota["status"]["used"]["pods"].is_null(), "the quota counts nothing yet");
        Ok(())
    })?;
    let run = world.run_alone().flags(&["-n", SPACE]);
    expect(run.command(&["true"]), 73, &["exceeded quota", "kubectl describe quota"])
}

/// Everything that carries bytes to a pod, and not the one right that admits.
const CARRIER: &str = r#"
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: carrier, namespace: $NAMESPACE}
rules:
- {apiGroups: [""], resources: [pods], verbs: [get, list, watch]}
- {apiGroups: [""], resources: [pods/proxy, pods/portforward, pods/ephemeralcontainers], verbs: [get, create, patch]}
- {apiGroups: [apps], resources: [deployments, replicasets], verbs: [get, list]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: carrier, namespace: $NAMESPACE}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: carrier}
subjects: [{apiGroup: rbac.authorization.k8s.io, kind: User, name: stead-carrier}]
"#;

/// What the agent's port says to anybody in the cluster is F7's; here somebody with rights comes through the API server.
fn not_admitted(world: &World) -> anyhow::Result<()> {
    let _space = Scratch::apply(world, SPACE, STRICT)?;
    let _rights = Scratch::apply(world, SPACE, &[EPHEMERAL, CARRIER].join("---"))?;
    ready_pod(world, SPACE, "app=web", &[])?;
    let mut shell = editors(world, "deploy/web").shell()?;
    let status = world.status()?;
    let (pod, agent) = (status["pod"].as_str().context("no pod")?, status["agent"].as_str().context("no agent")?);
    let second = world.run("deploy/web").flags(&["-n", SPACE, "--as", "stead-carrier"]);
    expect(second.command(&["true"]), 77, &["pods/attach"])?;
    let elsewhere = world.run("deploy/web").flags(&["--as", EDITOR]);
    expect(elsewhere.command(&["true"]), 77, &["is forbidden", "next: needs get, list on deployments"])?;
    // The agent's port itself, which he may open a pipe to.
    let path = format!("/api/v1/namespaces/{SPACE}/pods/{pod}");
    let address = world.camera().api().get(&path)?["status"]["podIP"].as_str().context("no address")?.to_owned();
    let open = world.stranger(&["probe", "scan", &address])?["open"].take();
    let ports = open.as_array().into_iter().flatten().filter_map(Value::as_u64);
    let port = ports.into_iter().find(|port| !(9000..=9004).contains(port)).context("the scan found no agent")?;
    let raw = format!("{path}:{port}/proxy/stead");
    let output = world.lab().root(["kubectl", "get", "--as", "stead-carrier", "--raw", &raw]).output()?;
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    ensure!(!output.status.success() && !said.contains("Forbidden"), "the agent's port did not refuse it: {said}");
    let logs = world.lab().kubectl(&["logs", "-n", SPACE, pod, "-c", agent])?;
    ensure!(logs.matches("session admitted").count() == 1, "{logs}");
    shell.ok("true").map(drop)
}
