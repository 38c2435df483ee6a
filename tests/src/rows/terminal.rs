//! R11 with a terminal: `script` gives each run a pseudo-terminal whose keys are its stdin.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};

use super::{Row, row};
use crate::world::World;

pub(super) const ROWS: &[Row] = &[
    row("R11", "the command owns the terminal; ^C reaches it and not stead", interrupt),
    row("R11", "job control: ^Z stops, fg goes on", job_control),
    row("F3", "a closed terminal ends everything", closed_terminal),
];

const PATIENCE: Duration = Duration::from_secs(20);

fn interrupt(world: &World) -> anyhow::Result<()> {
    let script = "test -t 0 && test -t 1 && echo is-tty; stty size; trap 'echo got-int; exit 42' INT; echo re''ady; \
                  while :; do sleep 0.1; done";
    let mut terminal = Terminal::start(world, &world.run("deploy/web").argv(&["sh", "-c", script]))?;
    let before = terminal.until("ready")?;
    ensure!(before.contains("is-tty"), "the command has no terminal: {before:?}");
    terminal.keys("\x03")?;
    terminal.until("got-int")?;
    let status = terminal.end()?;
    ensure!(status == Some(42), "after ^C it ended with {status:?}");
    Ok(())
}

fn job_control(world: &World) -> anyhow::Result<()> {
    let mut terminal = Terminal::start(world, &["bash", "--norc", "--noprofile", "-i"].map(str::to_owned))?;
    let run = world.run("deploy/web").argv(&["sh", "-c", "echo re''ady; read line; echo got-$line"]);
    let quoted: Vec<String> = run.iter().map(|word| format!("'{}'", word.replace('\'', r"'\''"))).collect();
    terminal.keys(&format!("{}\n", quoted.join(" ")))?;
    terminal.until("ready")?;
    terminal.keys("\x1a")?;
    terminal.until("Stopped")?;
    terminal.keys("echo shell-is-''back\n")?;
    terminal.until("shell-is-back")?;
    terminal.keys("fg\n")?;
    terminal.keys("a-line\n")?;
    terminal.until("got-a-line")?;
    terminal.keys("exit\n")?;
    terminal.end().map(drop)
}

fn closed_terminal(world: &World) -> anyhow::Result<()> {
    let script = "echo re''ady; while :; do sleep 0.1; done";
    let mut terminal = Terminal::start(world, &world.run("deploy/web").argv(&["sh", "-c", script]))?;
    terminal.until("ready")?;
    // The pseudo-terminal's master goes with `script`: a hangup for all that is on it. The fixture sees what stays.
    terminal.child.kill()?;
    terminal.child.wait()?;
    Ok(())
}

struct Terminal {
    child: Child,
    keys: ChildStdin,
    out: Receiver<Vec<u8>>,
}

impl Terminal {
    fn start(world: &World, argv: &[String]) -> anyhow::Result<Terminal> {
        let quoted: Vec<String> = argv.iter().map(|word| format!("'{}'", word.replace('\'', r"'\''"))).collect();
        let mut command = world.lab().user(["script", "-qec", &quoted.join(" "), "/dev/null"]);
        command.env("STEAD_AGENT_IMAGE", world.agent_image()).env("TERM", "xterm");
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
        let keys = child.stdin.take().context("stdin is piped")?;
        let stdout = child.stdout.take().context("stdout is piped")?;
        let (sender, out) = channel();
        std::thread::spawn(move || {
            let mut reader = BufReader::new(stdout);
            while let Ok(piece) = reader.fill_buf().map(<[u8]>::to_vec) {
                reader.consume(piece.len());
                if piece.is_empty() || sender.send(piece).is_err() {
                    return;
                }
            }
        });
        Ok(Terminal { child, keys, out })
    }

    fn keys(&mut self, keys: &str) -> anyhow::Result<()> {
        self.keys.write_all(keys.as_bytes())?;
        Ok(self.keys.flush()?)
    }

    /// Reads until `word` was printed; everything up to there.
    fn until(&mut self, word: &str) -> anyhow::Result<String> {
        let end = Instant::now() + PATIENCE;
        let mut seen = String::new();
        while !seen.contains(word) {
            match self.out.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(piece) => seen.push_str(&String::from_utf8_lossy(&piece)),
                Err(error) => bail!("no {word:?} ({error}) in {seen:?}"),
            }
        }
        Ok(seen)
    }

    /// Waits for the end; the exit code.
    fn end(mut self) -> anyhow::Result<Option<i32>> {
        let status = testkit::lab::within(PATIENCE, || self.child.try_wait()?.context("it still runs"))?;
        Ok(status.code())
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // Fails only when it has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
