//! Where the demo plays: a testbed of its own, the one it was started in, or a cluster of the user's.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use testkit::lab::{checked, until, within};
use testkit::shop;

use crate::arena::{Arena, Found};
use crate::test::stop_if_interrupted;
use crate::{dist, image, shell};

const NAMESPACE: &str = "stead-demo";
const READY: Duration = Duration::from_secs(60);

/// Removes what it deployed when dropped, then the testbed, if that was not up before.
pub(crate) struct Stage {
    place: Place,
    stead: PathBuf,
    /// The services' program, for a run on this machine.
    app: PathBuf,
    app_image: String,
    agent_image: Option<String>,
}

enum Place {
    Testbed(Arena),
    /// Commands run as they are: started inside a testbed (by a test of the README), or on the user's own machine.
    Here {
        context: Option<String>,
    },
}

impl Stage {
    pub(crate) fn set(context: Option<&str>) -> Result<Stage> {
        if let Some(context) = context {
            return Stage::own(context);
        }
        if let Some(stage) = Stage::inside() {
            return Ok(stage);
        }
        let arena = Arena::prepare(Found::Keep, &[])?;
        Ok(Stage {
            stead: arena.dist.stead.clone(),
            app: arena.testapp.clone(),
            app_image: arena.testapp_image.clone(),
            agent_image: Some(arena.agent_image.clone()),
            place: Place::Testbed(arena),
        })
    }

    /// A test run says so by naming what it built and loaded.
    fn inside() -> Option<Stage> {
        Some(Stage {
            place: Place::Here { context: None },
            stead: std::env::var_os("STEAD_BIN")?.into(),
            app: std::env::var_os("STEAD_TESTAPP")?.into(),
            app_image: std::env::var("STEAD_TESTAPP_IMAGE").ok()?,
            agent_image: std::env::var("STEAD_AGENT_IMAGE").ok(),
        })
    }

    fn own(context: &str) -> Result<Stage> {
        let dist = dist::build()?;
        let app_image = format!("localhost/testapp:{}", env!("CARGO_PKG_VERSION"));
        let app = dist::program("testkit", "testapp")?;
        let archive = image::from_static_binary(&app_image, &app)?;
        println!("its nodes need two images; load them as your cluster takes them (kind, k3d, minikube, ctr):");
        println!("  {}", archive.display());
        println!("  and what `{} image save FILE` writes", dist.stead.display());
        let place = Place::Here { context: Some(context.to_owned()) };
        Ok(Stage { place, stead: dist.stead, app, app_image, agent_image: None })
    }

    /// Puts the three services there and waits until they are ready.
    pub(crate) fn deploy(&self) -> Result<()> {
        let file = tempfile::Builder::new().suffix(".yaml").tempfile()?;
        std::fs::write(file.path(), shop::manifest(NAMESPACE, &self.app_image))?;
        self.kubectl(&["create", "namespace", NAMESPACE])?;
        self.kubectl(&["apply", "-f", &file.path().display().to_string()])?;
        for service in shop::SERVICES {
            let name = format!("deployment/{service}");
            let wait = ["wait", "-n", NAMESPACE, &name, "--for=condition=Available", "--timeout=5s"];
            within(READY, || {
                stop_if_interrupted()?;
                self.kubectl(&wait)
            })
            .with_context(|| format!("{service} does not become ready: did the nodes get its image?"))?;
        }
        Ok(())
    }

    /// Shows what kubectl says of the demo's namespace.
    pub(crate) fn show(&self, words: &[&str]) -> Result<()> {
        println!("$ kubectl {}", words.join(" "));
        print!("{}", self.kubectl(&[words, &["-n", NAMESPACE]].concat())?);
        Ok(())
    }

    /// Runs a command in the place of `web`; whether it succeeded.
    pub(crate) fn stead(&self, command: &[&str]) -> Result<bool> {
        self.session(command)?.finish()
    }

    /// Starts a command in the place of `web`.
    pub(crate) fn session(&self, command: &[&str]) -> Result<Running<'_>> {
        let context = match &self.place {
            Place::Here { context: Some(context) } => vec!["--context", context],
            _ => Vec::new(),
        };
        println!("$ stead run web -- {}", self.typed(command));
        let stead = self.program();
        let head = [&[stead.as_str(), "run"][..], &context, &["-n", NAMESPACE, "--park", "20s", "web", "--"]].concat();
        self.start(&[&head[..], command].concat())
    }

    /// Runs a command as it is; whether it succeeded.
    pub(crate) fn user(&self, command: &[&str]) -> Result<bool> {
        println!("$ {}", self.typed(command));
        self.start(command)?.finish()
    }

    /// Forwards a port of localhost as kubectl does, from now until it is dropped.
    pub(crate) fn port_forward(&self, to: &str, from: u16, port: u16) -> Result<Running<'_>> {
        let context = match &self.place {
            Place::Here { context: Some(context) } => vec![format!("--context={context}")],
            _ => Vec::new(),
        };
        let ports = format!("{from}:{port}");
        println!("$ kubectl port-forward {to} {ports}");
        let context: Vec<&str> = context.iter().map(String::as_str).collect();
        let argv = [&["kubectl"], &context[..], &["port-forward", "-n", NAMESPACE, to, &ports]].concat();
        let running = self.start_with(&argv, Stdio::null())?;
        running.until_listening(from)?;
        Ok(running)
    }

    pub(crate) fn program(&self) -> String {
        self.stead.display().to_string()
    }

    pub(crate) fn app(&self) -> String {
        self.app.display().to_string()
    }

    /// The testbed's is ours to take away.
    pub(crate) fn has_a_network_to_lose(&self) -> bool {
        matches!(self.place, Place::Testbed(_))
    }

    /// While a session is busy, takes every packet between this machine and the cluster away for some time.
    pub(crate) fn lose_the_network(&self, time: Duration) -> Result<()> {
        let Place::Testbed(arena) = &self.place else { return Ok(()) };
        let carried = || -> Result<()> {
            let text = checked(&mut arena.lab().user([&self.program(), "status", "-o", "json"]))?;
            let status: serde_json::Value = serde_json::from_str(&text)?;
            let links = status[0]["links"].as_array().context("no links")?.iter();
            let bytes: u64 = links.filter_map(|link| link["received_bytes"].as_u64()).sum();
            ensure!(bytes > 400_000_000, "{bytes} bytes so far");
            Ok(())
        };
        within(READY, carried)?;
        arena.lab().testbed(&["wan", "--loss", "100%"])?;
        let back = Instant::now() + time;
        let waited = until("time does not pass", time * 2, || Instant::now() >= back);
        arena.lab().testbed(&["wan", "off"])?;
        waited
    }

    /// As one would type it: our own programs without the folders they were built in.
    fn typed(&self, words: &[&str]) -> String {
        let own = [&self.app, &self.stead].map(|path| path.to_str().unwrap_or_default());
        let quote = |word: &&str| match own.contains(word) {
            true => word.rsplit('/').next().unwrap_or_default().to_owned(),
            false if word.contains('\'') => format!("\"{word}\""),
            false if word.contains([' ', '?', '&']) => format!("'{word}'"),
            false => (*word).to_owned(),
        };
        words.iter().map(quote).collect::<Vec<_>>().join(" ")
    }

    fn start(&self, argv: &[&str]) -> Result<Running<'_>> {
        self.start_with(argv, Stdio::inherit())
    }

    fn start_with(&self, argv: &[&str], stdout: Stdio) -> Result<Running<'_>> {
        stop_if_interrupted()?;
        let mut command = self.command(argv)?;
        if let Some(image) = &self.agent_image {
            command.env("STEAD_AGENT_IMAGE", image);
        }
        let child = command.stdout(stdout).spawn().with_context(|| format!("cannot start {}", argv[0]))?;
        Ok(Running { stage: self, child })
    }

    fn command(&self, argv: &[&str]) -> Result<Command> {
        match &self.place {
            Place::Testbed(arena) => Ok(arena.lab().user(argv)),
            Place::Here { .. } => plain(argv),
        }
    }

    fn kubectl(&self, words: &[&str]) -> Result<String> {
        match &self.place {
            Place::Testbed(arena) => arena.lab().kubectl(words),
            Place::Here { context } => {
                let context = context.as_ref().map(|context| format!("--context={context}"));
                let head = ["kubectl"].into_iter().chain(context.as_deref());
                shell::output(&mut plain(&head.chain(words.iter().copied()).collect::<Vec<_>>())?)
            }
        }
    }
}

/// A command that runs on; ended when dropped.
pub(crate) struct Running<'a> {
    stage: &'a Stage,
    child: Child,
}

impl Running<'_> {
    /// Waits until localhost takes connections on this port.
    pub(crate) fn until_listening(&self, port: u16) -> Result<()> {
        let url = format!("http://127.0.0.1:{port}/");
        within(READY, || {
            stop_if_interrupted()?;
            shell::output(&mut self.stage.command(&["curl", "-s", "-o", "/dev/null", "--max-time", "2", &url])?)
                .map(drop)
        })
    }

    /// Waits for its end; whether it succeeded.
    pub(crate) fn finish(mut self) -> Result<bool> {
        let status = self.child.wait()?;
        if !status.success() {
            println!("({status})");
        }
        Ok(status.success())
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        // So that it cleans up after itself; nothing happens to one that has ended.
        if let (Ok(None), Ok(pid)) = (self.child.try_wait(), i32::try_from(self.child.id())) {
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGTERM);
            let _ = self.child.wait();
        }
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        if let Err(error) = self.kubectl(&["delete", "namespace", NAMESPACE, "--ignore-not-found"]) {
            eprintln!("the namespace {NAMESPACE} stays: {error:#}");
        }
    }
}

fn plain(argv: &[&str]) -> Result<Command> {
    let [program, args @ ..] = argv else { bail!("no command") };
    let mut command = Command::new(program);
    command.args(args);
    Ok(command)
}
