use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::SystemTime;

use cluster::{Cluster, Evidence};
use serde_json::{Value, json};
use session::doctor::{Questions, Report};

use super::run::ClusterArgs;
use super::{image, sessions};
use crate::error::Failure;
use crate::gather::{Archive, Redactor, looks_secret};
use crate::output::{self, OutputArgs};

/// Put what helps to understand a problem into one archive to send
///
/// Holds the report of doctor, the status and logs of your sessions, and of the cluster the agents' logs, the pods they are
/// in and their events. Values of variables, arguments, tokens, certificates and headers are left out or redacted; look
/// into it before you send it.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Workload whose pods to look at, too: web, deploy/web
    workload: Option<String>,
    /// Archive to write
    #[arg(short = 'f', long, value_name = "FILE", default_value = "stead-logs.tar.gz")]
    file: PathBuf,
    /// Replace names of users and hosts, and addresses
    #[arg(long)]
    anonymous: bool,
    #[command(flatten)]
    cluster: ClusterArgs,
    #[command(flatten)]
    output: OutputArgs,
}

/// Of a log file of this machine, the end.
const LONGEST: usize = 1 << 20;

/// Everything that was found, not redacted yet.
struct Gathered {
    report: Report,
    sessions: Result<Vec<Value>, String>,
    /// The API server's host, the context, the user: for who wants to be anonymous.
    names: Vec<(&'static str, String)>,
    evidence: Evidence,
}

pub(crate) fn run(args: Args) -> ExitCode {
    let (format, file) = (args.output.output, args.file.clone());
    match gather(args) {
        Ok(files) => {
            let result = json!({ "archive": file, "files": files });
            output::result(format, &result, |_| format!("wrote {}: {}\n", file.display(), files.join(", ")));
            ExitCode::SUCCESS
        }
        Err(failure) => failure.show(format),
    }
}

fn gather(args: Args) -> Result<Vec<String>, Failure> {
    // Before any thread exists, as a sandbox is tried out on the way.
    let sandbox = sandbox::prepare(&[]);
    let runtime = session::runtime().map_err(|error| Failure::io("cannot start the runtime", &error))?;
    let questions = Questions {
        connect: args.cluster.into(),
        workload: args.workload,
        container: None,
        agent_architectures: image::architectures(),
    };
    let gathered = runtime.block_on(async {
        let report = session::doctor::examine(sandbox, &questions).await;
        let sessions = sessions::all().await.map_err(|failure| failure.error);
        let (evidence, names) = of_cluster(&questions).await;
        let sessions =
            sessions.map(|all| all.into_iter().map(|(_, status)| without_arguments(&json!(status))).collect());
        Gathered { report, sessions, names, evidence }
    });
    runtime.shutdown_background();
    let unwritten = |error: io::Error| Failure::io(&format!("cannot write {}", args.file.display()), &error);
    // A file that could not be written whole is not left behind.
    let written =
        File::options().create_new(true).write(true).open(&args.file).map_err(exists).and_then(|out| {
            write(out, &gathered, args.anonymous).inspect_err(|_| drop(std::fs::remove_file(&args.file)))
        });
    written.map_err(unwritten)
}

fn exists(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::AlreadyExists => io::Error::other("it exists; remove it or name another with --file"),
        _ => error,
    }
}

async fn of_cluster(questions: &Questions) -> (Evidence, Vec<(&'static str, String)>) {
    let cluster = match Cluster::connect(&questions.connect).await {
        Ok(cluster) => cluster,
        Err(error) => {
            let missing = vec![error.to_string()];
            return (Evidence { missing, ..Evidence::default() }, Vec::new());
        }
    };
    let mut missing = Vec::new();
    let workload = match &questions.workload {
        Some(name) => cluster.workload(name).await.map_err(|error| missing.push(error.to_string())).ok(),
        None => None,
    };
    let mut evidence = cluster.evidence(workload.as_ref()).await;
    evidence.missing.extend(missing);
    let mut names = vec![("host", host(cluster.server())), ("context", cluster.context().to_owned())];
    names.extend(cluster.user_name().await.ok().map(|name| ("user", name)));
    names.extend(evidence.nodes.iter().map(|node| ("node", node.clone())));
    (evidence, names)
}

/// `https://host:port/path` → host
fn host(server: &str) -> String {
    let rest = server.split_once("://").map_or(server, |(_, rest)| rest);
    let authority = rest.split('/').next().unwrap_or_default();
    authority.rsplit_once(':').map_or(authority, |(host, _)| host).to_owned()
}

/// A session's status, with its program and no arguments: those may be secret.
fn without_arguments(status: &Value) -> Value {
    let mut status = status.clone();
    if let Some(command) = status["command"].as_array_mut().filter(|command| command.len() > 1) {
        let left = format!("({} arguments)", command.len() - 1);
        command.truncate(1);
        command.push(left.into());
    }
    status
}

fn write(out: File, gathered: &Gathered, anonymous: bool) -> io::Result<Vec<String>> {
    let Gathered { report, sessions, names, evidence } = gathered;
    let redactor = redactor(names, evidence, anonymous);
    let made = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    let mut archive = Archive::new(out, made);
    let json = |value: Value| serde_json::to_string_pretty(&redactor.json(value)).unwrap_or_default() + "\n";
    archive.add("version.json", &json(version()))?;
    archive.add("doctor.json", &json(json!(report)))?;
    archive.add("sessions.json", &json(json!(sessions)))?;
    for path in crate::log::files() {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        archive.add(&format!("client/{name}"), &redactor.text(&end_of(&path)))?;
    }
    archive.add("cluster/pods.json", &json(json!(evidence.pods)))?;
    archive.add("cluster/events.json", &json(json!(evidence.events)))?;
    archive.add("cluster/missing.json", &json(json!(evidence.missing)))?;
    for (name, log) in &evidence.agent_logs {
        archive.add(&format!("cluster/agents/{name}.log"), &redactor.text(log))?;
    }
    let names = archive.names().to_vec();
    archive.finish()?;
    Ok(names)
}

fn redactor(names: &[(&'static str, String)], evidence: &Evidence, anonymous: bool) -> Redactor {
    let is_plain = |value: &String| value.len() < 6 || value.chars().all(|c| c.is_ascii_digit() || c == '.');
    let of_pods = evidence.values.iter().filter(|value| !is_plain(value)).cloned();
    let own = std::env::vars().filter(|(name, _)| looks_secret(name)).map(|(_, value)| value);
    let variable = |name| std::env::var(name).unwrap_or_default();
    let mut all = vec![("user", variable("USER")), ("user", variable("LOGNAME")), ("host", host_name())];
    // A home may be named otherwise than its user.
    all.push(("home", Path::new(&variable("HOME")).file_name().unwrap_or_default().to_string_lossy().into_owned()));
    all.extend(names.iter().cloned());
    Redactor::new(of_pods.chain(own), anonymous.then_some(&*all))
}

fn version() -> Value {
    let system = rustix::system::uname();
    let text = |part: &std::ffi::CStr| part.to_string_lossy().into_owned();
    let release = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
    let name = release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME=")).unwrap_or_default();
    json!({
        "stead": wire::RELEASE, "protocol": wire::PROTOCOL, "agent_image": cluster::default_image(),
        "kernel": text(system.release()), "machine": text(system.machine()), "system": name.trim_matches('"'),
    })
}

fn host_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

fn end_of(path: &Path) -> String {
    let bytes = std::fs::read(path).unwrap_or_else(|error| error.to_string().into_bytes());
    String::from_utf8_lossy(&bytes[bytes.len().saturating_sub(LONGEST)..]).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_told_without_its_arguments() {
        let status = json!({"command": ["psql", "--password", "x"], "pod": "web"});
        assert_eq!(without_arguments(&status), json!({"command": ["psql", "(2 arguments)"], "pod": "web"}));
        assert_eq!(without_arguments(&json!({"command": ["env"]})), json!({"command": ["env"]}));
    }

    #[test]
    fn the_host_of_a_server_is_told_without_port_and_path() {
        assert_eq!(host("https://k8s.example:6443/base"), "k8s.example");
        assert_eq!(host("https://k8s.example"), "k8s.example");
    }
}
