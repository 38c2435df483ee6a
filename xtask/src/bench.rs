//! `cargo xtask bench`: stead beside what it is compared with, in one run, in interleaved rounds.
//!
//! What counts are ratios of one round's figures, and their median: the machine is shared and its speed wanders. Goals
//! are those of design section 13.

mod goals;
mod manifest;
mod paths;
mod processes;
mod report;
mod rounds;
mod samples;
mod start;
mod telepresence;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use testkit::lab::Lab;

use crate::arena::{Arena, Found};
use crate::bench::goals::Judged;
use crate::bench::manifest::Place;
use crate::bench::paths::Paths;
use crate::bench::samples::Samples;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Few short rounds; fails when a goal is missed at half its strength
    #[arg(long)]
    smoke: bool,
    /// Only the 20 ms path
    #[arg(long)]
    wan: bool,
    /// Only measurements whose name contains this, over paths within the machine; writes nothing
    #[arg(long, conflicts_with_all = ["smoke", "wan"])]
    only: Option<String>,
    /// How many rounds (default: 15, 3 with --smoke)
    #[arg(long)]
    rounds: Option<usize>,
    /// Where the raw figures go (default: docs/benchmarks/DATE.json with the page beside it; nowhere with --smoke)
    #[arg(long)]
    out: Option<PathBuf>,
}

/// Which measurements are taken.
#[derive(Debug, Clone)]
enum Wanted {
    All,
    /// Those over paths within the machine whose name contains this.
    Containing(String),
    Named(Vec<&'static str>),
}

/// How much is measured.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    wanted: Wanted,
    pub(crate) smoke: bool,
    pub(crate) rounds: usize,
    /// Seconds of one measurement.
    pub(crate) seconds: f64,
    pub(crate) wan_rounds: usize,
    /// Seconds of one on the 20 ms path, where flows take their time to grow.
    pub(crate) wan_seconds: f64,
    pub(crate) starts: usize,
}

impl Plan {
    fn of(args: &Args) -> Plan {
        let rounds = args.rounds;
        if args.smoke {
            let rounds = rounds.unwrap_or(3);
            return Plan {
                wanted: Wanted::All,
                smoke: true,
                rounds,
                seconds: 0.6,
                wan_rounds: 2,
                wan_seconds: 2.0,
                starts: 3,
            };
        }
        let rounds = rounds.unwrap_or(15);
        Plan {
            wanted: args.only.clone().map_or(Wanted::All, Wanted::Containing),
            smoke: false,
            rounds,
            seconds: 1.5,
            wan_rounds: rounds.min(7),
            wan_seconds: 5.0,
            starts: 11,
        }
    }

    fn wants(&self, measurement: &str) -> bool {
        match &self.wanted {
            Wanted::All => true,
            Wanted::Containing(part) => measurement.contains(part),
            Wanted::Named(names) => names.contains(&measurement),
        }
    }

    /// Whether anything of these is measured.
    fn wants_any<'a>(&self, mut measurements: impl Iterator<Item = &'a str>) -> bool {
        !matches!(self.wanted, Wanted::Containing(_)) && measurements.any(|name| self.wants(name))
    }
}

/// The machine is shared, and now and then slow for a minute: what is really slower is so every time.
const LOOKS_AT_WHAT_WAS_MISSED: usize = 4;

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    crate::test::end_gently()?;
    let plan = Plan::of(args);
    let arena = Arena::prepare(Found::Keep, &[])?;
    let place = Place::make(&arena)?;
    let mut samples = measure(args, &plan, &arena, &place)?;
    let mut missed = missed_at_half_strength(&samples);
    for _ in 1..LOOKS_AT_WHAT_WAS_MISSED {
        if !args.smoke || missed.is_empty() {
            break;
        }
        let what: Vec<_> = missed.iter().map(|goal| goal.what).collect();
        eprintln!("missed by more than half: {}; measured once more", what.join(", "));
        let wanted = Wanted::Named(missed.iter().flat_map(|goal| goal.measurements()).collect());
        samples.replace(measure(args, &Plan { wanted, ..plan.clone() }, &arena, &place)?);
        let still = missed_at_half_strength(&samples);
        missed.retain(|goal| still.iter().any(|again| again.what == goal.what));
    }
    let goals = goals::judge(&samples);
    println!("{}", report::text(&samples, &goals));
    if args.out.is_some() || !(args.smoke || args.only.is_some()) {
        report::write(args.out.as_deref(), &samples, &goals, &plan)?;
    }
    Ok(if args.smoke && !missed.is_empty() { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn measure(args: &Args, plan: &Plan, arena: &Arena, place: &Place) -> Result<Samples> {
    let mut samples = Samples::default();
    {
        let _route = Route::open(arena)?;
        let mut paths = Paths::open(arena, place)?;
        if !args.wan {
            rounds::near(&mut paths, plan, &mut samples)?;
        }
        if plan.wants_any(rounds::far_names()) {
            rounds::far(&mut paths, plan, &mut samples)?;
        }
    }
    if !args.wan && plan.wants_any([start::NAME].into_iter()) {
        start::measure(arena, place.server, plan, &mut samples)?;
    }
    Ok(samples)
}

/// Pod addresses are reached from the developer's machine as long as this lives: plain TCP and `direct` need that.
struct Route<'a>(&'a Lab);

impl<'a> Route<'a> {
    fn open(arena: &'a Arena) -> Result<Route<'a>> {
        arena.lab().testbed(&["route", "on"])?;
        Ok(Route(arena.lab()))
    }
}

impl Drop for Route<'_> {
    fn drop(&mut self) {
        // The testbed may be on its way down.
        let _ = self.0.testbed(&["route", "off"]);
    }
}

fn missed_at_half_strength(samples: &Samples) -> Vec<Judged> {
    goals::judge(samples).into_iter().filter(Judged::is_missed_at_half_strength).collect()
}
