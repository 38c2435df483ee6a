//! R12: the machine's localhost is the command's, too.

use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::ensure;
use testkit::lab::within;

use super::{Row, probe, row};
use crate::world::World;

pub(super) const ROWS: &[Row] =
    &[row("R12", "a service on the machine's 127.0.0.1 is reached from the command", machine)];

/// Of the server on the machine, one for each of the test program's habits.
const PORTS: [&str; 5] = ["--raw=19200", "--http=19201", "--first=19202", "--reset=19203", "--record=19204"];

fn machine(world: &World) -> anyhow::Result<()> {
    let mut serve = world.lab().user([&[world.testapp(), "serve"], &PORTS[..]].concat());
    let _server = Server(serve.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?);
    let mut shell = world.shell()?;
    within(Duration::from_secs(10), || {
        let hello = probe(world, &mut shell, "probe get 127.0.0.1:19201 /hello")?;
        ensure!(hello.as_str().is_some_and(|hello| hello.starts_with("hello from ")), "{hello}");
        Ok(())
    })?;
    let half = probe(world, &mut shell, "probe half-close 127.0.0.1:19200 --bytes 70000")?;
    ensure!(half["hash_equal"] == true && half["count"] == 70_000, "a half-close is not kept: {half}");
    let closed = probe(world, &mut shell, "probe connect 127.0.0.1:19299")?;
    ensure!(closed["result"] == "ECONNREFUSED", "{closed}");
    // What the command itself listens on comes first.
    let script = format!(
        "{} serve {} >/dev/null 2>&1 & server=$!; until {} probe server-first 127.0.0.1:19302 >/dev/null 2>&1; do :; done; kill $server",
        world.testapp(),
        PORTS.join(" ").replace("192", "193"),
        world.testapp()
    );
    shell.ok(&script)?;
    Ok(())
}

struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        // Fails only when it has ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
