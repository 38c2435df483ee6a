//! Third state: the command runs, its traffic flows, questions on the control socket are answered.

use std::process::ExitStatus;
use std::time::{Duration, Instant};

use sandbox::Child;
use tokio::sync::{mpsc, watch};

use crate::linking::LinkStates;
use crate::socket::{Answer, Asked, Request};
use crate::status::Status;
use crate::{Error, Voice};

/// How long a command that was asked to end by `quit` may take before it is ended.
const GRACE: Duration = Duration::from_secs(10);

const SIGTERM: i32 = rustix::process::Signal::TERM.as_raw();
const SIGKILL: i32 = rustix::process::Signal::KILL.as_raw();

/// What `running` watches besides the command.
pub(crate) struct Watched<'a> {
    pub(crate) links: watch::Receiver<LinkStates>,
    pub(crate) asked: mpsc::Receiver<Asked>,
    pub(crate) status: &'a (dyn Fn(u32) -> Status + Send + Sync),
    pub(crate) voice: &'a dyn Voice,
}

/// How the command ended, and who waits for the session's end.
pub(crate) struct Ended {
    pub(crate) status: ExitStatus,
    pub(crate) answers: Vec<tokio::sync::oneshot::Sender<Answer>>,
}

/// Runs until the command ended; signals are the sandbox's business.
pub(crate) async fn run(child: &mut Child, watched: Watched<'_>) -> Result<Ended, Error> {
    let Watched { mut links, mut asked, status, voice } = watched;
    let pid = child.pid();
    let mut quitting = Quitting::default();
    let mut lost: Option<Loss> = None;
    loop {
        tokio::select! {
            ended = child.wait() => {
                return Ok(Ended { status: ended?, answers: quitting.answers });
            }
            () = quitting.out_of_patience() => child.signal(SIGKILL),
            Some(Asked { request, answer }) = asked.recv() => match serve(request, &status(pid)) {
                Served::Answer(reply) => { let _ = answer.send(reply); }
                Served::End => {
                    quitting.begin(answer);
                    child.signal(SIGTERM);
                }
            },
            Ok(()) = links.changed() => say_links(&links.borrow_and_update(), &mut lost, voice),
        }
    }
}

enum Served {
    Answer(Answer),
    End,
}

fn serve(request: Request, status: &Status) -> Served {
    match request {
        Request::Status => Served::Answer(Answer::Status(Box::new(status.clone()))),
        Request::Quit => Served::End,
        Request::Leave { workload } => match status.attachments.as_slice() {
            [only] if only.is_called(&workload) => Served::End,
            _ => Served::Answer(Answer::Refused { why: format!("this session has no attachment to {workload}") }),
        },
    }
}

/// Requests to end, answered when the session has.
#[derive(Default)]
struct Quitting {
    deadline: Option<tokio::time::Instant>,
    answers: Vec<tokio::sync::oneshot::Sender<Answer>>,
}

impl Quitting {
    fn begin(&mut self, answer: tokio::sync::oneshot::Sender<Answer>) {
        self.deadline.get_or_insert_with(|| tokio::time::Instant::now() + GRACE);
        self.answers.push(answer);
    }

    async fn out_of_patience(&mut self) {
        match self.deadline.take() {
            Some(deadline) => {
                // Put back before waiting: this future is dropped whenever something else happens first.
                self.deadline = Some(deadline);
                tokio::time::sleep_until(deadline).await;
                self.deadline = None;
            }
            None => std::future::pending().await,
        }
    }
}

/// Told of one loss at most: reasons may hold figures that change.
const REASONS: usize = 5;

/// A time without any link.
struct Loss {
    since: Instant,
    /// Why, each reason said once.
    told: Vec<String>,
}

/// A session that no longer works says so at once, says what else keeps it from working, and when it does again.
fn say_links(states: &LinkStates, lost: &mut Option<Loss>, voice: &dyn Voice) {
    // Without an agent there are no links, and what that means was said already.
    if states.is_empty() {
        lost.get_or_insert_with(|| Loss { since: Instant::now(), told: Vec::new() });
        return;
    }
    if states.values().any(|s| s.up) {
        if let Some(loss) = lost.take() {
            voice.note(&format!("reached the cluster again after {:.1} s", loss.since.elapsed().as_secs_f32()));
        }
        return;
    }
    let why = states.values().find_map(|s| s.error.as_deref()).unwrap_or("no link is up");
    match lost {
        None => {
            *lost = Some(Loss { since: Instant::now(), told: vec![why.to_owned()] });
            voice.note(&format!("lost the cluster: {why}; reconnecting, open connections wait"));
        }
        Some(loss) if loss.told.len() < REASONS && !loss.told.iter().any(|told| told == why) => {
            loss.told.push(why.to_owned());
            voice.note(&format!("still no way to the cluster: {why}"));
        }
        Some(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::linking::LinkState;

    #[derive(Default)]
    struct Notes(Mutex<Vec<String>>);

    impl Voice for Notes {
        fn step(&self, _: &str) {}
        fn ready(&self) {}
        fn note(&self, what: &str) {
            self.0.lock().expect("one thread").push(what.to_owned());
        }
    }

    #[test]
    fn a_loss_is_said_with_each_new_reason_once_and_so_is_its_end() {
        let (voice, mut lost) = (Notes::default(), None);
        let down =
            |why: &str| LinkStates::from([(0, LinkState { error: Some(why.to_owned()), ..LinkState::default() })]);
        let up = LinkStates::from([(0, LinkState { up: true, ..LinkState::default() })]);
        for states in [&up, &down("reset"), &down("refused"), &down("reset"), &down("refused"), &up, &up] {
            say_links(states, &mut lost, &voice);
        }
        let notes = voice.0.into_inner().expect("one thread");
        assert_eq!(notes[0], "lost the cluster: reset; reconnecting, open connections wait");
        assert_eq!(notes[1], "still no way to the cluster: refused");
        assert!(notes[2].starts_with("reached the cluster again"));
        assert_eq!(notes.len(), 3);
    }
}
