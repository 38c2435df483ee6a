//! `stead gather-logs`: what helps is in the archive, and no secret is, wherever one was planted.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, ensure};
use testkit::lab::{checked, within};

use super::{Row, row};
use crate::world::{NAMESPACE, World};

pub(super) const ROWS: &[Row] =
    &[row("CLI", "gather-logs: what helps is in it, no planted secret, and no name when anonymous", planted)];

/// Stands in everything that must not be sent.
const SECRET: &str = "XplantedX";

const POD: &str = r#"{
  "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "planted", "annotations": {"note": "XplantedX"}},
  "spec": {"terminationGracePeriodSeconds": 1, "containers": [{
    "name": "app", "image": "$IMAGE", "imagePullPolicy": "Never", "args": ["serve"],
    "env": [{"name": "PASSWORD", "value": "XplantedX-1"}, {"name": "PLAIN", "value": "XplantedX-2"}]
  }]}
}"#;

fn planted(world: &World) -> anyhow::Result<()> {
    let _pod = Planted::make(world)?;
    let dir = tempfile::tempdir()?;
    std::fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o777))?;
    let state = dir.path().join("state");
    // A session whose command has a secret argument and variable, and a log of an older one that has secrets.
    let script = format!(
        "mkdir -p {0}/stead/log && umask 077 && echo 'Authorization: Bearer {SECRET}' > {0}/stead/log/old.log \
         && export XDG_STATE_HOME={0} API_TOKEN={SECRET}-3 && exec {1}",
        state.display(),
        quoted(&world.run("pod/planted").argv(&["sh", "-c", "exec sh", SECRET]))
    );
    let mut command = world.lab().user(["sh", "-c", &script]);
    command.env("STEAD_AGENT_IMAGE", world.agent_image());
    let _shell = testkit::lab::Shell::start(command)?;

    let text = gather(world, dir.path(), &[])?;
    ensure!(!text.contains(SECRET), "a secret is in it: {}", around(&text, SECRET));
    let session = world.status()?["session"].as_str().context("a session")?.to_owned();
    for wanted in [&*session, "\"PASSWORD\"", "stead-agent-1", "answers in", "planted", "(3 arguments)", "step"] {
        ensure!(text.contains(wanted), "{wanted} is not in it");
    }
    let names = |text: &str| text.contains("172.29.0.") || text.contains(&testkit::lab::user_name());
    ensure!(names(&text), "names are in it");
    let text = gather(world, dir.path(), &["--anonymous"])?;
    ensure!(!names(&text), "a name is in it: {}", around(&text, "172.29.0."));
    ensure!(text.contains("address-1") && text.contains(&session), "not what was asked for");
    Ok(())
}

/// Every file of the archive in one text.
fn gather(world: &World, dir: &Path, flags: &[&str]) -> anyhow::Result<String> {
    let (archive, state) = (dir.join("logs.tar.gz"), format!("XDG_STATE_HOME={}", dir.join("state").display()));
    let file = archive.display().to_string();
    let token = format!("API_TOKEN={SECRET}-3");
    let words = ["env", &state, &token, world.stead(), "gather-logs", "pod/planted", "-n", NAMESPACE, "--file", &file];
    checked(&mut world.lab().user([&words[..], flags].concat()))?;
    let text = checked(Command::new("tar").args(["-xzOf", &file]));
    std::fs::remove_file(&archive)?;
    text
}

fn quoted(words: &[String]) -> String {
    words.iter().map(|word| format!("'{word}'")).collect::<Vec<_>>().join(" ")
}

fn around<'a>(text: &'a str, needle: &str) -> &'a str {
    text.lines().find(|line| line.contains(needle)).unwrap_or_default()
}

/// A pod full of secrets, gone when dropped.
struct Planted<'a>(&'a World);

impl Planted<'_> {
    fn make(world: &World) -> anyhow::Result<Planted<'_>> {
        let file = tempfile::Builder::new().suffix(".json").tempfile()?;
        std::fs::write(file.path(), POD.replace("$IMAGE", world.testapp_image()))?;
        let path = file.path().display().to_string();
        world.lab().kubectl(&["apply", "-n", NAMESPACE, "-f", &path])?;
        let planted = Planted(world);
        within(std::time::Duration::from_secs(30), || {
            let pod = world.pod("planted")?;
            ensure!(pod["status"]["containerStatuses"][0]["ready"] == true, "{}", pod["status"]);
            Ok(())
        })?;
        Ok(planted)
    }
}

impl Drop for Planted<'_> {
    fn drop(&mut self) {
        let _ = self.0.lab().kubectl(&["delete", "pod", "planted", "-n", NAMESPACE, "--wait"]);
    }
}
