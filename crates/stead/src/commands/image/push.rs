//! `stead image push`: the image, to a registry that the cluster pulls from.

use registry::{Keys, Reference};

use crate::error::Failure;
use crate::output::{self, OutputArgs};

/// Push the agent's image to a registry
///
/// With the credentials that `docker login` or `podman login` left, where the registry asks for some. Sessions then take it
/// by --agent-image or STEAD_AGENT_IMAGE.
#[derive(clap::Args)]
pub(super) struct Args {
    /// Name to push as, with its registry: registry.example/team/stead-agent (the tag is this release unless given)
    #[arg(value_name = "IMAGE")]
    image: String,
    /// Speak plain HTTP, as is done with a registry on this machine
    #[arg(long)]
    insecure: bool,
    #[command(flatten)]
    pub(super) output: OutputArgs,
}

#[derive(serde::Serialize)]
struct Done {
    image: String,
    digest: String,
    uploaded_blobs: usize,
}

pub(super) fn run(args: &Args) -> Result<(), Failure> {
    let reference = Reference::parse(&args.image, wire::RELEASE)?;
    let image = super::image(&reference.to_string()).map_err(|error| Failure::io("cannot make the image", &error))?;
    let parts = oci::parts(&[image]).map_err(|error| Failure::new(70, error.to_string(), None))?;
    let runtime = session::runtime().map_err(|error| Failure::io("cannot start the runtime", &error))?;
    let pushed = runtime.block_on(registry::push(&reference, &parts, &Keys::of_this_user(), args.insecure))?;
    let result = Done { image: reference.to_string(), digest: pushed.digest, uploaded_blobs: pushed.uploaded };
    output::result(args.output.output, &result, |result| {
        format!("pushed {}\nsessions take it with --agent-image {} or STEAD_AGENT_IMAGE\n", result.image, result.image)
    });
    Ok(())
}

impl From<registry::Error> for Failure {
    fn from(error: registry::Error) -> Self {
        Failure::new(error.exit_code(), error.to_string(), error.hint())
    }
}
