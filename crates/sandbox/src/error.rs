//! What can go wrong, each with its likely cause and, where there is one, the setting that helps.

use std::ffi::OsString;
use std::io;
use std::path::PathBuf;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// `prepare` came too late: forking a process with several threads is not safe.
    #[error("the sandbox must be prepared while the process has one thread, it has {0}")]
    Threads(usize),
    /// The kernel does not let this user make namespaces.
    #[error("user namespaces are forbidden on this machine ({step}: {source})")]
    NamespacesForbidden { step: String, source: io::Error, settings: Vec<Setting> },
    /// `/dev/net/tun` cannot be used.
    #[error("/dev/net/tun cannot be used ({source})")]
    Tun { source: io::Error, mode: Option<u32> },
    /// Any other step of setting the namespaces up.
    #[error("setting the sandbox up failed: {step}: {source}")]
    Setup { step: String, source: io::Error },
    /// The guard is gone: killed from outside, or ended by a fault of its own.
    #[error("the sandbox's guard process is gone")]
    GuardLost,
    /// A command already runs in this sandbox.
    #[error("a command already runs in this sandbox")]
    Busy,
    /// Exit code 127.
    #[error("{}: command not found", .command.display())]
    NotFound { command: OsString },
    /// Exit code 126.
    #[error("{}: cannot be executed ({source})", .command.display())]
    NotExecutable { command: OsString, source: io::Error },
    /// An argument or variable holds a zero byte.
    #[error("argument or environment variable with a zero byte")]
    ZeroByte,
    #[error("cannot change to the directory {}: {source}", .path.display())]
    Directory { path: PathBuf, source: io::Error },
    /// A file of `Command::files` could not be put in its place.
    #[error("cannot put a file over {} in the sandbox: {source}", .path.display())]
    Bind { path: PathBuf, source: io::Error },
    #[error("starting the command failed: {0}")]
    Spawn(io::Error),
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// A setting of the machine that stands in the way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// As `sysctl` names it.
    pub name: &'static str,
    pub found: String,
    pub needed: &'static str,
}

impl Error {
    /// The next step, for the user; `None` where the message says all.
    pub fn hint(&self) -> Option<String> {
        match self {
            Error::NamespacesForbidden { settings, .. } if settings.is_empty() => Some(
                "a container runtime, seccomp filter or security module may forbid them; allow unprivileged user \
                 namespaces for this program"
                    .to_owned(),
            ),
            Error::NamespacesForbidden { settings, .. } => {
                let changes =
                    settings.iter().map(|s| format!("`sysctl -w {}={}` (it is {})", s.name, s.needed, s.found));
                let changes = format!("as root: {}", changes.collect::<Vec<_>>().join(", "));
                let is_apparmor = settings.iter().any(|s| s.name == APPARMOR);
                Some(if is_apparmor { format!("{changes};\n{}", profile()) } else { changes })
            }
            Error::Tun { source, .. } if source.raw_os_error() == Some(libc::ENOENT) => {
                Some("as root: `modprobe tun`, or make the device: `mknod -m 0666 /dev/net/tun c 10 200`".to_owned())
            }
            Error::Tun { mode, .. } => {
                let mode = mode.map(|m| format!(" (its mode is {:04o})", m & 0o7777)).unwrap_or_default();
                Some(format!("as root: `chmod 0666 /dev/net/tun`{mode}, `modprobe tun`"))
            }
            Error::GuardLost => Some("look for an out-of-memory kill in the kernel's log".to_owned()),
            _ => None,
        }
    }

    pub(crate) fn tun(source: io::Error) -> Error {
        Error::Tun { source, mode: tun_mode() }
    }

    /// The error of a set-up step that the guard reported by name and errno.
    pub(crate) fn of_setup(step: &str, detail: String, source: io::Error) -> Error {
        match step {
            crate::setup::UNSHARE | crate::setup::MAP => {
                Error::NamespacesForbidden { step: step.to_owned(), source, settings: settings() }
            }
            crate::setup::TUN => Error::tun(source),
            // Ubuntu's AppArmor rule grants the namespace and then denies every capability in it.
            _ if source.kind() == io::ErrorKind::PermissionDenied && !settings().is_empty() => {
                Error::NamespacesForbidden { step: step.to_owned(), source, settings: settings() }
            }
            _ => Error::Setup { step: detail, source },
        }
    }
}

/// Ubuntu's, since 23.10.
const APPARMOR: &str = "kernel.apparmor_restrict_unprivileged_userns";

/// The narrower way around AppArmor's rule: for this program alone.
fn profile() -> String {
    let program = std::env::current_exe().unwrap_or_else(|_| "/usr/local/bin/stead".into());
    format!(
        "or for stead alone, by the file /etc/apparmor.d/stead and `apparmor_parser -r /etc/apparmor.d/stead`:\n\
         abi <abi/4.0>,\n\
         include <tunables/global>\n\
         profile stead \"{}\" flags=(unconfined) {{\n  userns,\n}}",
        program.display()
    )
}

/// The settings known to forbid user namespaces that have a forbidding value now.
fn settings() -> Vec<Setting> {
    const KNOWN: [(&str, &str, &str, &str); 5] = [
        ("user.max_user_namespaces", "user/max_user_namespaces", "0", "15000"),
        ("user.max_net_namespaces", "user/max_net_namespaces", "0", "15000"),
        ("user.max_mnt_namespaces", "user/max_mnt_namespaces", "0", "15000"),
        ("kernel.unprivileged_userns_clone", "kernel/unprivileged_userns_clone", "0", "1"),
        (APPARMOR, "kernel/apparmor_restrict_unprivileged_userns", "1", "0"),
    ];
    let forbids = |(name, path, bad, needed): (&'static str, &str, &str, &'static str)| {
        let found = std::fs::read_to_string(format!("/proc/sys/{path}")).ok()?.trim().to_owned();
        (found == bad).then_some(Setting { name, found, needed })
    };
    KNOWN.into_iter().filter_map(forbids).collect()
}

fn tun_mode() -> Option<u32> {
    use std::os::unix::fs::PermissionsExt;
    Some(std::fs::metadata("/dev/net/tun").ok()?.permissions().mode())
}
