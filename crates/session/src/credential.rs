//! Credentials that end while the session lives: links that are up go on, since the API server asks only at their
//! beginning; a lost one needs new ones. So the kubeconfig is read again in time, and the user told when it has no newer.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use cluster::Cluster;

use crate::Voice;

/// Between two looks at the clock, and at the kubeconfig once the credentials have ended. (Not one long sleep: the
/// machine may sleep, too.)
const LOOK: Duration = Duration::from_secs(10);

/// Says when the credentials end, and when there are new ones; never returns.
pub(crate) async fn watch(cluster: &Cluster, voice: &dyn Voice) -> std::convert::Infallible {
    let mut told = false;
    loop {
        let left = left(cluster.credentials_end(), now());
        if left.is_zero() {
            cluster.renew().await;
        }
        let ended = self::left(cluster.credentials_end(), now()).is_zero();
        if let Some(words) = words(&mut told, ended) {
            voice.note(words);
        }
        tokio::time::sleep(LOOK.min(left.max(Duration::from_secs(1)))).await;
    }
}

/// What is to be said, once for each change.
fn words(told: &mut bool, ended: bool) -> Option<&'static str> {
    if *told == ended {
        return None;
    }
    *told = ended;
    Some(if ended {
        "the credentials of this context have ended: links that are up go on, a lost one cannot be dialled again; log in \
         again, the kubeconfig is read again by itself"
    } else {
        "the kubeconfig has new credentials"
    })
}

/// Until the end; for ever where none is known.
fn left(end: Option<i64>, now: i64) -> Duration {
    end.map_or(Duration::MAX, |end| Duration::from_secs(u64::try_from(end - now).unwrap_or(0)))
}

/// Seconds since 1970.
fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_is_said_once_and_new_credentials_too() {
        let mut told = false;
        assert_eq!(words(&mut told, false), None);
        assert!(words(&mut told, true).is_some_and(|words| words.contains("have ended")));
        assert_eq!(words(&mut told, true), None);
        assert!(words(&mut told, false).is_some_and(|words| words.contains("new credentials")));
    }

    #[test]
    fn what_is_left_is_never_negative_and_endless_where_unknown() {
        assert_eq!(left(Some(100), 90), Duration::from_secs(10));
        assert_eq!(left(Some(100), 200), Duration::ZERO);
        assert_eq!(left(None, 0), Duration::MAX);
    }
}
