//! One agent per container: a second start refuses.
//!
//! The lock is on the agent's own executable, which needs neither a writable file system nor a capability. The kernel
//! drops it when the process ends, however that comes about. Overlay file systems give each container an inode of its
//! own, so agents of other containers of the same image do not meet.

use std::fs::{File, TryLockError};
use std::io;
use std::path::Path;

/// Held as long as the agent runs.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

/// `None` when another process holds it.
pub fn take(executable: &Path) -> io::Result<Option<Lock>> {
    let file = File::open(executable)?;
    match file.try_lock() {
        Ok(()) => Ok(Some(Lock { _file: file })),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_start_is_refused_until_the_first_ends() {
        let executable = tempfile::NamedTempFile::new().expect("a temporary file");
        let first = take(executable.path()).expect("readable").expect("free");
        assert!(take(executable.path()).expect("readable").is_none());
        drop(first);
        assert!(take(executable.path()).expect("readable").is_some());
    }
}
