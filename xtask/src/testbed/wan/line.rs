//! The delay line: packets from one device reach the other after half the round trip, or never.
//!
//! One thread reads and one writes for each direction. The reader stamps each packet with the time it is due; the
//! writer sleeps until then and does not sleep at all while it is behind. A packet may be a segmentation-offload one of
//! up to 64 KiB: that keeps 1 Gbit/s at some 2,000 packets a second. Loss is drawn for each segment within it.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::testbed::wan::{milliseconds, percent, segments, tun};

/// What a direction holds at most; twelve times 1 Gbit/s x 20 ms, so that only a runaway sender meets it.
const LIMIT: usize = 32 << 20;

#[derive(clap::Args)]
pub(crate) struct LineArgs {
    #[arg(long, value_parser = milliseconds)]
    rtt: f64,
    #[arg(long, value_parser = percent)]
    loss: f64,
}

struct Packet {
    due: Instant,
    bytes: Vec<u8>,
}

pub(crate) fn line_main(args: LineArgs) -> Result<()> {
    let delay = Duration::from_secs_f64(args.rtt / 2000.0);
    let laptop = tun::open("laptop", "wan0")?;
    let lan = tun::open("lan", "wan1")?;
    let pairs = [(laptop.try_clone()?, lan.try_clone()?), (lan, laptop)];
    let threads = pairs.map(|(from, to)| std::thread::spawn(move || direction(from, to, delay, args.loss / 100.0)));
    for thread in threads {
        thread.join().map_err(|_| anyhow::anyhow!("a direction panicked"))??;
    }
    Ok(())
}

fn direction(from: File, to: File, delay: Duration, loss: f64) -> Result<()> {
    let held = Arc::new(AtomicUsize::new(0));
    let (sender, receiver) = channel();
    let writer = std::thread::spawn({
        let held = Arc::clone(&held);
        move || write_when_due(to, &receiver, &held)
    });
    let done = read_all(from, &sender, &held, delay, loss);
    drop(sender);
    writer.join().map_err(|_| anyhow::anyhow!("a writer panicked"))??;
    done
}

fn read_all(mut from: File, sender: &Sender<Packet>, held: &AtomicUsize, delay: Duration, loss: f64) -> Result<()> {
    let mut buffer = vec![0; 70_000];
    loop {
        let length = match from.read(&mut buffer) {
            Ok(length) => length,
            Err(error) if error.kind() == ErrorKind::Interrupted || is_down(&error) => continue,
            Err(error) => return Err(error).context("cannot read from the device"),
        };
        let due = Instant::now() + delay;
        for bytes in segments::survivors(&buffer[..length], loss, &mut rand::rng()) {
            if held.fetch_add(bytes.len(), Ordering::Relaxed) > LIMIT {
                held.fetch_sub(bytes.len(), Ordering::Relaxed);
                continue;
            }
            sender.send(Packet { due, bytes }).context("the writer is gone")?;
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "to hold a packet back until a time is what a delay line is for")]
fn write_when_due(mut to: File, packets: &Receiver<Packet>, held: &AtomicUsize) -> Result<()> {
    let _ = nix::sys::prctl::set_timerslack(1_000); // ns; the default of 50 us would show in every round trip
    for packet in packets {
        let wait = packet.due.saturating_duration_since(Instant::now());
        if !wait.is_zero() {
            std::thread::sleep(wait);
        }
        held.fetch_sub(packet.bytes.len(), Ordering::Relaxed);
        match to.write(&packet.bytes) {
            Ok(_) => {}
            Err(error) if is_down(&error) || error.kind() == ErrorKind::InvalidInput => {}
            Err(error) => return Err(error).context("cannot write to the device"),
        }
    }
    Ok(())
}

/// A device that is not up yet, or no more: its packets are lost, as on any line.
fn is_down(error: &std::io::Error) -> bool {
    error.raw_os_error() == Some(libc::EIO)
}
