//! How a session talks on stderr: the slow step while one waits, and notes while the command runs.
#![expect(clippy::print_stderr, reason = "talk goes to stderr")]

use std::io::{IsTerminal as _, Write as _};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Steps shorter than this are not worth a word.
const SLOW: Duration = Duration::from_secs(1);

/// How often the shown step is looked at again.
const TICK: Duration = Duration::from_millis(250);

pub(crate) struct Terminal {
    state: Arc<Mutex<State>>,
    tty: bool,
}

#[derive(Default)]
struct State {
    step: Option<(String, Instant)>,
    shown: Option<String>,
    /// Notes held back while the command owns the screen.
    held: Vec<String>,
}

impl Terminal {
    pub(crate) fn new() -> Self {
        Terminal { state: Arc::default(), tty: std::io::stderr().is_terminal() }
    }

    /// Shows slow steps and held notes; runs for as long as the session.
    pub(crate) async fn refresh(&self) {
        let mut tick = tokio::time::interval(TICK);
        loop {
            tick.tick().await;
            let mut state = self.lock();
            self.show_step(&mut state);
            self.release(&mut state);
        }
    }

    fn show_step(&self, state: &mut State) {
        let Some((step, since)) = &state.step else { return };
        if since.elapsed() < SLOW {
            return;
        }
        if self.tty {
            eprint!("\r\x1b[K{step} … {} s", since.elapsed().as_secs());
            let _ = std::io::stderr().flush();
            state.shown = Some(step.clone());
        } else if state.shown.as_ref() != Some(step) {
            eprintln!("{step} …");
            state.shown = Some(step.clone());
        }
    }

    fn wipe(&self, state: &mut State) {
        if state.shown.take().is_some() && self.tty {
            eprint!("\r\x1b[K");
            let _ = std::io::stderr().flush();
        }
    }

    fn release(&self, state: &mut State) {
        if state.held.is_empty() || (self.tty && screen_is_owned()) {
            return;
        }
        let end = if self.tty { "\r\n" } else { "\n" };
        for note in state.held.drain(..) {
            eprint!("stead: {note}{end}");
        }
    }

    /// What is still held when the session ends.
    pub(crate) fn finish(&self) {
        let mut state = self.lock();
        self.wipe(&mut state);
        for note in state.held.drain(..) {
            eprintln!("stead: {note}");
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl session::Voice for Terminal {
    fn step(&self, what: &str) {
        tracing::debug!(what, "step");
        let mut state = self.lock();
        state.step = Some((what.to_owned(), Instant::now()));
    }

    fn ready(&self) {
        let mut state = self.lock();
        state.step = None;
        self.wipe(&mut state);
    }

    fn note(&self, what: &str) {
        tracing::debug!(what, "note");
        let mut state = self.lock();
        state.held.push(what.to_owned());
        self.release(&mut state);
    }
}

/// A program that reads keys one by one (an editor, a pager, a shell's line editor) draws its own screen.
fn screen_is_owned() -> bool {
    rustix::termios::tcgetattr(std::io::stderr())
        .is_ok_and(|t| !t.local_modes.contains(rustix::termios::LocalModes::ICANON))
}
