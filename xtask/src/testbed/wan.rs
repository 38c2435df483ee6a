//! `testbed wan`: a delay and loss on the way between the developer's machine and the nodes.
//!
//! Two TUN devices, one on the laptop and one on the router, joined by a process that holds packets back ([`line`]).
//! Addresses stay as they are and only routes change, so connections live through the switch. The kernel here has no
//! netem.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::json;

use crate::testbed::addresses::{LAPTOP, NODE_RANGES, POD_RANGES};
use crate::testbed::machine::{self, Daemon, Started};
use crate::testbed::net;
use crate::testbed::process::wait_until;
use crate::testbed::reach::route_flag;
use crate::testbed::state::{Owner, StateDir, lock, write_json};

mod line;
mod segments;
mod tun;

pub(crate) use line::{LineArgs, line_main};

/// Smaller than [`net::METRIC`]: wins while it is there, and is gone with the device if the process dies.
const METRIC: u32 = 10;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// `off` takes the delay and loss away
    #[arg(value_parser = ["off"], conflicts_with_all = ["rtt", "loss"], required_unless_present_any = ["rtt", "loss"])]
    off: Option<String>,
    /// Round trip, both ways together: 20ms, 1.5ms
    #[arg(long, value_parser = milliseconds)]
    rtt: Option<f64>,
    /// Packets lost in each direction: 1%, 0.1%
    #[arg(long, value_parser = percent)]
    loss: Option<f64>,
}

fn milliseconds(text: &str) -> Result<f64, String> {
    let figure = text.strip_suffix("ms").ok_or("a round trip looks like 20ms")?;
    figure.parse().ok().filter(|ms| (0.0..=10_000.0).contains(ms)).ok_or_else(|| "0 to 10000 ms".to_owned())
}

fn percent(text: &str) -> Result<f64, String> {
    let figure = text.strip_suffix('%').ok_or("a loss looks like 1%")?;
    figure.parse().ok().filter(|loss| (0.0..=100.0).contains(loss)).ok_or_else(|| "0 to 100 %".to_owned())
}

pub(crate) fn run(args: Args) -> Result<()> {
    let _lock = lock()?;
    let owner = Owner::running()?;
    let state = owner.dir();
    off(&state)?;
    if args.off.is_some() {
        return Ok(());
    }
    let (rtt, loss) = (args.rtt.unwrap_or(0.0), args.loss.unwrap_or(0.0));
    let init =
        owner.inits.iter().find(|init| init.name == "outside").context("the testbed has no outside: run `up`")?;
    let line = format!("testbed internal wan --rtt {rtt}ms --loss {loss}%");
    let program = fs::read_link("/proc/self/exe")?; // by path: another mount namespace starts it
    ensure!(program.exists(), "this program was rebuilt while it ran: run the command again");
    let process = machine::start(&state, init, Daemon::new(&state, "wan", program, &line))?;
    let up = wait_until("the delay line does not come up", Duration::from_secs(5), || {
        !process.is_alive() || tun::exists("laptop", "wan0") && tun::exists("lan", "wan1")
    });
    if up.is_err() || !process.is_alive() {
        bail!("the delay line ended: see `cargo xtask testbed logs wan`");
    }
    direct(route_flag(&state).exists())?;
    write_json(&state.join("wan.json"), &json!({ "rtt_ms": rtt, "loss_percent": loss }))
}

fn off(state: &StateDir) -> Result<()> {
    if let Some(line) = Started::find(state, "wan") {
        // Routes first, so that what is under way still arrives.
        let _ = net::ip("laptop", &["link set wan0 down".to_owned()]); // gone already, if the process is
        let _ = net::ip("lan", &["link set wan1 down".to_owned()]);
        line.stop(state)?;
        // Its last thread may hold a device for a moment longer.
        wait_until("the delay line's devices do not go", Duration::from_secs(5), || {
            !tun::exists("laptop", "wan0") && !tun::exists("lan", "wan1")
        })?;
    }
    let _ = fs::remove_file(state.join("wan.json")); // was off
    Ok(())
}

/// Leads the traffic over the two devices.
fn direct(pods: bool) -> Result<()> {
    let mut ranges = NODE_RANGES.to_vec();
    ranges.extend(pods.then_some(POD_RANGES).into_iter().flatten());
    let up = |device: &str| format!("link set {device} up mtu 1500 txqueuelen 10000");
    let back = LAPTOP.iter().map(|address| format!("route replace {address} dev wan1 metric {METRIC}"));
    net::ip("lan", &std::iter::once(up("wan1")).chain(back).collect::<Vec<_>>())?;
    let there = ranges.iter().map(|range| route(range));
    net::ip("laptop", &std::iter::once(up("wan0")).chain(there).collect::<Vec<_>>())
}

fn route(range: &str) -> String {
    let source = if range.contains(':') { LAPTOP[1] } else { LAPTOP[0] };
    format!("route replace {range} dev wan0 src {source} metric {METRIC}")
}

/// Pods became reachable, or stopped being so, while the line may be on.
pub(crate) fn follow_route(state: &StateDir, on: bool) -> Result<()> {
    if !state.join("wan.json").exists() {
        return Ok(());
    }
    let change = |range: &&str| if on { route(range) } else { format!("route del {range} dev wan0 metric {METRIC}") };
    net::ip("laptop", &POD_RANGES.iter().map(change).collect::<Vec<_>>())
}
