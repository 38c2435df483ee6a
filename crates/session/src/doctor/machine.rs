//! This machine: what the sandbox needs of its kernel, and a place for the control socket.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use futures::future::BoxFuture;
use sandbox::{Connected, Datagram, DialError, Prepared, Replies};

use super::{Area, Finding};
use crate::Error;
use crate::socket::Folder;

pub(super) struct Facts {
    /// Whether a real sandbox came up; with IPv6?
    pub(super) sandbox: Result<bool, sandbox::Error>,
    /// Whether the device opens at all: the sandbox does not come to it where namespaces are forbidden.
    pub(super) tun: Result<(), sandbox::Error>,
    /// Where control sockets go, and whether they can.
    pub(super) sockets: (PathBuf, io::Result<()>),
}

/// Sets a sandbox up and takes it down again.
pub(super) async fn look(prepared: Result<Prepared, sandbox::Error>) -> Facts {
    let folder = Folder::of_this_user();
    Facts {
        sandbox: prepared.and_then(|prepared| prepared.start(Arc::new(Nowhere))).map(|sandbox| sandbox.has_v6()),
        tun: sandbox::try_tun(),
        sockets: (folder.path().to_owned(), folder.try_out()),
    }
}

pub(super) fn judge(facts: &Facts) -> Vec<Finding> {
    let finding = |check, text: &str| Finding::ok(Area::Machine, check, text);
    let skip = |check, why: &str| Finding::skip(Area::Machine, check, why);
    let (namespaces, network, v6) = match &facts.sandbox {
        Ok(v6) => (
            finding("user namespaces", "allowed"),
            finding("sandbox network", "set up and taken down"),
            if *v6 {
                finding("IPv6", "in the sandbox")
            } else {
                Finding::warn(Area::Machine, "IPv6", "this kernel has none: the command reaches IPv4 addresses only")
                    .fix("boot without ipv6.disable=1, where the cluster has IPv6 addresses")
            },
        ),
        Err(error) => {
            let (namespaces, network) = judge_failed(error);
            (namespaces, network, skip("IPv6", "no sandbox came up"))
        }
    };
    let tun = match &facts.tun {
        Ok(()) => finding("/dev/net/tun", "usable"),
        Err(error) => fail("/dev/net/tun", error),
    };
    let (path, made) = &facts.sockets;
    let sockets = match made {
        Ok(()) => finding("runtime directory", &path.display().to_string()),
        Err(cause) => {
            let cause = io::Error::new(cause.kind(), cause.to_string());
            let error = Error::ControlSocket { path: path.display().to_string(), cause };
            Finding::fail(Area::Machine, "runtime directory", error)
        }
    };
    vec![namespaces, tun, network, v6, sockets]
}

/// User namespaces and the sandbox's network, when the set-up failed.
fn judge_failed(error: &sandbox::Error) -> (Finding, Finding) {
    let allowed = || Finding::ok(Area::Machine, "user namespaces", "allowed");
    let skip = |why| Finding::skip(Area::Machine, "sandbox network", why);
    match error {
        sandbox::Error::NamespacesForbidden { .. } => {
            (fail("user namespaces", error), skip("user namespaces are forbidden"))
        }
        sandbox::Error::Tun { .. } => (allowed(), skip("/dev/net/tun cannot be used")),
        other => {
            let fix = "the kernel needs nftables with tproxy: as root `modprobe -a nf_tables nft_tproxy`";
            let failed = fail("sandbox network", other);
            let fix = failed.fix.clone().unwrap_or_else(|| fix.to_owned());
            (allowed(), failed.fix(fix))
        }
    }
}

/// As `Finding::fail`, for an error that is only lent.
fn fail(check: &str, error: &sandbox::Error) -> Finding {
    let exit_code = crate::error::sandbox_exit_code(error);
    let found = Finding::new(Area::Machine, check, super::Verdict::Fail, error.to_string());
    Finding { fix: error.hint(), exit_code, ..found }
}

/// Nothing runs in this sandbox, so nothing dials.
struct Nowhere;

impl sandbox::Dialer for Nowhere {
    fn dial(&self, _: SocketAddr, _: SocketAddr) -> BoxFuture<'static, Result<Connected, DialError>> {
        Box::pin(async { Err(DialError::Refused) })
    }

    fn datagram(&self, _: &Datagram<'_>, _: &Replies) {}
}

#[cfg(test)]
mod tests {
    use sandbox::Setting;

    use super::*;
    use crate::doctor::{all_ok, only_red};

    fn healthy() -> Facts {
        Facts { sandbox: Ok(true), tun: Ok(()), sockets: ("/run/user/1/stead".into(), Ok(())) }
    }

    fn refused(errno: i32) -> io::Error {
        io::Error::from_raw_os_error(errno)
    }

    #[test]
    fn a_machine_that_has_everything_is_all_ok() {
        assert!(all_ok(&judge(&healthy())));
    }

    #[test]
    fn forbidden_namespaces_turn_red_alone_and_name_the_setting() {
        for (name, needed) in
            [("user.max_user_namespaces", "15000"), ("kernel.apparmor_restrict_unprivileged_userns", "0")]
        {
            let settings = vec![Setting { name, found: "x".into(), needed }];
            let error = sandbox::Error::NamespacesForbidden {
                step: "unshare".into(),
                source: refused(libc_enospc()),
                settings,
            };
            let findings = judge(&Facts { sandbox: Err(error), ..healthy() });
            let red = only_red(&findings);
            assert_eq!((red.check.as_str(), red.exit_code), ("user namespaces", 71));
            assert!(red.fix.as_ref().is_some_and(|fix| fix.contains(name)), "{red:?}");
        }
    }

    fn libc_enospc() -> i32 {
        28
    }

    #[test]
    fn a_missing_tun_turns_red_alone() {
        let error = || sandbox::Error::Tun { source: refused(2), mode: None };
        let findings = judge(&Facts { sandbox: Err(error()), tun: Err(error()), ..healthy() });
        let red = only_red(&findings);
        assert_eq!((red.check.as_str(), red.exit_code), ("/dev/net/tun", 71));
        assert!(red.fix.as_ref().is_some_and(|fix| fix.contains("mknod")), "{red:?}");
    }

    #[test]
    fn a_kernel_without_tproxy_turns_the_network_red_alone() {
        let error = sandbox::Error::Setup { step: "add an nftables rule (nft_tproxy)".into(), source: refused(2) };
        let findings = judge(&Facts { sandbox: Err(error), ..healthy() });
        let red = only_red(&findings);
        assert_eq!((red.check.as_str(), red.exit_code), ("sandbox network", 71));
        assert!(red.fix.as_ref().is_some_and(|fix| fix.contains("nft_tproxy")), "{red:?}");
    }

    #[test]
    fn no_ipv6_is_a_warning_alone() {
        let findings = judge(&Facts { sandbox: Ok(false), ..healthy() });
        assert_eq!((only_red(&findings).check.as_str(), only_red(&findings).exit_code), ("IPv6", 0));
    }

    #[test]
    fn a_runtime_directory_that_takes_no_socket_turns_red_alone() {
        let findings = judge(&Facts { sockets: ("/run/x".into(), Err(refused(13))), ..healthy() });
        let red = only_red(&findings);
        assert_eq!((red.check.as_str(), red.exit_code), ("runtime directory", 74));
        assert!(red.fix.as_ref().is_some_and(|fix| fix.contains("XDG_RUNTIME_DIR")), "{red:?}");
    }
}
