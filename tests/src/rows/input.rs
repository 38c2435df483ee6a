//! Bad input: one clear error with its cause and the next step, its exit code, and nothing left.

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use testkit::lab::checked;

use super::{Row, row};
use crate::scratch::no_stand_in;
use crate::world::{NAMESPACE, World};

pub(super) const ROWS: &[Row] = &[
    row("BAD", "no kubeconfig, wrong context, unreachable API server", kubeconfig),
    row("BAD", "unknown workload (near ones are named), two of one name, unknown container", workload),
    row("BAD", "no ready pod", not_ready),
    row("BAD", "the agent's image cannot be pulled", image),
    row("BAD", "the agent's image is for another architecture", architecture),
    row("BAD", "a token that the API server does not take", token),
    row("BAD", "a right is missing", right),
    row("BAD", "user namespaces are forbidden", user_namespaces),
    row("BAD", "wrong arguments", arguments),
];

fn kubeconfig(world: &World) -> anyhow::Result<()> {
    let missing = world.run("deploy/web").flags(&["--kubeconfig", "/nonexistent/config"]).command(&["true"]);
    expect(missing, 65, &["/nonexistent/config"])?;
    let mut none = world.run("deploy/web").command(&["true"]);
    // testbed exec sets KUBECONFIG; `env -u` takes it away again.
    let words: Vec<_> = none.get_args().map(std::ffi::OsStr::to_owned).collect();
    none = world.lab().user(
        ["env", "-u", "KUBECONFIG"]
            .into_iter()
            .map(Into::into)
            .chain(after_dashes(&words))
            .collect::<Vec<std::ffi::OsString>>(),
    );
    expect(none, 65, &["kubeconfig"])?;
    let wrong = world.run("deploy/web").flags(&["--context", "no-such-context"]).command(&["true"]);
    expect(wrong, 65, &["no-such-context"])?;
    let unreachable = unreachable_config(world)?;
    let file = unreachable.path().display().to_string();
    let command = world.run("deploy/web").flags(&["--kubeconfig", &file]).command(&["true"]);
    expect(command, 69, &["172.29.0.2:9"])
}

fn after_dashes(words: &[std::ffi::OsString]) -> impl Iterator<Item = std::ffi::OsString> {
    let at = words.iter().position(|word| word == "--").map_or(0, |at| at + 1);
    words[at..].iter().cloned()
}

/// The testbed's own, with a port where nobody listens.
fn unreachable_config(world: &World) -> anyhow::Result<tempfile::NamedTempFile> {
    let text = world.lab().kubectl(&["config", "view", "--raw", "--flatten"])?;
    let file = tempfile::NamedTempFile::new()?;
    ensure!(text.contains(":6443"), "the testbed's API server has another port");
    std::fs::write(file.path(), text.replace(":6443", ":9"))?;
    std::fs::set_permissions(file.path(), std::os::unix::fs::PermissionsExt::from_mode(0o644))?;
    Ok(file)
}

fn workload(world: &World) -> anyhow::Result<()> {
    let near = expect_said(world.run("deploy/wep").command(&["true"]), 66, &["wep"])?;
    ensure!(near.contains("web"), "the near name is not said: {near}");
    expect(world.run("wep").command(&["true"]), 66, &["wep", "web"])?;
    expect(world.run("twin").command(&["true"]), 64, &["deploy/twin", "sts/twin"])?;
    let container = world.run("deploy/web").flags(&["--container", "sidecat"]).command(&["true"]);
    expect(container, 66, &["sidecat", "sidecar"])?;
    let namespace = world.run("deploy/web").flags(&["-n", "no-such-namespace"]).command(&["true"]);
    expect(namespace, 66, &["no-such-namespace"])
}

fn not_ready(world: &World) -> anyhow::Result<()> {
    expect(world.run("deploy/stuck").command(&["true"]), 67, &["stuck"])?;
    expect(world.run("deploy/twin").command(&["true"]), 67, &["twin"])
}

/// Redis' pods get no agent here: an agent that runs there already would be used.
fn image(world: &World) -> anyhow::Result<()> {
    let flags = ["--agent-image", "localhost/no-such-image:1"];
    let command = world.run("pod/stranger").flags(&flags).command(&["true"]);
    expect(command, 68, &["localhost/no-such-image:1"])
}

/// What an image is that was built on another machine: its program is not this machine's.
fn architecture(world: &World) -> anyhow::Result<()> {
    /// `e_machine` of ELF's header, and AArch64's.
    const MACHINE: (usize, [u8; 2]) = (18, [183, 0]);
    let name = "localhost/other-architecture:1";
    let mut program = std::fs::read(world.testapp())?;
    ensure!(program.starts_with(b"\x7fELF"), "the test program is no ELF file");
    program[MACHINE.0..MACHINE.0 + 2].copy_from_slice(&MACHINE.1);
    let layer = oci::Layer::from_files([oci::File::new("stead-agent", 0o755, program)])?;
    let mut archive = tempfile::Builder::new().suffix(".tar").tempfile()?;
    oci::ImageBuilder::new(name).layer(layer).entrypoint(["/stead-agent"]).write(&mut archive)?;
    world.lab().testbed(&["load", archive.path().to_str().context("the path is not UTF-8")?])?;
    let started = Instant::now();
    // A container that cannot start stays in its pod's list for as long as the pod lives.
    let command = world.run_alone().flags(&["--agent-image", name]).command(&["true"]);
    let said = expect_said(command, 68, &[name, "another architecture", "kubernetes.io/arch"]);
    for node in ["node1", "node2"] {
        checked(&mut world.lab().node(node, ["ctr", "-n", "k8s.io", "images", "rm", name]))?;
    }
    said?;
    ensure!(started.elapsed() < Duration::from_secs(20), "it took {:?} to say", started.elapsed());
    no_stand_in(world, NAMESPACE, Duration::from_secs(5))
}

/// As one that has ended: the API server says no more than "Unauthorized" of either.
fn token(world: &World) -> anyhow::Result<()> {
    let mut config = world.lab().kubectl_json(&["config", "view", "--raw", "--flatten"])?;
    config["users"][0]["user"] = serde_json::json!({"token": "eyJhbGciOiJSUzI1NiJ9.e30.ended"});
    let file = tempfile::NamedTempFile::new()?;
    std::fs::write(file.path(), config.to_string())?;
    std::fs::set_permissions(file.path(), std::os::unix::fs::PermissionsExt::from_mode(0o644))?;
    let path = file.path().display().to_string();
    let command = world.run("deploy/web").flags(&["--kubeconfig", &path]).command(&["true"]);
    expect(command, 65, &["does not accept the credentials", "Unauthorized", "renew the token"])
}

fn right(world: &World) -> anyhow::Result<()> {
    let onlooker = format!("system:serviceaccount:{NAMESPACE}:onlooker");
    let command = world.run("sts/db").flags(&["--as", &onlooker]).command(&["true"]);
    expect(command, 77, &["pods/attach"])
}

/// In a user namespace whose own limit is 0, so that nothing else on the machine is touched.
fn user_namespaces(world: &World) -> anyhow::Result<()> {
    let script = "echo 0 > /proc/sys/user/max_user_namespaces && exec \"$@\"";
    let head = ["unshare", "--user", "--map-root-user", "sh", "-c", script, "sh"].map(str::to_owned);
    let mut command = world.lab().user([&head[..], &world.run("deploy/web").argv(&["true"])].concat());
    command.env("STEAD_AGENT_IMAGE", world.agent_image());
    expect(command, 71, &["user namespaces"])
}

fn arguments(world: &World) -> anyhow::Result<()> {
    for words in [&["run"][..], &["run", "web"], &["no-such-verb"], &["status", "--nope"]] {
        let output = world.lab().user([&[world.stead()], words].concat()).output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.code() == Some(64), "{words:?}: {} {said}", output.status);
        ensure!(!said.is_empty() && !said.contains("panicked"), "{words:?} said {said:?}");
    }
    Ok(())
}

pub(super) fn expect(command: Command, code: i32, words: &[&str]) -> anyhow::Result<()> {
    expect_said(command, code, words).map(drop)
}

/// The exit code, every word in the error, and a next step.
pub(super) fn expect_said(mut command: Command, code: i32, words: &[&str]) -> anyhow::Result<String> {
    let shown = testkit::lab::shown(&command);
    let failed = crate::stead::failed(&mut command).with_context(|| shown.clone())?;
    let said = &failed.stderr;
    ensure!(failed.code == Some(code), "`{shown}` ended with {:?}, not {code}: {said}", failed.code);
    for word in words {
        ensure!(said.contains(word), "`{shown}` does not say {word:?}: {said}");
    }
    ensure!(
        said.lines().filter(|line| line.starts_with("error: ")).count() == 1,
        "`{shown}` has not one error: {said}"
    );
    ensure!(said.contains("next: "), "`{shown}` names no next step: {said}");
    Ok(said.clone())
}
