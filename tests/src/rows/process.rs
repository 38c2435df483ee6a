//! R11 without a terminal: exit codes, signals, own user, own files, unix sockets; R10's odd commands.

use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::os::unix::process::ExitStatusExt;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use testkit::lab::within;
use testkit::snapshot::processes_of;

use super::{Row, row};
use crate::world::World;

pub(super) const ROWS: &[Row] = &[
    row("R11", "exit codes 0 to 255", exit_codes),
    row("R11", "a command ended by a signal gives 128 and its number", ended_by_signal),
    row("R11", "signals to stead reach the command", forwarded_signals),
    row("R11", "command not found is 127, not executable is 126", not_run),
    row("R11", "own uid, home, files and unix sockets of the machine", own_machine),
    row("R10", "a command that forks and execs, and one that closes stdin", odd_commands),
    row("R9", "two runs in a row, and two at the same time", twice),
];

/// Runs at once; more than the two cores could do no better.
const AT_ONCE: usize = 4;

fn exit_codes(world: &World) -> anyhow::Result<()> {
    // One session kept open keeps the agent busy and the others quick.
    let _shell = world.shell()?;
    let codes: Vec<i32> =
        (0..8).chain([42, 63]).chain(64..80).chain(124..132).chain([137, 143, 200, 254, 255]).collect();
    let next = std::sync::atomic::AtomicUsize::new(0);
    std::thread::scope(|scope| {
        let worker = || -> anyhow::Result<()> {
            while let Some(code) = codes.get(next.fetch_add(1, std::sync::atomic::Ordering::Relaxed)) {
                let output = world.run("deploy/web").output(&["sh", "-c", &format!("exit {code}")])?;
                let said = String::from_utf8_lossy(&output.stderr);
                ensure!(output.status.code() == Some(*code), "exit {code} became {}: {said}", output.status);
            }
            Ok(())
        };
        let workers: Vec<_> = (0..AT_ONCE).map(|_| scope.spawn(worker)).collect();
        workers.into_iter().try_for_each(|worker| worker.join().map_err(|_| anyhow::anyhow!("a thread panicked"))?)
    })
}

fn ended_by_signal(world: &World) -> anyhow::Result<()> {
    for signal in [Signal::SIGTERM, Signal::SIGKILL, Signal::SIGSEGV, Signal::SIGHUP] {
        let number = signal as i32;
        let output = world.run("deploy/web").output(&["sh", "-c", &format!("ulimit -c 0; kill -{number} $$")])?;
        // Ending by the same signal or by that number: a shell shows 128 and the number either way.
        let shown = output.status.code().or_else(|| output.status.signal().map(|signal| 128 + signal));
        ensure!(shown == Some(128 + number), "{signal} became {:?}", output.status);
    }
    Ok(())
}

fn forwarded_signals(world: &World) -> anyhow::Result<()> {
    for signal in [Signal::SIGTERM, Signal::SIGHUP, Signal::SIGUSR1] {
        let script = format!("trap 'echo got; exit 41' {}; echo ready; while :; do sleep 0.1; done", signal as i32);
        let mut run = world.run("deploy/web").command(&["sh", "-c", &script]);
        let mut child = run.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let mut stdout = child.stdout.take().context("stdout is piped")?;
        let mut ready = [0; 6];
        stdout.read_exact(&mut ready)?;
        kill(Pid::from_raw(i32::try_from(child.id())?), signal)?;
        let status = within(Duration::from_secs(10), || child.try_wait()?.context("stead still runs"));
        if status.is_err() {
            child.kill()?;
        }
        let mut rest = String::new();
        stdout.read_to_string(&mut rest)?;
        let status = status.with_context(|| format!("after {signal}"))?;
        ensure!(rest == "got\n" && status.code() == Some(41), "{signal}: the command said {rest:?}, then {status}");
    }
    Ok(())
}

fn not_run(world: &World) -> anyhow::Result<()> {
    for (command, code, word) in [("no-such-command", 127, "not found"), ("/etc/passwd", 126, "/etc/passwd")] {
        let failed = crate::stead::failed(&mut world.run("deploy/web").command(&[command]))?;
        ensure!(failed.code == Some(code), "{command}: {:?} {}", failed.code, failed.stderr);
        ensure!(failed.stderr.contains(word), "{command}: {}", failed.stderr);
    }
    Ok(())
}

fn own_machine(world: &World) -> anyhow::Result<()> {
    let account = world.camera().account().clone();
    let mut shell = world.shell()?;
    ensure!(shell.ok("id -u; id -g")? == format!("{}\n{}", account.uid, account.gid), "the command has another user");
    ensure!(shell.ok("echo $HOME")? == account.home.display().to_string(), "the command has another home");
    let file = account.home.join("written-by-a-row");
    shell.ok(&format!("echo hello > {0} && stat -c %u {0}", file.display()))?;
    ensure!(std::fs::read_to_string(&file)? == "hello\n", "the file is not the machine's");
    std::fs::remove_file(&file)?;
    unix_socket(world, &mut shell)?;
    ensure!(shell.ok("pwd")? == world_directory(world)?, "the command starts elsewhere");
    ensure!(processes_of(account.uid).contains("stead"), "the session is not the user's process");
    Ok(())
}

fn unix_socket(world: &World, shell: &mut testkit::lab::Shell) -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("socket");
    let listener = UnixListener::bind(&path)?;
    for place in [dir.path(), &path] {
        std::fs::set_permissions(place, std::os::unix::fs::PermissionsExt::from_mode(0o777))?;
    }
    let server = std::thread::spawn(move || -> std::io::Result<()> {
        let (mut stream, _) = listener.accept()?;
        let mut said = String::new();
        stream.read_to_string(&mut said)?;
        stream.write_all(said.to_uppercase().as_bytes())
    });
    let outcome = shell.json(&format!("{} probe unix {}", world.testapp(), path.display()))?;
    ensure!(outcome["answer"] == "HELLO\n", "a unix socket of the machine answered {outcome}");
    server.join().map_err(|_| anyhow::anyhow!("the socket's server panicked"))?.context("the socket's server")
}

/// Where `testbed exec` starts commands.
fn world_directory(world: &World) -> anyhow::Result<String> {
    Ok(testkit::lab::checked(&mut world.lab().user(["pwd"]))?.trim().to_owned())
}

fn odd_commands(world: &World) -> anyhow::Result<()> {
    let testapp = world.testapp();
    let web = world.service("web")?[0];
    let get = format!("{testapp} probe get {web}:80 /hello");
    let forks = format!("({get}) & wait $!; sh -c 'exec {get}'");
    let out = world.run("deploy/web").stdout(&["sh", "-c", &forks])?;
    ensure!(out.matches("hello from web-").count() == 2, "forked and exec'd commands said {out:?}");
    let closed = world.run("deploy/web").stdout(&["sh", "-c", &format!("exec 0<&-; {get}")])?;
    ensure!(closed.contains("hello from web-"), "a command without stdin said {closed:?}");
    let mut command = world.run("deploy/web").command(&["cat"]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    child.stdin.take().context("stdin is piped")?.write_all(b"through\n")?;
    let output = child.wait_with_output()?;
    ensure!(output.stdout == b"through\n", "cat said {:?}", String::from_utf8_lossy(&output.stdout));
    Ok(())
}

fn twice(world: &World) -> anyhow::Result<()> {
    let get = format!("{} probe get {}:80 /hello", world.testapp(), world.service("web")?[0]);
    for _ in 0..2 {
        let out = world.run("deploy/web").stdout(&["sh", "-c", &get])?;
        ensure!(out.contains("hello from web-"), "{out:?}");
    }
    let mut first = world.shell()?;
    let mut second = world.run("sts/db").shell()?;
    for shell in [&mut first, &mut second] {
        ensure!(shell.ok(&get)?.contains("hello from web-"), "two sessions disturb each other");
    }
    Ok(())
}
