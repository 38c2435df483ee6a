//! F7: what a pod of somebody else can do to an agent.

use std::fs::File;
use std::net::{IpAddr, SocketAddr};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use link::tls::{Identity, client_tls, connect};
use nix::sched::{CloneFlags, setns};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{WebPkiSupportedAlgorithms, ring, verify_tls13_signature_with_raw_key};
use rustls::pki_types::{CertificateDer, ServerName, SubjectPublicKeyInfoDer, UnixTime};
use rustls::{DigitallySignedStruct, SignatureScheme};
use testkit::lab::containers;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::{Row, row};
use crate::world::{NAMESPACE, World};

pub(super) const ROWS: &[Row] = &[
    row("F7", "every port of an agent's pod is the app's, closed, or refuses the handshake", ports),
    row("F7", "a TLS client with a key that was not admitted sees the agent's key and gets not one byte", foreign_key),
    row("F7", "a slow third pod does not hinder the session", slowloris),
];

/// The app's own: two containers of five ports each.
const APP_PORTS: [u16; 10] = [9000, 9001, 9002, 9003, 9004, 9100, 9101, 9102, 9103, 9104];

/// What is said to a port that may be an agent's. Nothing useful may come back.
const HANDSHAKES: [&str; 4] = [
    "GET / HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n",
    "GET /stead HTTP/1.1\\r\\nHost: x\\r\\nConnection: Upgrade\\r\\nUpgrade: stead-1\\r\\n\\r\\n\\x16\\x03\\x01\\x00\\x05hello",
    "\\x16\\x03\\x01\\x00\\x05hello",
    "stead-admit-1 AAAA\\n",
];

fn ports(world: &World) -> anyhow::Result<()> {
    let _shell = world.shell()?;
    for address in agent_pod(world)? {
        // Agents of earlier rows may be parked beside this session's; each must refuse, and one must have been found.
        let agents = agents_at(world, address)?;
        ensure!(!agents.is_empty(), "the scan of {address} found no agent");
        for agent in agents {
            refuses_handshakes(world, agent)?;
        }
    }
    Ok(())
}

fn refuses_handshakes(world: &World, agent: SocketAddr) -> anyhow::Result<()> {
    for text in HANDSHAKES {
        let outcome = world.stranger(&["probe", "poke", &agent.to_string(), text])?;
        let came = outcome["came"].as_str().unwrap_or_default();
        // A TLS alert (RFC 8446, 6) and the upgrade's own head are all that may come.
        let rest =
            came.strip_prefix("HTTP/1.1 101").map_or(came, |head| head.rsplit("\r\n\r\n").next().unwrap_or(head));
        let is_alert = rest.starts_with('\u{15}');
        let is_refusal = rest.starts_with("HTTP/1.1 4");
        ensure!(rest.is_empty() || is_alert || is_refusal, "{agent} answered {text:?} by {outcome}");
        ensure!(outcome["end"] != "EAGAIN", "{agent} keeps a connection open after {text:?}");
    }
    Ok(())
}

/// Everything a client does but for the admission, in the network of somebody else's pod.
fn foreign_key(world: &World) -> anyhow::Result<()> {
    let _shell = world.shell()?;
    let stranger = containers(&[world.pod("stranger")?]).into_iter().flat_map(|it| it.pids).min();
    let network = File::open(format!("/proc/{}/ns/net", stranger.context("nothing runs in the stranger")?))?;
    let addresses = agent_pod(world)?;
    let agents = addresses.into_iter().map(|address| agents_at(world, address)).collect::<anyhow::Result<Vec<_>>>()?;
    let agents = agents.concat();
    ensure!(agents.len() > 1, "the scan found {agents:?}, and a pod has addresses of two families");
    // A thread of its own, since it leaves this one's network.
    let knocking = std::thread::spawn(move || -> anyhow::Result<()> {
        setns(network, CloneFlags::CLONE_NEWNET)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        agents.into_iter().try_for_each(|agent| runtime.block_on(knock(agent)).with_context(|| agent.to_string()))
    });
    knocking.join().map_err(|_| anyhow::anyhow!("the thread panicked"))?
}

async fn knock(agent: SocketAddr) -> anyhow::Result<()> {
    let identity = Identity::generate()?;
    let verifier = Arc::new(AnyKey {
        seen: AtomicBool::new(false),
        algorithms: ring::default_provider().signature_verification_algorithms,
    });
    let mut config = (*client_tls(&identity, [0; 32])).clone();
    config.dangerous().set_certificate_verifier(verifier.clone());
    let pipe = TcpStream::connect(agent).await?;
    // A client of TLS 1.3 is done before the agent has looked at its key.
    let came = tokio::time::timeout(Duration::from_secs(10), async {
        let Ok(mut stream) = connect(pipe, Arc::new(config)).await else { return 0 };
        let mut answer = [0; 64];
        let said = async {
            stream.write_all(&[0; 64]).await?;
            stream.flush().await?;
            stream.read(&mut answer).await
        };
        said.await.unwrap_or(0)
    });
    let came = came.await.context("the agent keeps the connection open")?;
    ensure!(verifier.seen.load(Ordering::Relaxed), "the agent did not show its key, so nothing was tried");
    ensure!(came == 0, "the agent said {came} bytes");
    Ok(())
}

/// Takes any key for the agent's.
#[derive(Debug)]
struct AnyKey {
    seen: AtomicBool,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for AnyKey {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.3 alone is spoken".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        key: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.seen.store(true, Ordering::Relaxed);
        verify_tls13_signature_with_raw_key(
            message,
            &SubjectPublicKeyInfoDer::from(key.as_ref()),
            signature,
            &self.algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

fn slowloris(world: &World) -> anyhow::Result<()> {
    let mut shell = world.shell()?;
    let agent = *agents_at(world, agent_pod(world)?[0])?.first().context("the scan found no agent")?;
    let slow = ["kubectl", "exec", "-i", "-n", NAMESPACE, "stranger", "--", "/testapp", "probe", "slowloris"];
    let target = agent.to_string();
    let mut command = world.lab().root([&slow[..], &[&target, "--count", "300"]].concat());
    let mut attacker = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let line = format!("{} probe requests {}:80 --count 90", world.testapp(), world.service("web")?[0]);
    let mut slowest = Duration::ZERO;
    for _ in 0..3 {
        ensure!(shell.json(&line)?["errors"] == serde_json::json!([]), "the session is hindered");
        let started = Instant::now();
        let out = world.run("deploy/web").stdout(&["echo", "a new session"])?;
        slowest = slowest.max(started.elapsed());
        ensure!(out == "a new session\n", "a new session said {out:?}");
    }
    drop(attacker.stdin.take());
    let seen = attacker.wait_with_output()?;
    ensure!(seen.status.success(), "the attacker failed, so nothing was shown");
    let seen: serde_json::Value = serde_json::from_slice(&seen.stdout)?;
    ensure!(seen["opened"].as_u64() > Some(64), "the attacker opened too little: {seen}");
    ensure!(slowest < Duration::from_secs(7), "a new session took {slowest:?}");
    Ok(())
}

/// Addresses of the pod that the session's agent is in.
fn agent_pod(world: &World) -> anyhow::Result<Vec<IpAddr>> {
    let status = world.status()?;
    world.pod_addresses(status["pod"].as_str().context("status names no pod")?)
}

/// Ports of a pod that are open and not the app's.
fn agents_at(world: &World, address: IpAddr) -> anyhow::Result<Vec<SocketAddr>> {
    let seen = world.stranger(&["probe", "scan", &address.to_string()])?;
    let open = seen["open"].as_array().into_iter().flatten().filter_map(|port| u16::try_from(port.as_u64()?).ok());
    Ok(open.filter(|port| !APP_PORTS.contains(port)).map(|port| (address, port).into()).collect())
}
