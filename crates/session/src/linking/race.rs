//! Dials one link: on every rung that may serve, and the first that an agent answers on wins.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use cluster::{Pipe, Rung};
use futures::StreamExt as _;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use link::tls::{self, TlsStream};
use tokio::time::{Instant, sleep_until, timeout};

use super::Dial;
use super::ladder::Ladder;
use crate::Error;

/// A dial through the API server takes 10 ms; one that takes this long leads into a black hole.
const LIMIT: Duration = Duration::from_secs(10);
/// The pod's address is reached by a network as near as this, or not at all; nothing waits for it but an error.
const DIRECT_LIMIT: Duration = Duration::from_millis(1500);

/// A link's bytes, after the handshake, and how they go.
pub(super) struct Dialled {
    pub(super) rung: Rung,
    pub(super) io: TlsStream<Pipe>,
}

/// Dials on all rungs that the ladder names.
pub(super) async fn any(dial: &Dial) -> Result<Dialled, Error> {
    let started = Instant::now();
    let mut waiting: Vec<(Rung, Instant)> = ladder(&dial.ladder)
        .starts(started.into_std())
        .into_iter()
        .map(|(rung, after)| (rung, started + after))
        .collect();
    waiting.reverse();
    let mut racing: FuturesUnordered<BoxFuture<'_, (Rung, Result<Dialled, Error>)>> = FuturesUnordered::new();
    let mut failures = Vec::new();
    loop {
        while let Some((rung, _)) = waiting.pop_if(|(_, due)| *due <= Instant::now()) {
            racing.push(Box::pin(async move { (rung, one(dial, rung).await) }));
        }
        let next = waiting.last().map(|(_, due)| *due);
        tokio::select! {
            Some((rung, dialled)) = racing.next(), if !racing.is_empty() => match dialled {
                Ok(dialled) => return Ok(dialled),
                Err(error) => {
                    tracing::debug!(%rung, %error, "a rung does not serve");
                    if rung != Rung::Direct && error.is_of_the_api_server() {
                        waiting.retain(|(rung, _)| *rung == Rung::Direct);
                    } else if rung != Rung::Direct {
                        waiting.iter_mut().for_each(|(_, due)| *due = started);
                    }
                    failures.push((rung, error));
                }
            },
            () = sleep_until(next.unwrap_or(started)), if next.is_some() => {}
            else => {
                let only = ladder(&dial.ladder).is_one_alone();
                return Err(Error::Rungs { pod: dial.pod.clone(), failures, only });
            }
        }
    }
}

/// Dials on one rung.
pub(super) async fn one(dial: &Dial, rung: Rung) -> Result<Dialled, Error> {
    let limit = if rung == Rung::Direct { DIRECT_LIMIT } else { LIMIT };
    let late = || Error::Link { pod: dial.pod.clone(), cause: format!("no answer within {} s", limit.as_secs_f32()) };
    let dialled = timeout(limit, shake_hands(dial, rung)).await.unwrap_or_else(|_| Err(late()));
    match &dialled {
        Ok(_) => ladder(&dial.ladder).reached(rung),
        Err(error) => ladder(&dial.ladder).failed(rung, error.is_missing_right()),
    }
    dialled
}

async fn shake_hands(dial: &Dial, rung: Rung) -> Result<Dialled, Error> {
    let port = u16::try_from(dial.admitted.port).unwrap_or_default();
    let pipe = dial.cluster.pipe(rung, &dial.pod, &dial.addresses, port).await?;
    let failed = |cause: String| Error::Link { pod: dial.pod.clone(), cause };
    let pin = <[u8; 32]>::try_from(dial.admitted.key_hash.as_slice()).map_err(|_| failed("bad key hash".into()))?;
    let io = tls::connect(pipe, tls::client_tls(&dial.identity, pin)).await.map_err(|e| failed(e.to_string()))?;
    Ok(Dialled { rung, io })
}

/// A panic elsewhere leaves it whole: each change of it is one insertion.
pub(super) fn ladder(of: &Mutex<Ladder>) -> MutexGuard<'_, Ladder> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}
