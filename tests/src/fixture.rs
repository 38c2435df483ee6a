//! Around every row: what was there before must be there after, and nothing else.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail, ensure};
use testkit::lab::within;
use testkit::snapshot::{Parked, Picture};

use crate::rows::Row;
use crate::world::{LEASE, PARK, World};

/// The kernel cleans up when the client's processes are gone; this is how long those may take to go.
const MACHINE_PATIENCE: Duration = Duration::from_secs(2);
/// A row that must wait longer for the cluster says for what.
const SLOW: Duration = Duration::from_secs(3);
/// Design 2.1 calls "left" what still exists this long after the lease.
const GRACE: Duration = Duration::from_secs(5);

/// The pictures that every row is held against.
pub(crate) struct Fixture {
    machine: Picture,
    cluster: Picture,
}

impl Fixture {
    /// Takes the pictures of the world as it was made.
    pub(crate) fn start(world: &World) -> anyhow::Result<Fixture> {
        let camera = world.camera();
        // Looking removes the sockets of sessions that were killed, which the next look would miss.
        let _ = world.lab().user([world.stead(), "status"]).output();
        let mut cluster = camera.cluster(Parked::Forbidden)?;
        // Controllers may still write status; two equal pictures in a row are a world at rest.
        within(Duration::from_secs(30), || {
            let again = camera.cluster(Parked::Forbidden)?;
            let moved = cluster.differences(&again);
            cluster = again;
            ensure!(moved.is_empty(), "the cluster does not come to rest:\n{}", moved.join("\n"));
            compare("without agents, the cluster", &camera.cluster(Parked::Allowed)?, &cluster)
        })?;
        Ok(Fixture { machine: camera.machine()?, cluster })
    }

    /// Runs one row and looks what it left.
    pub(crate) fn around(&mut self, row: &Row, world: &World) -> anyhow::Result<()> {
        let ran = catch_unwind(AssertUnwindSafe(|| (row.run)(world)))
            .unwrap_or_else(|panic| Err(anyhow!("panicked: {}", message(&*panic))));
        let left = self.what_is_left(row.parked, world);
        if left.is_err() {
            // The next row is not to blame.
            *self = Fixture::start(world).context("after a row that left something")?;
        }
        match (ran, left) {
            (Ok(()), left) => left,
            (Err(error), Ok(())) => Err(error),
            (Err(error), Err(left)) => bail!("{error:#}\nand {left:#}"),
        }
    }

    fn what_is_left(&self, parked: Parked, world: &World) -> anyhow::Result<()> {
        let camera = world.camera();
        within(MACHINE_PATIENCE, || compare("the machine", &self.machine, &camera.machine()?))?;
        let patience = if parked == Parked::Forbidden { LEASE + PARK + GRACE } else { LEASE + GRACE };
        let (started, mut waited_for) = (Instant::now(), String::new());
        within(patience, || {
            let compared = compare("the cluster", &self.cluster, &camera.cluster(parked)?);
            compared.inspect_err(|error| waited_for = format!("{error:#}"))
        })?;
        if parked == Parked::Allowed && started.elapsed() > SLOW {
            println!(
                "       waited {:.1} s until the cluster was as before: {waited_for}",
                started.elapsed().as_secs_f64()
            );
        }
        Ok(())
    }
}

fn compare(place: &str, before: &Picture, after: &Picture) -> anyhow::Result<()> {
    let differences = before.differences(after);
    ensure!(differences.is_empty(), "{place} is not as before:\n{}", differences.join("\n"));
    Ok(())
}

fn message(panic: &(dyn std::any::Any + Send)) -> &str {
    panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref().copied()).unwrap_or("?")
}
