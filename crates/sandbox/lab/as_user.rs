//! Becomes an ordinary user on a machine whose /dev/net/tun is root's alone. Everything made here is in a mount
//! namespace that ends with this process.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;

use nix::mount::{MsFlags, mount};
use nix::sched::CloneFlags;
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use nix::unistd::{Gid, Uid};

use crate::Outcome;

const USER: u32 = 6500;
/// Exists everywhere; covered by a tmpfs of our own.
const PLACE: &str = "/mnt";

pub(crate) fn become_user(arguments: &[String]) -> Outcome {
    let arguments = arguments.strip_prefix(&["--".to_owned()]).unwrap_or(arguments);
    let mut own = std::env::current_exe()?;
    if Uid::current().is_root() {
        own = prepare(&own)?;
        nix::unistd::setgroups(&[])?;
        nix::unistd::setgid(Gid::from_raw(USER))?;
        nix::unistd::setuid(Uid::from_raw(USER))?;
    }
    Err(std::process::Command::new(own).args(arguments).exec().into())
}

/// The user's device, and a copy of this binary where the user may read it.
fn prepare(own: &Path) -> Result<std::path::PathBuf, Box<dyn std::error::Error>> {
    const NONE: Option<&str> = None;
    nix::sched::unshare(CloneFlags::CLONE_NEWNS)?;
    mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NONE)?;
    mount(Some("lab"), PLACE, Some("tmpfs"), MsFlags::empty(), Some("mode=0755"))?;
    let place = Path::new(PLACE);
    let device = place.join("tun");
    mknod(&device, SFlag::S_IFCHR, Mode::from_bits_truncate(0o666), makedev(10, 200))?;
    std::fs::set_permissions(&device, std::fs::Permissions::from_mode(0o666))?;
    mount(Some(&device), "/dev/net/tun", NONE, MsFlags::MS_BIND, NONE)?;
    let home = place.join("home");
    std::fs::create_dir(&home)?;
    nix::unistd::chown(&home, Some(Uid::from_raw(USER)), Some(Gid::from_raw(USER)))?;
    let copy = place.join("sandbox-lab");
    std::fs::copy(own, &copy)?;
    std::fs::set_permissions(&copy, std::fs::Permissions::from_mode(0o755))?;
    Ok(copy)
}
