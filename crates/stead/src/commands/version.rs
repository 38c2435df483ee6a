use std::process::ExitCode;

use crate::output::{self, OutputArgs};

/// Show this release, its protocol and the image of its agent
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(serde::Serialize)]
struct Version {
    release: &'static str,
    protocol: u32,
    agent_image: String,
    /// Whether `image save` has an agent to write.
    carries_agent: bool,
}

pub(crate) fn run(args: &Args) -> ExitCode {
    let version = Version {
        release: wire::RELEASE,
        protocol: wire::PROTOCOL,
        agent_image: cluster::default_image(),
        carries_agent: !super::image::AGENT.is_empty(),
    };
    output::result(args.output.output, &version, |v| {
        format!("stead {}, protocol {}, agent image {}\n", v.release, v.protocol, v.agent_image)
    });
    ExitCode::SUCCESS
}
