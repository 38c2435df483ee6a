//! F4: credentials that end while a session lives, and those that a plugin gives. R9: two sessions at once.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, ensure};
use serde_json::{Value, json};
use testkit::lab::{Shell, checked, within};

use super::{Row, probe, row};
use crate::world::{NAMESPACE, World};

pub(super) const ROWS: &[Row] = &[
    row("F4", "a client certificate that ends is said, and a new one in the kubeconfig is taken", ends),
    row("F4", "an exec plugin gives the certificate, and another one when that has ended", plugin),
    row("R9", "two sessions in two namespaces and contexts do not disturb each other", two),
];

/// Long enough to start a session with.
const SHORT: &str = "12s";
const SOON: Duration = Duration::from_secs(45);

fn ends(world: &World) -> anyhow::Result<()> {
    let dir = Dir::make()?;
    let file = dir.file("config", &issued(world, SHORT)?.to_string())?;
    let flags = ["--kubeconfig", file.to_str().context("UTF-8")?, "--lease", "60s"];
    let mut shell = world.run("deploy/web").flags(&flags).shell()?;
    said(&shell, "the credentials of this context have ended")?;
    reaches(world, &mut shell).context("links that are up go on")?;
    cut(world)?;
    said(&shell, "does not accept the credentials")?;
    // Which is its exit code, too.
    let status = world.lab().user([world.stead(), "status"]).output()?;
    ensure!(status.status.code() == Some(2), "{}", String::from_utf8_lossy(&status.stdout));
    dir.file("config", &issued(world, "1h")?.to_string())?;
    said(&shell, "the kubeconfig has new credentials")?;
    said(&shell, "reached the cluster again")?;
    reaches(world, &mut shell)?;
    // One link may be back before the other.
    within(SOON, || {
        let status = world.lab().user([world.stead(), "status"]).output()?;
        ensure!(status.status.code() == Some(0), "{}", String::from_utf8_lossy(&status.stdout));
        Ok(())
    })
}

fn plugin(world: &World) -> anyhow::Result<()> {
    let dir = Dir::make()?;
    let short = issued(world, SHORT)?;
    let given = dir.path().join("given.json");
    dir.file("given.json", &credential(&short)?.to_string())?;
    let script = dir.file("login", &format!("#!/bin/sh\nexec cat {}\n", given.display()))?;
    let mut config = short.clone();
    let exec = json!({"apiVersion": "client.authentication.k8s.io/v1", "command": script, "interactiveMode": "Never"});
    config["users"][0]["user"] = json!({ "exec": exec });
    let file = dir.file("config", &config.to_string())?;
    let flags = ["--kubeconfig", file.to_str().context("UTF-8")?, "--lease", "60s"];
    let mut shell = world.run("deploy/web").flags(&flags).shell()?;
    reaches(world, &mut shell)?;
    let by_hand = dir.file("by-hand", &short.to_string())?;
    within(SOON, || {
        let mut doctor =
            world.lab().user(["env", &format!("KUBECONFIG={}", by_hand.display()), world.stead(), "doctor"]);
        ensure!(doctor.output()?.status.code() == Some(65), "the certificate is still good");
        Ok(())
    })?;
    cut(world)?;
    said(&shell, "does not accept the credentials")?;
    dir.file("given.json", &credential(&issued(world, "1h")?)?.to_string())?;
    said(&shell, "reached the cluster again")?;
    reaches(world, &mut shell)
}

/// In another namespace there is a `web`, too, and it is another one.
fn two(world: &World) -> anyhow::Result<()> {
    let other = Other::make(world)?;
    let dir = Dir::make()?;
    let mut config: Value = issued(world, "1h")?;
    let mut second = config["contexts"][0].clone();
    second["name"] = "second".into();
    config["contexts"].as_array_mut().context("contexts")?.push(second);
    let file = dir.file("config", &config.to_string())?;
    let mut first = world.shell()?;
    let second = ["--kubeconfig", file.to_str().context("UTF-8")?, "--context", "second", "-n", Other::NAMESPACE];
    let mut second = world.run("pod/web").flags(&second).shell()?;
    let is_other = |hello: &str| hello.trim_end() == "hello from web";
    let serves = |shell: &mut Shell| hello(world, shell);
    ensure!(is_other(&serves(&mut second)?), "{}", serves(&mut second)?);
    ensure!(
        first.ok("echo $STEAD_NAMESPACE")? == NAMESPACE && second.ok("echo $STEAD_NAMESPACE")? == Other::NAMESPACE,
        "the namespaces are mixed up"
    );
    // Bytes of both at once, which must not meet.
    let line = format!("{} probe uploads {WEB}:80 --count 4 --bytes 5000000", world.testapp());
    let (a, b) = std::thread::scope(|scope| {
        let (first, second) = (&mut first, &mut second);
        let line = &line;
        let a = scope.spawn(move || first.json(line));
        let b = scope.spawn(move || second.json(line));
        (a.join(), b.join())
    });
    for outcome in [a, b] {
        let outcome = outcome.map_err(|_| anyhow::anyhow!("an upload panicked"))??;
        ensure!(outcome["identical"] == 4, "{outcome}");
    }
    let listed = checked(&mut world.lab().user([world.stead(), "list", "-o", "json"]))?;
    let listed: Vec<Value> = serde_json::from_str(&listed)?;
    ensure!(listed.len() == 2 && listed.iter().any(|row| row["context"] == "second"), "{listed:?}");
    drop(first);
    ensure!(is_other(&serves(&mut second)?), "the end of one session is felt by the other");
    drop(second);
    other.close()
}

fn reaches(world: &World, shell: &mut Shell) -> anyhow::Result<()> {
    let hello = hello(world, shell)?;
    ensure!(hello.starts_with("hello from web-"), "{hello}");
    Ok(())
}

/// The address that the session's shell finds for `web`.
const WEB: &str = "$(getent ahostsv4 web | awk '{print $1; exit}')";

fn hello(world: &World, shell: &mut Shell) -> anyhow::Result<String> {
    let hello = probe(world, shell, &format!("probe get {WEB}:80 /hello"))?;
    Ok(hello.as_str().unwrap_or_default().to_owned())
}

fn said(shell: &Shell, words: &str) -> anyhow::Result<()> {
    within(SOON, || {
        ensure!(shell.said().contains(words), "it does not say {words:?}: {}", shell.said());
        Ok(())
    })
}

/// Every connection of the developer's machine with the API server is cut.
fn cut(world: &World) -> anyhow::Result<()> {
    checked(&mut world.lab().root(["ss", "-K", "dst", "172.29.0.2", "dport", "=", "6443"])).map(drop)
}

/// A kubeconfig with a new certificate of a user who may do everything.
fn issued(world: &World, expire: &str) -> anyhow::Result<Value> {
    let words = ["env", "--kubeconfig-for", "credentials-row", "--group", "system:masters", "--expire", expire];
    let path = world.lab().testbed(&words)?;
    Ok(serde_json::from_str(&std::fs::read_to_string(path.trim())?)?)
}

/// What a plugin says to give this kubeconfig's certificate.
fn credential(config: &Value) -> anyhow::Result<Value> {
    let user = &config["users"][0]["user"];
    let pem = |key: &str| -> anyhow::Result<String> {
        let mut command = std::process::Command::new("base64");
        let dir = tempfile::NamedTempFile::new()?;
        std::fs::write(dir.path(), user[key].as_str().context("base64")?)?;
        checked(command.arg("--decode").arg(dir.path()))
    };
    let status =
        json!({"clientCertificateData": pem("client-certificate-data")?, "clientKeyData": pem("client-key-data")?});
    Ok(json!({"apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential", "status": status}))
}

/// A directory that the unprivileged user may look into.
struct Dir(tempfile::TempDir);

impl Dir {
    fn make() -> anyhow::Result<Dir> {
        let dir = tempfile::tempdir()?;
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755))?;
        Ok(Dir(dir))
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    /// In place at once, as a login tool writes it.
    fn file(&self, name: &str, text: &str) -> anyhow::Result<PathBuf> {
        let (path, fresh) = (self.path().join(name), self.path().join(format!(".{name}")));
        std::fs::write(&fresh, text)?;
        std::fs::set_permissions(&fresh, std::fs::Permissions::from_mode(0o755))?;
        std::fs::rename(&fresh, &path)?;
        Ok(path)
    }
}

/// Another namespace with a pod and a Service `web`.
struct Other<'a>(&'a World);

impl Other<'_> {
    const NAMESPACE: &'static str = "stead-rows-other";

    fn make(world: &World) -> anyhow::Result<Other<'_>> {
        let manifest = json!({"apiVersion": "v1", "kind": "List", "items": [
            {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": Self::NAMESPACE}},
            {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "web", "namespace": Self::NAMESPACE, "labels": {"app": "web"}},
             "spec": {"terminationGracePeriodSeconds": 1, "containers": [
                {"name": "web", "image": world.testapp_image(), "imagePullPolicy": "Never", "args": ["serve"]}]}},
            {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web", "namespace": Self::NAMESPACE},
             "spec": {"selector": {"app": "web"}, "ports": [{"name": "http", "port": 80, "targetPort": 9001}]}},
        ]});
        let file = tempfile::Builder::new().suffix(".json").tempfile()?;
        std::fs::write(file.path(), manifest.to_string())?;
        let other = Other(world);
        world.lab().apply(file.path())?;
        let words = ["wait", "pod/web", "-n", Self::NAMESPACE, "--for=condition=Ready", "--timeout=30s"];
        world.lab().kubectl(&words)?;
        Ok(other)
    }

    fn close(self) -> anyhow::Result<()> {
        self.0.lab().kubectl(&["delete", "namespace", Self::NAMESPACE, "--ignore-not-found", "--wait"]).map(drop)
    }
}

impl Drop for Other<'_> {
    fn drop(&mut self) {
        let _ = self.0.lab().kubectl(&["delete", "namespace", Self::NAMESPACE, "--ignore-not-found", "--wait"]);
    }
}
