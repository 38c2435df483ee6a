//! The agent that serves the session, as the session has it, and the place where everybody finds the one that serves now.

use std::io;
use std::num::NonZeroU64;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use cluster::AgentContainer;
use link::{Endpoint, Flow, Reset};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;
use wire::{answer, request};

use crate::Error;
use crate::asker::Asker;
use crate::linking::{Dial, LinkStates, Links};
use crate::pacing::{Bound, Pacing};

/// For a question, however many agents it takes to answer it.
const PATIENCE: Duration = Duration::from_secs(10);

/// One agent: the flows that it carries, the links that carry them, and its control flow. Nothing of it passes to the next
/// agent, which knows none of its flows.
pub(crate) struct Agent {
    pub(crate) container: AgentContainer,
    pub(crate) endpoint: Endpoint,
    pub(crate) states: watch::Receiver<LinkStates>,
    asker: Arc<Asker>,
    links: Mutex<Option<Links>>,
    retired: AtomicBool,
    /// What its links through the API server are kept to.
    pub(crate) bound: Bound,
    tasks: JoinSet<()>,
}

impl Agent {
    /// Dials its links and returns when they are up.
    pub(crate) async fn start(
        container: AgentContainer,
        dial: Dial,
        api_rate: Option<NonZeroU64>,
    ) -> Result<Arc<Agent>, Error> {
        let (endpoint, cluster) = (dial.endpoint.clone(), dial.cluster.clone());
        let links = Links::start(dial).await?;
        let pod = container.pod.clone();
        let mut agent = Agent::new(container, endpoint.clone(), links.states.clone(), Some(links));
        let (states, asker, bound) = (agent.states.clone(), agent.asker.clone(), agent.bound.clone());
        agent.tasks.spawn(Pacing { cluster, pod, endpoint, states, asker, most: api_rate, bound }.run());
        Ok(Arc::new(agent))
    }

    fn new(
        container: AgentContainer,
        endpoint: Endpoint,
        states: watch::Receiver<LinkStates>,
        links: Option<Links>,
    ) -> Agent {
        let (asker, questions) = Asker::new();
        let asker = Arc::new(asker);
        let mut tasks = JoinSet::new();
        tasks.spawn({
            let (asker, flow) = (asker.clone(), endpoint.control());
            async move {
                if let Err(error) = asker.run(questions, flow).await {
                    tracing::debug!(%error, "control flow ended");
                }
            }
        });
        Agent {
            container,
            endpoint,
            states,
            asker,
            links: Mutex::new(links),
            retired: AtomicBool::new(false),
            bound: Bound::default(),
            tasks,
        }
    }

    pub(crate) fn is_linked(&self) -> bool {
        self.states.borrow().values().any(|state| state.up)
    }

    pub(crate) async fn ask(&self, kind: request::Kind) -> io::Result<answer::Kind> {
        self.asker.ask(kind).await
    }

    /// It serves no more: its flows are reset, on the command's side too, and its links are closed.
    pub(crate) fn retire(&self) {
        self.retired.store(true, Ordering::Release);
        self.endpoint.close(Reset::Aborted);
        self.links.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    fn is_retired(&self) -> bool {
        self.retired.load(Ordering::Acquire)
    }
}

/// The agent that serves, or that served last.
#[derive(Clone)]
pub(crate) struct Serving {
    pub(crate) agent: Arc<Agent>,
    /// Why it serves no more, while there is no next one.
    pub(crate) gone: Option<String>,
}

/// Whichever agent carries the command's flows and answers its questions. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Outbound(Arc<watch::Sender<Option<Serving>>>);

impl Outbound {
    pub(crate) fn new() -> Outbound {
        Outbound(Arc::new(watch::Sender::new(None)))
    }

    /// `None` before the first.
    pub(crate) fn serving(&self) -> Option<Serving> {
        self.0.borrow().clone()
    }

    /// Takes the place of the one before, which is retired.
    pub(crate) fn serve(&self, agent: Arc<Agent>) {
        if let Some(before) = self.0.send_replace(Some(Serving { agent, gone: None })) {
            before.agent.retire();
        }
    }

    /// No agent serves for now, and why: what is opened and asked waits for the next one.
    pub(crate) fn interrupt(&self, why: &str) {
        self.0.send_if_modified(|serving| {
            let Some(serving) = serving else { return false };
            serving.gone = Some(why.to_owned());
            true
        });
        // After it is published: who is turned away here looks for the next one.
        if let Some(serving) = self.serving() {
            serving.agent.retire();
        }
    }

    /// A newer reason why no agent serves, while none does.
    pub(crate) fn explain(&self, why: &str) {
        self.0.send_if_modified(|serving| match serving {
            Some(Serving { gone: Some(gone), .. }) => {
                why.clone_into(gone);
                true
            }
            _ => false,
        });
    }

    /// Opens a flow through the agent that serves, and, when that goes before it answered, through the next one. Waits
    /// without a limit in time.
    pub(crate) async fn open(&self, payload: Bytes) -> Result<Flow, Reset> {
        loop {
            let agent = self.agent().await;
            match agent.endpoint.open(payload.clone()).await {
                Err(Reset::Aborted) if agent.is_retired() => {}
                answered => return answered,
            }
        }
    }

    /// Asks the agent that serves, and, when that goes before it answered, the next one.
    pub(crate) async fn ask(&self, kind: request::Kind) -> io::Result<answer::Kind> {
        let asking = async {
            loop {
                let agent = self.agent().await;
                match agent.ask(kind.clone()).await {
                    Err(error) if error.kind() == io::ErrorKind::BrokenPipe && agent.is_retired() => {}
                    answered => return answered,
                }
            }
        };
        let late = || io::Error::new(io::ErrorKind::TimedOut, "no agent answered in time");
        timeout(PATIENCE, asking).await.map_err(|_| late())?
    }

    async fn agent(&self) -> Arc<Agent> {
        let mut seen = self.0.subscribe();
        loop {
            let serving = seen.borrow_and_update().as_ref().filter(|serving| serving.gone.is_none()).cloned();
            match serving {
                Some(serving) => return serving.agent,
                // It cannot fail: the sender lives as long as `self`.
                None => drop(seen.changed().await),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use link::{Config, Incoming, Role};
    use tokio::io::AsyncReadExt as _;
    use tokio::net::{TcpListener, TcpStream};
    use wire::Leave;

    use super::*;

    /// An agent whose far end is in this process; with `None`, nothing answers.
    fn agent(linked: bool) -> (Arc<Agent>, Option<Incoming>, JoinSet<()>) {
        let (near, _) = Endpoint::new(Role::Client, Config::default());
        let mut tasks = JoinSet::new();
        let incoming = linked.then(|| {
            let (far, incoming) = Endpoint::new(Role::Agent, Config::default());
            let (near_io, far_io) = tokio::io::duplex(1 << 16);
            let near = near.clone();
            tasks.spawn(async move { drop(near.run_link(0, link::Way::Own, near_io, Bytes::new(), |_| Ok(())).await) });
            tasks.spawn(async move { drop(far.run_link(0, link::Way::Own, far_io, Bytes::new(), |_| Ok(())).await) });
            incoming
        });
        let container = AgentContainer {
            namespace: "ns".into(),
            pod: "web".into(),
            pod_uid: "u".into(),
            pod_ips: Vec::new(),
            name: "stead-agent-1".into(),
            image: "i".into(),
            target: "app".into(),
            reused: false,
            job: None,
        };
        let (_, states) = watch::channel(LinkStates::new());
        (Arc::new(Agent::new(container, near, states, None)), incoming, tasks)
    }

    async fn accepted(incoming: Option<Incoming>) -> Flow {
        incoming.expect("linked").next().await.expect("a flow").accept()
    }

    #[tokio::test]
    async fn a_flow_of_a_gone_agent_is_reset_on_the_commands_side() {
        let outbound = Outbound::new();
        let (first, incoming, _tasks) = agent(true);
        outbound.serve(first);
        let (flow, _far) = tokio::join!(outbound.open(Bytes::new()), accepted(incoming));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let mut command = TcpStream::connect(listener.local_addr().expect("bound")).await.expect("connected");
        let (ours, _) = listener.accept().await.expect("accepted");
        let carried = tokio::spawn(flow.expect("open").splice(ours));
        outbound.interrupt("the pod was deleted");
        let error = command.read_u8().await.expect_err("reset");
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        carried.await.expect("no panic");
        assert_eq!(outbound.serving().and_then(|serving| serving.gone).as_deref(), Some("the pod was deleted"));
    }

    #[tokio::test]
    async fn what_is_opened_and_asked_while_the_agent_goes_is_the_next_agents() {
        let outbound = Outbound::new();
        let (dead, ..) = agent(false);
        outbound.serve(dead);
        let (next, incoming, _tasks) = agent(true);
        let change = async {
            // The others are asked first, and wait for an agent that is gone.
            tokio::task::yield_now().await;
            outbound.interrupt("it is gone");
            tokio::task::yield_now().await;
            outbound.serve(next);
            accepted(incoming).await
        };
        let (flow, far) = tokio::join!(biased; outbound.open(Bytes::new()), change);
        assert_eq!(flow.map(|flow| flow.id()), Ok(far.id()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_question_that_no_agent_answers_fails_in_time() {
        let outbound = Outbound::new();
        let (dead, ..) = agent(false);
        outbound.serve(dead);
        outbound.interrupt("it is gone");
        let answer = outbound.ask(request::Kind::Leave(Leave {})).await;
        assert_eq!(answer.expect_err("no answer").kind(), io::ErrorKind::TimedOut);
    }

    #[tokio::test]
    async fn the_newest_reason_why_no_agent_serves_is_kept_until_one_does() {
        let outbound = Outbound::new();
        let reason = |outbound: &Outbound| outbound.serving().and_then(|serving| serving.gone);
        outbound.serve(agent(false).0);
        outbound.explain("no agent is gone yet");
        assert_eq!(reason(&outbound), None);
        outbound.interrupt("it is gone");
        outbound.explain("no pod is ready");
        assert_eq!(reason(&outbound).as_deref(), Some("no pod is ready"));
        outbound.serve(agent(false).0);
        assert_eq!(reason(&outbound), None);
    }
}
