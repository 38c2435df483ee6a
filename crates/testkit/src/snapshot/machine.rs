//! The developer's machine: its network, devices and name resolution; mounts, processes and files of the test user.

use std::fs;
use std::process::Command;

use super::Picture;
use crate::lab::{Account, Lab, checked};

/// One section per line `== NAME`; volatile figures are cut off.
const SCRIPT: &str = r"
echo '== links'; ip -o -d link | sed 's/ qlen.*//'
echo '== addresses'; ip -o address | sed 's/ valid_lft.*//'
echo '== routes'; ip route show table all; ip -6 route show table all | sed 's/ expires [^ ]*//'
echo '== rules'; ip rule; ip -6 rule
echo '== nftables'; nft list ruleset
echo '== listening'; ss -Hltun | awk '{print $1, $5}' | sort
echo '== sysctls'; sysctl -a --pattern 'ip_forward|rp_filter|accept_local|route_localnet|ping_group_range' 2>/dev/null
";

const USER_SCRIPT: &str = r"
echo '== resolv.conf'; cat /etc/resolv.conf
echo '== hosts'; cat /etc/hosts /etc/nsswitch.conf
echo '== devices'; ls -la /dev | awk '{print $1, $3, $4, $5, $6, $NF}' | grep -v ' \.\.*$' | sort
";

/// Takes everything that belongs to the machine's side.
pub(super) fn take(lab: &Lab, account: &Account, picture: &mut Picture) -> anyhow::Result<()> {
    sections(&checked(&mut lab.root(["sh", "-c", SCRIPT]))?, picture);
    sections(&checked(&mut lab.user(["sh", "-c", USER_SCRIPT]))?, picture);
    picture.put("machine named namespaces", checked(Command::new("ip").args(["netns", "list"]))?);
    picture.put("machine mounts", host_mounts());
    picture.put("machine processes of the user", processes_of(account.uid));
    let (uid, runtime) = (account.uid.to_string(), &account.runtime);
    let mut find = Command::new("find");
    find.args(["/tmp", "/var/tmp", "/dev/shm"]).arg(runtime).args(["-xdev", "-user", &uid]);
    let files = checked(&mut find);
    // find fails on directories that vanish while it looks; what it found is lost then, and the next look finds it.
    picture.put("machine files of the user", files.unwrap_or_default());
    Ok(())
}

fn sections(text: &str, picture: &mut Picture) {
    for section in text.split("== ").skip(1) {
        let (name, body) = section.split_once('\n').unwrap_or((section, ""));
        picture.put(format!("machine {name}"), body);
    }
}

/// Of this process's mount namespace, which is the one that a sandbox must not touch.
fn host_mounts() -> String {
    let text = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let points = text.lines().filter_map(|line| line.split(' ').nth(4));
    // Mounts below a runtime's state come and go with its containers; the pods' pictures watch those.
    let mut points: Vec<&str> = points.filter(|point| !point.contains("/containerd/")).collect();
    points.sort_unstable();
    points.join("\n")
}

/// One line per process that has anything of this user.
pub fn processes_of(uid: u32) -> String {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Ok(status) = fs::read_to_string(entry.path().join("status")) else { continue };
        // Real, effective, saved and file system user id.
        let ids = status.lines().find_map(|line| line.strip_prefix("Uid:")).unwrap_or_default();
        if ids.split_whitespace().any(|id| id == uid.to_string()) {
            let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            found.push(String::from_utf8_lossy(&line).replace('\0', " "));
        }
    }
    found.sort();
    found.join("\n")
}
