//! What a command on the testbed's laptop sees: devices, DNS, directories; and the unprivileged user it runs as.
//!
//! All of it lies in a mount namespace that ends with the command. Nothing changes for the rest of the machine.

use std::fs::{self, Permissions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use nix::unistd::{Gid, Uid, setgid, setgroups, setuid};

use crate::testbed::state::{MARKER_DIR, Owner};
use crate::{cache, shell};

pub(crate) const TEST_USER: &str = "stead-dev";
const TEST_UID: u32 = 6500;

pub(crate) struct User {
    name: String,
    uid: u32,
    gid: u32,
    home: PathBuf,
    shell: String,
}

/// Adds the account that tests run as. It stays: accounts are not ours to remove while somebody may use them.
pub(crate) fn make_test_user() -> Result<()> {
    if User::find(TEST_USER).is_ok() {
        return Ok(());
    }
    eprintln!("adding the user {TEST_USER}");
    let add = |uid: &str| shell::run(&format!("useradd --create-home --shell /bin/bash {uid} {TEST_USER}"));
    let wanted = format!("--uid {TEST_UID}");
    add(&wanted).or_else(|_| add("")).map(drop).context("the testbed needs an unprivileged user")
}

impl User {
    /// By name or number, from /etc/passwd itself: the C library's look-up crashes in a static program.
    pub(crate) fn find(name: &str) -> Result<Self> {
        let accounts = fs::read_to_string("/etc/passwd").context("cannot read /etc/passwd")?;
        let find = |line: &str| Self::parse(line).filter(|user| user.name == name || user.uid.to_string() == name);
        let user = accounts.lines().find_map(find);
        user.with_context(|| format!("no user {name}: `cargo xtask testbed up` makes {TEST_USER}"))
    }

    fn parse(line: &str) -> Option<Self> {
        let fields: Vec<_> = line.split(':').collect();
        let [name, _, uid, gid, _, home, shell] = fields.as_slice() else { return None };
        let (uid, gid) = (uid.parse().ok()?, gid.parse().ok()?);
        Some(Self { name: (*name).to_owned(), uid, gid, home: PathBuf::from(home), shell: (*shell).to_owned() })
    }

    pub(crate) fn set_environment(&self, command: &mut Command) {
        command.env("HOME", &self.home).env("USER", &self.name).env("LOGNAME", &self.name).env("SHELL", &self.shell);
        command.env("XDG_RUNTIME_DIR", self.runtime_dir());
        for name in ["XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME", "SUDO_USER", "MAIL"] {
            command.env_remove(name); // they would point into another user's home
        }
        let homes = [("CARGO_HOME", cargo_home()), ("RUSTUP_HOME", rustup_home())];
        for (key, value) in homes {
            value.map(|value| command.env(key, value));
        }
    }

    /// Drops groups, then ids; there is no way back.
    pub(crate) fn become_it(&self) -> Result<()> {
        setgroups(&[]).context("cannot drop groups: `exec --user` needs root")?;
        setgid(Gid::from_raw(self.gid)).context("cannot change the group")?;
        setuid(Uid::from_raw(self.uid)).context("cannot change the user")?;
        let here = std::env::current_dir();
        if here.as_ref().is_err() || here.is_ok_and(|dir| fs::read_dir(dir).is_err()) {
            std::env::set_current_dir(&self.home).context("the user can enter neither this directory nor its home")?;
        }
        Ok(())
    }

    fn runtime_dir(&self) -> PathBuf {
        Path::new(MARKER_DIR).join(format!("user-{}", self.uid))
    }

    fn make_runtime_dir(&self) -> Result<()> {
        let dir = self.runtime_dir();
        fs::create_dir_all(&dir)?;
        chown(&dir, Some(self.uid), Some(self.gid))?;
        Ok(fs::set_permissions(&dir, Permissions::from_mode(0o700))?)
    }
}

/// Arranges mounts for the laptop; for a user also what its cargo needs.
pub(crate) fn arrange(owner: &Owner, user: Option<&User>) -> Result<()> {
    let none = None::<&str>;
    unshare(CloneFlags::CLONE_NEWNS).context("cannot make a mount namespace: the testbed needs root")?;
    mount(none, "/", none, MsFlags::MS_PRIVATE | MsFlags::MS_REC, none).context("cannot make mounts private")?;
    let scratch = Path::new(MARKER_DIR).join("mnt");
    fs::create_dir_all(&scratch)?;
    mount(Some("tmpfs"), &scratch, Some("tmpfs"), MsFlags::empty(), Some("mode=755"))
        .context("cannot mount a tmpfs")?;
    device(&scratch, "/dev/net/tun", (10, 200))?;
    device(&scratch, "/dev/fuse", (10, 229))?;
    let resolv = fs::canonicalize("/etc/resolv.conf").unwrap_or_else(|_| PathBuf::from("/etc/resolv.conf"));
    if !resolv.exists() {
        fs::write(&resolv, "").context("this machine lacks /etc/resolv.conf")?;
    }
    bind(&owner.dir().join("laptop/resolv.conf"), &resolv, false)?;
    if let Some(user) = user {
        user.make_runtime_dir()?;
        open_up(owner, user)?;
    }
    Ok(())
}

/// A device node that everybody may open, over the machine's.
fn device(scratch: &Path, path: &str, (major, minor): (u64, u64)) -> Result<()> {
    let node = scratch.join(path.rsplit('/').next().unwrap_or(path));
    mknod(&node, SFlag::S_IFCHR, Mode::empty(), makedev(major, minor))
        .with_context(|| format!("cannot make {path}"))?;
    fs::set_permissions(&node, Permissions::from_mode(0o666))?;
    if !Path::new(path).exists() {
        return Ok(()); // a kernel without the driver: what needs it says so
    }
    bind(&node, Path::new(path), false)
}

fn bind(from: &Path, to: &Path, read_only: bool) -> Result<()> {
    let none = None::<&str>;
    let what = || format!("cannot mount {} on {}", from.display(), to.display());
    mount(Some(from), to, none, MsFlags::MS_BIND | MsFlags::MS_REC, none).with_context(what)?;
    if read_only {
        let again = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
        mount(none, to, none, again, none).with_context(what)?;
    }
    Ok(())
}

/// Where a directory that the user needs lies in one it may not enter (root's home), that one is replaced by an empty
/// directory with only the needed ones in it, under their own paths, read-only.
fn open_up(owner: &Owner, user: &User) -> Result<()> {
    let target = std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from);
    let program = std::env::current_exe().ok().and_then(|path| Some(path.parent()?.to_owned()));
    let needed = [cargo_home(), rustup_home(), target, program, cache::root().ok(), Some(cache::checkout())];
    let needed: Vec<PathBuf> = needed.into_iter().chain([Some(owner.state.clone())]).flatten().collect();
    let needed: Vec<PathBuf> = needed.into_iter().filter(|path| path.is_dir()).collect();
    let mut closed: Vec<PathBuf> = needed.iter().filter_map(|path| first_closed(path, user)).collect();
    closed.sort();
    closed.dedup();
    for dir in closed {
        replace(&dir, needed.iter().filter(|path| path.starts_with(&dir)))?;
    }
    Ok(())
}

/// The topmost directory on the way that others may not enter.
fn first_closed(path: &Path, user: &User) -> Option<PathBuf> {
    let mut ways: Vec<_> = path.ancestors().collect();
    ways.reverse();
    let is_closed =
        |dir: &&Path| fs::metadata(dir).is_ok_and(|meta| meta.uid() != user.uid && meta.mode() & 0o001 == 0);
    ways.into_iter().find(is_closed).map(Path::to_owned)
}

fn replace<'a>(dir: &Path, needed: impl Iterator<Item = &'a PathBuf>) -> Result<()> {
    let mut kept: Vec<&PathBuf> = needed.collect();
    kept.sort();
    kept.dedup();
    // One that lies in another comes with it.
    let all = kept.clone();
    kept.retain(|path| !all.iter().any(|other| other != path && path.starts_with(other)));
    let opened: Vec<_> = kept.iter().map(|path| Ok((path, fs::File::open(path)?))).collect::<Result<_>>()?;
    mount(Some("tmpfs"), dir, Some("tmpfs"), MsFlags::empty(), Some("mode=755")).context("cannot mount a tmpfs")?;
    for (path, file) in opened {
        fs::create_dir_all(path)?;
        let from = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
        bind(&from, path, true)?;
    }
    Ok(())
}

fn cargo_home() -> Option<PathBuf> {
    home_dir("CARGO_HOME", ".cargo")
}

fn rustup_home() -> Option<PathBuf> {
    home_dir("RUSTUP_HOME", ".rustup")
}

fn home_dir(variable: &str, name: &str) -> Option<PathBuf> {
    let set = std::env::var_os(variable).map(PathBuf::from);
    set.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(name))).filter(|path| path.is_dir())
}
