//! `stead doctor`: each check turns red, alone, when exactly its thing is broken, tried at the real thing where a test can
//! break it for itself alone. (A kernel without IPv6 or tproxy, an old cluster and a wrong clock are in the unit tests.)

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, ensure};
use serde_json::{Value, json};
use testkit::lab::{checked, within};

use super::{Row, row, strings};
use crate::world::{NAMESPACE, World};

pub(super) const ROWS: &[Row] = &[
    row("CLI", "doctor finds nothing red where nothing is broken, and tells of a running session", healthy),
    row("CLI", "doctor: each check of machine and kubeconfig turns red alone", machine_and_kubeconfig),
    row("CLI", "doctor: each check of cluster and workload turns red alone", cluster_and_workload),
    row("CLI", "doctor: each missing right turns red alone, and --yaml gives them all", rights),
    row("CLI", "doctor: a certificate that has ended turns red alone", expired),
];

fn healthy(world: &World) -> anyhow::Result<()> {
    let (code, report) = doctor(world, &[], &["deploy/web"])?;
    ensure!(code == 0 && report["ok"] == true && red(&report).is_empty(), "red: {}", red(&report).join(", "));
    ensure!(found(&report, "way to pods")?.contains("only while a session runs"), "{report}");
    let _shell = world.shell()?;
    let (_, report) = doctor(world, &[], &["deploy/web"])?;
    ensure!(found(&report, "way to pods")?.contains("proxy"), "{report}");
    ensure!(found(&report, "agent")?.starts_with("stead-agent-"), "{report}");
    Ok(())
}

fn machine_and_kubeconfig(world: &World) -> anyhow::Result<()> {
    let no_tun = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"];
    let no_tun = [&no_tun[..], &["mount -t tmpfs none /dev/net && exec \"$@\"", "-"]].concat();
    let no_namespaces = "echo 0 > /proc/sys/user/max_user_namespaces && exec \"$@\"";
    let no_namespaces = ["unshare", "--user", "--map-root-user", "sh", "-c", no_namespaces, "-"];
    let home = tempfile::tempdir()?;
    let plugin = kubeconfig(world, home.path(), |config| {
        let exec = json!({"apiVersion": "client.authentication.k8s.io/v1", "command": "no-such-login", "interactiveMode": "Never"});
        config["users"][0]["user"] = json!({ "exec": exec });
    })?;
    let plugin = format!("KUBECONFIG={}", plugin.display());
    let cases: [(&[&str], &[&str], &str, i32); 7] = [
        (&no_tun, &[], "/dev/net/tun", 71),
        (&no_namespaces, &[], "user namespaces", 71),
        (&["env", "XDG_RUNTIME_DIR=/proc"], &[], "runtime directory", 74),
        (&["env", "KUBECONFIG=/etc/shadow"], &[], "kubeconfig", 65),
        (&["env", "KUBECONFIG=/nonexistent/config"], &[], "kubeconfig", 65),
        (&[], &["--context", "nowhere"], "context", 65),
        (&["env", &plugin], &[], "credentials", 65),
    ];
    for (around, flags, check, code) in cases {
        alone(world, around, flags, check, code)?;
    }
    Ok(())
}

fn cluster_and_workload(world: &World) -> anyhow::Result<()> {
    let home = tempfile::tempdir()?;
    let elsewhere = kubeconfig(world, home.path(), |config| {
        config["clusters"][0]["cluster"]["server"] = json!("https://127.0.0.1:1")
    })?;
    let elsewhere = format!("KUBECONFIG={}", elsewhere.display());
    let cases: [(&[&str], &[&str], &str, i32); 4] = [
        (&["env", &elsewhere], &[], "API server", 69),
        (&[], &["-n", "no-such-namespace"], "namespace", 66),
        (&[], &["no-such-workload"], "workload", 66),
        (&[], &["deploy/stuck"], "pod", 67),
    ];
    for (around, flags, check, code) in cases {
        alone(world, around, flags, check, code)?;
    }
    Ok(())
}

/// A user with all rights but one, for each; by what `--yaml` prints.
fn rights(world: &World) -> anyhow::Result<()> {
    let yaml = checked(&mut world.lab().user([world.stead(), "doctor", "--yaml"]))?;
    let roles = Roles { world, file: written(&yaml)? };
    world.lab().apply(&roles.file)?;
    let me = ["--as", "doctor-nobody"];
    let (code, report) = doctor(world, &[], &me)?;
    ensure!(
        code == 77 && red(&report).contains(&"get pods".to_owned()),
        "exit code {code}: {}",
        red(&report).join(", ")
    );
    let all: Vec<String> = red(&report);
    ensure!(all.len() > 8, "a user without rights lacks {all:?}");
    roles.bind("doctor-nobody")?;
    within(Duration::from_secs(5), || {
        let (code, report) = doctor(world, &[], &me)?;
        ensure!(code == 0 && red(&report).is_empty(), "with all of --yaml: {}", red(&report).join(", "));
        Ok(())
    })?;
    for lacking in ["patch pods/ephemeralcontainers", "get pods/proxy", "list services"] {
        roles.without(&yaml, lacking)?;
        within(Duration::from_secs(5), || {
            let (code, report) = doctor(world, &[], &me)?;
            ensure!(code == 0 && red(&report) == [lacking], "without {lacking}: {}", red(&report).join(", "));
            Ok(())
        })?;
    }
    Ok(())
}

/// The roles of `--yaml`, deleted with their bindings when dropped.
struct Roles<'a> {
    world: &'a World,
    file: PathBuf,
}

impl Roles<'_> {
    fn bind(&self, user: &str) -> anyhow::Result<()> {
        for role in ["stead", "stead-hints"] {
            let name = format!("doctor-{role}");
            let (role, user) = (format!("--clusterrole={role}"), format!("--user={user}"));
            self.world.lab().kubectl(&["create", "clusterrolebinding", &name, &role, &user])?;
        }
        Ok(())
    }

    /// Takes one verb of one resource out of the roles.
    fn without(&self, yaml: &str, right: &str) -> anyhow::Result<()> {
        let (verb, resource) = right.split_once(' ').context("a verb and a resource")?;
        let of_resource = format!("resources: [{resource}]");
        let lines = yaml.lines().map(|line| match line.split_once("verbs: [") {
            Some((before, verbs)) if line.contains(&of_resource) => {
                let rest: Vec<&str> = verbs.trim_end_matches("]}").split(", ").filter(|other| *other != verb).collect();
                format!("{before}verbs: [{}]}}", rest.join(", "))
            }
            _ => line.to_owned(),
        });
        // A rule without verbs is no rule.
        let lines: Vec<String> = lines.filter(|line| !line.contains("verbs: []")).collect();
        ensure!(lines.join("\n") != yaml.trim_end(), "{right} is not in the roles");
        std::fs::write(&self.file, lines.join("\n"))?;
        self.world.lab().apply(&self.file)
    }
}

impl Drop for Roles<'_> {
    fn drop(&mut self) {
        let names = [
            "clusterrole/stead",
            "clusterrole/stead-hints",
            "clusterrolebinding/doctor-stead",
            "clusterrolebinding/doctor-stead-hints",
        ];
        let _ = self.world.lab().kubectl(&[&["delete", "--ignore-not-found"], &names[..]].concat());
        let _ = std::fs::remove_file(&self.file);
    }
}

fn written(text: &str) -> anyhow::Result<PathBuf> {
    let file = tempfile::Builder::new().suffix(".yaml").tempfile()?;
    std::fs::write(file.path(), text)?;
    Ok(file.into_temp_path().keep()?)
}

fn expired(world: &World) -> anyhow::Result<()> {
    let path = world.lab().testbed(&[
        "env",
        "--kubeconfig-for",
        "doctor-expired",
        "--group",
        "system:masters",
        "--expire",
        "1",
    ])?;
    let kubeconfig = format!("KUBECONFIG={}", path.trim());
    within(Duration::from_secs(10), || alone(world, &["env", &kubeconfig], &[], "credentials", 65))
}

/// With these words around it and these flags, just this check is red, and the exit code is its class's.
fn alone(world: &World, around: &[&str], flags: &[&str], check: &str, code: i32) -> anyhow::Result<()> {
    let (ended, report) = doctor(world, around, flags)?;
    let red = red(&report);
    ensure!(red == [check], "{around:?} {flags:?}: {check} is to be red alone, not {red:?}: {report:#}");
    ensure!(ended == code, "{check}: exit code {ended}, not {code}");
    let findings = report["findings"].as_array().into_iter().flatten();
    let fix = findings.filter(|finding| finding["check"] == check).find_map(|finding| finding["fix"].as_str());
    ensure!(fix.is_some_and(|fix| !fix.is_empty()), "{check} is red and has no fix");
    Ok(())
}

fn doctor(world: &World, around: &[&str], flags: &[&str]) -> anyhow::Result<(i32, Value)> {
    let own = if flags.contains(&"-n") { &[][..] } else { &["-n", NAMESPACE] };
    let words = [around, &[world.stead(), "doctor", "-o", "json"], own, flags].concat();
    let output = world.lab().user(words).output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    let report = serde_json::from_slice(&output.stdout).with_context(|| format!("doctor gave no JSON: {said}"))?;
    Ok((output.status.code().context("an exit code")?, report))
}

fn red(report: &Value) -> Vec<String> {
    let findings = report["findings"].as_array().into_iter().flatten();
    let red = findings.filter(|finding| finding["verdict"] == "fail" || finding["verdict"] == "warn");
    strings(&Value::Array(red.map(|finding| finding["check"].clone()).collect()))
}

fn found(report: &Value, check: &str) -> anyhow::Result<String> {
    let findings = report["findings"].as_array().into_iter().flatten();
    let mut found =
        findings.filter(|finding| finding["check"] == check).filter_map(|finding| finding["found"].as_str());
    found.next().map(str::to_owned).with_context(|| format!("no check {check} in {report}"))
}

/// The testbed's kubeconfig, changed, in a file that the unprivileged user may read.
fn kubeconfig(world: &World, dir: &Path, change: impl FnOnce(&mut Value)) -> anyhow::Result<PathBuf> {
    let mut command: Command = world.lab().root(["sh", "-c", "cat \"$KUBECONFIG\""]);
    let mut config: Value = serde_json::from_str(&checked(&mut command)?)?;
    change(&mut config);
    let path = dir.join("config");
    std::fs::write(&path, config.to_string())?;
    for place in [dir, &path] {
        std::fs::set_permissions(place, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    }
    Ok(path)
}
