//! The rows of acceptance that this release must pass, by their numbers.

mod bytes;
mod change;
mod control;
mod credentials;
mod datagrams;
mod doctor;
mod egress;
mod end;
mod environment;
mod gather;
mod hostile;
mod images;
mod input;
mod languages;
mod load;
mod localhost;
mod loss;
mod names;
mod pacing;
mod placement;
mod process;
mod readme;
mod rungs;
mod servers;
mod succession;
mod tcp;
mod terminal;

use std::net::{IpAddr, SocketAddr};

use serde_json::Value;
use testkit::lab::Shell;
use testkit::snapshot::Parked;

use crate::world::World;

/// One thing that must hold.
pub(crate) struct Row {
    pub(crate) id: &'static str,
    pub(crate) what: &'static str,
    pub(crate) run: fn(&World) -> anyhow::Result<()>,
    /// Whether an agent may be parked when it is over.
    pub(crate) parked: Parked,
}

impl Row {
    /// By number, or by a piece of the description; everything is called nothing.
    pub(crate) fn is_called(&self, wanted: Option<&str>) -> bool {
        wanted.is_none_or(|wanted| self.id.eq_ignore_ascii_case(wanted) || self.what.contains(wanted))
    }
}

const fn row(id: &'static str, what: &'static str, run: fn(&World) -> anyhow::Result<()>) -> Row {
    Row { id, what, run, parked: Parked::Allowed }
}

const fn clean(id: &'static str, what: &'static str, run: fn(&World) -> anyhow::Result<()>) -> Row {
    Row { id, what, run, parked: Parked::Forbidden }
}

/// In the order they run.
pub(crate) fn all() -> Vec<Row> {
    [
        names::ROWS,
        tcp::ROWS,
        datagrams::ROWS,
        egress::ROWS,
        change::ROWS,
        localhost::ROWS,
        bytes::ROWS,
        rungs::ROWS,
        pacing::ROWS,
        languages::ROWS,
        process::ROWS,
        terminal::ROWS,
        environment::ROWS,
        control::ROWS,
        doctor::ROWS,
        gather::ROWS,
        images::ROWS,
        hostile::ROWS,
        load::ROWS,
        servers::ROWS,
        input::ROWS,
        readme::ROWS,
        placement::ROWS,
        succession::ROWS,
        loss::ROWS,
        credentials::ROWS,
        end::ROWS,
    ]
    .into_iter()
    .flat_map(|rows| rows.iter().map(|row| Row { ..*row }))
    .collect()
}

/// A list of strings out of JSON.
fn strings(value: &Value) -> Vec<String> {
    value.as_array().into_iter().flatten().filter_map(|item| Some(item.as_str()?.to_owned())).collect()
}

/// What the test program's probe says in a session's shell.
fn probe(world: &World, shell: &mut Shell, words: &str) -> anyhow::Result<Value> {
    shell.json(&format!("{} {words}", world.testapp()))
}

fn at(addresses: &[IpAddr], port: u16) -> Vec<SocketAddr> {
    addresses.iter().map(|address| (*address, port).into()).collect()
}
