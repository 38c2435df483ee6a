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
    let mut lost_since: Option<Instant> = None;
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
            Ok(()) = links.changed() => say_links(&links.borrow_and_update(), &mut lost_since, voice),
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

/// A session that no longer works says so at once, and again when it does.
fn say_links(states: &LinkStates, lost_since: &mut Option<Instant>, voice: &dyn Voice) {
    // Without an agent there are no links, and what that means was said already.
    if states.is_empty() {
        lost_since.get_or_insert_with(Instant::now);
        return;
    }
    let any_up = states.values().any(|s| s.up);
    match (any_up, *lost_since) {
        (false, None) => {
            *lost_since = Some(Instant::now());
            let why = states.values().find_map(|s| s.error.as_deref()).unwrap_or("no link is up");
            voice.note(&format!("lost the cluster: {why}; reconnecting, open connections wait"));
        }
        (true, Some(since)) => {
            *lost_since = None;
            voice.note(&format!("reached the cluster again after {:.1} s", since.elapsed().as_secs_f32()));
        }
        (false, Some(_)) | (true, None) => {}
    }
}
