//! While the command runs: notices that the agent is gone, or has let the session go, and puts another in its place.
//!
//! A network that is lost is neither: then links are dialled again and flows resume (`linking`). What counts is the API
//! server's word about the pod and the agent's own about the session.

use std::convert::Infallible;
use std::sync::{Arc, RwLock};
use std::time::{Duration, Instant};

use cluster::{AgentContainer, Gone};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use wire::Admitted;

use crate::agent::{Agent, Outbound};
use crate::attaching::{Attacher, Entered};
use crate::linking::LinkStates;
use crate::localhost::Localhost;
use crate::{Voice, dialer};

/// How long no link is up before the agent is asked whether it still knows the session, and between two such questions.
const FIRST_DOUBT: Duration = Duration::from_secs(2);
const LONGEST_DOUBT: Duration = Duration::from_secs(15);

/// For the answer.
const ANSWER: Duration = Duration::from_secs(10);

pub(crate) struct Succession<'a> {
    pub(crate) attacher: &'a Attacher,
    pub(crate) outbound: &'a Outbound,
    pub(crate) localhost: &'a RwLock<Localhost>,
    /// States of the links of the agent that serves; none while there is no agent.
    pub(crate) states: &'a watch::Sender<LinkStates>,
    pub(crate) voice: &'a dyn Voice,
}

/// What is being done is told by `status`: the terminal is the command's.
struct Waiting<'a>(&'a Outbound, &'a dyn Voice);

impl Voice for Waiting<'_> {
    fn step(&self, what: &str) {
        tracing::info!(what, "no next agent yet");
        self.0.explain(what);
    }

    fn ready(&self) {}

    fn note(&self, what: &str) {
        self.1.note(what);
    }
}

/// Why an agent serves no more.
enum Lost {
    Gone(Gone),
    /// The lease ended while it could not be reached: it admitted the session as a new one.
    Forgotten(Admitted),
}

impl Succession<'_> {
    pub(crate) async fn run(&self) -> Infallible {
        while let Some(serving) = self.outbound.serving() {
            let lost = self.until_lost(&serving.agent).await;
            self.replace(&serving.agent, lost).await;
        }
        // There always is one, from the session's start on.
        std::future::pending().await
    }

    async fn until_lost(&self, agent: &Agent) -> Lost {
        let mut states = agent.states.clone();
        loop {
            let is_linked = agent.is_linked();
            // Begun anew when links come or go: the connection that an old watch waits on may be lost with theirs.
            tokio::select! {
                gone = self.attacher.cluster.gone(&agent.container) => return Lost::Gone(gone),
                admitted = self.until_forgotten(&agent.container), if !is_linked => return Lost::Forgotten(admitted),
                () = self.publish_while(agent, is_linked, &mut states) => {}
            }
        }
    }

    /// Publishes the states of the links for as long as any, or none, is up.
    async fn publish_while(&self, agent: &Agent, is_linked: bool, states: &mut watch::Receiver<LinkStates>) {
        while agent.is_linked() == is_linked {
            self.states.send_replace(states.borrow_and_update().clone());
            if states.changed().await.is_err() {
                std::future::pending().await
            }
        }
    }

    /// The new admission, once the agent does not know the session any more.
    async fn until_forgotten(&self, agent: &AgentContainer) -> Admitted {
        let mut doubt = FIRST_DOUBT;
        loop {
            sleep(doubt).await;
            match timeout(ANSWER, self.attacher.admit_again(agent)).await {
                Ok(Ok(admitted)) if !admitted.renewed => return admitted,
                Ok(Err(error)) => tracing::debug!(%error, "the agent cannot be asked"),
                Ok(Ok(_)) | Err(_) => {}
            }
            doubt = (doubt * 2).min(LONGEST_DOUBT);
        }
    }

    async fn replace(&self, before: &Arc<Agent>, lost: Lost) {
        let since = Instant::now();
        let pod = &before.container.pod;
        let mut entered = match lost {
            Lost::Forgotten(admitted) => {
                self.voice.note(&format!(
                    "the agent in pod {pod} let the session go while it could not be reached: open connections are reset"
                ));
                self.interrupt("the agent let the session go");
                Some((before.container.clone(), admitted))
            }
            Lost::Gone(gone) => {
                let why = format!("the agent in pod {pod} is gone: {gone}");
                self.voice.note(&format!("{why}; its connections are reset, new ones wait for the next agent"));
                Some(self.next(before, &why).await)
            }
        };
        loop {
            let (container, admitted) = match entered.take() {
                Some(entered) => entered,
                None => self.next(before, "the agent does not answer").await,
            };
            match self.attacher.link(container, admitted).await {
                Ok(agent) => {
                    let AgentContainer { pod, name, .. } = &agent.container;
                    let seconds = since.elapsed().as_secs_f32();
                    self.voice.note(&format!("goes on through the agent {name} in pod {pod}, after {seconds:.1} s"));
                    return self.outbound.serve(agent);
                }
                Err(error) => self.interrupt(&error.to_string()),
            }
            sleep(FIRST_DOUBT).await;
        }
    }

    /// Until the next one is there the one before serves, as long as it can: a pod that is being deleted may take a while.
    async fn next(&self, before: &Agent, why: &str) -> (AgentContainer, Admitted) {
        let waiting = Waiting(self.outbound, self.voice);
        let next = self.attacher.enter_again(&before.container, &waiting);
        let mut next = std::pin::pin!(next);
        let mut states = before.states.clone();
        let unlinked = states.wait_for(|states| !states.values().any(|state| state.up));
        let Entered { target, agent, admitted, .. } = tokio::select! {
            entered = &mut next => entered,
            _ = unlinked => {
                self.interrupt(why);
                next.await
            }
        };
        if let Some(target) = target {
            dialer::write(self.localhost).know(target.neighbours(), &target.container_id);
        }
        (agent, admitted)
    }

    fn interrupt(&self, why: &str) {
        self.outbound.interrupt(why);
        self.states.send_replace(LinkStates::new());
    }
}
