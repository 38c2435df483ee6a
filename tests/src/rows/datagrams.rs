//! R3: UDP and ICMP echo go as from the pod.

use std::time::Duration;

use anyhow::ensure;
use serde_json::json;
use testkit::lab::within;

use super::{Row, at, probe, row};
use crate::world::World;

pub(super) const ROWS: &[Row] = &[
    row("R3", "UDP of 0 to 60,000 bytes to Services and pods, IPv4 and IPv6", sizes),
    row("R3", "one unconnected UDP socket talks with many", unconnected),
    row("R3", "UDP that nobody takes is refused as in the pod", refused),
    row("R3", "ICMP echo", echo),
];

fn sizes(world: &World) -> anyhow::Result<()> {
    let mut shell = world.shell()?;
    let targets = [at(&world.service("web")?, 9000), at(&world.pod_addresses("db-0")?, 9000)].concat();
    for target in targets {
        for bytes in [0, 1, 1400, 9000, 60_000] {
            for flag in ["", "--connected"] {
                let outcome = probe(world, &mut shell, &format!("probe udp {target} --bytes {bytes} {flag}"))?;
                ensure!(
                    outcome == json!([{"same": true, "from": target}]),
                    "{target}, {bytes} bytes {flag}: {outcome}"
                );
            }
        }
    }
    Ok(())
}

fn unconnected(world: &World) -> anyhow::Result<()> {
    let mut shell = world.shell()?;
    let (services, first, second) = (world.service("web")?, world.pod_addresses("db-0")?, world.pod_addresses("db-1")?);
    for ((service, first), second) in services.iter().zip(&first).zip(&second) {
        let targets = at(&[*service, *first, *second, *first], 9000);
        let words: Vec<String> = targets.iter().map(ToString::to_string).collect();
        let outcome = probe(world, &mut shell, &format!("probe udp {}", words.join(" ")))?;
        let expected: Vec<_> = targets.iter().map(|target| json!({"same": true, "from": target})).collect();
        ensure!(outcome == json!(expected), "{words:?}: {outcome}");
    }
    Ok(())
}

fn refused(world: &World) -> anyhow::Result<()> {
    let mut shell = world.shell()?;
    let mut targets = at(&world.service("web")?, 9555);
    targets.extend(at(&world.pod_addresses("db-0")?, 9555));
    targets.extend(at(&world.service("empty")?, 53));
    for target in targets {
        let words = format!("probe udp --connected --patience 1 {target}");
        let refused = json!([{"error": "ECONNREFUSED"}]);
        // Linux sends one host few ICMP errors a second, and nobody repeats a datagram: not each one is answered.
        within(Duration::from_secs(20), || {
            let here = probe(world, &mut shell, &words)?;
            ensure!(here == refused, "{target}: {here} in the sandbox");
            Ok(())
        })?;
        within(Duration::from_secs(20), || {
            let there = world.stranger(&words.split(' ').collect::<Vec<_>>())?;
            ensure!(there == refused, "{target}: {there} in a pod");
            Ok(())
        })?;
    }
    Ok(())
}

fn echo(world: &World) -> anyhow::Result<()> {
    let mut shell = world.shell()?;
    for address in world.pod_addresses("db-0")? {
        let outcome = probe(world, &mut shell, &format!("probe ping {address}"))?;
        ensure!(outcome == json!([true, true, true]), "{address}: {outcome}");
    }
    Ok(())
}
