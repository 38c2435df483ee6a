//! One module per verb: its arguments and what it does.

mod completion;
mod doctor;
mod gather_logs;
mod help;
mod image;
mod leave;
mod list;
mod quit;
mod run;
mod sessions;
mod shell;
mod status;
mod version;

use std::process::ExitCode;

#[derive(clap::Subcommand)]
pub(crate) enum Command {
    Run(run::Args),
    Shell(shell::Args),
    Status(status::Args),
    List(list::Args),
    Leave(leave::Args),
    Quit(quit::Args),
    Doctor(doctor::Args),
    GatherLogs(gather_logs::Args),
    Image(image::Args),
    Completion(completion::Args),
    Version(version::Args),
    Help(help::Args),
}

pub(crate) fn run(command: Command) -> ExitCode {
    match command {
        Command::Run(args) => run::run(args),
        Command::Shell(args) => shell::run(args),
        Command::Status(args) => status::run(&args),
        Command::List(args) => list::run(&args),
        Command::Leave(args) => leave::run(&args),
        Command::Quit(args) => quit::run(&args),
        Command::Doctor(args) => doctor::run(args),
        Command::GatherLogs(args) => gather_logs::run(args),
        Command::Image(args) => image::run(&args),
        Command::Completion(args) => completion::run(&args),
        Command::Version(args) => version::run(&args),
        Command::Help(args) => help::run(&args),
    }
}
