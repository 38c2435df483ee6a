//! `cargo xtask VERB`: what developers and CI run beside the product. One module per verb.
//!
//! Nothing in here is shipped. It may use external programs (`go`, `ip`, `containerd`, `mmdebstrap`, …), which the
//! product never does.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a developer's tool talks to a terminal")]

use std::process::ExitCode;

use clap::{Parser, Subcommand};

mod cache;
mod image;
mod shell;
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
}

fn main() -> ExitCode {
    let done = match Cli::parse().verb {
        Verb::Testbed(args) => testbed::run(args),
        Verb::Image(args) => image::run(args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
