//! Waiting for what others do: looks again until it is so or the time is over.

use std::time::{Duration, Instant};

use anyhow::bail;

/// Between two looks. Each look costs a few milliseconds of two shared cores.
const PAUSE: Duration = Duration::from_millis(50);

/// Looks until `look` gives something; its last error, when the time is over.
pub fn within<T>(patience: Duration, mut look: impl FnMut() -> anyhow::Result<T>) -> anyhow::Result<T> {
    let end = Instant::now() + patience;
    loop {
        match look() {
            Ok(found) => return Ok(found),
            Err(error) if Instant::now() >= end => return Err(error.context(format!("not within {patience:?}"))),
            Err(_) => pause(),
        }
    }
}

/// Looks until it is so.
pub fn until(what: &str, patience: Duration, mut look: impl FnMut() -> bool) -> anyhow::Result<()> {
    within(patience, || if look() { Ok(()) } else { bail!("{what}") })
}

#[expect(clippy::disallowed_methods, reason = "the one place where tests wait for something they cannot be told of")]
fn pause() {
    std::thread::sleep(PAUSE);
}
