//! The ways from a client to the server that are compared, each held open for the whole run.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use testkit::app::measure::Report;
use testkit::lab::{Lab, Shell, checked, within};

use crate::arena::Arena;
use crate::bench::manifest::{NAMESPACE, Place};
use crate::bench::processes::Processes;
use crate::bench::telepresence::Telepresence;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Path {
    /// From another pod, without anything between.
    Pod,
    /// Plain TCP from the developer's machine to the pod's address.
    Plain,
    /// A pipe of its own through the API server for each connection.
    Raw,
    Forward,
    /// To the Service, where `TELEPRESENCE` names the program.
    Telepresence,
    /// Through the API server's proxy, as by default where pods are not reached.
    Stead,
    SteadDirect,
    SteadForward,
}

/// The ways of stead itself, by rung.
pub(crate) const BY_RUNG: [Path; 3] = [Path::Stead, Path::SteadDirect, Path::SteadForward];

impl Path {
    fn rung(self) -> Option<&'static str> {
        match self {
            Path::Stead => Some("proxy"),
            Path::SteadDirect => Some("direct"),
            Path::SteadForward => Some("forward"),
            _ => None,
        }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Path::Pod => "pod to pod",
            Path::Plain => "plain TCP",
            Path::Raw => "raw upgraded pipe",
            Path::Forward => "kubectl port-forward",
            Path::Telepresence => "Telepresence",
            Path::Stead => "stead",
            Path::SteadDirect => "stead, direct",
            Path::SteadForward => "stead, forward",
        }
    }
}

/// Local ports of the relays and of the port-forward: raw protocol and HTTP each.
const RAW: [u16; 2] = [19_000, 19_001];
const FORWARD: [u16; 2] = [19_010, 19_011];
const SERVER: [u16; 2] = [9000, 9001];

pub(crate) struct Paths {
    lab: Lab,
    testapp: String,
    gohttp: String,
    server: IpAddr,
    service: IpAddr,
    sessions: BTreeMap<Path, Shell>,
    telepresence: Option<Telepresence>,
    helpers: Vec<Helper>,
    pub(crate) processes: Processes,
}

impl Paths {
    pub(crate) fn open(arena: &Arena, place: &Place) -> Result<Paths> {
        let lab = arena.lab().clone();
        let mut helpers = Vec::new();
        for (local, remote) in RAW.into_iter().zip(SERVER) {
            let (listen, target) = (format!("127.0.0.1:{local}"), SocketAddr::from((place.server, remote)).to_string());
            let program = place.testpipe.display().to_string();
            let words = ["relay", "--listen", &listen, "--namespace", NAMESPACE, "--pod", "web"];
            let more = ["--pin", &place.pin, "--target", &target];
            helpers.push(Helper::start(lab.user([&[program.as_str()], &words[..], &more].concat()))?);
        }
        let pairs: Vec<String> =
            FORWARD.iter().zip(SERVER).map(|(local, remote)| format!("{local}:{remote}")).collect();
        let words = ["kubectl", "port-forward", "-n", NAMESPACE, "pod/server", &pairs[0], &pairs[1]];
        helpers.push(Helper::start(lab.user(words))?);
        let mut sessions = BTreeMap::new();
        for path in BY_RUNG {
            let flags = ["--park", "1s", "--rung", path.rung().unwrap_or_default()];
            sessions.insert(path, Shell::start(stead(arena, &flags, &["sh"])).context("no session")?);
        }
        let testapp = arena.testapp.display().to_string();
        let telepresence = Telepresence::start(arena)?;
        let clients = sessions.iter().map(|(path, session)| (*path, session.pid())).collect();
        let processes = Processes::find(&lab, clients, helpers[2].0.id(), [helpers[0].0.id(), helpers[1].0.id()])?;
        let gohttp = place.gohttp.display().to_string();
        let (server, service) = (place.server, place.service);
        let mut paths = Paths { lab, testapp, gohttp, server, service, sessions, telepresence, helpers, processes };
        for path in [Path::Pod, Path::Raw, Path::Forward, Path::Telepresence].into_iter().chain(BY_RUNG) {
            if !paths.has(path) {
                continue;
            }
            within(Duration::from_secs(20), || paths.measure(path, "--mode c -t 0.05"))?;
        }
        Ok(paths)
    }

    /// One measurement; `what` is the flags of `testapp measure` without the address.
    pub(crate) fn measure(&mut self, path: Path, what: &str) -> Result<Report> {
        let is_http = what.contains("--mode h");
        let port = |ports: [u16; 2]| ports[usize::from(is_http)];
        let server = SocketAddr::from((self.host(path), port(SERVER)));
        let local = |ports: [u16; 2]| SocketAddr::from(([127, 0, 0, 1], port(ports)));
        let address = match path {
            Path::Raw => local(RAW),
            Path::Forward => local(FORWARD),
            _ => server,
        };
        let line = format!("measure {what} --addr {address}");
        let words: Vec<&str> = line.split(' ').collect();
        let text = match (path, self.sessions.get_mut(&path)) {
            (Path::Pod, _) => self.lab.in_pod(NAMESPACE, "web", &[&["/testapp"], &words[..]].concat()),
            (_, Some(session)) => session.ok(&format!("{} {line}", self.testapp)),
            _ => checked(&mut self.lab.user([&[self.testapp.as_str()], &words[..]].concat())),
        };
        let text = text.with_context(|| format!("{} over {}", what, path.name()))?;
        serde_json::from_str(&text).with_context(|| format!("{} over {} gave no figures", what, path.name()))
    }

    /// Go's HTTP against Go's HTTP, `load` being its arguments behind the address.
    pub(crate) fn go_http(&mut self, path: Path, load: &str) -> Result<Report> {
        let line = format!("load {}:9005 {load}", self.host(path));
        let words: Vec<&str> = line.split(' ').collect();
        let text = match (path, self.sessions.get_mut(&path)) {
            (Path::Pod, _) => {
                let head = ["kubectl", "exec", "-n", NAMESPACE, "web", "-c", "gohttp", "--", "/gohttp"];
                checked(&mut self.lab.root([&head[..], &words].concat()))?
            }
            (_, Some(session)) => session.ok(&format!("{} {line}", self.gohttp))?,
            _ => checked(&mut self.lab.user([&[self.gohttp.as_str()], &words[..]].concat()))?,
        };
        serde_json::from_str(&text).with_context(|| format!("Go's HTTP over {} gave no figures", path.name()))
    }

    /// Whether this run has it.
    pub(crate) fn has(&self, path: Path) -> bool {
        path != Path::Telepresence || self.telepresence.is_some()
    }

    fn host(&self, path: Path) -> IpAddr {
        if path == Path::Telepresence { self.service } else { self.server }
    }

    pub(crate) fn lab(&self) -> &Lab {
        &self.lab
    }

    /// What still runs of the helpers; a dead one would make its path's figures wrong.
    pub(crate) fn check(&mut self) -> Result<()> {
        for helper in &mut self.helpers {
            anyhow::ensure!(helper.0.try_wait()?.is_none(), "a relay or the port-forward ended");
        }
        Ok(())
    }
}

/// `stead run` in the benchmark's namespace as the unprivileged user.
pub(crate) fn stead(arena: &Arena, flags: &[&str], command: &[&str]) -> Command {
    let stead = arena.dist.stead.display().to_string();
    let head = [stead.as_str(), "run", "-n", NAMESPACE, "--lease", "30s"];
    let mut run = arena.lab().user([&head[..], flags, &["pod/web", "--container", "web", "--"], command].concat());
    run.env("STEAD_AGENT_IMAGE", &arena.agent_image);
    run
}

/// A program that runs beside; ended when dropped.
struct Helper(Child);

impl Helper {
    fn start(mut command: Command) -> Result<Helper> {
        command.stdout(Stdio::null()).stderr(Stdio::null());
        Ok(Helper(command.spawn().context("cannot start a helper")?))
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        // Fails only when it has ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
