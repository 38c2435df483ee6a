//! Puts contents over files of the host, seen in the sandbox's mount namespace only, and keeps them there.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;

use rustix::fs::{Mode, OFlags};
use rustix::mount::{MountFlags, UnmountFlags};

/// What lies over files of the host.
///
/// A host program that replaces such a file (resolv.conf, by rename) takes our mount away with it, as the kernel undoes
/// mounts on names that vanish; so each is looked after and put back.
#[derive(Default)]
pub(crate) struct Covers {
    files: Vec<(PathBuf, Vec<u8>)>,
    /// The file systems the contents lie on.
    devices: Vec<u64>,
    lost: bool,
}

impl Covers {
    /// Covers each path, following symbolic links (/etc/resolv.conf is one on many machines). On failure, tells which
    /// one. In the guard, which may mount.
    pub(crate) fn cover(&mut self, files: &[(PathBuf, Vec<u8>)]) -> Result<(), (usize, io::Error)> {
        if let Some(device) = bind(files)? {
            self.devices.push(device);
        }
        self.files.retain(|(path, _)| files.iter().all(|(new, _)| new != path));
        self.files.extend_from_slice(files);
        Ok(())
    }

    /// Whether one could not be put back.
    pub(crate) fn lost(&self) -> bool {
        self.lost
    }

    /// Puts back those that are gone.
    pub(crate) fn cover_again(&mut self) {
        let bare = |(path, _): &&(PathBuf, Vec<u8>)| {
            !rustix::fs::stat(path).is_ok_and(|found| self.devices.contains(&found.st_dev))
        };
        let gone: Vec<_> = self.files.iter().filter(bare).cloned().collect();
        self.lost = match bind(&gone) {
            Ok(device) => {
                self.devices.extend(device);
                false
            }
            Err(_) => true,
        };
    }
}

/// Binds contents over paths; the device they lie on, if there are any.
fn bind(files: &[(PathBuf, Vec<u8>)]) -> Result<Option<u64>, (usize, io::Error)> {
    if files.is_empty() {
        return Ok(None);
    }
    // Opened before the tmpfs covers a directory that may hold some of them.
    let mut targets = Vec::with_capacity(files.len());
    for (index, (path, _)) in files.iter().enumerate() {
        let target = rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty());
        targets.push(target.map_err(|e| (index, e.into()))?);
    }
    let directory = mount_tmpfs().map_err(|e| (0, e))?;
    let result = fill(directory, files, &targets);
    let device = rustix::fs::stat(directory).map(|found| found.st_dev);
    // The binds keep the file system alive.
    let _ = rustix::mount::unmount(directory, UnmountFlags::DETACH);
    result?;
    device.map(Some).map_err(|e| (0, e.into()))
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
