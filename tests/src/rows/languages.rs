//! R10: programs of every kind, and 20 connects at once to a far side 50 ms away.

use anyhow::{Context, ensure};

use super::{Row, row};
use crate::clients::{ALL, Client};
use crate::far::Far;
use crate::world::World;
use testkit::lab::Shell;

pub(super) const ROWS: &[Row] = &[
    row("R10", "static Go, musl, C, io_uring, Python, Node, Java, bash, Ruby fetch and are refused", fetch),
    row("R10", "20 non-blocking connects to a far side 50 ms away in 120 ms", far_connects),
];

/// One round trip of 50 ms, and what 20 flows cost on a shared machine.
const FAR_LIMIT_MS: f64 = 120.0;

fn fetch(world: &World) -> anyhow::Result<()> {
    let mut shell = world.shell()?;
    let web = world.service("web")?[0];
    for client in ALL {
        // io_uring has no resolver; the others take the name.
        let url = if client.resolves { "http://web/hello".to_owned() } else { format!("http://{web}/hello") };
        let answer = ask(world, &mut shell, client, &format!("- {url} {web}:9555 -"))?;
        let body = answer["http"].as_str().unwrap_or_default();
        ensure!(body.starts_with("hello from web-"), "{}: {url} gave {answer}", client.name);
        ensure!(answer["refused"] == "ECONNREFUSED", "{}: port 9555 gave {answer}", client.name);
    }
    Ok(())
}

fn far_connects(world: &World) -> anyhow::Result<()> {
    let mut shell = world.shell()?;
    let web = world.service("web")?[0];
    let _far = Far::start(world, "50ms")?;
    for client in ALL.into_iter().filter(|client| client.non_blocking) {
        // The machine is shared, and now and then stands still for a moment: what is really slower is so every time.
        let mut times = Vec::new();
        while times.len() < 3 && times.last().is_none_or(|took| *took > FAR_LIMIT_MS) {
            let answer = ask(world, &mut shell, client, &format!("- - - {web}:9000"))?;
            let took = answer["connects_ms"].as_f64().unwrap_or(-1.0);
            ensure!(took >= 50.0, "{}: {took} ms is less than the way there and back: {answer}", client.name);
            times.push(took);
        }
        let is_in_time = times.last().is_some_and(|took| *took <= FAR_LIMIT_MS);
        ensure!(is_in_time, "{}: 20 connects took {times:?} ms", client.name);
    }
    Ok(())
}

fn ask(world: &World, shell: &mut Shell, client: Client, arguments: &str) -> anyhow::Result<serde_json::Value> {
    let line = format!("{} {arguments}", world.clients().start(client));
    shell.json(&line).with_context(|| format!("the {} client", client.name))
}
