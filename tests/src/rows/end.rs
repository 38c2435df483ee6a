//! F3: the client's sudden end, and that nothing at all is left when the park is over. Run last.

use std::time::Duration;

use anyhow::{Context, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use testkit::lab::until;
use testkit::snapshot::processes_of;

use super::{Row, clean, row};
use crate::world::World;

pub(super) const ROWS: &[Row] = &[
    row("F3", "kill -9 of the client: nothing on the machine at once, the agent parks within the lease", killed),
    clean("F3", "kill -9 without parking: nothing in the cluster within the lease", killed_without_parking),
    clean("F3", "a session that ends by itself, without parking", ended_without_parking),
];

/// The kernel ends the tree; the rest is this machine's scheduling.
const AT_ONCE: Duration = Duration::from_secs(1);

fn killed(world: &World) -> anyhow::Result<()> {
    kill_a_session(world, &[])
}

fn killed_without_parking(world: &World) -> anyhow::Result<()> {
    kill_a_session(world, &["--park", "0s"])
}

fn kill_a_session(world: &World, flags: &[&str]) -> anyhow::Result<()> {
    let mut shell = world.run("sts/db").flags(flags).shell()?;
    let one = world.service("one")?[0];
    let testapp = world.testapp();
    // A tree that tries to get away, and flows in the middle of their work.
    shell.ok("sleep 1001 & setsid sleep 1002 & nohup sleep 1003 >/dev/null 2>&1 & (sleep 1004 &) ; true")?;
    shell.ok(&format!("{testapp} measure --mode s --addr {one}:9000 -t 60 >/dev/null & true"))?;
    shell.ok(&format!("{testapp} measure --mode d --addr {one}:9000 -t 60 >/dev/null & true"))?;
    let uid = world.camera().account().uid;
    until("the command's tree is not whole", Duration::from_secs(5), || {
        let tree = processes_of(uid);
        (1001..=1004).all(|number| tree.contains(&format!("sleep {number}"))) && tree.matches(" measure ").count() == 2
    })?;
    kill(Pid::from_raw(i32::try_from(shell.pid())?), Signal::SIGKILL)?;
    shell.wait(AT_ONCE)?;
    until("processes of the user are left", AT_ONCE, || processes_of(uid).is_empty()).with_context(|| processes_of(uid))
}

fn ended_without_parking(world: &World) -> anyhow::Result<()> {
    let out = world.run("deploy/nginx").flags(&["--park", "0s"]).stdout(&["echo", "done"])?;
    ensure!(out == "done\n", "it said {out:?}");
    Ok(())
}
