//! What runs in the sandbox: its description as bytes for the guard, and the last steps before it is executed.

use std::ffi::{CStr, CString, OsStr, OsString};
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

use nix::errno::Errno;
use rustix::thread::{CapabilitiesSecureBits, CapabilitySet, CapabilitySets};

use crate::message::SpawnFailure;

/// A command for `Sandbox::spawn`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Command {
    /// Program and arguments. A program without a slash is looked up in the PATH of `env`.
    pub argv: Vec<OsString>,
    /// The whole environment: nothing of the client's is added.
    pub env: Vec<(OsString, OsString)>,
    /// The client's working directory where `None`.
    pub cwd: Option<PathBuf>,
    /// Contents that the command finds, read-only, at the paths of existing files (symbolic links are followed).
    /// Invisible outside the sandbox.
    pub files: Vec<(PathBuf, Vec<u8>)>,
}

impl Command {
    /// Writes the description into a memfd, as it may be larger than a datagram.
    pub(crate) fn describe(&self) -> io::Result<OwnedFd> {
        let mut bytes = Vec::new();
        let mut put = |item: &[u8]| {
            bytes.extend_from_slice(&(item.len() as u64).to_ne_bytes());
            bytes.extend_from_slice(item);
        };
        put(&self.argv.len().to_ne_bytes());
        self.argv.iter().for_each(|item| put(item.as_bytes()));
        put(&self.env.len().to_ne_bytes());
        self.env.iter().for_each(|(name, value)| {
            put(name.as_bytes());
            put(value.as_bytes());
        });
        put(self.cwd.as_ref().map_or(OsStr::new(""), |cwd| cwd.as_os_str()).as_bytes());
        put(&self.files.len().to_ne_bytes());
        self.files.iter().for_each(|(path, content)| {
            put(path.as_os_str().as_bytes());
            put(content);
        });
        let mut file = File::from(rustix::fs::memfd_create("stead-command", rustix::fs::MemfdFlags::CLOEXEC)?);
        file.write_all(&bytes)?;
        Ok(file.into())
    }

    /// Reads what `describe` wrote.
    pub(crate) fn read(description: OwnedFd) -> io::Result<Command> {
        let mut file = File::from(description);
        file.seek(SeekFrom::Start(0))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Reader(&bytes).command().ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    /// Whether a string of it cannot be passed to a program.
    pub(crate) fn has_zero_byte(&self) -> bool {
        let zero = |text: &OsString| text.as_bytes().contains(&0);
        self.argv.iter().any(zero) || self.env.iter().any(|(name, value)| zero(name) || zero(value))
    }

    /// Becomes the command. Returns only what went wrong. In the forked child, after `files` were bound.
    pub(crate) fn execute(&self) -> (SpawnFailure, Errno) {
        if let Some(cwd) = &self.cwd
            && let Err(error) = nix::unistd::chdir(cwd)
        {
            return (SpawnFailure::Directory, error);
        }
        if let Err(error) = drop_capabilities() {
            return (SpawnFailure::Start, Errno::from_raw(error.raw_os_error()));
        }
        let argv: Vec<CString> = self.argv.iter().map(|a| c_string(a.as_bytes())).collect();
        let pairs = self.env.iter().map(|(name, value)| [name.as_bytes(), b"=", value.as_bytes()].concat());
        let env: Vec<CString> = pairs.map(|pair| c_string(&pair)).collect();
        let direct = self.argv.first().is_some_and(|program| program.as_bytes().contains(&b'/'));
        let mut worst = (SpawnFailure::NotFound, Errno::ENOENT);
        for candidate in self.candidates() {
            let Err(error) = nix::unistd::execve(candidate.as_c_str(), &argv, &env);
            match error {
                // The file is there, so it is the interpreter of its first line, or its loader, that is missing.
                Errno::ENOENT if exists(&candidate) => return (SpawnFailure::NotExecutable, error),
                Errno::ENOENT | Errno::ENOTDIR | Errno::ENAMETOOLONG | Errno::ELOOP => (),
                // A directory of PATH that may not be entered holds nothing for this user.
                Errno::EACCES if !direct && !exists(&candidate) => (),
                // execvp(3) looks on in PATH, too.
                Errno::EACCES => worst = (SpawnFailure::NotExecutable, error),
                _ => return (SpawnFailure::NotExecutable, error),
            }
        }
        worst
    }

    /// The paths to try, in order.
    fn candidates(&self) -> Vec<CString> {
        let program = self.argv.first().map_or(&[][..], |program| program.as_bytes());
        if program.is_empty() {
            return Vec::new();
        }
        if program.contains(&b'/') {
            return vec![c_string(program)];
        }
        let path = self.env.iter().rev().find(|(name, _)| name == "PATH");
        // The default of execvp(3).
        let path = path.map_or(&b"/bin:/usr/bin"[..], |(_, value)| value.as_bytes());
        let in_directory = |directory: &[u8]| match directory {
            // An empty entry is the working directory.
            [] => c_string(program),
            directory => c_string(&[directory, b"/", program].concat()),
        };
        path.split(|byte| *byte == b':').map(in_directory).collect()
    }
}

/// Takes every capability in the user namespace from the command, so that it can change neither the sandbox's network
/// nor its mounts.
///
/// The bounding set stays, and no_new_privs is not set: clearing the first makes the kernel refuse (EPERM) to execute
/// any file with file capabilities, ping for one; setting the second would switch set-user-id programs off for nested
/// user namespaces. Neither is needed: a file capability was given by the machine's administrator and counts only
/// inside the sandbox, and user ids other than the own do not exist there.
fn drop_capabilities() -> rustix::io::Result<()> {
    if rustix::process::getuid().is_root() {
        // Else execve(2) would give root all of them back.
        let bits = CapabilitiesSecureBits::NO_ROOT | CapabilitiesSecureBits::NO_ROOT_LOCKED;
        rustix::thread::set_capabilities_secure_bits(bits)?;
    }
    rustix::thread::clear_ambient_capability_set()?;
    let none = CapabilitySet::empty();
    rustix::thread::set_capabilities(None, CapabilitySets { effective: none, permitted: none, inheritable: none })
}

fn exists(path: &CStr) -> bool {
    rustix::fs::stat(path).is_ok()
}

/// Bytes up to the first zero; `has_zero_byte` was asked before.
fn c_string(bytes: &[u8]) -> CString {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    CString::new(&bytes[..end]).expect("cut before the first zero")
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn command(&mut self) -> Option<Command> {
        let mut command = Command::default();
        for _ in 0..self.count()? {
            command.argv.push(self.string()?);
        }
        for _ in 0..self.count()? {
            command.env.push((self.string()?, self.string()?));
        }
        command.cwd = Some(self.string()?).filter(|cwd| !cwd.is_empty()).map(PathBuf::from);
        for _ in 0..self.count()? {
            command.files.push((PathBuf::from(self.string()?), self.item()?.to_vec()));
        }
        Some(command)
    }

    fn item(&mut self) -> Option<&'a [u8]> {
        let (length, rest) = self.0.split_first_chunk()?;
        let (item, rest) = rest.split_at_checked(u64::from_ne_bytes(*length) as usize)?;
        self.0 = rest;
        Some(item)
    }

    fn count(&mut self) -> Option<usize> {
        Some(usize::from_ne_bytes(self.item()?.try_into().ok()?))
    }

    fn string(&mut self) -> Option<OsString> {
        Some(OsString::from_vec(self.item()?.to_vec()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Command {
        Command {
            argv: vec!["sh".into(), "-c".into(), "".into()],
            env: vec![("PATH".into(), "/a::/b".into())],
            cwd: Some("/tmp".into()),
            files: vec![("/etc/resolv.conf".into(), b"nameserver 1\n".to_vec())],
        }
    }

    #[test]
    fn a_description_comes_back_as_it_was() {
        for command in [sample(), Command::default()] {
            assert_eq!(Command::read(command.describe().expect("memfd")).expect("read"), command);
        }
    }

    #[test]
    fn a_cut_description_is_refused() {
        let mut bytes = Vec::new();
        File::from(sample().describe().expect("memfd")).rewind_and_read(&mut bytes);
        for length in 0..bytes.len() {
            assert!(Reader(&bytes[..length]).command().is_none(), "{length} bytes");
        }
    }

    #[test]
    fn a_program_is_looked_up_in_its_own_path() {
        let names = |command: &Command| -> Vec<String> {
            command.candidates().iter().map(|c| c.to_string_lossy().into_owned()).collect()
        };
        let mut command = sample();
        assert_eq!(names(&command), ["/a/sh", "sh", "/b/sh"]);
        command.env.clear();
        assert_eq!(names(&command), ["/bin/sh", "/usr/bin/sh"]);
        command.argv[0] = "./sh".into();
        assert_eq!(names(&command), ["./sh"]);
        command.argv[0] = "".into();
        assert!(names(&command).is_empty());
    }

    trait RewindAndRead {
        fn rewind_and_read(self, into: &mut Vec<u8>);
    }

    impl RewindAndRead for File {
        fn rewind_and_read(mut self, into: &mut Vec<u8>) {
            self.rewind().expect("rewind");
            self.read_to_end(into).expect("read");
        }
    }
}
