//! Bringing the agent's image to nodes: by `image push` to the registry of the distribution project, which a kubelet then
//! pulls from, and by `image load containerd`.

use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context, ensure};
use serde_json::{Value, json};
use testkit::lab::{checked, within};

use super::{Row, row};
use crate::stead::failed;
use crate::world::{NAMESPACE, World};

pub(super) const ROWS: &[Row] = &[
    row("CLI", "image push: to a registry that a kubelet then pulls the agent from", push),
    row("CLI", "image push: to a registry that asks for a password", push_with_password),
    row("CLI", "image load containerd: an agent starts from it", load),
    row("CLI", "image load kind, k3d, minikube: the exact commands (the tools are not run)", print),
];

/// `push-it`, as htpasswd writes it.
const PASSWORDS: &str = "dev:$2a$05$82Ci3b/vtiuQwDCYrR/bQ.bLrr4OOY2D68voKnMQlxibzWWom.xaW\n";

fn push(world: &World) -> anyhow::Result<()> {
    let registry = Registry::start(world, false)?;
    let name = format!("{}/team/stead-agent:row", registry.address);
    let words = [world.stead(), "image", "push", &name, "--insecure", "-o", "json"];
    let pushed: Value = serde_json::from_str(&checked(&mut world.lab().user(words))?)?;
    ensure!(pushed["uploaded_blobs"] == 2 && pushed["image"] == *name, "{pushed}");
    let again: Value = serde_json::from_str(&checked(&mut world.lab().user(words))?)?;
    ensure!(again["uploaded_blobs"] == 0 && again["digest"] == pushed["digest"], "{again}");
    // The node's containerd speaks plain HTTP with its own localhost, where the registry listens, too.
    let own = format!("localhost:{}/team/stead-agent:row", Registry::PORT);
    let _image = Image { world, node: registry.node.clone(), name: own.clone() };
    let said = world.run("pod/stranger").flags(&["--agent-image", &own, "--park", "0s"]).stdout(&["echo", "pulled"])?;
    ensure!(said == "pulled\n", "{said}");
    let pulled = format!("Successfully pulled image \"{own}\"");
    let words = ["get", "events", "-n", NAMESPACE, "--field-selector", "involvedObject.name=stranger,reason=Pulled"];
    within(Duration::from_secs(10), || {
        let events = world.lab().kubectl_json(&words)?;
        let mut messages =
            events["items"].as_array().into_iter().flatten().filter_map(|event| event["message"].as_str());
        ensure!(messages.any(|message| message.starts_with(&pulled)), "no event says {pulled:?}: {events}");
        Ok(())
    })?;
    Ok(())
}

fn push_with_password(world: &World) -> anyhow::Result<()> {
    let registry = Registry::start(world, true)?;
    let name = format!("{}/team/stead-agent", registry.address);
    let config = |password: &str| -> anyhow::Result<String> {
        let dir = registry.dir.path().join(password);
        std::fs::create_dir_all(&dir)?;
        let auths = json!({"auths": {&registry.address: {"username": "dev", "password": password}}});
        std::fs::write(dir.join("config.json"), auths.to_string())?;
        Ok(format!("DOCKER_CONFIG={}", dir.display()))
    };
    let (right, wrong, none) =
        (config("push-it")?, config("wrong")?, format!("DOCKER_CONFIG={}/none", registry.dir.path().display()));
    let push = |login: &str| world.lab().user(["env", login, world.stead(), "image", "push", &name, "--insecure"]);
    for login in [&none, &wrong] {
        let refused = failed(&mut push(login))?;
        ensure!(refused.code == Some(77) && refused.stderr.contains("docker login"), "{}", refused.stderr);
    }
    let said = checked(&mut push(&right))?;
    let tagged = format!("{name}:{}", env!("CARGO_PKG_VERSION"));
    ensure!(said.starts_with(&format!("pushed {tagged}\n")), "{said}");
    Ok(())
}

fn load(world: &World) -> anyhow::Result<()> {
    let pod = world.pod("stranger")?;
    let node = pod["spec"]["nodeName"].as_str().context("a node")?.to_owned();
    let name = "localhost/loaded-agent:row";
    let _image = Image { world, node: node.clone(), name: name.to_owned() };
    let words = [world.stead(), "image", "load", "containerd", "--name", name];
    checked(&mut world.lab().node(&node, words))?;
    let said = world.run("pod/stranger").flags(&["--agent-image", name, "--park", "0s"]).stdout(&["echo", "loaded"])?;
    ensure!(said == "loaded\n", "{said}");
    Ok(())
}

fn print(world: &World) -> anyhow::Result<()> {
    for (target, line) in [
        ("kind", "kind load image-archive --name dev stead-agent.tar"),
        ("k3d", "k3d image import --cluster dev stead-agent.tar"),
        ("minikube", "minikube image load --profile dev stead-agent.tar"),
    ] {
        let words = [world.stead(), "image", "load", target, "--cluster", "dev", "--print"];
        let said = checked(&mut world.lab().user(words))?;
        ensure!(said.lines().nth(1) == Some(line), "{target}: {said}");
    }
    println!("       not run here: kind, k3d and minikube are not installed; their commands are compared");
    Ok(())
}

/// A registry on the node of the pod `stranger`, ended when dropped.
struct Registry {
    process: Child,
    /// Host and port, as the laptop reaches it.
    address: String,
    node: String,
    dir: tempfile::TempDir,
}

impl Registry {
    const PORT: u16 = 5000;

    fn start(world: &World, with_password: bool) -> anyhow::Result<Registry> {
        let pod = world.pod("stranger")?;
        let node = pod["spec"]["nodeName"].as_str().context("a node")?.to_owned();
        let address = format!("{}:{}", pod["status"]["hostIP"].as_str().context("an address")?, Self::PORT);
        let dir = tempfile::tempdir()?;
        std::fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
        let passwords = dir.path().join("passwords");
        std::fs::write(&passwords, PASSWORDS)?;
        let auth = json!({"htpasswd": {"realm": "test", "path": passwords}});
        let config = json!({
            "version": "0.1", "log": {"level": "error"}, "http": {"addr": format!(":{}", Self::PORT)},
            "storage": {"filesystem": {"rootdirectory": dir.path().join("storage")}},
            "auth": if with_password { auth } else { json!({}) },
        });
        let file = dir.path().join("config.json");
        std::fs::write(&file, config.to_string())?;
        let program = std::env::var("STEAD_REGISTRY").context("STEAD_REGISTRY is not set")?;
        let words = [program, "serve".to_owned(), file.display().to_string()];
        let log = std::fs::File::create(dir.path().join("log"))?;
        let mut command = world.lab().node(&node, words);
        let process = command.stdout(Stdio::null()).stderr(log).spawn()?;
        let registry = Registry { process, address, node, dir };
        within(Duration::from_secs(10), || registry.is_up(world))?;
        Ok(registry)
    }

    fn is_up(&self, world: &World) -> anyhow::Result<()> {
        let url = format!("/dev/tcp/{}", self.address.replace(':', "/"));
        let connected = checked(&mut world.lab().root(["bash", "-c", &format!(": < {url}")]));
        connected.map(drop).with_context(|| std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default())
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        // Fails only when it has ended.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// An image on a node, removed when dropped: the next run is to pull it again.
struct Image<'a> {
    world: &'a World,
    node: String,
    name: String,
}

impl Drop for Image<'_> {
    fn drop(&mut self) {
        let _ = checked(&mut self.world.lab().node(&self.node, ["ctr", "-n", "k8s.io", "images", "rm", &self.name]));
    }
}
