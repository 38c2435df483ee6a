//! The rounds: every measurement over every path, one after another, again and again.

use std::time::Instant;

use anyhow::Result;

use crate::bench::Plan;
use crate::bench::paths::{Path, Paths};
use crate::bench::samples::Samples;

use Path::{Forward, Plain, Pod, Raw, Stead, SteadDirect, SteadForward, Telepresence};

/// Name, flags, and the paths it is taken over; in a short run the second list.
type Measurement = (&'static str, &'static str, &'static [Path], &'static [Path]);

/// Stands where others have their flags.
const GO_HTTP: &str = "go http";

const NEAR: [Measurement; 9] = [
    ("down", "--mode s", &[Pod, Raw, Forward, Stead, SteadDirect, SteadForward, Telepresence], &[Raw, Forward, Stead]),
    ("up", "--mode d", &[Pod, Raw, Forward, Stead, SteadDirect, SteadForward, Telepresence], &[Raw, Forward, Stead]),
    ("four flows down", "--mode s -p 4", &[Pod, Raw, Forward, Stead, SteadDirect, SteadForward, Telepresence], &[]),
    ("four flows up", "--mode d -p 4", &[Pod, Raw, Forward, Stead, SteadDirect, SteadForward, Telepresence], &[]),
    (
        "round trip",
        "--mode e",
        &[Pod, Raw, Forward, Stead, SteadDirect, SteadForward, Telepresence],
        &[Raw, Forward, Stead],
    ),
    (
        "beside bulk",
        "--mode e --beside s",
        &[Pod, Raw, Forward, Stead, SteadDirect, SteadForward, Telepresence],
        &[Stead],
    ),
    (
        "new connection",
        "--mode c -n 300",
        &[Pod, Raw, Forward, Stead, SteadDirect, SteadForward, Telepresence],
        &[Forward, Stead],
    ),
    ("http x16", GO_HTTP, &[Pod, Stead, SteadDirect, SteadForward, Telepresence], &[Pod, Stead]),
    ("http x16, lean programs", "--mode h -p 16", &[Pod, Raw, Forward, Stead, Telepresence], &[]),
];

const FAR: [Measurement; 4] = [
    (
        "20 ms: new connection",
        "--mode c -n 300",
        &[Plain, Forward, Stead, SteadDirect, SteadForward, Telepresence],
        &[Plain, Stead],
    ),
    ("20 ms: round trip", "--mode e", &[Plain, Forward, Stead, SteadDirect, SteadForward, Telepresence], &[]),
    (
        "20 ms: down",
        "--mode s",
        &[Plain, Raw, Forward, Stead, SteadDirect, SteadForward, Telepresence],
        &[Plain, Stead],
    ),
    ("20 ms: four flows down", "--mode s -p 4", &[Plain, Stead, SteadDirect, SteadForward, Telepresence], &[]),
];

/// By the share of packets that is lost in each direction.
const LOSSY: [(&str, [Measurement; 2]); 2] = [
    (
        "0.1%",
        [
            ("20 ms, 0.1 % loss: down", "--mode s", &[Plain, Stead, SteadDirect, SteadForward], &[]),
            ("20 ms, 0.1 % loss: four flows down", "--mode s -p 4", &[Plain, Stead, SteadDirect, SteadForward], &[]),
        ],
    ),
    (
        "1%",
        [
            ("20 ms, 1 % loss: down", "--mode s", &[Plain, Stead, SteadDirect, SteadForward], &[]),
            ("20 ms, 1 % loss: four flows down", "--mode s -p 4", &[Plain, Stead, SteadDirect, SteadForward], &[]),
        ],
    ),
];

/// What is measured over paths of 20 ms.
pub(crate) fn far_names() -> impl Iterator<Item = &'static str> {
    FAR.iter().chain(LOSSY.iter().flat_map(|(_, lossy)| lossy)).map(|(name, ..)| *name)
}

#[cfg(test)]
pub(crate) fn names() -> impl Iterator<Item = &'static str> {
    NEAR.iter().map(|(name, ..)| *name).chain(far_names())
}

/// Everything within the machine.
pub(crate) fn near(paths: &mut Paths, plan: &Plan, samples: &mut Samples) -> Result<()> {
    for round in 0..plan.rounds {
        eprintln!("round {} of {}", round + 1, plan.rounds);
        take(paths, plan, &NEAR, (round, plan.seconds), samples)?;
    }
    Ok(())
}

/// Over a path of 20 ms.
pub(crate) fn far(paths: &mut Paths, plan: &Plan, samples: &mut Samples) -> Result<()> {
    let lab = paths.lab().clone();
    let done = (|| {
        lab.testbed(&["wan", "--rtt", "20ms"])?;
        for round in 0..plan.wan_rounds {
            eprintln!("round {} of {} over 20 ms", round + 1, plan.wan_rounds);
            take(paths, plan, &FAR, (round, plan.wan_seconds), samples)?;
        }
        if plan.smoke {
            return Ok(());
        }
        for (loss, measurements) in &LOSSY {
            lab.testbed(&["wan", "--rtt", "20ms", "--loss", loss])?;
            for round in 0..plan.wan_rounds {
                eprintln!("round {} of {} over 20 ms with {loss} lost", round + 1, plan.wan_rounds);
                take(paths, plan, measurements, (round, plan.wan_seconds), samples)?;
            }
        }
        Ok(())
    })();
    lab.testbed(&["wan", "off"])?;
    done
}

/// One round. The paths take turns in being first.
fn take(
    paths: &mut Paths,
    plan: &Plan,
    measurements: &[Measurement],
    (round, seconds): (usize, f64),
    samples: &mut Samples,
) -> Result<()> {
    for (name, flags, full, short) in measurements.iter().filter(|(name, ..)| plan.wants(name)) {
        let over = if plan.smoke { short } else { full };
        for i in 0..over.len() {
            crate::test::stop_if_interrupted()?;
            let path = over[(i + round) % over.len()];
            if paths.has(path) {
                one(paths, name, &format!("{flags} -t {seconds}"), path, samples)?;
            }
        }
    }
    paths.check()
}

fn one(paths: &mut Paths, name: &str, flags: &str, path: Path, samples: &mut Samples) -> Result<()> {
    paths.processes.settle()?;
    let (before, started) = (paths.processes.cpu(path), Instant::now());
    let report = match flags.strip_prefix(GO_HTTP) {
        Some(_) => paths.go_http(path, &format!("{} 16", flags.rsplit(' ').next().unwrap_or_default())),
        None => paths.measure(path, flags),
    }?;
    let after = paths.processes.cpu(path);
    let spent = paths.processes.spent(&before, after, started.elapsed().as_secs_f64());
    if report.bytes > 0 {
        samples.add(&format!("{name}, Gbit/s"), path, report.gbit_per_s);
        let gigabytes = report.bytes as f64 / 1e9;
        for (role, seconds) in spent {
            samples.add(&format!("{name}, CPU s/GB {role}"), path, seconds / gigabytes);
        }
    } else {
        samples.add(&format!("{name}, p50 us"), path, report.p50_us);
        samples.add(&format!("{name}, p99 us"), path, report.p99_us);
        samples.add(&format!("{name}, per s"), path, report.rate);
        if report.beside_gbit_per_s > 0.0 {
            samples.add(&format!("{name}, Gbit/s of the bulk"), path, report.beside_gbit_per_s);
        }
    }
    Ok(())
}
