//! Puts contents over files of the host, seen in the sandbox's mount namespace only.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;

use rustix::fs::{Mode, OFlags};
use rustix::mount::{MountFlags, UnmountFlags};

/// Binds each content over its path, following symbolic links (/etc/resolv.conf is one on many machines).
/// On failure, tells which one. In the guard, which may mount.
pub(crate) fn bind(files: &[(PathBuf, Vec<u8>)]) -> Result<(), (usize, io::Error)> {
    if files.is_empty() {
        return Ok(());
    }
    // Opened before the tmpfs covers a directory that may hold some of them.
    let mut targets = Vec::with_capacity(files.len());
    for (index, (path, _)) in files.iter().enumerate() {
        let target = rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty());
        targets.push(target.map_err(|e| (index, e.into()))?);
    }
    let directory = mount_tmpfs().map_err(|e| (0, e))?;
    let result = fill(directory, files, &targets);
    // The binds keep the file system alive.
    let _ = rustix::mount::unmount(directory, UnmountFlags::DETACH);
    result
}

/// A directory that exists everywhere lends its place for the moment; no command sees it.
fn mount_tmpfs() -> io::Result<&'static str> {
    let mut last = io::Error::from(io::ErrorKind::NotFound);
    for directory in ["/tmp", "/run", "/var", "/usr"] {
        let flags = MountFlags::NOSUID | MountFlags::NODEV;
        match rustix::mount::mount("stead", directory, "tmpfs", flags, Some(c"mode=0755,size=16m")) {
            Ok(()) => return Ok(directory),
            Err(error) => last = error.into(),
        }
    }
    Err(last)
}

fn fill(directory: &str, files: &[(PathBuf, Vec<u8>)], targets: &[OwnedFd]) -> Result<(), (usize, io::Error)> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;

    let source = |index: usize| format!("{directory}/{index}");
    for (index, (_, content)) in files.iter().enumerate() {
        let mut options = std::fs::OpenOptions::new();
        let file = options.write(true).create_new(true).mode(0o644).open(source(index));
        file.and_then(|mut file| file.write_all(content)).map_err(|e| (index, e))?;
    }
    for (index, target) in targets.iter().enumerate() {
        // The descriptor names the file below the tmpfs, where its path may lead into it.
        let target = format!("/proc/self/fd/{}", target.as_raw_fd());
        rustix::mount::mount_bind(source(index), target).map_err(|e| (index, e.into()))?;
    }
    // The whole file system: a remount of one bind would need its path again.
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::RDONLY;
    rustix::mount::mount_remount(directory, flags, c"").map_err(|e| (0, e.into()))
}
