//! The insides of pods: processes, mounts, listening ports, nftables, links and routes.

use std::fs;
use std::process::Command;

use serde_json::Value;

use super::{AGENT, Parked, Picture};
use crate::lab::{Container, checked, containers};

/// Looks into every running container of the pods.
pub(super) fn take(pods: &[Value], parked: Parked, picture: &mut Picture) -> anyhow::Result<()> {
    for container in containers(pods) {
        let is_agent = container.name.starts_with(AGENT);
        if is_agent && parked == Parked::Allowed {
            continue;
        }
        let Some(&first) = container.pids.first() else { continue };
        let place = format!("{} {}", container.pod, container.name);
        picture.put(format!("processes in {place}"), processes(&container));
        picture.put(format!("mounts in {place}"), mounts(first));
        if !is_agent {
            picture.put(format!("network of {}", container.pod), network(first, parked)?);
        }
    }
    Ok(())
}

fn processes(container: &Container) -> String {
    let command = |pid: &u32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).replace('\0', " ")
    };
    let mut lines: Vec<String> = container.pids.iter().map(command).collect();
    lines.sort();
    lines.join("\n")
}

/// Mount points, types and sources; the ids and the order of mounting are not part of the picture.
fn mounts(pid: u32) -> String {
    let text = fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap_or_default();
    let mut lines: Vec<String> = text
        .lines()
        .filter_map(|line| {
            let (before, after) = line.split_once(" - ")?;
            let fields: Vec<&str> = before.split(' ').collect();
            Some(format!("{} {} {} {after}", fields.get(3)?, fields.get(4)?, fields.get(5)?))
        })
        .collect();
    lines.sort();
    lines.join("\n")
}

const NETWORK: &str = r#"
nft list ruleset; ip -o link | sed 's/ qlen.*//'
ip route show table all; ip -6 route show table all | sed 's/ expires [^ ]*//'
ss -Hltunp | awk '{print "listens", $1, $5, $7}' | sed 's/,pid=[0-9]*,fd=[0-9]*//g' | sort
"#;

/// The rule set, links and routes of a pod's network, and who listens. A parked agent's port goes with the agent.
fn network(pid: u32, parked: Parked) -> anyhow::Result<String> {
    let text = checked(Command::new("nsenter").args(["--net", "--target", &pid.to_string(), "sh", "-c", NETWORK]))?;
    let is_parked =
        |line: &str| parked == Parked::Allowed && line.starts_with("listens") && line.contains("stead-agent");
    Ok(text.lines().filter(|line| !is_parked(line)).collect::<Vec<_>>().join("\n"))
}
