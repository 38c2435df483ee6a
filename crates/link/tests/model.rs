//! Two muxes over simulated pipes that split, delay, stall and break, against a model of what must come out: every
//! flow's bytes in order and once, one outcome at both ends, no deadlock, nothing kept afterwards.
//!
//! `MODEL_SEEDS=FROM..TO cargo test -p link --test model` runs other seeds. A failure names the seed and the smallest
//! scenario found for it; add the seed to [`FOUND`].

#[path = "model/program.rs"]
mod program;
#[path = "model/world.rs"]
mod world;

use link::mux::Bug;
use world::{Scenario, World};

/// Seeds that once failed.
const FOUND: [u64; 0] = [];

fn run(seed: u64, scenario: Scenario, bug: Option<Bug>) -> Result<(), String> {
    World::new(seed, scenario, bug).run()
}

/// The failure of the smallest scenario that fails with this seed.
fn shrink(seed: u64, full: Scenario, bug: Option<Bug>) -> Option<(Scenario, String)> {
    let failure = run(seed, full, bug).err()?;
    let smaller = (0..=full.restarts)
        .flat_map(|restarts| (0..=full.jumps).map(move |jumps| Scenario { restarts, jumps, ..full }))
        .flat_map(|full| (1..=full.flows).map(move |flows| Scenario { flows, ..full }))
        .flat_map(|full| (0..=full.cuts).map(move |cuts| Scenario { cuts, ..full }))
        .find_map(|scenario| Some((scenario, run(seed, scenario, bug).err()?)));
    Some(smaller.unwrap_or((full, failure)))
}

fn seeds() -> Vec<u64> {
    match std::env::var("MODEL_SEEDS") {
        Ok(range) => {
            let (from, to) = range.split_once("..").expect("FROM..TO");
            (from.parse().expect("a number")..to.parse().expect("a number")).collect()
        }
        Err(_) => FOUND.into_iter().chain(0..400).collect(),
    }
}

#[test]
fn flows_survive_whatever_happens_to_links() {
    for seed in seeds() {
        if let Some((scenario, failure)) = shrink(seed, Scenario::of(seed), None) {
            panic!("seed {seed}, {scenario:?}: {failure}");
        }
    }
}

#[test]
fn a_planted_bug_is_found() {
    for bug in [Bug::LostCredit, Bug::DuplicateAfterResume, Bug::DroppedRst] {
        let found = (0..2000).find_map(|seed| Some((seed, shrink(seed, Scenario::of(seed), Some(bug))?)));
        let Some((seed, (scenario, failure))) = found else { panic!("{bug:?} was not found") };
        println!("{bug:?}: seed {seed}, {scenario:?}: {failure}");
    }
}
