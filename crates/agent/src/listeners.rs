//! Whose a listening port of the pod's localhost is: the target container's, or another one's.
//!
//! Reads a `/proc` whose root is an argument. Where the kernel does not let the agent look (a target with capabilities),
//! a port counts as the target's.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::Path;

use crate::describe::{effective_uid, processes_of};

/// Whether something listens on this port of 127.0.0.1, and surely no process of the container.
pub(crate) fn is_of_another(proc: &Path, port: u16, container_id: &str) -> bool {
    let net = proc.join("self/net");
    let read = |name: &str| fs::read_to_string(net.join(name)).unwrap_or_default();
    let found = [read("tcp"), read("tcp6")].iter().flat_map(|table| listeners(table, port)).collect::<Vec<_>>();
    let mut own = None;
    !found.is_empty()
        && found.iter().all(|listener| !own.get_or_insert_with(|| Sockets::of(proc, container_id)).may_hold(listener))
}

#[derive(Debug, PartialEq, Eq)]
struct Listener {
    uid: u32,
    inode: u64,
}

/// The sockets of /proc/net/tcp or tcp6 that take connections to this port of 127.0.0.1.
fn listeners(table: &str, port: u16) -> Vec<Listener> {
    const LISTEN: &str = "0A";
    /// As the kernel prints them: 32-bit words in the machine's order.
    const TAKING: [&str; 5] = [
        "00000000",
        "0100007F",
        "00000000000000000000000000000000",
        "0000000000000000FFFF00000100007F",
        "0000000000000000FFFF000000000000",
    ];
    let of_line = |line: &str| {
        // sl local_address rem_address st tx:rx tr:tm->when retrnsmt uid timeout inode
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        let (address, at) = fields.get(1)?.split_once(':')?;
        let fits = *fields.get(3)? == LISTEN && TAKING.contains(&address) && u16::from_str_radix(at, 16) == Ok(port);
        fits.then_some(Listener { uid: fields.get(7)?.parse().ok()?, inode: fields.get(9)?.parse().ok()? })
    };
    table.lines().filter_map(of_line).collect()
}

/// What is known of a container's sockets.
struct Sockets {
    inodes: BTreeSet<u64>,
    /// Of processes that cannot be looked into; a socket belongs to the user who made it.
    hidden_uids: BTreeSet<Option<u32>>,
}

impl Sockets {
    fn of(proc: &Path, container_id: &str) -> Sockets {
        let mut sockets = Sockets { inodes: BTreeSet::new(), hidden_uids: BTreeSet::new() };
        let processes = processes_of(proc, container_id);
        if processes.is_empty() {
            sockets.hidden_uids.insert(None);
        }
        for process in processes {
            let dir = proc.join(process.pid.to_string());
            match inodes(&dir.join("fd")) {
                Ok(inodes) => sockets.inodes.extend(inodes),
                Err(_) => drop(sockets.hidden_uids.insert(effective_uid(&dir))),
            }
        }
        sockets
    }

    fn may_hold(&self, listener: &Listener) -> bool {
        let hidden = [None, Some(0), Some(listener.uid)].iter().any(|uid| self.hidden_uids.contains(uid));
        hidden || self.inodes.contains(&listener.inode)
    }
}

/// Of a process's sockets. The kernel may list descriptors and still not tell what they are.
fn inodes(dir: &Path) -> io::Result<Vec<u64>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir)? {
        match fs::read_link(entry?.path()) {
            Ok(target) => found.extend(inode(&target)),
            // Closed meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => (),
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}

fn inode(target: &Path) -> Option<u64> {
    target.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::os::unix::fs::symlink;

    use super::*;

    const ID: &str = "0123456789abcdef";

    #[test]
    fn listeners_are_found_where_they_take_connections_of_localhost() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
            0: 00000000:1538 00000000:0000 0A 00000000:00000000 00:00000000 00000000   999        0 4711 1 0 100 0 0 10 0\n\
            1: 0500C612:1538 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4712 1 0 100 0 0 10 0\n\
            2: 0100007F:1538 0100007F:8000 01 00000000:00000000 00:00000000 00000000     0        0 4713 1 0 100 0 0 10 0\n";
        assert_eq!(listeners(table, 0x1538), [Listener { uid: 999, inode: 4711 }]);
        assert!(listeners(table, 80).is_empty());
    }

    #[test]
    fn real_tables_are_read() {
        let proc = Path::new("/proc");
        for at in ["127.0.0.1:0", "[::]:0"] {
            let listener = TcpListener::bind(at).expect("loopback");
            let port = listener.local_addr().expect("bound").port();
            let read = |name: &str| fs::read_to_string(proc.join("self/net").join(name)).expect("a table");
            let found = listeners(&read("tcp"), port).len() + listeners(&read("tcp6"), port).len();
            assert_eq!(found, 1, "{at}");
        }
    }

    /// A process of the container in a made-up /proc, whose sockets can or cannot be seen.
    fn proc(sockets: Option<&[u64]>, uid: u32) -> tempfile::TempDir {
        let dir = tempfile::tempdir().expect("a folder");
        let process = dir.path().join("7");
        fs::create_dir_all(&process).expect("made");
        fs::create_dir_all(dir.path().join("self/net")).expect("made");
        fs::write(process.join("cgroup"), format!("0::/kubepods/pod1/{ID}\n")).expect("written");
        fs::write(process.join("stat"), "7 (x) S 0 7 7 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 100 0").expect("written");
        fs::write(process.join("status"), format!("Uid:\t{uid}\t{uid}\t{uid}\t{uid}\n")).expect("written");
        if let Some(sockets) = sockets {
            fs::create_dir_all(process.join("fd")).expect("made");
            for (number, socket) in sockets.iter().enumerate() {
                symlink(format!("socket:[{socket}]"), process.join("fd").join(number.to_string())).expect("linked");
            }
        }
        let line = "0: 0100007F:1538 00000000:0000 0A 0:0 0:0 0 999 0 4711 1\n";
        fs::write(dir.path().join("self/net/tcp"), line).expect("written");
        dir
    }

    fn opaque() -> tempfile::TempDir {
        let dir = proc(Some(&[1]), 999);
        fs::write(dir.path().join("7/fd/9"), "no link").expect("written");
        dir
    }

    #[test]
    fn a_port_is_anothers_only_when_that_is_certain() {
        let port = 0x1538;
        let cases = [
            (proc(Some(&[1, 2]), 999), port, true),
            (proc(Some(&[1, 4711]), 999), port, false),
            (proc(Some(&[]), 999), 80, false),
            // What its descriptors are cannot be told.
            (opaque(), port, false),
            // It cannot be looked into, but another user made the socket.
            (proc(None, 1000), port, true),
            (proc(None, 999), port, false),
            // Root may have become anybody.
            (proc(None, 0), port, false),
        ];
        for (index, (proc, port, expected)) in cases.iter().enumerate() {
            assert_eq!(is_of_another(proc.path(), *port, ID), *expected, "case {index}");
        }
        assert!(!is_of_another(cases[0].0.path(), port, "ffffffffffffffff"), "no process of the container is seen");
    }
}
