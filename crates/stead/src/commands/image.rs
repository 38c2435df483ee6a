mod load;
mod push;

use std::fs::File;
use std::io::{self, BufWriter, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use flate2::read::GzDecoder;
use oci::{ImageBuilder, Layer};

use crate::error::Failure;
use crate::output::{Format, OutputArgs};

/// The agent's binary, compressed; empty in a build without one.
pub(crate) const AGENT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/stead-agent.gz"));

/// Architecture of the agent inside, in Go's words: the one this binary was built for.
const ARCH: &str = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };

/// Those of the agent inside, in Go's words.
pub(crate) fn architectures() -> Vec<String> {
    if AGENT.is_empty() { Vec::new() } else { vec![ARCH.to_owned()] }
}

/// Write the agent's image, or bring it to a cluster
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(clap::Subcommand)]
enum Verb {
    Save(SaveArgs),
    Load(load::Args),
    Push(push::Args),
}

/// Write the agent's image as an OCI archive
///
/// The same release always writes the same bytes. `stead image load` brings it to a cluster on this machine.
#[derive(clap::Args)]
struct SaveArgs {
    /// Archive to write; - for standard output
    file: PathBuf,
    /// Name of the image
    #[arg(long, value_name = "IMAGE", default_value_t = cluster::default_image())]
    name: String,
    #[command(flatten)]
    output: OutputArgs,
}

pub(crate) fn run(args: &Args) -> ExitCode {
    let (done, format) = match &args.verb {
        Verb::Save(args) => (carried().and_then(|()| save(args)), args.output.output),
        Verb::Load(args) => (carried().and_then(|()| load::run(args)), args.output.output),
        Verb::Push(args) => (carried().and_then(|()| push::run(args)), args.output.output),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.show(format),
    }
}

fn carried() -> Result<(), Failure> {
    if AGENT.is_empty() {
        let next = Some("build with `cargo xtask dist`, which puts the agent inside".to_owned());
        return Err(Failure::new(78, "this build of stead carries no agent", next));
    }
    Ok(())
}

fn save(args: &SaveArgs) -> Result<(), Failure> {
    let written =
        if args.file == Path::new("-") { write(&args.name, &mut io::stdout().lock()) } else { write_file(args) };
    written.map_err(|error| Failure::io(&format!("cannot write {}", args.file.display()), &error))?;
    if args.output.output == Format::Json && args.file != Path::new("-") {
        crate::output::result(Format::Json, &serde_json::json!({ "image": args.name, "file": args.file }), |_| {
            String::new()
        });
    }
    Ok(())
}

/// A file that could not be written whole is not left behind.
fn write_file(args: &SaveArgs) -> io::Result<()> {
    let mut out = BufWriter::new(File::create(&args.file)?);
    let written = write(&args.name, &mut out).and_then(|()| out.flush());
    if written.is_err() {
        let _ = std::fs::remove_file(&args.file);
    }
    written
}

/// One layer with one file. Gzip, since it is made to travel: a third of the size.
fn image(name: &str) -> io::Result<ImageBuilder> {
    let mut agent = Vec::new();
    GzDecoder::new(AGENT).read_to_end(&mut agent)?;
    let layer = Layer::from_files([oci::File::new("stead-agent", 0o755, agent)]).and_then(Layer::gzip);
    Ok(ImageBuilder::new(name)
        .arch(ARCH)
        .label("org.opencontainers.image.version", wire::RELEASE)
        .entrypoint(["/stead-agent"])
        .layer(layer.map_err(io::Error::other)?))
}

fn write(name: &str, out: &mut impl io::Write) -> io::Result<()> {
    image(&cluster::normalized(name))?.write(out).map_err(io::Error::other)
}
