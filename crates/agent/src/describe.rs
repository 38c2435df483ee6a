//! What the target container sees: its environment twice (as the kubelet resolved it, and as its first process has
//! it), its uid, its working directory, the pod's resolv.conf.
//!
//! Reads a `/proc` whose root is an argument. Everything there may be gone or forbidden the next moment: what cannot
//! be read is left out, never an error.

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use wire::{Description, EnvEntry};

/// Longest environment that is taken over: the message that carries it has 8 MiB. Two go into it.
const LONGEST_ENVIRON: usize = 3 << 20;
/// What a runtime sets in every container, unless the image does: says nothing about the target.
const RUNTIMES_PATH: &[u8] = b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Where to look, and what this process got from the kubelet.
#[derive(Clone, Debug)]
pub struct Sources {
    pub proc: PathBuf,
    pub resolv_conf: PathBuf,
    /// Where the name servers of resolv.conf listen.
    pub dns_port: u16,
    /// The agent's own environment.
    pub environment: Vec<(OsString, OsString)>,
}

impl Sources {
    /// Of the container that this process runs in.
    pub fn of_this_container() -> Self {
        let environment = std::env::vars_os().collect();
        Sources { proc: "/proc".into(), resolv_conf: "/etc/resolv.conf".into(), dns_port: 53, environment }
    }
}

/// Describes the container with the runtime's id `container_id`.
pub(crate) fn describe(sources: &Sources, container_id: &str) -> Description {
    let kubelet_env = kubelet_env(&sources.environment);
    let resolv_conf = fs::read(&sources.resolv_conf).unwrap_or_default();
    let mut description = Description {
        resolv_conf: String::from_utf8_lossy(&resolv_conf).into_owned(),
        kubelet_env,
        ..Description::default()
    };
    let Some(first) = first_process(&sources.proc, container_id) else {
        tracing::warn!(container_id, "no process of the container was found");
        return description;
    };
    let dir = sources.proc.join(first.pid.to_string());
    description.uid = first.uid;
    description.process_env = process_env(&dir, &description.kubelet_env).unwrap_or_default();
    let working_dir = fs::read_link(dir.join("cwd")).unwrap_or_default();
    description.working_dir = working_dir.into_os_string().into_string().unwrap_or_default();
    tracing::debug!(
        pid = first.pid,
        uid = first.uid,
        process_variables = description.process_env.len(),
        kubelet_variables = description.kubelet_env.len(),
        "container found"
    );
    description
}

/// The agent's container has the target's `env` and `envFrom`. What the client placed for the agent itself, and what
/// the runtime sets for each container by its image, is no part of them.
fn kubelet_env(environment: &[(OsString, OsString)]) -> Vec<EnvEntry> {
    let own = |name: &[u8], value: &[u8]| match name {
        b"PATH" => value == RUNTIMES_PATH,
        b"HOME" => value == b"/" || value == b"/root",
        name => name.starts_with(b"STEAD_"),
    };
    environment
        .iter()
        .map(|(name, value)| (name.as_bytes(), value.as_bytes()))
        .filter(|(name, value)| !own(name, value))
        .map(|(name, value)| EnvEntry { name: name.to_vec(), value: value.to_vec() })
        .collect()
}

#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) pid: u32,
    parent: u32,
    /// In clock ticks since boot.
    started: u64,
    uid: Option<u32>,
}

/// The oldest process of the container whose parent is none of it. (What `exec` starts in a container has a parent
/// outside too, but is younger.)
fn first_process(proc: &Path, container_id: &str) -> Option<Process> {
    let processes = processes_of(proc, container_id);
    let is_inside = |pid| processes.iter().any(|process| process.pid == pid);
    processes
        .iter()
        .filter(|process| !is_inside(process.parent))
        .min_by_key(|process| (process.started, process.pid))
        .and_then(|first| read_process(proc, first.pid))
}

pub(crate) fn processes_of(proc: &Path, container_id: &str) -> Vec<Process> {
    let Ok(entries) = fs::read_dir(proc) else { return Vec::new() };
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter(|pid| is_in_container(&proc.join(pid.to_string()), container_id))
        .filter_map(|pid| read_process(proc, pid))
        .collect()
}

/// Whether a cgroup of the process is the container's: the last runtime-made directory of the path is named by the id,
/// plain (`…/pod…/ID`) or as a systemd scope (`cri-containerd-ID.scope`); the container may have made more below it.
/// Version 1 has a line for each controller, version 2 one, which a cgroup namespace shows from the reader's own place
/// (`0::/../cri-containerd-ID.scope`).
fn is_in_container(dir: &Path, container_id: &str) -> bool {
    // A short id would match by accident.
    if container_id.len() < 12 || !container_id.bytes().all(|b| b.is_ascii_alphanumeric()) {
        return false;
    }
    let text = fs::read(dir.join("cgroup")).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    text.lines().filter_map(|line| line.splitn(3, ':').nth(2)).flat_map(|path| path.split(['/', ':'])).any(|part| {
        let scope = part.strip_suffix(".scope").unwrap_or(part);
        scope.strip_suffix(container_id).is_some_and(|before| before.is_empty() || before.ends_with('-'))
    })
}

fn read_process(proc: &Path, pid: u32) -> Option<Process> {
    let dir = proc.join(pid.to_string());
    let stat = fs::read(dir.join("stat")).ok()?;
    // The command's name stands in brackets and may hold anything, brackets and spaces too (proc_pid_stat(5)).
    let after = stat.iter().rposition(|&b| b == b')')? + 1;
    let fields: Vec<_> = std::str::from_utf8(&stat[after..]).ok()?.split_ascii_whitespace().collect();
    // Counted from field 3, the state: parent is field 4, start time field 22.
    let parent = fields.get(1)?.parse().ok()?;
    let started = fields.get(19)?.parse().ok()?;
    Some(Process { pid, parent, started, uid: effective_uid(&dir) })
}

pub(crate) fn effective_uid(dir: &Path) -> Option<u32> {
    let status = fs::read(dir.join("status")).ok()?;
    let status = String::from_utf8_lossy(&status);
    let uids = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
    uids.split_ascii_whitespace().nth(1)?.parse().ok()
}

/// The process's environment, if it is what the process was started with.
fn process_env(dir: &Path, kubelet_env: &[EnvEntry]) -> Option<Vec<EnvEntry>> {
    let bytes = fs::read(dir.join("environ")).ok().filter(|bytes| bytes.len() <= LONGEST_ENVIRON)?;
    let entries = parse_environ(&bytes)?;
    let has = |name: &[u8]| entries.iter().any(|entry| entry.name == name);
    let is_whole = has(b"KUBERNETES_SERVICE_HOST")
        || !kubelet_env.is_empty() && kubelet_env.iter().all(|wanted| has(&wanted.name));
    is_whole.then_some(entries)
}

/// `None` when it was overwritten. Programs that show their state in `ps` (nginx, Redis, PostgreSQL) write over the
/// memory that held it: what is then read has text without `=`, entries of no length, or ends within one.
fn parse_environ(bytes: &[u8]) -> Option<Vec<EnvEntry>> {
    let entries = bytes.strip_suffix(b"\0")?;
    entries
        .split(|&b| b == 0)
        .map(|entry| {
            let at = entry.iter().position(|&b| b == b'=')?;
            let (name, value) = (&entry[..at], &entry[at + 1..]);
            // Kubernetes allows printable ASCII in names.
            let is_name = !name.is_empty() && name.iter().all(|b| b.is_ascii_graphic() || *b == b' ');
            is_name.then(|| EnvEntry { name: name.to_vec(), value: value.to_vec() })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TARGET: &str = "5ad3b2c1f0e94d8a7b6c5d4e3f2a1b0c9d8e7f6a5b4c3d2e1f0a9b8c7d6e5f40";
    const OTHER: &str = "00d3b2c1f0e94d8a7b6c5d4e3f2a1b0c9d8e7f6a5b4c3d2e1f0a9b8c7d6e5f40";

    struct Proc(tempfile::TempDir);

    impl Proc {
        fn new() -> Self {
            let dir = tempfile::tempdir().expect("a temporary directory");
            fs::create_dir(dir.path().join("sys")).expect("created");
            Proc(dir)
        }

        fn process(&self, pid: u32, parent: u32, started: u64, cgroup: &str) -> PathBuf {
            let dir = self.0.path().join(pid.to_string());
            fs::create_dir(&dir).expect("created");
            let zeros = "0 ".repeat(17);
            let stat = format!("{pid} (a) (b ) S {parent} {zeros}{started} 0 0\n");
            fs::write(dir.join("stat"), stat).expect("written");
            fs::write(dir.join("cgroup"), cgroup).expect("written");
            let status = format!("Name:\ta\nUid:\t1\t{}\t1\t1\nGid:\t1\t1\t1\t1\n", 1000 + pid);
            fs::write(dir.join("status"), status).expect("written");
            dir
        }

        fn describe(&self, environment: &[(&str, &str)]) -> Description {
            let environment = environment.iter().map(|(name, value)| (name.into(), value.into())).collect();
            let resolv_conf = self.0.path().join("resolv.conf");
            fs::write(&resolv_conf, "nameserver 10.96.0.10\n").expect("written");
            describe(&Sources { proc: self.0.path().into(), resolv_conf, dns_port: 53, environment }, TARGET)
        }
    }

    fn v2(id: &str) -> String {
        format!("0::/../cri-containerd-{id}.scope/below\n")
    }

    fn v1(id: &str) -> String {
        format!("5:memory:/kubepods/burstable/pod-1/{id}\n1:name=systemd:/kubepods/burstable/pod-1/{id}\n")
    }

    fn pairs(entries: &[EnvEntry]) -> Vec<(String, String)> {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        entries.iter().map(|entry| (text(&entry.name), text(&entry.value))).collect()
    }

    fn owned(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect()
    }

    #[test]
    fn the_first_process_is_found_by_the_containers_id_wherever_it_is() {
        for (style, cgroup) in [("v2", v2(TARGET)), ("v1", v1(TARGET)), ("crio", format!("0::/crio-{TARGET}.scope\n"))]
        {
            let proc = Proc::new();
            // A shared process namespace: PID 1 is the pause process, and another container's are there too.
            proc.process(1, 0, 10, &v2(OTHER));
            proc.process(7, 0, 20, "0::/\n");
            proc.process(9, 12, 30, &cgroup);
            proc.process(12, 0, 25, &cgroup);
            proc.process(11, 0, 90, &cgroup);
            let description = proc.describe(&[]);
            assert_eq!(description.uid, Some(1012), "{style}");
            assert_eq!(description.resolv_conf, "nameserver 10.96.0.10\n");
        }
    }

    #[test]
    fn an_unknown_container_has_no_process() {
        let proc = Proc::new();
        proc.process(1, 0, 10, &v1(OTHER));
        let description = proc.describe(&[("A", "1")]);
        assert_eq!(description.uid, None);
        assert!(description.process_env.is_empty() && description.working_dir.is_empty());
        assert_eq!(pairs(&description.kubelet_env), owned(&[("A", "1")]));
        assert!(!is_in_container(&proc.0.path().join("1"), ""));
        assert!(!is_in_container(&proc.0.path().join("1"), &OTHER[60..]));
    }

    #[test]
    fn an_intact_environment_is_taken() {
        let proc = Proc::new();
        let dir = proc.process(1, 0, 10, &v2(TARGET));
        fs::write(dir.join("environ"), b"KUBERNETES_SERVICE_HOST=10.96.0.1\0A=x=y\nz\0EMPTY=\0WITH.DOT=1\0")
            .expect("written");
        std::os::unix::fs::symlink("/srv/app", dir.join("cwd")).expect("linked");
        let description = proc.describe(&[]);
        let expected =
            owned(&[("KUBERNETES_SERVICE_HOST", "10.96.0.1"), ("A", "x=y\nz"), ("EMPTY", ""), ("WITH.DOT", "1")]);
        assert_eq!(pairs(&description.process_env), expected);
        assert_eq!(description.working_dir, "/srv/app");
    }

    #[test]
    fn an_overwritten_or_foreign_environment_is_not_taken() {
        let cases: [&[u8]; 9] = [
            b"",
            b"\0",
            // Redis: the title, then nothing but zeros.
            b"edis-server *:6379\0\0\0\0\0\0",
            // nginx: the title runs into the environment and ends within an entry.
            b"master process nginx -g daemon off;\0ES_SERVICE_HOST=10.96.0.1\0KUBERNETES_SERVICE_HOST=1\0",
            // Cut before its end.
            b"KUBERNETES_SERVICE_HOST=10.96.0.1\0A=1",
            // Blanks instead of zeros (PostgreSQL).
            b"KUBERNETES_SERVICE_HOST=10.96.0.1\0      \0",
            b"KUBERNETES_SERVICE_HOST=10.96.0.1\0\xffX=1\0",
            b"KUBERNETES_SERVICE_HOST=10.96.0.1\0=1\0",
            // `env -i`: intact, but not what the container was given.
            b"PATH=/bin\0",
        ];
        for (i, environ) in cases.into_iter().enumerate() {
            let proc = Proc::new();
            let dir = proc.process(1, 0, 10, &v2(TARGET));
            fs::write(dir.join("environ"), environ).expect("written");
            assert!(proc.describe(&[("A", "1")]).process_env.is_empty(), "case {i}");
        }
    }

    #[test]
    fn all_of_the_kubelets_names_will_do_where_the_usual_one_is_missing() {
        let proc = Proc::new();
        let dir = proc.process(1, 0, 10, &v2(TARGET));
        fs::write(dir.join("environ"), b"PATH=/bin\0A=2\0").expect("written");
        assert_eq!(proc.describe(&[("A", "1")]).process_env.len(), 2);
        assert_eq!(proc.describe(&[("A", "1"), ("B", "1")]).process_env.len(), 0);
        assert_eq!(proc.describe(&[]).process_env.len(), 0);
    }

    #[test]
    fn the_agents_own_variables_are_not_the_containers() {
        let proc = Proc::new();
        let path = String::from_utf8_lossy(RUNTIMES_PATH).into_owned();
        let all = [
            ("STEAD_CONTAINER", "web"),
            ("STEAD_POD_IPS", "10.0.0.1"),
            ("PATH", path.as_str()),
            ("HOME", "/"),
            ("X", "1"),
        ];
        assert_eq!(pairs(&proc.describe(&all).kubelet_env), owned(&[("X", "1")]));
        let set = [("PATH", "/app/bin"), ("HOME", "/app"), ("HOSTNAME", "web-0")];
        assert_eq!(pairs(&proc.describe(&set).kubelet_env), owned(&set));
    }
}
