//! The Debian packages that the testbed needs, installed when they are missing.

use std::path::Path;

use anyhow::{Context, Result};

use crate::shell;

/// A file that shows the package is there, and the package.
const NEEDED: [(&str, &str); 9] = [
    ("/usr/bin/containerd", "containerd"),
    ("/usr/sbin/runc", "runc"),
    ("/usr/lib/cni/ptp", "containernetworking-plugins"),
    ("/usr/sbin/nft", "nftables"),
    ("/usr/sbin/iptables", "iptables"),
    ("/usr/sbin/ip", "iproute2"),
    ("/usr/bin/openssl", "openssl"),
    ("/usr/bin/gcc", "gcc"),
    ("/usr/bin/mmdebstrap", "mmdebstrap"),
];

pub(crate) fn install_missing() -> Result<()> {
    let is_there = |path: &str| Path::new(path).exists() || Path::new(path.trim_start_matches("/usr")).exists();
    let missing: Vec<_> = NEEDED.iter().filter(|(path, _)| !is_there(path)).map(|(_, package)| *package).collect();
    if missing.is_empty() {
        return Ok(());
    }
    eprintln!("installing from Debian: {}", missing.join(" "));
    let hint = "these packages are needed; install them by hand if this is no Debian";
    shell::run("apt-get update -q").context(hint)?;
    let line = format!("apt-get install -y -q --no-install-recommends {}", missing.join(" "));
    shell::output(shell::command(&line).env("DEBIAN_FRONTEND", "noninteractive")).context(hint)?;
    Ok(())
}
