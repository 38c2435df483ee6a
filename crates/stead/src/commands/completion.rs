use std::process::ExitCode;

use clap::CommandFactory as _;
use clap_complete::Shell;

use crate::output::{self, Format};

/// Write completions for a shell
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  stead completion bash > ~/.local/share/bash-completion/completions/stead\n  \
                        stead completion zsh > \"${fpath[1]}/_stead\"\n  \
                        stead completion fish > ~/.config/fish/completions/stead.fish")]
pub(crate) struct Args {
    shell: Shell,
}

pub(crate) fn run(args: &Args) -> ExitCode {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut crate::Cli::command(), "stead", &mut script);
    output::result(Format::Text, &(), |()| String::from_utf8_lossy(&script).into_owned());
    ExitCode::SUCCESS
}
