//! Questions to the agent over the control flow, and their answers.

use std::collections::HashMap;
use std::io;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::{mpsc, oneshot};
use wire::{ControlDecoder, Request, answer, encode_control, request};

/// An agent that is reachable answers everything within this; the pod's resolver is given 2 s a try and name server.
const PATIENCE: Duration = Duration::from_secs(10);

/// Requests waiting to be written. Few: they are small and the control flow is never bulk.
const QUEUE: usize = 256;

/// Asks the agent. Shared by everyone who has a question; the task that `Asker::new` returns does the I/O.
pub(crate) struct Asker {
    next_id: AtomicU64,
    waiting: Mutex<HashMap<u64, oneshot::Sender<answer::Kind>>>,
    requests_tx: mpsc::Sender<Request>,
}

/// The half that `run` drives.
pub(crate) struct Questions {
    requests_rx: mpsc::Receiver<Request>,
}

impl Asker {
    pub(crate) fn new() -> (Self, Questions) {
        let (requests_tx, requests_rx) = mpsc::channel(QUEUE);
        let asker = Asker { next_id: AtomicU64::new(1), waiting: Mutex::default(), requests_tx };
        (asker, Questions { requests_rx })
    }

    /// The answer, or why there is none: the agent's own words, or that it did not answer in time.
    pub(crate) async fn ask(&self, kind: request::Kind) -> io::Result<answer::Kind> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let (answer_tx, answer_rx) = oneshot::channel();
        self.lock().insert(id, answer_tx);
        let _forget = Forget(self, id);
        let exchange = async {
            self.requests_tx.send(Request { id, kind: Some(kind) }).await.map_err(|_| ended())?;
            answer_rx.await.map_err(|_| ended())
        };
        match tokio::time::timeout(PATIENCE, exchange).await {
            Ok(Ok(answer::Kind::Failure(failure))) => Err(io::Error::other(failure.text)),
            Ok(answered) => answered,
            Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "the agent did not answer in time")),
        }
    }

    /// Carries questions and answers over the control flow until it ends.
    pub(crate) async fn run(&self, mut questions: Questions, control: impl AsyncRead + AsyncWrite) -> io::Result<()> {
        let (mut read, mut write) = tokio::io::split(control);
        let writing = async {
            while let Some(request) = questions.requests_rx.recv().await {
                write.write_all(&encode_control(&request)).await?;
                write.flush().await?;
            }
            Ok(())
        };
        let reading = async {
            let mut decoder = ControlDecoder::default();
            let mut buffer = vec![0; 16 << 10];
            loop {
                let count = read.read(&mut buffer).await?;
                if count == 0 {
                    return Err(ended());
                }
                decoder.push(&buffer[..count]);
                while let Some(message) = decoder.next_message().map_err(io::Error::other)? {
                    self.answered(message);
                }
            }
        };
        let end = tokio::try_join!(writing, reading).map(|((), ())| ());
        // Who waits is told now, not when their patience ends.
        self.lock().clear();
        end
    }

    fn answered(&self, message: Request) {
        let Some(request::Kind::Answer(wire::Answer { kind: Some(kind) })) = message.kind else {
            tracing::debug!(id = message.id, "the agent asked for something this release does not know");
            return;
        };
        if let Some(waiting) = self.lock().remove(&message.id) {
            let _ = waiting.send(kind);
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<u64, oneshot::Sender<answer::Kind>>> {
        self.waiting.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// Takes a question back whose asker went away or lost patience.
struct Forget<'a>(&'a Asker, u64);

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        self.0.lock().remove(&self.1);
    }
}

fn ended() -> io::Error {
    io::Error::new(io::ErrorKind::BrokenPipe, "the session's connection to the agent ended")
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use wire::{Answer, Failure, Resolve, Resolved};

    use super::*;

    fn resolve(query: &'static str) -> request::Kind {
        request::Kind::Resolve(Resolve { query: Bytes::from_static(query.as_bytes()) })
    }

    /// An agent that answers each pair of questions in reverse order, with the question as the answer.
    async fn reversing_agent(mut io: tokio::io::DuplexStream) -> io::Result<()> {
        let (mut decoder, mut held, mut buffer) = (ControlDecoder::default(), Vec::new(), vec![0; 64]);
        loop {
            let count = io.read(&mut buffer).await?;
            decoder.push(&buffer[..count]);
            while let Some(message) = decoder.next_message().map_err(io::Error::other)? {
                let Some(request::Kind::Resolve(Resolve { query })) = message.kind else { continue };
                let kind = if &query[..] == b"bad" {
                    answer::Kind::Failure(Failure { text: "no name server".into() })
                } else {
                    answer::Kind::Resolved(Resolved { response: query })
                };
                held.push(Request { id: message.id, kind: Some(request::Kind::Answer(Answer { kind: Some(kind) })) });
            }
            if held.len() == 2 {
                for answer in held.drain(..).rev() {
                    io.write_all(&encode_control(&answer)).await?;
                }
            }
        }
    }

    #[tokio::test]
    async fn the_end_of_the_control_flow_is_told_to_all_who_wait() {
        let (ours, theirs) = tokio::io::duplex(1024);
        let (asker, questions) = Asker::new();
        let closing = async {
            let mut theirs = theirs;
            theirs.read_u8().await.expect("the question comes first");
        };
        let (answer, end, ()) = tokio::join!(asker.ask(resolve("lost")), asker.run(questions, ours), closing);
        assert_eq!(answer.expect_err("no answer").kind(), io::ErrorKind::BrokenPipe);
        end.expect_err("ended");
        assert_eq!(asker.ask(resolve("late")).await.expect_err("no answer").kind(), io::ErrorKind::BrokenPipe);
    }

    #[tokio::test]
    async fn answers_find_their_questions_in_any_order() {
        let (ours, theirs) = tokio::io::duplex(1024);
        let (asker, questions) = Asker::new();
        let both = async {
            let (good, bad) = tokio::join!(asker.ask(resolve("good")), asker.ask(resolve("bad")));
            assert_eq!(
                good.expect("answered"),
                answer::Kind::Resolved(Resolved { response: Bytes::from_static(b"good") })
            );
            assert_eq!(bad.expect_err("refused").to_string(), "no name server");
        };
        tokio::select! {
            () = both => {}
            end = asker.run(questions, ours) => panic!("control flow ended: {end:?}"),
            end = reversing_agent(theirs) => panic!("agent ended: {end:?}"),
        }
        assert!(asker.lock().is_empty());
    }
}
