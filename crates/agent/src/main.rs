//! `stead-agent`: parse, log, lock, run.

use std::io;
use std::net::IpAddr;
use std::path::Path;
use std::process::ExitCode;

use agent::output::{Stderr, write_now};
use agent::{Config, Sources, lock};
use anyhow::Context as _;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::io::AsyncRead;
use tokio::net::unix::pipe;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

/// Set by the client that places the agent, from the downward API's `status.podIPs`: separated by commas.
const POD_IPS: &str = "STEAD_POD_IPS";
/// Set by the client for the agent of a stand-in.
const STAND_IN: &str = "STEAD_STAND_IN";
/// `info`, or by module as `warn,link=debug`. RUST_LOG is the app's.
const LOG: &str = "STEAD_LOG";

const USAGE: u8 = 64;
const FAILED: u8 = 70;
const TAKEN: u8 = 75;

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    match (arguments.next(), arguments.next()) {
        (None, _) => {}
        (Some(verb), None) if verb == "version" => {
            write_now(rustix::stdio::stdout(), format!("stead-agent {}\n", wire::RELEASE).as_bytes());
            return ExitCode::SUCCESS;
        }
        _ => {
            write_now(rustix::stdio::stderr(), b"usage: stead-agent [version]\n");
            return ExitCode::from(USAGE);
        }
    }
    let filter = std::env::var(LOG).ok().and_then(|text| text.parse().ok());
    let filter = filter.unwrap_or_else(|| Targets::new().with_default(LevelFilter::INFO));
    let lines = tracing_subscriber::fmt::layer().with_writer(Stderr).with_ansi(false);
    tracing_subscriber::registry().with(lines).with(filter).init();
    match start() {
        Ok(code) => code,
        Err(error) => {
            tracing::error!(error = format!("{error:#}"), "the agent cannot go on");
            ExitCode::from(FAILED)
        }
    }
}

fn start() -> anyhow::Result<ExitCode> {
    let lock = lock::take(Path::new("/proc/self/exe")).context("the agent's own executable cannot be locked")?;
    let Some(_lock) = lock else {
        tracing::error!("an agent runs in this container already");
        return Ok(ExitCode::from(TAKEN));
    };
    raise_open_files();
    let stand_in = std::env::var_os(STAND_IN).is_some();
    let config = Config { pod_ips: pod_ips(), sources: Sources::of_this_container(), stand_in };
    // One thread: measured over loopback it carries 4.4 Gbit/s down and 5.6 up at 0.5-1.0 CPU seconds per GB, more than
    // an API server copies, and keeps an idle session at 4 MB and one after bulk at 6.
    let runtime = link::runtime()?;
    runtime.block_on(async {
        let answer = |line: &str| {
            if !write_now(rustix::stdio::stdout(), line.as_bytes()) {
                tracing::warn!("stdout is full: an admission was not answered");
            }
        };
        // As the first process of a container it would not be ended by the signal otherwise.
        let mut terminated = signal(SignalKind::terminate())?;
        let terminated = async move {
            terminated.recv().await;
        };
        let ended = agent::run(config, stdin()?, answer, terminated).await;
        ended.context("the agent's ports cannot be opened")
    })?;
    // A read of stdin may stand still in a thread.
    runtime.shutdown_background();
    Ok(ExitCode::SUCCESS)
}

fn pod_ips() -> Vec<IpAddr> {
    let text = std::env::var(POD_IPS).unwrap_or_default();
    text.split(',').filter_map(|ip| ip.trim().parse().ok()).collect()
}

/// A flow takes a file; the soft limit is 1,024 in many runtimes, far below the hard one.
fn raise_open_files() {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }) {
        tracing::warn!(%error, "the limit of open files stays as it is");
    }
}

/// Container runtimes give a pipe, which needs no thread to wait for it.
fn stdin() -> io::Result<Box<dyn AsyncRead + Unpin>> {
    let file = std::fs::File::from(rustix::io::dup(rustix::stdio::stdin())?);
    Ok(match pipe::Receiver::from_file(file) {
        Ok(pipe) => Box::new(pipe),
        Err(_) => Box::new(tokio::io::stdin()),
    })
}
