//! `testbed status` and `testbed logs`; and whether what runs can be kept.

use std::fs;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::testbed::control_plane::kubectl;
use crate::testbed::machine::Started;
use crate::testbed::state::Owner;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// How to print it
    #[arg(short, long, value_enum, default_value_t = Format::Text)]
    output: Format,
}

#[derive(Clone, Copy, PartialEq, clap::ValueEnum)]
enum Format {
    Text,
    Json,
}

#[derive(clap::Args)]
pub(crate) struct LogsArgs {
    /// A component, as `status` names it
    name: Option<String>,
}

/// Whether a testbed of just these sources, state directory and nodes runs and is Ready.
pub(crate) fn is_healthy_and_like(wanted: &Owner) -> bool {
    Owner::read().is_some_and(|owner| {
        owner.ready
            && (&owner.state, &owner.checkout, &owner.key, owner.nodes)
                == (&wanted.state, &wanted.checkout, &wanted.key, wanted.nodes)
            && all_alive(&owner)
            && nodes(&owner).is_ok_and(|nodes| nodes.len() == usize::from(owner.nodes) && nodes.iter().all(is_ready))
    })
}

fn all_alive(owner: &Owner) -> bool {
    owner.inits.iter().all(|init| init.is_alive()) && Started::all(&owner.dir()).iter().all(|s| s.process.is_alive())
}

fn nodes(owner: &Owner) -> Result<Vec<Value>> {
    let text = kubectl(&owner.dir(), "get nodes -o json --request-timeout=5s", None)?;
    let list: Value = serde_json::from_str(&text)?;
    let describe = |node: &Value| {
        let conditions = node["status"]["conditions"].as_array().into_iter().flatten();
        let ready = conditions.into_iter().any(|c| c["type"] == "Ready" && c["status"] == "True");
        json!({
            "name": node["metadata"]["name"], "ready": ready, "version": node["status"]["nodeInfo"]["kubeletVersion"],
            "addresses": node["status"]["addresses"], "podCIDRs": node["spec"]["podCIDRs"],
        })
    };
    Ok(list["items"].as_array().context("no list of nodes")?.iter().map(describe).collect())
}

fn is_ready(node: &Value) -> bool {
    node["ready"] == true
}

pub(crate) fn run(args: Args) -> Result<()> {
    let status = gather();
    let ready = status["ready"] == true;
    match args.output {
        Format::Json => println!("{}", serde_json::to_string_pretty(&status)?),
        Format::Text => print(&status),
    }
    if !ready {
        std::process::exit(1);
    }
    Ok(())
}

fn gather() -> Value {
    let Some(owner) = Owner::read() else { return json!({ "ready": false, "up": false }) };
    let state = owner.dir();
    let nodes = nodes(&owner).unwrap_or_default();
    let started = Started::all(&state);
    let processes = started.iter().map(|s| {
        json!({ "name": s.process.name, "machine": s.machine, "pid": s.process.pid, "alive": s.process.is_alive() })
    });
    let ready =
        owner.ready && all_alive(&owner) && nodes.len() == usize::from(owner.nodes) && nodes.iter().all(is_ready);
    json!({
        "up": true, "ready": ready, "state": owner.state, "checkout": owner.checkout, "nodes": nodes,
        "inits": owner.inits, "processes": processes.collect::<Vec<_>>(),
        "wan": fs::read_to_string(state.join("wan.json")).ok().and_then(|text| serde_json::from_str::<Value>(&text).ok()),
        "route": state.join("route-on").exists(), "kubeconfig": state.kubeconfig("admin"),
    })
}

fn print(status: &Value) {
    if status["up"] != true {
        println!("no testbed is up");
        return;
    }
    let word = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    println!("{}, state in {}", if status["ready"] == true { "ready" } else { "NOT ready" }, word(&status["state"]));
    for node in status["nodes"].as_array().into_iter().flatten() {
        let ready = if is_ready(node) { "Ready" } else { "NotReady" };
        println!("  {} {ready} {}", word(&node["name"]), word(&node["version"]));
    }
    for process in status["processes"].as_array().into_iter().flatten() {
        let ended = if process["alive"] == true { "" } else { "  ENDED" };
        println!("  {:<20} pid {}{ended}", word(&process["name"]), process["pid"]);
    }
    let on = |value: &Value| if value.is_null() || value == false { "off".to_owned() } else { word(value) };
    println!("  wan {}, route {}", on(&status["wan"]), if status["route"] == true { "on" } else { "off" });
}

pub(crate) fn logs(args: LogsArgs) -> Result<()> {
    let state = Owner::read().context("no testbed is up, so it has no logs")?.dir();
    let Some(name) = args.name else {
        for entry in fs::read_dir(state.join("log"))?.flatten() {
            println!("{}", entry.file_name().to_string_lossy().trim_end_matches(".log"));
        }
        return Ok(());
    };
    let path = state.log(&name);
    let mut file =
        fs::File::open(&path).with_context(|| format!("no log of {name}: `cargo xtask testbed logs` lists them"))?;
    std::io::copy(&mut file, &mut std::io::stdout())?;
    Ok(())
}
