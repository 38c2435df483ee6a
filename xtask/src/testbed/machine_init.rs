//! The far side of a machine: a process in the machine's namespaces, and the init (PID 1) that starts daemons there.
//!
//! The init does nothing but start what it is asked to over its socket and reap what ends. When it dies the kernel ends
//! every process below it, and with the last of them go the machine's mounts.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};

use crate::testbed::machine::{Daemon, init_log, socket};
use crate::testbed::state::StateDir;
use crate::testbed::{cgroups, net};

#[derive(clap::Args)]
pub(crate) struct MachineArgs {
    name: String,
    state: PathBuf,
}

#[derive(clap::Args)]
pub(crate) struct InitArgs {
    name: String,
    state: PathBuf,
}

/// Enters control groups and namespaces, starts the init, prints its process id and ends.
pub(crate) fn machine(args: MachineArgs) -> Result<()> {
    nix::unistd::setsid().context("cannot begin a session of its own")?;
    cgroups::join(&args.name)?;
    net::enter(&args.name)?;
    let apart = CloneFlags::CLONE_NEWPID
        | CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWUTS
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWCGROUP;
    unshare(apart).context("cannot make namespaces: the testbed needs root")?;
    let log = init_log(&StateDir(args.state.clone()), &args.name)?;
    let mut init = Command::new("/proc/self/exe");
    init.args(["testbed", "internal", "init", &args.name]).arg(&args.state);
    let child =
        init.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn().context("cannot start the init")?;
    println!("{}", child.id());
    Ok(())
}

/// PID 1 of a machine.
pub(crate) fn init(args: InitArgs) -> Result<()> {
    let mut chld = SigSet::empty();
    chld.add(Signal::SIGCHLD);
    chld.thread_block().context("cannot block SIGCHLD")?;
    let state = StateDir(args.state);
    fs::write("/proc/sys/kernel/hostname", &args.name).context("cannot set the host name")?;
    set_mounts(&state, &args.name)?;
    let path = socket(&state, &args.name);
    let _ = fs::remove_file(&path); // of an earlier init
    let listener = UnixListener::bind(&path).with_context(|| format!("cannot listen on {}", path.display()))?;
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            if let Err(error) = serve(&stream) {
                eprintln!("a request failed: {error:#}");
            }
        }
    });
    loop {
        chld.wait().context("cannot wait for SIGCHLD")?;
        reap();
    }
}

/// Ended children; the kernel folds several signals into one.
fn reap() {
    while let Ok(status) = waitpid(None, Some(WaitPidFlag::WNOHANG)) {
        if status == WaitStatus::StillAlive {
            return;
        }
        eprintln!("ended: {status:?}");
    }
}

/// One request a connection: a daemon in, its process id (as this namespace counts) out.
fn serve(mut stream: &UnixStream) -> Result<()> {
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line)?;
    let daemon: Daemon = serde_json::from_str(&line)?;
    let log = File::options().create(true).append(true).open(&daemon.log)?;
    let mut command = Command::new(&daemon.program);
    command.args(&daemon.args).envs(daemon.env.iter().map(|(key, value)| (key, value)));
    command.current_dir("/").process_group(0).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    let reply = match command.spawn() {
        Ok(child) => format!("{}\n", child.id()),
        Err(error) => format!("cannot start {}: {error}\n", daemon.program.display()),
    };
    eprintln!("{}: {}", daemon.name, reply.trim());
    Ok(stream.write_all(reply.as_bytes())?)
}

/// A machine sees its own /proc, /run, /var/lib, /var/log and control groups; the rest is the host's.
fn set_mounts(state: &StateDir, name: &str) -> Result<()> {
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_PRIVATE | MsFlags::MS_REC, none).context("cannot make mounts private")?;
    mount(none, "/", none, MsFlags::MS_SHARED | MsFlags::MS_REC, none).context("cannot share mounts")?;
    mount(Some("proc"), "/proc", Some("proc"), MsFlags::empty(), none).context("cannot mount /proc")?;
    if !name.starts_with("node") {
        return Ok(()); // the world outside keeps /run: the delay line finds the other namespaces there
    }
    own_cgroups()?;
    for dir in ["/var/lib", "/var/log"] {
        let own = state.join(name).join(&dir[1..]);
        fs::create_dir_all(&own)?;
        mount(Some(&own), dir, none, MsFlags::MS_BIND, none).with_context(|| format!("cannot mount over {dir}"))?;
    }
    mount(Some("tmpfs"), "/run", Some("tmpfs"), MsFlags::empty(), Some("mode=755")).context("cannot mount /run")
}

/// Mounts every hierarchy anew, so that this machine's group is the root of what it sees.
fn own_cgroups() -> Result<()> {
    let none = None::<&str>;
    for hierarchy in cgroups::hierarchies()? {
        let at = &hierarchy.mount;
        umount2(at, MntFlags::MNT_DETACH).with_context(|| format!("cannot unmount {}", at.display()))?;
        let kind = if hierarchy.controllers.is_some() { "cgroup" } else { "cgroup2" };
        let options = hierarchy.controllers.as_deref();
        mount(Some(kind), at, Some(kind), MsFlags::empty(), options)
            .with_context(|| format!("cannot mount {}", at.display()))?;
        if hierarchy.controllers.is_none() && at == Path::new("/sys/fs/cgroup") {
            // v2 alone: the root of our namespace may hold no process before it hands controllers down.
            fs::create_dir_all(at.join("system"))?;
            fs::write(at.join("system/cgroup.procs"), "0").context("cannot enter the group `system`")?;
            cgroups::hand_down(at);
        }
    }
    let _ = mount(none, "/sys/fs/cgroup", none, MsFlags::MS_SHARED | MsFlags::MS_REC, none); // absent on v1 without tmpfs
    Ok(())
}
