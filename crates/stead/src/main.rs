//! `stead`, the client's command line: arguments in, exit code out. What it does is in `session` and `cluster`.

mod commands;
mod error;
mod gather;
mod log;
mod output;
mod voice;

use std::process::ExitCode;

use clap::Parser;

/// Run a command on your machine as if it ran in a Kubernetes workload's pod
///
/// The command reaches the cluster's services by name, sees the container's environment, and keeps your user, your
/// files and your terminal. Nothing is deployed and nothing is left behind.
#[derive(Parser)]
#[command(name = "stead", version, disable_help_subcommand = true, arg_required_else_help = true, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: commands::Command,
    /// Log more to stderr: -v for what happens, -vv for details (STEAD_LOG takes a filter)
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    verbose: u8,
}

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return error::usage(&error),
    };
    log::start(cli.verbose);
    commands::run(cli.command)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    #[test]
    fn the_arguments_are_consistent() {
        super::Cli::command().debug_assert();
    }
}
