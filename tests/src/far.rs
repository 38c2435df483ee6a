//! A long way to the cluster.

use crate::world::World;

/// The way to the cluster is long while this lives.
pub(crate) struct Far<'a>(&'a World);

impl<'a> Far<'a> {
    pub(crate) fn start(world: &'a World, round_trip: &str) -> anyhow::Result<Far<'a>> {
        world.lab().testbed(&["wan", "--rtt", round_trip])?;
        Ok(Far(world))
    }
}

impl Drop for Far<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.0.lab().testbed(&["wan", "off"]) {
            eprintln!("the delay stays: {error:#}");
        }
    }
}
