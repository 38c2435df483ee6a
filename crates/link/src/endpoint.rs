//! The tokio shell around the [mux](crate::mux): one end of a session, its links and its flows.
//!
//! Nothing is spawned here. A link lives in the future of [`Endpoint::run_link`], a flow in that of [`Flow::splice`] or
//! in its [`FlowStream`]; dropping one ends it. All of them share the mux behind a mutex that is held for a microsecond
//! and never across a system call. What makes it fast:
//! - a link's reader writes bytes on to the flow's socket itself when nothing is queued before them;
//! - whoever queues frames wakes the link, which writes when the tasks that are ready now have had their turn: one
//!   vectored write carries what many flows have to say. That needs a runtime that runs tasks in the order in which they
//!   were woken, as tokio's current-thread one does.

mod link;
mod patience;
mod pool;
mod reader;
mod splice;
mod stream;
mod writer;

use std::collections::HashMap;
use std::future::poll_fn;
use std::io;
use std::num::NonZeroU64;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::task::AtomicWaker;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};

use crate::frame::{FlowId, Reset};
use crate::mux::{Config, Event, LinkId, Mux, Phase, ProtocolError, Role};

pub use splice::{FlowEnd, Spliced};
pub use stream::FlowStream;

use pool::Pool;

/// Tasks run between two looks at the kernel. Each may carry 128 KiB, some 0.1 ms; tokio's own number of 61 would let
/// a small flow wait for many milliseconds beside a bulk one.
const TASKS_AT_ONCE: u32 = 2;

/// The runtime that endpoints are made for: one thread, tasks in the order in which they were woken.
pub fn runtime() -> io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().event_interval(TASKS_AT_ONCE).build()
}

/// The control flow as a byte stream.
pub type ControlStream = FlowStream;

/// One end of a session: its flows, over any number of links. Cheap to clone.
#[derive(Clone)]
pub struct Endpoint {
    shared: Arc<Shared>,
}

/// The flows that the other side opens.
pub struct Incoming {
    offers: mpsc::UnboundedReceiver<(FlowId, Bytes)>,
    shared: Weak<Shared>,
}

/// A flow that the other side wants open. Dropping it refuses the flow.
pub struct Offer {
    pub payload: Bytes,
    flow: Option<Flow>,
}

/// An open flow. Dropping it resets it, unless it is finished.
pub struct Flow {
    shared: Arc<Shared>,
    id: FlowId,
}

/// Why a link ended.
#[derive(Debug, thiserror::Error)]
pub enum LinkEnd {
    #[error("the other side closed the link")]
    Closed,
    #[error("link failed: {0}")]
    Failed(#[from] io::Error),
    #[error("nothing came over the link for too long")]
    Silent,
    #[error("the other side broke the protocol: {0}")]
    Protocol(#[from] ProtocolError),
    #[error("the other side said goodbye ({reason}): {text}")]
    GoAway { reason: u64, text: String },
    /// The caller's check of the other side's HELLO failed.
    #[error("{0}")]
    Refused(String),
    #[error("a link of that number is there already")]
    NumberTaken,
}

/// What an endpoint is doing.
#[derive(Clone, Debug, Default)]
pub struct Stats {
    pub links: Vec<LinkStats>,
    pub flows: usize,
    /// Bytes kept until the other side acknowledges them.
    pub retained: u64,
    /// Bytes that came and were not written on yet.
    pub waiting: u64,
}

/// What a link goes over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// The network alone, which sees to it that everybody gets a share.
    Own,
    /// What others need, too, such as an API server: the link keeps to the pace.
    Shared,
}

/// What one live link is doing.
#[derive(Clone, Debug)]
pub struct LinkStats {
    pub number: u32,
    pub bytes_sent: u64,
    pub bytes_received: u64,
    pub frames_sent: u64,
    pub frames_received: u64,
    /// Of the last PING that was answered.
    pub round_trip: Option<Duration>,
    /// How long ago anything came.
    pub silent_for: Duration,
}

impl Endpoint {
    pub fn new(role: Role, config: Config) -> (Endpoint, Incoming) {
        let (sender, offers) = mpsc::unbounded_channel();
        let mux = Mux::new(role, config);
        let wanted = watch::Sender::new(mux.wanted_links());
        let mut core = Core { mux, wanted, flows: HashMap::new(), links: Vec::new(), offers: Some(sender) };
        core.flows.insert(FlowId::CONTROL, Attached::default());
        let shared = Arc::new(Shared {
            core: Mutex::new(core),
            started: Instant::now(),
            live: watch::Sender::new(0),
            pool: Arc::default(),
        });
        let incoming = Incoming { offers, shared: Arc::downgrade(&shared) };
        (Endpoint { shared }, incoming)
    }

    /// Runs a link over `io`, which must be authenticated, until it ends. `hello` is this side's HELLO; `check` judges
    /// the other side's and says what is wrong with it. Dropping the future closes the link.
    pub async fn run_link<S>(
        &self,
        number: u32,
        way: Way,
        io: S,
        hello: Bytes,
        check: impl FnOnce(&[u8]) -> Result<(), String> + Send,
    ) -> LinkEnd
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        link::run(&self.shared, number, way, io, hello, check).await
    }

    /// Links whose way others share carry at most so many bytes a second out, all of them together; `None`: as many as
    /// there are.
    pub fn pace(&self, bytes_per_second: Option<NonZeroU64>) {
        self.shared.with(|core| core.mux.set_pace(bytes_per_second));
    }

    /// Opens a flow and waits for the answer, without a limit in time. Dropping the future takes the flow back.
    pub async fn open(&self, payload: Bytes) -> Result<Flow, Reset> {
        let id = self.shared.timed(|core, now| {
            let id = core.mux.open(payload, now)?;
            core.flows.insert(id, Attached::default());
            Some(id)
        });
        let flow = Flow { shared: self.shared.clone(), id: id.ok_or(Reset::Aborted)? };
        poll_fn(|cx| match flow.poll_phase(cx) {
            Phase::Opening | Phase::Offered => Poll::Pending,
            Phase::Open => Poll::Ready(Ok(())),
            Phase::Ended(why) => Poll::Ready(Err(why)),
        })
        .await?;
        Ok(flow)
    }

    /// The control flow, open from the start. There is one; streams of a second call share it.
    pub fn control(&self) -> ControlStream {
        FlowStream::new(Flow { shared: self.shared.clone(), id: FlowId::CONTROL })
    }

    pub fn stats(&self) -> Stats {
        let core = self.shared.lock();
        let now = self.shared.now();
        let links = core.mux.link_states().map(|link| LinkStats {
            number: link.number,
            bytes_sent: link.counts.bytes_sent,
            bytes_received: link.counts.bytes_received,
            frames_sent: link.counts.frames_sent,
            frames_received: link.counts.frames_received,
            round_trip: link.round_trip,
            silent_for: now.saturating_sub(link.heard),
        });
        let mut links: Vec<_> = links.collect();
        links.sort_by_key(|link| link.number);
        let (retained, waiting) = core.mux.bytes_kept();
        Stats { links, flows: core.mux.flow_count(), retained, waiting }
    }

    /// Ends every flow and lets no new one begin. Links live on, to tell the other side, until their futures are
    /// dropped.
    pub fn close(&self, why: Reset) {
        self.shared.with(|core| {
            core.mux.close(why);
            core.offers = None;
        });
    }

    /// How many links live, as it changes.
    pub fn live_links(&self) -> watch::Receiver<usize> {
        self.shared.live.subscribe()
    }

    /// How many links would serve what is sent now, as it changes; see [`Mux::wanted_links`].
    pub fn wanted_links(&self) -> watch::Receiver<usize> {
        self.shared.lock().wanted.subscribe()
    }

    /// Returns as soon as no link lives.
    pub async fn all_links_lost(&self) {
        // The sender lives as long as `self`.
        let _ = self.live_links().wait_for(|live| *live == 0).await;
    }
}

impl Incoming {
    /// The next flow that the other side wants open; `None` when the endpoint is closed or gone.
    pub async fn next(&mut self) -> Option<Offer> {
        let (id, payload) = self.offers.recv().await?;
        let shared = self.shared.upgrade()?;
        Some(Offer { payload, flow: Some(Flow { shared, id }) })
    }
}

impl Offer {
    /// Tells the other side that the flow is connected.
    pub fn accept(mut self) -> Flow {
        let flow = self.flow.take().expect("only accept and refuse take it, and both consume the offer");
        flow.shared.with(|core| core.mux.accept(flow.id));
        flow
    }

    /// Tells the other side why the flow cannot be.
    pub fn refuse(mut self, why: Reset) {
        if let Some(flow) = self.flow.take() {
            flow.shared.with(|core| core.mux.reset(flow.id, why));
        }
    }

    /// Returns when the other side does not want the flow any more.
    pub async fn withdrawn(&self) {
        if let Some(flow) = &self.flow {
            poll_fn(|cx| match flow.poll_phase(cx) {
                Phase::Ended(_) => Poll::Ready(()),
                _ => Poll::Pending,
            })
            .await;
        }
    }
}

impl Flow {
    pub fn id(&self) -> u32 {
        self.id.0
    }

    /// Joins the flow to a kernel TCP socket until both directions have ended. A half-close stays a half-close, a reset
    /// a reset: on the socket by SO_LINGER 0, on the flow by RST. Dropping the future resets both.
    pub async fn splice(self, socket: TcpStream) -> Spliced {
        splice::Splice::new(self, socket).await
    }

    /// The flow as a byte stream, for flows that end in this process.
    pub fn into_stream(self) -> FlowStream {
        FlowStream::new(self)
    }

    /// Where the flow stands; the task is woken when that changes.
    fn poll_phase(&self, cx: &Context<'_>) -> Phase {
        let mut core = self.shared.lock();
        core.attached(self.id).watch(Side::Read, cx);
        core.mux.phase(self.id)
    }
}

impl Drop for Flow {
    fn drop(&mut self) {
        self.shared.with(|core| {
            if self.id != FlowId::CONTROL {
                core.flows.remove(&self.id);
            }
            core.mux.release(self.id);
        });
    }
}

struct Shared {
    core: Mutex<Core>,
    started: Instant,
    live: watch::Sender<usize>,
    /// Lives as long as the session, not the process: a parked agent keeps nothing.
    pool: Arc<Pool>,
}

/// What the mutex guards.
struct Core {
    mux: Mux,
    wanted: watch::Sender<usize>,
    /// What waits for each flow that is held.
    flows: HashMap<FlowId, Attached>,
    /// By [`crate::mux::LinkId`].
    links: Vec<Option<Arc<Handle>>>,
    offers: Option<mpsc::UnboundedSender<(FlowId, Bytes)>>,
}

#[derive(Default)]
struct Attached {
    wakers: [Option<Waker>; 2],
    /// Where a link's reader may write bytes on by itself.
    socket: Option<Arc<TcpStream>>,
}

/// A stream's halves may be polled by two tasks.
#[derive(Clone, Copy)]
enum Side {
    Read = 0,
    Write = 1,
}

impl Attached {
    fn watch(&mut self, side: Side, cx: &Context<'_>) {
        let waker = &mut self.wakers[side as usize];
        match waker {
            Some(known) => known.clone_from(cx.waker()),
            None => *waker = Some(cx.waker().clone()),
        }
    }
}

/// What others know of a link.
#[derive(Default)]
struct Handle {
    /// The link's own future.
    task: AtomicWaker,
    silent: AtomicBool,
}

impl Handle {
    /// Nothing came for too long: the link shall end.
    fn end_silent(&self) {
        self.silent.store(true, Ordering::Release);
        self.task.wake();
    }

    fn is_silent(&self) -> bool {
        self.silent.load(Ordering::Acquire)
    }
}

impl Core {
    fn attached(&mut self, id: FlowId) -> &mut Attached {
        self.flows.entry(id).or_default()
    }

    fn handle(&self, link: LinkId) -> Option<&Arc<Handle>> {
        self.links.get(link.index())?.as_ref()
    }

    /// Follows the mux's events. Whoever changed the mux calls it before the mutex is free, and wakes afterwards.
    fn follow(&mut self, wakers: &mut Vec<Waker>) {
        while let Some(event) = self.mux.poll_event() {
            match event {
                Event::Changed(flow) => {
                    if let Some(attached) = self.flows.get(&flow) {
                        wakers.extend(attached.wakers.iter().flatten().cloned());
                    }
                }
                Event::Offered { flow, payload } => {
                    if self.offers.as_ref().is_none_or(|offers| offers.send((flow, payload)).is_err()) {
                        self.mux.refuse(flow, Reset::Aborted);
                    }
                }
                Event::Silent(link) => {
                    if let Some(handle) = self.handle(link) {
                        handle.end_silent();
                    }
                }
                Event::Wanted(links) => {
                    self.wanted.send_replace(links);
                }
            }
        }
        for link in self.mux.take_dirty() {
            wakers.extend(self.handle(link).and_then(|handle| handle.task.take()));
        }
    }
}

impl Shared {
    fn now(&self) -> Duration {
        self.started.elapsed()
    }

    fn lock(&self) -> MutexGuard<'_, Core> {
        // A panic elsewhere is no reason for another here: the mux checks what it is given.
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does something with the mux that depends on the time. Who knows the time does without: to ask for it costs as
    /// much as the rest.
    fn timed<R>(&self, act: impl FnOnce(&mut Core, Duration) -> R) -> R {
        let now = self.now();
        self.with(|core| act(core, now))
    }

    /// Does something with the mux, and wakes the tasks that it concerns.
    fn with<R>(&self, act: impl FnOnce(&mut Core) -> R) -> R {
        let mut wakers = Vec::new();
        let result = {
            let mut core = self.lock();
            let result = act(&mut core);
            core.follow(&mut wakers);
            result
        };
        wakers.into_iter().for_each(Waker::wake);
        result
    }
}
