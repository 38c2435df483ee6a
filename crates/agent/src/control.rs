//! Serves the requests of a session's control flow, several at once, each answered when it is done.

use std::io;
use std::num::NonZeroU64;
use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::task::JoinSet;
use wire::{Answer, ControlDecoder, Done, Failure, Request, Resolved, answer, encode_control, request};

use crate::describe::{self, Sources};
use crate::resolve::resolve;

/// Requests under way; above, no more are read. Most are names, which take a round trip inside the cluster.
const AT_ONCE: usize = 128;

/// How the control flow came to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// The client said that the session is over; it was answered.
    Left,
    /// The flow ended without a word.
    Closed,
}

/// Runs until the client leaves or the flow ends. `pace` is told of the pace that the client wants.
pub(crate) async fn serve(
    control: impl AsyncRead + AsyncWrite,
    sources: Arc<Sources>,
    pace: impl Fn(Option<NonZeroU64>),
) -> io::Result<Ended> {
    let (mut from, mut to) = tokio::io::split(control);
    let mut decoder = ControlDecoder::default();
    let mut under_way = JoinSet::new();
    let mut buffer = vec![0; 4096];
    loop {
        while under_way.len() < AT_ONCE
            && let Some(Request { id, kind }) = decoder.next_message().map_err(io::Error::other)?
        {
            match &kind {
                Some(request::Kind::Leave(_)) => {
                    reply(&mut to, id, answer::Kind::Done(Done {})).await?;
                    return Ok(Ended::Left);
                }
                // In the order they came.
                Some(request::Kind::Pace(asked)) => {
                    pace(NonZeroU64::new(asked.bytes_per_second));
                    reply(&mut to, id, answer::Kind::Done(Done {})).await?;
                    continue;
                }
                _ => {}
            }
            let sources = sources.clone();
            under_way.spawn(async move { (id, work(kind, sources).await) });
        }
        tokio::select! {
            Some(done) = under_way.join_next() => match done {
                Ok((id, Some(kind))) => reply(&mut to, id, kind).await?,
                Ok((_, None)) => {}
                Err(error) => tracing::error!(%error, "a request was lost"),
            },
            read = from.read(&mut buffer), if under_way.len() < AT_ONCE => match read? {
                0 => return Ok(Ended::Closed),
                len => decoder.push(&buffer[..len]),
            },
        }
    }
}

async fn reply(to: &mut (impl AsyncWrite + Unpin), id: u64, kind: answer::Kind) -> io::Result<()> {
    if id == 0 {
        return Ok(());
    }
    let answer = Request { id, kind: Some(request::Kind::Answer(Answer { kind: Some(kind) })) };
    to.write_all(&encode_control(&answer)).await?;
    to.flush().await
}

/// `None`: nothing is to be answered.
async fn work(kind: Option<request::Kind>, sources: Arc<Sources>) -> Option<answer::Kind> {
    let failure = |text: String| answer::Kind::Failure(Failure { text });
    Some(match kind {
        Some(request::Kind::Resolve(asked)) => match resolve(&sources, &asked.query).await {
            Ok(response) => answer::Kind::Resolved(Resolved { response }),
            Err(text) => failure(text),
        },
        Some(request::Kind::DescribeContainer(asked)) => {
            // Hundreds of small reads: off the thread that carries flows.
            let described = tokio::task::spawn_blocking(move || describe::describe(&sources, &asked.container_id));
            match described.await {
                Ok(description) => answer::Kind::Description(description),
                Err(error) => failure(format!("the container could not be described: {error}")),
            }
        }
        // The agent asks nothing, so there is nothing to be answered.
        Some(request::Kind::Answer(_)) => return None,
        Some(request::Kind::Leave(_) | request::Kind::Pace(_)) => answer::Kind::Done(Done {}),
        None => failure(format!("the agent's release {} does not know this request", wire::RELEASE)),
    })
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use bytes::Bytes;
    use tokio::io::DuplexStream;
    use wire::{DescribeContainer, Leave, Resolve};

    use super::*;

    fn start() -> (DuplexStream, tokio::task::JoinHandle<io::Result<Ended>>) {
        let (ours, theirs) = tokio::io::duplex(64);
        let missing = PathBuf::from("/nonexistent");
        let environment = vec![("A".into(), "1".into())];
        let sources = Sources { proc: missing.clone(), resolv_conf: missing, dns_port: 53, environment };
        (ours, tokio::spawn(serve(theirs, Arc::new(sources), |_| {})))
    }

    async fn ask(stream: &mut DuplexStream, id: u64, kind: Option<request::Kind>) {
        stream.write_all(&encode_control(&Request { id, kind })).await.expect("open");
    }

    async fn answered(stream: &mut DuplexStream, decoder: &mut ControlDecoder) -> (u64, answer::Kind) {
        let mut buffer = [0; 64];
        loop {
            if let Some(message) = decoder.next_message().expect("well formed") {
                let Some(request::Kind::Answer(Answer { kind: Some(kind) })) = message.kind else {
                    panic!("{message:?}")
                };
                return (message.id, kind);
            }
            let len = stream.read(&mut buffer).await.expect("open");
            assert_ne!(len, 0, "closed");
            decoder.push(&buffer[..len]);
        }
    }

    #[tokio::test]
    async fn requests_are_answered_by_their_ids_and_leaving_last() {
        let (mut stream, serving) = start();
        let mut decoder = ControlDecoder::default();
        ask(&mut stream, 1, Some(request::Kind::DescribeContainer(DescribeContainer::default()))).await;
        let (id, kind) = answered(&mut stream, &mut decoder).await;
        let answer::Kind::Description(description) = kind else { panic!("{kind:?}") };
        assert_eq!((id, description.kubelet_env.len()), (1, 1));
        ask(&mut stream, 2, Some(request::Kind::Resolve(Resolve { query: Bytes::from_static(b"x") }))).await;
        assert!(matches!(answered(&mut stream, &mut decoder).await, (2, answer::Kind::Failure(_))));
        ask(&mut stream, 3, None).await;
        assert!(matches!(answered(&mut stream, &mut decoder).await, (3, answer::Kind::Failure(_))));
        ask(&mut stream, 4, Some(request::Kind::Leave(Leave {}))).await;
        assert!(matches!(answered(&mut stream, &mut decoder).await, (4, answer::Kind::Done(_))));
        assert_eq!(serving.await.expect("no panic").expect("no error"), Ended::Left);
    }

    #[tokio::test]
    async fn a_pace_is_kept_before_it_is_answered() {
        let (mut ours, theirs) = tokio::io::duplex(64);
        let (told, mut heard) = tokio::sync::mpsc::unbounded_channel();
        let sources = Sources { proc: "/".into(), resolv_conf: "/".into(), dns_port: 53, environment: Vec::new() };
        let _serving = tokio::spawn(serve(theirs, Arc::new(sources), move |rate| told.send(rate).expect("heard")));
        let mut decoder = ControlDecoder::default();
        for (id, bytes_per_second) in [(1, 5), (2, 0)] {
            ask(&mut ours, id, Some(request::Kind::Pace(wire::Pace { bytes_per_second }))).await;
            assert_eq!(answered(&mut ours, &mut decoder).await, (id, answer::Kind::Done(Done {})));
            assert_eq!(heard.try_recv(), Ok(NonZeroU64::new(bytes_per_second)));
        }
    }

    #[tokio::test]
    async fn garbage_ends_the_control_flow() {
        let (mut stream, serving) = start();
        stream.write_all(&[0xff; 11]).await.expect("open");
        serving.await.expect("no panic").expect_err("malformed");
        let (stream, serving) = start();
        drop(stream);
        assert_eq!(serving.await.expect("no panic").expect("no error"), Ended::Closed);
    }
}
