//! Which link a flow's direction uses: the interactive one, or a bulk one while much is sent.
//!
//! Measured: beside one bulk flow on the same link a small flow's round trip is 3 ms, on another link 0.23-0.39 ms.
//! The queue is in the kernel's and the API server's buffers, where priorities cannot reach it.

use std::time::Duration;

use super::flow::Flow;
use super::link::{LinkId, Links};

/// A direction that sends more than this within [`MEMORY`] is bulk.
const HEAVY: f32 = 128.0 * 1024.0;
/// One that sends less is not any more. Between the two it stays what it is.
const LIGHT: f32 = 16.0 * 1024.0;
/// How long what was sent counts.
const MEMORY: Duration = Duration::from_millis(100);

/// Bytes lately sent: what was sent a [`MEMORY`] ago counts by 1/e.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Load {
    bytes: f32,
    at: Duration,
}

impl Load {
    pub(super) fn add(&mut self, bytes: usize, now: Duration) {
        let elapsed = now.saturating_sub(self.at);
        self.bytes = self.bytes * (-elapsed.as_secs_f32() / MEMORY.as_secs_f32()).exp() + bytes as f32;
        self.at = now;
    }

    pub(super) fn is_heavy(&self, before: bool) -> bool {
        self.bytes > if before { LIGHT } else { HEAVY }
    }
}

impl Links {
    /// The live link with the lowest number.
    pub(super) fn interactive(&self) -> Option<LinkId> {
        self.iter().min_by_key(|(_, link)| link.number).map(|(id, _)| id)
    }

    /// The link with the fewest bulk flows among the others; with one link alone, that one.
    fn bulk(&self) -> Option<LinkId> {
        let interactive = self.interactive()?;
        let others = self.iter().filter(|(id, _)| *id != interactive);
        Some(others.min_by_key(|(_, link)| (link.heavy, link.number)).map_or(interactive, |(id, _)| id))
    }

    /// Whether a bulk flow may stay there: not beside interactive ones if it can be helped, nor where two more are than
    /// elsewhere, as when a link was added.
    fn is_right_for_bulk(&self, at: LinkId) -> bool {
        let heavy = |id| self.get(id).map_or(0, |link| link.heavy);
        match self.bulk() {
            Some(best) if Some(at) == self.interactive() => best == at,
            Some(best) => heavy(at) <= heavy(best) + 1,
            None => true,
        }
    }

    /// Puts the flow where its load belongs. It stays where it is as long as that is right, so that bytes are not put
    /// out of order without need.
    pub(super) fn place(&mut self, flow: &mut Flow) {
        let heavy = flow.load.is_heavy(flow.heavy);
        let current = flow.link.filter(|at| self.get(*at).is_some());
        let interactive = self.interactive();
        let right = match current {
            // Until the other side has answered, everything follows the OPEN on its link.
            Some(_) if !flow.is_answered() => true,
            Some(at) if heavy => self.is_right_for_bulk(at),
            Some(at) => Some(at) == interactive || flow.send.has_next(),
            None => false,
        };
        if right {
            return;
        }
        let to = if heavy && flow.is_answered() { self.bulk() } else { interactive };
        self.leave(flow);
        flow.link = to;
        flow.heavy = heavy;
        if heavy && let Some(link) = to.and_then(|to| self.get_mut(to)) {
            link.heavy += 1;
        }
    }

    /// Takes the flow off its link.
    pub(super) fn leave(&mut self, flow: &mut Flow) {
        if flow.heavy
            && let Some(link) = flow.link.and_then(|at| self.get_mut(at))
        {
            link.heavy = link.heavy.saturating_sub(1);
        }
        (flow.link, flow.control_on, flow.data_on, flow.heavy) = (None, None, None, false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn load_is_what_was_sent_lately() {
        let mut load = Load::default();
        load.add(100 << 10, Duration::ZERO);
        assert!(!load.is_heavy(false));
        load.add(64 << 10, Duration::from_millis(20));
        assert!(load.is_heavy(false));
        load.add(100, Duration::from_millis(120));
        assert!(!load.is_heavy(false) && load.is_heavy(true), "it stays what it is for a while");
        load.add(100, Duration::from_millis(520));
        assert!(!load.is_heavy(true));
    }
}
