//! The client engine: one session from the names on a command line to the command's exit code.
//!
//! A session passes through states, one module each: `attaching` (an agent admits it), `linking` (links are kept),
//! `running` (the command lives; `succession` replaces an agent that is gone). It ends with its command, in whatever way; what it changed in the cluster is an agent
//! that parks and exits by itself. This crate prints nothing: it speaks through [`Voice`].

mod agent;
mod asker;
mod attaching;
mod credential;
mod datagrams;
mod dialer;
pub mod doctor;
pub mod egress;
mod env_file;
mod environment;
mod error;
mod explain;
mod linking;
mod localhost;
mod machine;
mod pacing;
mod ports;
mod router;
mod running;
pub mod socket;
pub mod status;
mod succession;
mod upstream;

use std::ffi::OsString;
use std::io::Write as _;
use std::num::NonZeroU64;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::atomic::Ordering;
use std::sync::{Arc, RwLock};
use std::time::{Duration, Instant};

use cluster::AgentContainer;
use ipnet::IpNet;
use tokio::net::{TcpListener, UdpSocket};
use tokio::sync::{mpsc, watch};
use wire::{DescribeContainer, Description, Leave, RELEASE, SessionId, answer, request};

use agent::Outbound;
use attaching::{Attacher, Entered, Made};
use datagrams::Associations;
use dialer::{Counters, Dialer};
use egress::Egress;
use linking::LinkStates;
use localhost::Localhost;
use ports::Ports;
use router::Router;
use running::{Ended, Watched};
use status::{Attachment, Flows, Health, Link, Status};
use succession::Succession;
use upstream::{MachineResolver, PodResolver};

pub use cluster::Rung;
pub use env_file::Format as EnvFormat;
pub use environment::Choice as EnvChoice;
pub use error::Error;
pub use link::runtime;
pub use linking::RungChoice;

/// A session that ends tells its agent and waits this long for the word to be taken; the lease does the rest.
const FAREWELL: Duration = Duration::from_secs(1);

/// What a session is to do.
#[derive(Clone, Debug)]
pub struct Options {
    pub connect: cluster::ConnectOptions,
    /// `web`, `deploy/web`, `pod/web-0`, …; `None`: a stand-in of its own.
    pub workload: Option<String>,
    pub container: Option<String>,
    /// Of the agent.
    pub image: String,
    /// How links are carried.
    pub rung: RungChoice,
    /// How long the agent keeps the session without a link.
    pub lease: Duration,
    /// How long the agent stays, without any session, for the next one.
    pub park: Duration,
    /// What of the command's traffic goes through the pod.
    pub egress: Egress,
    /// Which of the container's variables the command gets.
    pub env: EnvChoice,
    /// Where the pod's variables are written for other tools.
    pub env_file: Option<(PathBuf, EnvFormat)>,
    /// Ports of localhost that lead to the pod's localhost, whoever else listens there.
    pub to_pod: Vec<u16>,
    /// A listening port of the command that is taken on this machine ends the session, instead of giving way to the next.
    pub strict_ports: bool,
    /// Most links of the session: the first for interactive flows, the others for bulk.
    pub links: u32,
    /// Bytes a second that the links through the API server may carry, each way, all of them together.
    pub api_rate: Option<NonZeroU64>,
    /// Say how the session reaches the cluster, and why so.
    pub explain: bool,
    /// Program and arguments.
    pub command: Vec<OsString>,
}

/// How a session speaks to its user.
pub trait Voice: Send + Sync {
    /// What is being done now; shown when it takes long.
    fn step(&self, what: &str);
    /// Nothing is being done that one waits for any more.
    fn ready(&self);
    /// Something the user should know while the command runs.
    fn note(&self, what: &str);
}

/// A new session's id.
pub fn new_id() -> SessionId {
    SessionId(rand::random())
}

/// What of a session must not stay on this machine when the client is killed; `sandbox::prepare` sees to it.
pub fn leftovers(id: SessionId) -> Vec<PathBuf> {
    let folder = socket::Folder::of_this_user();
    vec![folder.socket(&id.to_string()), folder.path().to_owned()]
}

/// Runs one session: makes the sandbox, attaches, links, runs the command, and leaves.
///
/// Returns the command's status. Until the command runs, SIGINT, SIGTERM and SIGHUP end the session.
pub async fn run(
    id: SessionId,
    sandbox: sandbox::Prepared,
    options: &Options,
    voice: &dyn Voice,
) -> Result<ExitStatus, Error> {
    let mut interrupted = std::pin::pin!(interrupted());
    let traffic = Traffic::new(&options.egress, &options.to_pod);
    // First, since a machine that forbids it is to be told before anything in the cluster is touched.
    let mut sandbox = sandbox.start(Arc::new(traffic.dialer()))?;
    let made = Made::default();
    let started = tokio::select! {
        started = Session::start(id, traffic, options, made.clone(), voice) => started,
        signal = &mut interrupted => Err(Error::Interrupted(signal)),
    };
    let session = match started {
        Ok(session) => session,
        Err(error) => {
            made.remove().await;
            return Err(error);
        }
    };
    let (asked_tx, asked) = mpsc::channel(16);
    let control = match session.control_socket() {
        Ok(control) => control,
        Err(error) => {
            session.leave().await;
            return Err(error);
        }
    };
    let living = async {
        let ended = session.run_command(&mut sandbox, options, asked, interrupted, voice).await;
        // The kernel takes its time (15-40 ms) to take the device away.
        let gone = tokio::task::spawn_blocking(move || drop(sandbox));
        let _ = tokio::join!(session.leave(), gone);
        ended.map(|Ended { status, answers }| {
            for answer in answers {
                let _ = answer.send(socket::Answer::Done);
            }
            status
        })
    };
    tokio::join!(living, control.serve(asked_tx)).0
}

/// The command's connections, wherever they go.
struct Traffic {
    outbound: Outbound,
    router: Arc<RwLock<Router>>,
    counters: Arc<Counters>,
    ports: Ports,
    localhost: Arc<RwLock<Localhost>>,
}

impl Traffic {
    fn new(egress: &Egress, to_pod: &[u16]) -> Self {
        let router = Router::new(machine::on_link(), egress);
        Traffic {
            outbound: Outbound::new(),
            router: Arc::new(RwLock::new(router)),
            counters: Arc::default(),
            ports: Ports::default(),
            localhost: Arc::new(RwLock::new(Localhost::new(to_pod))),
        }
    }

    fn dialer(&self) -> Dialer {
        Dialer {
            outbound: self.outbound.clone(),
            router: self.router.clone(),
            counters: self.counters.clone(),
            associations: Associations::default(),
            ports: self.ports.clone(),
            localhost: self.localhost.clone(),
        }
    }
}

async fn interrupted() -> i32 {
    use tokio::signal::unix::{SignalKind, signal};
    let kinds = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()];
    let waits = kinds.map(|kind| {
        Box::pin(async move {
            match signal(kind) {
                Ok(mut signal) => signal.recv().await,
                Err(_) => std::future::pending().await,
            };
            kind.as_raw_value()
        })
    });
    futures::future::select_all(waits).await.0
}

/// A session whose links are up.
struct Session {
    id: SessionId,
    since: Instant,
    attacher: Attacher,
    /// Of the first agent: what the command's environment says for as long as it lives.
    first: AgentContainer,
    description: Description,
    traffic: Traffic,
    /// Of the agent that serves; none while there is no agent.
    states: watch::Sender<LinkStates>,
    made: Made,
}

impl Session {
    async fn start(
        id: SessionId,
        traffic: Traffic,
        options: &Options,
        made: Made,
        voice: &dyn Voice,
    ) -> Result<Session, Error> {
        let (attacher, entered, ranges) = attaching::attach(id, options, made.clone(), voice).await?;
        if options.explain {
            voice.note(&attacher.explain(&entered, &ranges).await);
        }
        let Entered { target, agent: first, admitted, .. } = entered;
        voice.step(&format!("opening links to pod {}", first.pod));
        dialer::write(&traffic.router).know(all_ranges(&ranges));
        for (network, range) in dialer::read(&traffic.router).shared_networks() {
            voice.note(&format!(
                "this machine is on {network}, which lies in the cluster's {range}: its addresses are reached through the pod; \
                 --never-proxy {network} leaves them to this machine"
            ));
        }
        let container_id = target.as_ref().map_or("", |target| &target.container_id);
        if let Some(target) = &target {
            dialer::write(&traffic.localhost).know(target.neighbours(), container_id);
        }
        let agent = attacher.link(first.clone(), admitted).await?;
        let states = watch::Sender::new(agent.states.borrow().clone());
        traffic.outbound.serve(agent);
        voice.step(&format!("reading the environment of container {}", first.target));
        let description = describe(&traffic.outbound, container_id, &first.pod).await?;
        let hosts = environment::service_hosts(&description).map(IpNet::from);
        dialer::write(&traffic.router).know(all_ranges(&ranges).into_iter().chain(hosts).collect());
        dialer::write(&traffic.router).also(egress::link_local_addresses(environment::values(&description)));
        Ok(Session { id, since: Instant::now(), attacher, first, description, traffic, states, made })
    }

    async fn run_command(
        &self,
        sandbox: &mut sandbox::Sandbox,
        options: &Options,
        asked: mpsc::Receiver<socket::Asked>,
        interrupted: std::pin::Pin<&mut impl Future<Output = i32>>,
        voice: &dyn Voice,
    ) -> Result<Ended, Error> {
        voice.step("starting the command");
        let (udp, tcp) = sandbox.dns().expect("taken once, from a sandbox just started");
        let resolver = self.serve_names(udp, tcp, &options.egress);
        let command = self.command(options, voice)?;
        let ports = self.traffic.ports.clone();
        let publishing = ports.publish(sandbox.listening(), sandbox.inside(), options.strict_ports, voice);
        let mut child = tokio::select! {
            child = sandbox.spawn(command) => child?,
            signal = interrupted => return Err(Error::Interrupted(signal)),
        };
        voice.ready();
        let argv = options.command.iter().map(|a| a.to_string_lossy().into_owned()).collect::<Vec<_>>();
        let status = |pid: u32| self.status(&argv, pid);
        let succession = self.succession(voice);
        let watched = Watched { links: self.states.subscribe(), asked, status: &status, voice };
        tokio::select! {
            ended = running::run(&mut child, watched) => ended,
            never = succession.run() => match never {},
            never = credential::watch(&self.attacher.cluster, voice) => match never {},
            Err(error) = publishing => Err(error),
            // It ends only when the machine takes its sockets away; the command goes on without names.
            () = resolver => {
                let status = child.wait().await?;
                Ok(Ended { status, answers: Vec::new() })
            }
        }
    }

    fn succession<'a>(&'a self, voice: &'a dyn Voice) -> Succession<'a> {
        Succession {
            attacher: &self.attacher,
            outbound: &self.traffic.outbound,
            localhost: &self.traffic.localhost,
            states: &self.states,
            voice,
        }
    }

    fn control_socket(&self) -> Result<socket::ControlSocket, Error> {
        let (folder, name) = (socket::Folder::of_this_user(), self.id.to_string());
        socket::ControlSocket::bind(&folder, &name)
            .map_err(|cause| Error::ControlSocket { path: folder.socket(&name).display().to_string(), cause })
    }

    fn serve_names(&self, udp: UdpSocket, tcp: TcpListener, egress: &Egress) -> impl Future<Output = ()> + use<> {
        let router = self.traffic.router.clone();
        let ranges = dialer::read(&router).cluster_ranges().to_vec();
        let policy = dns::Policy {
            cluster_first: egress.cluster_dns_first,
            names: egress.also_hosts().map(str::to_owned).collect(),
            ..dns::Policy::from_pod(&self.description.resolv_conf, ranges)
        };
        dns::serve(
            udp,
            tcp,
            policy,
            Arc::new(PodResolver(self.traffic.outbound.clone())),
            Arc::new(MachineResolver::from_resolv_conf()),
            move |address, ttl| dialer::write(&router).learn(address, ttl, Instant::now()),
        )
    }

    /// What the command gets of the pod's environment, and about the session.
    fn pod_environment(&self, options: &Options) -> Vec<(OsString, OsString)> {
        let mut ours = vec![
            ("STEAD_SESSION", self.id.to_string()),
            ("STEAD_NAMESPACE", self.attacher.cluster.namespace().to_owned()),
            ("STEAD_POD", self.first.pod.clone()),
        ];
        if let Some(workload) = &self.attacher.workload {
            ours.push(("STEAD_WORKLOAD", workload.to_string()));
            ours.push(("STEAD_CONTAINER", self.first.target.clone()));
        }
        environment::of_the_pod(&self.description, &options.env, ours)
    }

    fn command(&self, options: &Options, voice: &dyn Voice) -> Result<sandbox::Command, Error> {
        let environment = self.pod_environment(options);
        if let Some((path, format)) = &options.env_file {
            let env_file::Rendered { text, left_out } = env_file::render(environment.iter(), *format);
            write_private(path, &text).map_err(|cause| Error::EnvFile { path: path.clone(), cause })?;
            if !left_out.is_empty() {
                voice.note(&format!(
                    "not in {}, whose format cannot carry them: {}",
                    path.display(),
                    left_out.join(", ")
                ));
            }
        }
        let resolv_conf =
            dns::ResolvConf::parse(&self.description.resolv_conf).for_sandbox(sandbox::Sandbox::NAME_SERVER);
        let mut files = vec![(PathBuf::from("/etc/resolv.conf"), resolv_conf.into_bytes())];
        if let Ok(text) = std::fs::read_to_string("/etc/nsswitch.conf") {
            files.push((PathBuf::from("/etc/nsswitch.conf"), hosts_by_files_and_dns(&text).into_bytes()));
        }
        Ok(sandbox::Command {
            argv: options.command.clone(),
            env: environment::compose(std::env::vars_os(), &environment),
            cwd: None,
            files,
        })
    }

    fn status(&self, command: &[String], command_pid: u32) -> Status {
        let serving = self.traffic.outbound.serving();
        let stats = serving.as_ref().map(|serving| serving.agent.endpoint.stats()).unwrap_or_default();
        let states = self.states.borrow();
        let links: Vec<Link> = states
            .iter()
            .map(|(&number, state)| {
                let seen = stats.links.iter().find(|l| l.number == number);
                Link {
                    number,
                    rung: state.rung.map_or_else(String::new, |rung| rung.to_string()),
                    up: state.up,
                    sent_bytes: seen.map_or(0, |l| l.bytes_sent),
                    received_bytes: seen.map_or(0, |l| l.bytes_received),
                    round_trip_us: seen.and_then(|l| l.round_trip).map(|d| d.as_micros() as u64),
                    heard_ms_ago: seen.map(|l| l.silent_for.as_millis() as u64),
                    error: state.error.clone(),
                }
            })
            .collect();
        let (health, reason) = match serving.as_ref().and_then(|serving| serving.gone.clone()) {
            Some(gone) => (Health::Lost, Some(gone)),
            None => status::health(&links),
        };
        let api_rate = serving.as_ref().and_then(|serving| serving.agent.bound.now());
        let agent = serving.map_or_else(|| self.first.clone(), |serving| serving.agent.container.clone());
        let cluster = &self.attacher.cluster;
        let attached = self.attacher.workload.iter().map(|workload| Attachment {
            workload: workload.to_string(),
            namespace: cluster.namespace().to_owned(),
            kind: "observe".to_owned(),
        });
        Status {
            session: self.id.to_string(),
            release: RELEASE.to_owned(),
            health,
            reason,
            context: cluster.context().to_owned(),
            namespace: cluster.namespace().to_owned(),
            pod: agent.pod,
            container: agent.target,
            agent: agent.name,
            client_pid: std::process::id(),
            command: command.to_vec(),
            command_pid: Some(command_pid),
            age_seconds: self.since.elapsed().as_secs(),
            attachments: attached.collect(),
            links,
            api_rate,
            ports: self.traffic.ports.status(),
            flows: Flows {
                open: stats.flows as u64,
                through_pod: self.traffic.counters.through_pod.load(Ordering::Relaxed),
                by_machine: self.traffic.counters.by_machine.load(Ordering::Relaxed),
                refused: self.traffic.counters.refused.load(Ordering::Relaxed),
            },
        }
    }

    /// Tells the agent, so that it forgets the session at once and not when the lease ends.
    async fn leave(self) {
        if let Some(serving) = self.traffic.outbound.serving().filter(|serving| serving.gone.is_none()) {
            let farewell = serving.agent.ask(request::Kind::Leave(Leave {}));
            if serving.agent.is_linked() {
                let _ = tokio::time::timeout(FAREWELL, farewell).await;
            }
            serving.agent.retire();
        }
        self.made.remove().await;
    }
}

/// For the user alone: secrets may be in it.
fn write_private(path: &Path, text: &str) -> std::io::Result<()> {
    let mut options = std::fs::OpenOptions::new();
    let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(path)?;
    file.write_all(text.as_bytes())
}

async fn describe(outbound: &Outbound, container_id: &str, pod: &str) -> Result<Description, Error> {
    let question = DescribeContainer { container_id: container_id.to_owned() };
    let failed = |cause: String| Error::Link { pod: pod.to_owned(), cause };
    match outbound.ask(request::Kind::DescribeContainer(question)).await {
        Ok(answer::Kind::Description(description)) => Ok(description),
        Ok(_) => Err(failed("the agent answered something else than was asked".to_owned())),
        Err(error) => Err(failed(error.to_string())),
    }
}

fn all_ranges(ranges: &cluster::Ranges) -> Vec<IpNet> {
    let single = ranges.service_ips.iter().chain(&ranges.pod_ips).map(|&ip| IpNet::from(ip));
    ranges.services.iter().chain(&ranges.pods).copied().chain(single).collect()
}

/// The machine's nsswitch.conf with host names looked up by files and DNS alone: other ways (a resolver's socket, mDNS)
/// lead around the sandbox.
fn hosts_by_files_and_dns(text: &str) -> String {
    let other = text.lines().filter(|line| !line.trim_start().starts_with("hosts:"));
    other.chain(["hosts: files dns"]).flat_map(|line| [line, "\n"]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_names_are_looked_up_by_files_and_dns_alone() {
        let text = "passwd: files systemd\nhosts: mymachines resolve [!UNAVAIL=return] files dns\n";
        assert_eq!(hosts_by_files_and_dns(text), "passwd: files systemd\nhosts: files dns\n");
    }
}
