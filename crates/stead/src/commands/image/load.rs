//! `stead image load`: the archive, and the tool that takes it to a cluster's nodes.

use std::io;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::error::Failure;
use crate::output::{self, OutputArgs};

/// Bring the agent's image to the nodes of a cluster on this machine
///
/// Runs the cluster's own tool: `ctr -n k8s.io images import`, `kind load image-archive`, `k3d image import` or `minikube image
/// load`. For clusters elsewhere push it to a registry that they pull from.
#[derive(clap::Args)]
pub(super) struct Args {
    /// What the cluster runs on
    target: Target,
    /// Name of the kind or k3d cluster, or minikube profile (default: the tool's own)
    #[arg(long, value_name = "NAME")]
    cluster: Option<String>,
    /// Name of the image
    #[arg(long, value_name = "IMAGE", default_value_t = cluster::default_image())]
    pub(super) name: String,
    /// Print the commands instead of running them
    #[arg(long)]
    print: bool,
    #[command(flatten)]
    pub(super) output: OutputArgs,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Target {
    /// containerd of this machine (also a node's, when run there)
    Containerd,
    Kind,
    K3d,
    Minikube,
}

#[derive(serde::Serialize)]
struct Loaded<'a> {
    image: &'a str,
    command: String,
}

pub(super) fn run(args: &Args) -> Result<(), Failure> {
    if args.print {
        let save = format!("stead image save --name {} stead-agent.tar", args.name);
        let load = command_line(&words(args, Path::new("stead-agent.tar")));
        output::result(args.output.output, &[&save, &load], |lines| format!("{}\n{}\n", lines[0], lines[1]));
        return Ok(());
    }
    let unwritten = |error: io::Error| Failure::io("cannot write the image to a temporary file", &error);
    let mut archive = tempfile::Builder::new().prefix("stead-agent-").suffix(".tar").tempfile().map_err(unwritten)?;
    super::write(&args.name, &mut archive).map_err(unwritten)?;
    let words = words(args, archive.path());
    // What the tool says is its user's to see; stdout stays for our result.
    let mut tool = Command::new(&words[0]);
    let status = tool.args(&words[1..]).stdin(Stdio::null()).stdout(io::stderr()).status();
    let by_hand = command_line(&self::words(args, Path::new("FILE")));
    let by_hand = format!("write the image with `stead image save FILE`; where {} runs: {by_hand}", words[0]);
    match status {
        Ok(status) if status.success() => {}
        Ok(status) => return Err(Failure::new(74, format!("{} ended with {status}", words[0]), Some(by_hand))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(Failure::new(71, format!("{} is not installed on this machine", words[0]), Some(by_hand)));
        }
        Err(error) => return Err(Failure::io(&format!("cannot run {}", words[0]), &error)),
    }
    let loaded = Loaded { image: &args.name, command: command_line(&words) };
    output::result(args.output.output, &loaded, |loaded| format!("loaded {}\n", loaded.image));
    Ok(())
}

fn words(args: &Args, file: &Path) -> Vec<String> {
    let (words, cluster): (&[&str], &str) = match args.target {
        Target::Containerd => (&["ctr", "--namespace", "k8s.io", "images", "import"], ""),
        Target::Kind => (&["kind", "load", "image-archive"], "--name"),
        Target::K3d => (&["k3d", "image", "import"], "--cluster"),
        Target::Minikube => (&["minikube", "image", "load"], "--profile"),
    };
    let mut words: Vec<String> = words.iter().map(ToString::to_string).collect();
    if let Some(name) = args.cluster.as_ref().filter(|_| !cluster.is_empty()) {
        words.extend([cluster.to_owned(), name.clone()]);
    }
    words.push(file.display().to_string());
    words
}

fn command_line(words: &[String]) -> String {
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    fn line(words: &[&str]) -> String {
        let args = Line::parse_from([&["load"], words].concat()).args;
        command_line(&self::words(&args, Path::new("a.tar")))
    }

    #[test]
    fn each_cluster_has_its_own_tool() {
        assert_eq!(line(&["containerd"]), "ctr --namespace k8s.io images import a.tar");
        assert_eq!(line(&["kind"]), "kind load image-archive a.tar");
        assert_eq!(line(&["kind", "--cluster", "dev"]), "kind load image-archive --name dev a.tar");
        assert_eq!(line(&["k3d", "--cluster", "dev"]), "k3d image import --cluster dev a.tar");
        assert_eq!(line(&["minikube", "--cluster", "dev"]), "minikube image load --profile dev a.tar");
    }
}
