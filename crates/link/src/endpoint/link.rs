//! A link's own future: it alone reads and writes the pipe, and keeps time.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, Sleep};

use crate::mux::LinkId;

use super::patience::Patience;
use super::reader::{Read, Reader};
use super::writer::Writer;
use super::{Handle, LinkEnd, Shared, Way};

/// How long a GOAWAY may take to go out.
const GOODBYE: Duration = Duration::from_secs(1);

/// GOAWAY's reasons.
const BROKEN_PROTOCOL: u64 = 1;
const REFUSED: u64 = 2;

pub(super) async fn run<S>(
    shared: &Arc<Shared>,
    number: u32,
    way: Way,
    mut io: S,
    hello: Bytes,
    check: impl FnOnce(&[u8]) -> Result<(), String>,
) -> LinkEnd
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let Some(link) = Link::new(shared, number, way) else { return LinkEnd::NumberTaken };
    let mut reader = Reader::new(shared, link.id, check);
    let mut writer = Writer::new(hello);
    let mut patience = Patience::default();
    let mut sleep = std::pin::pin!(tokio::time::sleep(Duration::ZERO));
    let end = poll_fn(|cx| {
        let now = shared.now();
        // What the other side said last tells more than that it does not listen any more.
        let read = reader.poll(&mut io, now, cx);
        if let Poll::Ready(Err(end)) = read {
            return Poll::Ready(end);
        }
        // From here on frames queued by others wake this task; those queued before are written now.
        link.handle.task.register(cx.waker());
        link.poll_time(sleep.as_mut(), now, cx);
        if let Poll::Ready(Err(error)) = writer.poll(&mut io, shared, link.id, now, cx) {
            return Poll::Ready(LinkEnd::Failed(error));
        }
        if link.handle.is_silent() {
            return Poll::Ready(LinkEnd::Silent);
        }
        match read {
            Poll::Ready(Ok(Read::Part)) => cx.waker().wake_by_ref(),
            Poll::Ready(Ok(Read::All(carried))) => {
                patience.read(now, carried, shared.with(|core| core.mux.round_trip()))
            }
            _ => {}
        }
        // Bulk has its own link, and is not worth it.
        if number == 0 && patience.lasts(now) {
            rustix::thread::sched_yield();
            cx.waker().wake_by_ref();
        }
        Poll::Pending
    })
    .await;
    let goodbye = match &end {
        LinkEnd::Protocol(error) => Some((BROKEN_PROTOCOL, error.to_string())),
        LinkEnd::Refused(text) => Some((REFUSED, text.clone())),
        _ => None,
    };
    if let Some((reason, text)) = goodbye {
        // Whether it arrives or not, the link ends.
        let _ = tokio::time::timeout(GOODBYE, writer.say_goodbye(&mut io, reason, &text)).await;
    }
    tracing::debug!(link = number, %end, "link ended");
    end
}

/// A link known to the mux; dropping it takes it away again.
struct Link<'a> {
    shared: &'a Arc<Shared>,
    id: LinkId,
    handle: Arc<Handle>,
}

impl<'a> Link<'a> {
    fn new(shared: &'a Arc<Shared>, number: u32, way: Way) -> Option<Self> {
        let handle = Arc::new(Handle::default());
        let id = shared.timed(|core, now| {
            let id = core.mux.link_up(number, now)?;
            if way == Way::Shared {
                core.mux.share(id);
            }
            if core.links.len() <= id.index() {
                core.links.resize(id.index() + 1, None);
            }
            core.links[id.index()] = Some(handle.clone());
            Some(id)
        })?;
        shared.live.send_modify(|live| *live += 1);
        Some(Link { shared, id, handle })
    }

    /// Does what is due now, and is woken when the next is.
    fn poll_time(&self, mut sleep: Pin<&mut Sleep>, now: Duration, cx: &mut Context<'_>) {
        let next = self.shared.with(|core| {
            if core.mux.poll_timeout().is_some_and(|next| next <= now) {
                core.mux.handle_timeout(now);
            }
            core.mux.poll_timeout()
        });
        // Not before a millisecond has passed, whatever the mux says.
        let next = next.map_or(now + GOODBYE, |next| next.max(now + Duration::from_millis(1)));
        let at = Instant::from_std(self.shared.started + next);
        // Too early does no harm: it is looked at again.
        if sleep.deadline() > at || sleep.is_elapsed() {
            sleep.as_mut().reset(at);
        }
        if sleep.poll(cx).is_ready() {
            cx.waker().wake_by_ref();
        }
    }
}

impl Drop for Link<'_> {
    fn drop(&mut self) {
        self.shared.with(|core| {
            core.links[self.id.index()] = None;
            core.mux.link_lost(self.id);
        });
        self.shared.live.send_modify(|live| *live -= 1);
    }
}
