use std::convert::Infallible;
use std::ffi::OsString;
use std::num::NonZeroU64;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use session::egress::{Destination, Egress, Network, Scope};
use session::{EnvChoice, EnvFormat, Options, Rung, RungChoice};

use crate::error::Failure;
use crate::output::OutputArgs;
use crate::voice::Terminal;

/// Run a command as if it ran in a pod of WORKLOAD
///
/// The workload itself is only observed: its pods keep running and keep their traffic. The command keeps your user,
/// working directory, files and terminal; names and addresses of the cluster are reached through the pod; the container's
/// environment is laid over yours (PATH, HOME and variables that steer loaders and interpreters stay yours).
///
/// Exit code: the command's own; 128 and the signal's number when one ended it; 126 or 127 when it could not be run;
/// 64-78 for failures of stead itself (`stead help exit-codes`).
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  stead run web -- ./server --port 8080\n  stead run deploy/web -n shop -- psql -h db\n  stead run -- curl http://web.shop"
)]
pub(crate) struct Args {
    #[command(flatten)]
    session: SessionArgs,
    /// Command and its arguments
    #[arg(last = true, required = true, value_name = "CMD")]
    command: Vec<OsString>,
}

/// A session, whatever its command is.
#[derive(Debug, clap::Args)]
pub(crate) struct SessionArgs {
    /// Workload whose place the command takes: web, deploy/web, sts/db, ds/agent, pod/web-0. Without one, the command
    /// reaches the cluster through a pod that is made for the session (a stand-in)
    #[arg(value_name = "WORKLOAD")]
    workload: Option<String>,
    /// Container of the pod (default: the one kubectl would take)
    #[arg(short, long, value_name = "NAME", requires = "workload")]
    container: Option<String>,
    /// Image of the agent
    #[arg(long, value_name = "IMAGE", env = "STEAD_AGENT_IMAGE", default_value_t = cluster::default_image())]
    agent_image: String,
    /// How long the agent keeps the session when the connection is lost
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = duration)]
    lease: Duration,
    /// How long the agent stays for the next session; 0s ends it with the last
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = duration)]
    park: Duration,
    /// End the agent with its last session, as --park 0s
    #[arg(long, conflicts_with = "park")]
    no_park: bool,
    /// Say which placements of the agent were considered, which was taken and why, which rights are missing (with the role that
    /// gives them), and which addresses of the cluster are known from where
    #[arg(long)]
    explain: bool,
    /// End the session when a port that the command listens on is taken on this machine, instead of taking the next free one
    #[arg(long)]
    strict_ports: bool,
    /// How the agent is reached: at the pod's address, or through the API server by pods/proxy or pods/portforward
    #[arg(long, value_name = "RUNG", default_value = "auto")]
    rung: RungArg,
    /// Most links to the agent: one for interactive traffic, the others for bulk; more than two on long paths only
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=4))]
    links: u32,
    /// Most bytes a second, each way, that the session's links may carry through the API server: 500K, 20M or 1G (of 1024).
    /// Without it they carry what they can, and less while the API server's answers take much longer than usual
    #[arg(long, value_name = "RATE", value_parser = rate)]
    api_rate: Option<NonZeroU64>,
    #[command(flatten)]
    cluster: ClusterArgs,
    #[command(flatten)]
    egress: EgressArgs,
    #[command(flatten)]
    env: EnvArgs,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum RungArg {
    /// Whichever answers first, and the pod's address as soon as it is reached
    Auto,
    Direct,
    Proxy,
    Forward,
}

impl From<RungArg> for RungChoice {
    fn from(rung: RungArg) -> Self {
        match rung {
            RungArg::Auto => RungChoice::Auto,
            RungArg::Direct => RungChoice::Only(Rung::Direct),
            RungArg::Proxy => RungChoice::Only(Rung::Proxy),
            RungArg::Forward => RungChoice::Only(Rung::Forward),
        }
    }
}

/// Which of the container's variables the command gets, and who else.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Environment")]
struct EnvArgs {
    /// Take a variable of the container that would stay this machine's (PATH, LD_*, ...); NAME* for all that begin so. May
    /// be repeated
    #[arg(long = "env-include", value_name = "NAME")]
    include: Vec<String>,
    /// Do not take a variable of the container; the last word. May be repeated
    #[arg(long = "env-exclude", value_name = "NAME")]
    exclude: Vec<String>,
    /// Write what the command gets of the pod's environment to a file for other tools, readable by you alone
    #[arg(long = "env-file", value_name = "FILE")]
    file: Option<PathBuf>,
    /// What the file is for: docker run --env-file, compose, a shell, or JSON
    #[arg(long = "env-format", value_name = "FORMAT", default_value = "docker", requires = "file")]
    format: EnvFormatArg,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum EnvFormatArg {
    Docker,
    Compose,
    Sh,
    Json,
}

impl From<EnvFormatArg> for EnvFormat {
    fn from(format: EnvFormatArg) -> Self {
        match format {
            EnvFormatArg::Docker => EnvFormat::Docker,
            EnvFormatArg::Compose => EnvFormat::Compose,
            EnvFormatArg::Sh => EnvFormat::Sh,
            EnvFormatArg::Json => EnvFormat::Json,
        }
    }
}

/// What of the command's traffic goes through the pod.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Traffic of the command")]
struct EgressArgs {
    /// What goes through the pod where nothing else is known: nothing but the cluster's own addresses, private addresses
    /// that this machine is not attached to, or all
    #[arg(long, value_name = "SCOPE", default_value = "private")]
    egress: ScopeArg,
    /// Host, address or network that goes through the pod, too; a host is resolved by the pod. May be repeated
    #[arg(long, value_name = "HOST|IP|CIDR")]
    also_proxy: Vec<Destination>,
    /// Address or network that never goes through the pod. Of several that fit, the smallest network wins. May be repeated
    #[arg(long, value_name = "IP|CIDR", value_parser = session::egress::network)]
    never_proxy: Vec<Network>,
    /// Port of localhost that leads to the pod's own localhost even where this machine has a service on it. Ports of the
    /// pod's other containers that this machine leaves free need not be named. May be repeated
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    to_pod: Vec<u16>,
    /// Who is asked first for names that are not the cluster's own
    #[arg(long, value_name = "SIDE", default_value = "host")]
    dns: DnsArg,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum ScopeArg {
    Cluster,
    Private,
    All,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum DnsArg {
    Host,
    Cluster,
}

impl From<EgressArgs> for Egress {
    fn from(args: EgressArgs) -> Self {
        let scope = match args.egress {
            ScopeArg::Cluster => Scope::Cluster,
            ScopeArg::Private => Scope::Private,
            ScopeArg::All => Scope::All,
        };
        Egress { scope, also: args.also_proxy, never: args.never_proxy, cluster_dns_first: args.dns == DnsArg::Cluster }
    }
}

/// Which cluster, as kubectl takes it.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Cluster")]
pub(crate) struct ClusterArgs {
    /// Path of the kubeconfig (default: $KUBECONFIG, then ~/.kube/config)
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// Context of the kubeconfig
    #[arg(long, value_name = "NAME")]
    context: Option<String>,
    /// Namespace (default: the context's)
    #[arg(short, long, value_name = "NAME")]
    namespace: Option<String>,
    /// User to act as
    #[arg(long = "as", value_name = "USER")]
    as_user: Option<String>,
    /// Group to act as; may be repeated
    #[arg(long = "as-group", value_name = "GROUP", requires = "as_user")]
    as_groups: Vec<String>,
}

impl From<ClusterArgs> for cluster::ConnectOptions {
    fn from(args: ClusterArgs) -> Self {
        cluster::ConnectOptions {
            kubeconfig: args.kubeconfig,
            context: args.context,
            namespace: args.namespace,
            as_user: args.as_user,
            as_groups: args.as_groups,
        }
    }
}

pub(crate) fn run(args: Args) -> ExitCode {
    session(args.session, args.command)
}

/// Runs a session with this command.
pub(crate) fn session(args: SessionArgs, command: Vec<OsString>) -> ExitCode {
    let format = args.output.output;
    match start(args, command) {
        Ok(never) => match never {},
        Err(failure) => failure.show(format),
    }
}

fn start(args: SessionArgs, command: Vec<OsString>) -> Result<Infallible, Failure> {
    let options = Options {
        to_pod: args.egress.to_pod.clone(),
        connect: args.cluster.into(),
        workload: args.workload,
        container: args.container,
        image: args.agent_image,
        lease: args.lease,
        park: if args.no_park { Duration::ZERO } else { args.park },
        egress: args.egress.into(),
        env: EnvChoice { include: args.env.include, exclude: args.env.exclude },
        env_file: args.env.file.map(|file| (file, args.env.format.into())),
        strict_ports: args.strict_ports,
        rung: args.rung.into(),
        links: args.links,
        api_rate: args.api_rate,
        explain: args.explain,
        command,
    };
    let id = session::new_id();
    crate::log::begin(&id.to_string());
    // Before any thread exists: the sandbox's guard is forked from this process.
    let sandbox = sandbox::prepare(&session::leftovers(id))?;
    // One thread: a second one hands work back and forth (round trip p50 +10-30 %, upload -10 %), the API server between
    // client and agent is slower than one thread of ours, and `link` batches by the order of the tasks.
    let runtime = session::runtime().map_err(|error| Failure::io("cannot start the runtime", &error))?;
    let voice = Terminal::new();
    let ended = runtime.block_on(async {
        tokio::select! {
            ended = session::run(id, sandbox, &options, &voice) => ended,
            () = voice.refresh() => unreachable!("refresh never returns"),
        }
    });
    voice.finish();
    // Nothing that is still dialled or looked up matters any more.
    runtime.shutdown_background();
    sandbox::end_like(ended?)
}

/// `500ms`, `60s`, `10m`, `1h`.
fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let number: u64 = digits.parse().map_err(|_| "a time is a number and a unit, such as 60s or 10m".to_owned())?;
    let milliseconds = match &text[digits.len()..] {
        "ms" => 1,
        "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        unit => return Err(format!("unknown unit {unit:?}; ms, s, m and h are known")),
    };
    number.checked_mul(milliseconds).map(Duration::from_millis).ok_or_else(|| "too long".to_owned())
}

/// `500K`, `20M`, `1G`, with or without `iB` and `/s`.
fn rate(text: &str) -> Result<NonZeroU64, String> {
    /// Less would hardly carry names and keystrokes.
    const LEAST: u64 = 64 << 10;
    let whole = text.trim_end_matches("/s").trim_end_matches("iB");
    let at = whole.find(|c: char| !c.is_ascii_digit()).unwrap_or(whole.len());
    let (digits, unit) = whole.split_at(at);
    let number: u64 = digits.parse().map_err(|_| "a rate is a number and a unit, such as 500K or 20M".to_owned())?;
    let shift = match unit {
        "K" => 10,
        "M" => 20,
        "G" => 30,
        unit => return Err(format!("unknown unit {unit:?}; K, M and G are known, for bytes a second")),
    };
    let rate = number.checked_mul(1 << shift).filter(|rate| *rate >= LEAST).and_then(NonZeroU64::new);
    rate.ok_or_else(|| "less than 64K, or too much".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_numbers_with_units() {
        for text in ["20M", "20MiB", "20MiB/s", "20480K"] {
            assert_eq!(rate(text).map(NonZeroU64::get), Ok(20 << 20), "{text}");
        }
        for wrong in ["", "20", "M", "0M", "1K", "20 M", "20m", "20Mbit", "-1M", "99999999999999G"] {
            assert!(rate(wrong).is_err(), "{wrong:?} is no rate");
        }
    }

    #[test]
    fn times_are_numbers_with_units() {
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("10m"), Ok(Duration::from_secs(600)));
        for wrong in ["", "s", "10", "10 s", "1d", "-1s", "99999999999999999h"] {
            assert!(duration(wrong).is_err(), "{wrong:?} is no time");
        }
    }
}
