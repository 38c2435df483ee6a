//! `cargo xtask VERB`: what developers and CI run beside the product. One module per verb.
//!
//! Nothing in here is shipped. It may use external programs (`go`, `ip`, `containerd`, `mmdebstrap`, …), which the
//! product never does.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a developer's tool talks to a terminal")]

use std::process::ExitCode;

use clap::{Parser, Subcommand};

mod arena;
mod bench;
mod cache;
mod cargo;
mod demo;
mod dist;
mod image;
mod shell;
mod test;
mod testbed;

#[derive(Parser)]
#[command(name = "xtask", bin_name = "cargo xtask", about = "Development tasks of stead")]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// A real Kubernetes on this machine, for tests, demo and benchmarks
    Testbed(testbed::Args),
    /// Build and cache a test image
    Image(image::Args),
    /// Build the two binaries as they are shipped
    Dist,
    /// Run everything that must hold: style, unit, lab and cluster tests, a short benchmark
    Test(test::Args),
    /// Measure stead beside what it is compared with
    Bench(bench::Args),
    /// See it work: a cluster, three services, a command among them
    Demo(demo::Args),
}

fn main() -> ExitCode {
    let done = match Cli::parse().verb {
        Verb::Testbed(args) => testbed::run(args).map(|()| ExitCode::SUCCESS),
        Verb::Image(args) => image::run(args).map(|()| ExitCode::SUCCESS),
        Verb::Dist => dist::run().map(|()| ExitCode::SUCCESS),
        Verb::Test(args) => test::run(&args),
        Verb::Bench(args) => bench::run(&args),
        Verb::Demo(args) => demo::run(&args),
    };
    match done {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
