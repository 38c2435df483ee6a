//! `cargo xtask demo`: a cluster, three services, and a command of the developer's among them, said step by step.

mod stage;

use std::process::ExitCode;

use anyhow::{Result, ensure};

use crate::demo::stage::Stage;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// A cluster of your own, by its context in the kubeconfig (default: the testbed)
    #[arg(long)]
    context: Option<String>,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    crate::test::end_gently()?;
    say("A cluster");
    let stage = Stage::set(args.context.as_deref())?;
    say("Three services: web asks api, api asks db");
    stage.deploy()?;
    stage.show(&["get", "pods", "-o", "wide"])?;

    say("This machine is not in the cluster: it knows no api");
    stage.user(&["curl", "-sS", "--max-time", "3", "http://api/hello"])?;

    say("The same command in the place of web: as an unprivileged user, through web's pod");
    ensure!(stage.stead(&["curl", "-sS", "http://api/hello"])?, "the command did not reach api");

    say("It has web's environment, and is still the same user on the same machine");
    ensure!(stage.stead(&["sh", "-c", "echo \"$GREETING, $CURRENCY\"; id -un; uname -n"])?, "the command failed");

    say("The network is truthful: a port where nobody listens refuses");
    stage.stead(&["curl", "-sS", "--max-time", "9", "http://db:9555/"])?;

    say("An exit code is the command's own");
    stage.stead(&["sh", "-c", "exit 42"])?;

    say("Nothing was restarted; the agent is parked in web's pod for a few seconds, then it ends");
    stage.show(&["get", "pods"])?;
    say("Done; everything is removed");
    Ok(ExitCode::SUCCESS)
}

fn say(what: &str) {
    println!("\n\x1b[1m── {what}\x1b[0m");
}
