//! The test program's commands: `serve` for pods, `measure` and `probe` for the client's side, `shop` for the demo.
//! Addresses are numbers, never names: the binary is static and has no resolver but its own (`resolve`).

pub mod http;
pub mod measure;
pub mod net;
pub mod probe;
pub mod resolve;
pub mod serve;
pub mod shop;

use std::io::Write;
use std::process::ExitCode;

use clap::Parser;

#[derive(Parser)]
#[command(name = "testapp", about = "Server and clients of the whole-cluster tests")]
enum Command {
    /// Serves every port until it is killed
    Serve(serve::Options),
    /// Measures one server and prints one JSON line
    Measure(measure::Options),
    /// Does one thing to a server, prints what happened as one JSON line
    #[command(subcommand)]
    Probe(probe::Probe),
    /// One service of the demo's little shop
    Shop(shop::Options),
    /// Prints its environment as one JSON object
    Env,
}

/// Runs the command line of this process.
pub fn main() -> anyhow::Result<ExitCode> {
    match Command::parse() {
        Command::Serve(options) => serve::run(&options)?,
        Command::Measure(options) => print(&measure::run(&options)?),
        Command::Probe(probe) => print(&probe.run()?),
        Command::Shop(options) => shop::run(&options)?,
        Command::Env => print(&environment()),
    }
    Ok(ExitCode::SUCCESS)
}

/// This process's environment, as `/env` and `testapp env` show it.
pub fn environment() -> serde_json::Value {
    let pairs = std::env::vars_os()
        .map(|(name, value)| (name.to_string_lossy().into_owned(), value.to_string_lossy().into_owned().into()));
    serde_json::Value::Object(pairs.collect())
}

/// Writes one line to stderr.
pub fn say(line: &str) {
    // Nothing can be done about a stderr that is gone.
    let _ = writeln!(std::io::stderr(), "{line}");
}

fn print(value: &impl serde::Serialize) {
    let line = serde_json::to_string(value).unwrap_or_else(|error| format!("{{\"error\":\"{error}\"}}"));
    // A reader that went away wants no more.
    let _ = writeln!(std::io::stdout(), "{line}");
}
