//! Small verbs on a testbed that is up: `env`, `load`, `route`, `restart`.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};

use crate::testbed::addresses::Node;
use crate::testbed::machine::{self, Started};
use crate::testbed::state::{Owner, StateDir, lock};
use crate::testbed::{control_plane, exec, net, node, pki, wan};

#[derive(clap::Args)]
pub(crate) struct EnvArgs {
    /// Make a kubeconfig for this user instead, and print its path
    #[arg(long, value_name = "NAME")]
    kubeconfig_for: Option<String>,
    /// A group that user is in; may be given several times
    #[arg(long, requires = "kubeconfig_for")]
    group: Vec<String>,
    /// How long its certificate is good for: 60s, 10m, 24h
    #[arg(long, default_value = "24h", value_parser = seconds, requires = "kubeconfig_for")]
    expire: u64,
}

#[derive(clap::Args)]
pub(crate) struct LoadArgs {
    /// OCI archives
    #[arg(required = true)]
    files: Vec<PathBuf>,
}

#[derive(clap::Args)]
pub(crate) struct RouteArgs {
    #[arg(value_parser = ["on", "off"])]
    switch: String,
}

#[derive(clap::Args)]
pub(crate) struct RestartArgs {
    /// A component, as `status` names it
    name: String,
}

fn seconds(text: &str) -> Result<u64, String> {
    let (figure, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
    let figure: u64 = figure.parse().map_err(|_| "a duration looks like 60s, 10m or 24h".to_owned())?;
    match unit {
        "s" | "" => Ok(figure),
        "m" => Ok(figure * 60),
        "h" => Ok(figure * 3600),
        _ => Err(format!("unit {unit:?} is none of s, m, h")),
    }
}

pub(crate) fn env(args: EnvArgs) -> Result<()> {
    let state = Owner::running()?.dir();
    if let Some(name) = args.kubeconfig_for {
        let _lock = lock()?;
        println!("{}", pki::user(&state, &name, &args.group, args.expire)?.display());
        return Ok(());
    }
    let quote = |text: &str| format!("'{}'", text.replace('\'', r"'\''"));
    println!("export KUBECONFIG={}", quote(&state.kubeconfig("admin").display().to_string()));
    println!("export PATH={}", quote(&exec::path(&state.bin())?.to_string_lossy()));
    Ok(())
}

pub(crate) fn load(args: LoadArgs) -> Result<()> {
    let owner = Owner::running()?;
    for file in &args.files {
        ensure!(file.is_file(), "{} is no file: `load` takes OCI archives", file.display());
        load_into(&owner, file)?;
    }
    Ok(())
}

/// Imports an archive into every node, all nodes at once.
pub(crate) fn load_into(owner: &Owner, file: &std::path::Path) -> Result<()> {
    let state = &owner.dir();
    std::thread::scope(|scope| {
        let import = |node| move || node::import(state, node, file);
        let work: Vec<_> = Node::all(owner.nodes).map(|node| scope.spawn(import(node))).collect();
        work.into_iter().try_for_each(|work| work.join().unwrap_or_else(|_| anyhow::bail!("an import panicked")))
    })
}

pub(crate) fn route(args: RouteArgs) -> Result<()> {
    let _lock = lock()?;
    let owner = Owner::running()?;
    let state = owner.dir();
    let (on, flag) = (args.switch == "on", route_flag(&state));
    if on == flag.exists() {
        return Ok(());
    }
    net::route_pods(on, owner.nodes)?;
    if on {
        fs::write(&flag, "")?
    } else {
        fs::remove_file(&flag)?
    }
    wan::follow_route(&state, on)
}

pub(crate) fn route_flag(state: &StateDir) -> PathBuf {
    state.join("route-on")
}

pub(crate) fn restart(args: RestartArgs) -> Result<()> {
    let _lock = lock()?;
    let owner = Owner::running()?;
    let state = owner.dir();
    let name = &args.name;
    let started = Started::find(&state, name).with_context(|| format!("no component {name}: `status` lists them"))?;
    let init = owner.inits.iter().find(|init| init.name == started.machine).context("its machine is gone")?;
    started.stop(&state)?;
    machine::start(&state, init, started.daemon)?;
    if name == "apiserver" || name == "etcd" {
        control_plane::wait_for_api(&state)?;
    }
    Ok(())
}
