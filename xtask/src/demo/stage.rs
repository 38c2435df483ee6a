//! Where the demo plays: a testbed of its own, the one it was started in, or a cluster of the user's.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail};
use testkit::{lab::within, shop};

use crate::arena::{Arena, Found};
use crate::test::stop_if_interrupted;
use crate::{dist, image, shell};

const NAMESPACE: &str = "stead-demo";
const READY: std::time::Duration = std::time::Duration::from_secs(60);

/// Removes what it deployed when dropped, then the testbed, if that was not up before.
pub(crate) struct Stage {
    place: Place,
    stead: PathBuf,
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
            app_image: std::env::var("STEAD_TESTAPP_IMAGE").ok()?,
            agent_image: std::env::var("STEAD_AGENT_IMAGE").ok(),
        })
    }

    fn own(context: &str) -> Result<Stage> {
        let dist = dist::build()?;
        let app_image = format!("localhost/testapp:{}", env!("CARGO_PKG_VERSION"));
        let archive = image::from_static_binary(&app_image, &dist::program("testkit", "testapp")?)?;
        println!("its nodes need two images; load them as your cluster takes them (kind, k3d, minikube, ctr):");
        println!("  {}", archive.display());
        println!("  and what `{} image save FILE` writes", dist.stead.display());
        let place = Place::Here { context: Some(context.to_owned()) };
        Ok(Stage { place, stead: dist.stead, app_image, agent_image: None })
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
        let stead = self.stead.display().to_string();
        let context = match &self.place {
            Place::Here { context: Some(context) } => vec!["--context", context],
            _ => Vec::new(),
        };
        println!("$ stead run web -- {}", quoted(command));
        let head = [&[stead.as_str(), "run"][..], &context, &["-n", NAMESPACE, "--park", "20s", "web", "--"]].concat();
        self.play(&[&head[..], command].concat())
    }

    /// Runs a command as it is; whether it succeeded.
    pub(crate) fn user(&self, command: &[&str]) -> Result<bool> {
        println!("$ {}", quoted(command));
        self.play(command)
    }

    fn play(&self, argv: &[&str]) -> Result<bool> {
        stop_if_interrupted()?;
        let mut command = match &self.place {
            Place::Testbed(arena) => arena.lab().user(argv),
            Place::Here { .. } => plain(argv)?,
        };
        if let Some(image) = &self.agent_image {
            command.env("STEAD_AGENT_IMAGE", image);
        }
        let status = command.status().with_context(|| format!("cannot start {}", argv[0]))?;
        if !status.success() {
            println!("({status})");
        }
        Ok(status.success())
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

/// As one would type it.
fn quoted(words: &[&str]) -> String {
    let quote = |word: &&str| if word.contains(' ') { format!("'{word}'") } else { (*word).to_owned() };
    words.iter().map(quote).collect::<Vec<_>>().join(" ")
}
