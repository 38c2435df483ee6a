//! Whole-cluster tests: rows of what must pass, run one after another against a testbed that is up, each between two
//! pictures of everything a session could leave behind. `cargo xtask test cluster` starts it with what it needs.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a test run talks to a terminal")]

mod clients;
mod far;
mod fixture;
mod rows;
mod scratch;
mod stead;
mod world;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;
use serde_json::json;

#[derive(Parser)]
struct Args {
    /// Only rows with this name (R5), or whose description holds it
    #[arg(long)]
    row: Option<String>,
    /// How often each row runs
    #[arg(long, default_value_t = 1)]
    repeat: usize,
    /// Only list the rows
    #[arg(long)]
    list: bool,
    /// Where the numbers of passed and failed rows are written, as JSON
    #[arg(long)]
    results: Option<PathBuf>,
}

fn main() -> ExitCode {
    run(Args::parse()).unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}

fn run(args: Args) -> anyhow::Result<ExitCode> {
    let rows: Vec<_> = rows::all().into_iter().filter(|row| row.is_called(args.row.as_deref())).collect();
    if args.list {
        rows.iter().for_each(|row| println!("{:4} {}", row.id, row.what));
        return Ok(ExitCode::SUCCESS);
    }
    anyhow::ensure!(!rows.is_empty(), "no row is called {}", args.row.unwrap_or_default());
    let started = Instant::now();
    let world = world::World::make()?;
    let mut fixture = fixture::Fixture::start(&world)?;
    println!("world made in {:.1} s", started.elapsed().as_secs_f64());
    let (mut passed, mut failed) = (0, 0);
    for row in rows.iter().flat_map(|row| std::iter::repeat_n(row, args.repeat)) {
        let started = Instant::now();
        let result = fixture.around(row, &world);
        let seconds = started.elapsed().as_secs_f64();
        match result {
            Ok(()) => {
                passed += 1;
                println!("ok     {:4} {} ({seconds:.1} s)", row.id, row.what);
            }
            Err(error) => {
                failed += 1;
                println!(
                    "FAILED {:4} {} ({seconds:.1} s)\n    {}",
                    row.id,
                    row.what,
                    format!("{error:#}").replace('\n', "\n    ")
                );
            }
        }
    }
    if let Some(file) = args.results {
        std::fs::write(file, json!({"passed": passed, "failed": failed}).to_string())?;
    }
    println!("rows: {passed} passed, {failed} failed in {:.0} s", started.elapsed().as_secs_f64());
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
