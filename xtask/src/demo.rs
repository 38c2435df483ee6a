//! `cargo xtask demo`: a cluster, three services, and a command of the developer's among them, said step by step.

mod stage;

use std::process::ExitCode;
use std::time::Duration;

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

    say("The service itself, from your disk: no image is built, and what it listens on is on your localhost");
    let app = stage.app();
    let service = stage.session(&[&app, "shop", "web", "--next=api:80", "--port=8080"])?;
    service.until_listening(8080)?;
    stage.user(&["curl", "-sS", "http://127.0.0.1:8080/cart"])?;
    stage.user(&[&stage.program(), "status"])?;
    stage.user(&[&stage.program(), "quit"])?;
    drop(service);

    say("300 MB through kubectl port-forward, and through the session");
    let dump = "/dump?megabytes=300";
    let time = ["-sS", "-o", "/dev/null", "-w", "%{size_download} bytes in %{time_total} s\\n"];
    let forward = stage.port_forward("service/db", 19_080, 9001)?;
    stage.user(&[&["curl"], &time[..], &[&format!("http://127.0.0.1:19080{dump}")]].concat())?;
    drop(forward);
    let from_db = format!("http://db:9001{dump}");
    ensure!(stage.stead(&[&["curl"], &time[..], &[&from_db]].concat())?, "the download failed");

    if stage.has_a_network_to_lose() {
        say("The network is lost for five seconds in the middle of a download: the connection lives on");
        let check = "sha256sum | cut -c 1-32";
        let whole = format!("curl -sS '{from_db}' | {check}; curl -sS --limit-rate 100M '{from_db}' | {check}");
        let download = stage.session(&["sh", "-c", &whole])?;
        stage.lose_the_network(Duration::from_secs(5))?;
        ensure!(download.finish()?, "the download failed");
    }

    say("Nothing was restarted; the agent is parked in web's pod for a few seconds, then it ends");
    stage.show(&["get", "pods"])?;
    say("Done; everything is removed");
    Ok(ExitCode::SUCCESS)
}

fn say(what: &str) {
    println!("\n\x1b[1m── {what}\x1b[0m");
}
