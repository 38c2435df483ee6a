use std::process::ExitCode;

use clap::CommandFactory as _;

use crate::error::{EXIT_CODES, Failure};
use crate::output::{self, Format};

/// Explain a command or a topic
#[derive(clap::Args)]
pub(crate) struct Args {
    /// A command, or exit-codes
    topic: Vec<String>,
}

pub(crate) fn run(args: &Args) -> ExitCode {
    let topic: Vec<&str> = args.topic.iter().map(String::as_str).collect();
    if topic == ["exit-codes"] {
        output::result(Format::Text, &(), |()| exit_codes());
        return ExitCode::SUCCESS;
    }
    let mut root = crate::Cli::command();
    root.build();
    let mut command = &mut root;
    for name in &topic {
        command = match command.find_subcommand_mut(name) {
            Some(found) => found,
            None => {
                let next = Some("`stead --help` lists the commands; the one topic is exit-codes".to_owned());
                return Failure::new(64, format!("no command or topic {:?}", topic.join(" ")), next).show(Format::Text);
            }
        };
    }
    let text = command.render_long_help().to_string();
    output::result(Format::Text, &(), |()| text);
    ExitCode::SUCCESS
}

fn exit_codes() -> String {
    let mut text = String::from(
        "stead run ends with the exit code of its command; with 128 and the signal's number when a signal ended it.\n\
         Failures of stead itself end with one of these; -o json names the class too.\n\n",
    );
    for (code, class, meaning) in EXIT_CODES {
        text += &format!("  {code:>3}  {class:<18} {meaning}\n");
    }
    text + "\nstead status ends with 0 when all sessions are healthy, 1 degraded, 2 lost, 3 when there is none.\n"
}
