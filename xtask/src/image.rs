//! `cargo xtask image`: test images from Debian's packages or from one static program, cached by a key of their inputs.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use oci::{File, ImageBuilder, Layer};

use crate::{cache, shell, testbed};

mod debian;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Which
    #[arg(value_parser = debian::NAMES)]
    name: String,
    /// Import it into the testbed's nodes as well
    #[arg(long)]
    load: bool,
}

/// Part of every key: a change of how images are made makes new ones.
const RECIPE: &str = concat!(include_str!("image.rs"), include_str!("image/debian.rs"));

pub(crate) fn run(args: Args) -> Result<()> {
    let archive = debian::image(&args.name)?;
    if args.load {
        testbed::load(&archive)?;
    }
    println!("{}", archive.display());
    Ok(())
}

/// Builds an archive unless one of the same inputs is there.
fn cached(name: &str, inputs: &[&[u8]], build: impl FnOnce() -> Result<ImageBuilder>) -> Result<PathBuf> {
    let dir = cache::root()?.join("images");
    let key = cache::key([name.as_bytes(), RECIPE.as_bytes()].iter().chain(inputs));
    let file = dir.join(format!("{name}-{}.tar", &key[..16]));
    if file.exists() {
        return Ok(file);
    }
    let _lock = cache::lock(&dir.join(format!("{name}.lock")))?;
    if !file.exists() {
        let fresh = file.with_extension("new");
        let mut out = std::io::BufWriter::new(fs::File::create(&fresh).context("cannot write the archive")?);
        build()?.write(&mut out)?;
        out.into_inner().context("cannot write the archive")?;
        fs::rename(&fresh, &file)?;
        forget_older(&dir, name, &file);
    }
    Ok(file)
}

/// Archives of that name that nobody can be using any more: those of other inputs, made more than a day ago.
fn forget_older(dir: &Path, name: &str, current: &Path) {
    let is_same_kind = |path: &Path| {
        let stem = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
        path != current && stem.rsplit_once('-').is_some_and(|(kind, key)| kind == name && key.len() == 16)
    };
    let is_old = |path: &Path| {
        let age = fs::metadata(path).and_then(|meta| meta.modified()).map(|time| time.elapsed().unwrap_or_default());
        age.is_ok_and(|age| age > Duration::from_secs(24 * 3600))
    };
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if is_same_kind(&entry.path()) && is_old(&entry.path()) {
            let _ = fs::remove_file(entry.path()); // it only costs space
        }
    }
}

/// An image that holds one static program, as `/NAME`, and a /tmp. `image` is its full reference.
pub(crate) fn from_static_binary(image: &str, program: &Path) -> Result<PathBuf> {
    let bytes = fs::read(program).with_context(|| format!("cannot read {}: is it built?", program.display()))?;
    let name = image.rsplit('/').next().and_then(|last| last.split(':').next()).unwrap_or("app");
    cached(name, &[image.as_bytes(), &bytes.clone()], || one_program(image, name, bytes))
}

fn one_program(image: &str, name: &str, program: Vec<u8>) -> Result<ImageBuilder> {
    let layer = Layer::from_files([
        File::new(format!("/{name}"), 0o755, program),
        File::directory("/tmp", 0o1777),
        File::new("/etc/passwd", 0o644, "root:x:0:0::/:/\n"),
    ])?;
    Ok(ImageBuilder::new(image).layer(layer).entrypoint([format!("/{name}")]))
}

const PAUSE: &str = "\
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>
static void end(int s) { (void)s; _exit(0); }
static void reap(int s) { (void)s; while (waitpid(-1, 0, WNOHANG) > 0); }
int main(void) { signal(SIGINT, end); signal(SIGTERM, end); signal(SIGCHLD, reap); for (;;) pause(); }
";

/// The process that holds a pod's namespaces and reaps what ends in them.
pub(crate) fn pause() -> Result<PathBuf> {
    let dir = cache::root()?.join("images");
    let program = dir.join(format!("pause-{}", &cache::key([PAUSE])[..16])).join("pause");
    if !program.exists() {
        let dir = program.parent().context("has a directory")?;
        fs::create_dir_all(dir)?;
        let (source, fresh) = (dir.join("pause.c"), dir.join("pause.new"));
        fs::write(&source, PAUSE)?;
        shell::output(shell::command("gcc -static -Os -s -o").arg(&fresh).arg(&source))
            .context("pause needs a C compiler")?;
        fs::rename(&fresh, &program)?;
    }
    from_static_binary(testbed::PAUSE_IMAGE, &program)
}

/// `program` lies in a directory named by the key of its sources, which spares hashing 50 MB at every `up`.
pub(crate) fn coredns(program: &Path) -> Result<PathBuf> {
    let key = program.display().to_string();
    cached("coredns", &[key.as_bytes()], || one_program(testbed::COREDNS_IMAGE, "coredns", fs::read(program)?))
}
