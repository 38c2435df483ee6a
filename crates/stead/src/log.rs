//! What the client writes down: to stderr what was asked for, and for each session a file of its own, bounded, that
//! `gather-logs` takes. No headers, bodies or values are ever logged.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use tracing_subscriber::filter::{EnvFilter, LevelFilter, Targets};
use tracing_subscriber::layer::{Layer as _, SubscriberExt as _};
use tracing_subscriber::util::SubscriberInitExt as _;

/// Bytes after which a session's file makes place for a new one; the one before it is kept.
const LONGEST: u64 = 512 << 10;

/// Files kept, the newest: 10 MiB at most.
const KEPT: usize = 20;

/// Our own crates say what a user feels at `info` and why at `debug`; those of others may tell headers at `debug`.
const OURS: [&str; 8] = ["stead", "session", "cluster", "sandbox", "link", "dns", "datagram", "wire"];

/// The file of the session of this process, once it has one.
static SESSION: Mutex<Option<SessionFile>> = Mutex::new(None);

/// To stderr by `-v`s or STEAD_LOG, and to the session's file once `begin` was called.
pub(crate) fn start(verbose: u8) {
    let level = match verbose {
        0 => "error",
        1 => "info",
        _ => "debug",
    };
    let filter = EnvFilter::try_from_env("STEAD_LOG").unwrap_or_else(|_| EnvFilter::new(level));
    let terminal = tracing_subscriber::fmt::layer().with_writer(io::stderr).without_time().with_filter(filter);
    let ours = OURS.map(|name| (name, LevelFilter::DEBUG));
    let kept = Targets::new().with_default(LevelFilter::WARN).with_targets(ours);
    let file = tracing_subscriber::fmt::layer().with_writer(|| ToSession).with_ansi(false).with_filter(kept);
    tracing_subscriber::registry().with(terminal).with(file).init();
}

/// From now on what is logged goes to this session's file, too. Where none can be made, sessions go without.
pub(crate) fn begin(session: &str) {
    let Some(folder) = folder() else { return };
    match SessionFile::create(&folder, session) {
        Ok(file) => *lock() = Some(file),
        Err(error) => tracing::info!(%error, folder = %folder.display(), "this session keeps no log"),
    }
}

/// The log files of this user's sessions, newest first.
pub(crate) fn files() -> Vec<PathBuf> {
    folder().map(|folder| by_age(&folder)).unwrap_or_default()
}

/// `$XDG_STATE_HOME/stead/log`
fn folder() -> Option<PathBuf> {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let state = set("XDG_STATE_HOME").or_else(|| Some(set("HOME")?.join(".local/state")))?;
    Some(state.join("stead/log"))
}

fn lock() -> MutexGuard<'static, Option<SessionFile>> {
    SESSION.lock().unwrap_or_else(PoisonError::into_inner)
}

fn by_age(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let aged = |entry: fs::DirEntry| {
        let path = entry.path();
        let is_log = path.extension().is_some_and(|extension| extension == "log");
        let age = entry.metadata().and_then(|meta| meta.modified()).unwrap_or(SystemTime::UNIX_EPOCH);
        is_log.then_some((age, path))
    };
    let mut files: Vec<(SystemTime, PathBuf)> = entries.filter_map(aged).collect();
    files.sort_by(|a, b| b.cmp(a));
    files.into_iter().map(|(_, path)| path).collect()
}

struct SessionFile {
    path: PathBuf,
    file: File,
    written: u64,
}

impl SessionFile {
    fn create(folder: &Path, session: &str) -> io::Result<Self> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        for old in by_age(folder).into_iter().skip(KEPT - 1) {
            let _ = fs::remove_file(old);
        }
        let path = folder.join(format!("{session}.log"));
        Ok(SessionFile { file: open(&path)?, path, written: 0 })
    }

    fn write(&mut self, line: &[u8]) -> io::Result<()> {
        if self.written + line.len() as u64 > LONGEST {
            fs::rename(&self.path, self.path.with_extension("1.log"))?;
            self.file = open(&self.path)?;
            self.written = 0;
        }
        self.written += line.len() as u64;
        self.file.write_all(line)
    }
}

fn open(path: &Path) -> io::Result<File> {
    File::options().create(true).append(true).mode(0o600).open(path)
}

/// Whole lines, as `tracing_subscriber` hands them over. A full disk is no reason to end a session.
struct ToSession;

impl Write for ToSession {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if let Some(file) = lock().as_mut() {
            let _ = file.write(line);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_long_log_keeps_its_end_and_is_readable_by_its_user_alone() {
        let dir = tempfile::tempdir().expect("a directory");
        let folder = dir.path().join("stead/log");
        let mut file = SessionFile::create(&folder, "s").expect("created");
        let line = |n: u64| format!("{n:0>1023}\n");
        for n in 0..3 * LONGEST / 1024 {
            file.write(line(n).as_bytes()).expect("written");
        }
        let files = by_age(&folder);
        assert_eq!(files.len(), 2);
        let mut total = 0;
        for path in &files {
            let meta = path.metadata().expect("it exists");
            assert_eq!(meta.permissions().mode() & 0o777, 0o600);
            total += meta.len();
        }
        assert!(total <= 2 * LONGEST, "{total} bytes");
        let text = fs::read_to_string(folder.join("s.log")).expect("readable");
        assert!(text.ends_with(&line(3 * LONGEST / 1024 - 1)));
        assert_eq!(folder.metadata().expect("it exists").permissions().mode() & 0o777, 0o700);
    }

    #[test]
    fn only_the_newest_files_are_kept() {
        let dir = tempfile::tempdir().expect("a directory");
        for n in 0..KEPT as u64 + 5 {
            let file = File::create(dir.path().join(format!("{n}.log"))).expect("created");
            let age = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(n);
            file.set_times(fs::FileTimes::new().set_modified(age)).expect("aged");
        }
        SessionFile::create(dir.path(), "new").expect("created");
        let left = by_age(dir.path());
        assert_eq!(left.len(), KEPT);
        assert_eq!(left[0], dir.path().join("new.log"));
        assert!(!left.contains(&dir.path().join("0.log")));
    }
}
