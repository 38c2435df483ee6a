//! TLS 1.3 between two sides that know each other's keys: raw public keys (RFC 7250), pinned both ways. No names, no
//! CA, no tickets. It does not bound how long a handshake takes; the caller does.

use std::fmt;
use std::io;
use std::sync::Arc;

use rustls::client::AlwaysResolvesClientRawPublicKeys;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, ring, verify_tls13_signature_with_raw_key};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName, SubjectPublicKeyInfoDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{AlwaysResolvesServerRawPublicKeys, NoServerSessionStorage};
use rustls::sign::CertifiedKey;
use rustls::{CipherSuite, ClientConfig, DigitallySignedStruct, DistinguishedName, ServerConfig, SignatureScheme};
use sha2::{Digest, Sha256};
use tokio::io::{AsyncRead, AsyncWrite, BufReader};
use tokio_rustls::{TlsAcceptor, TlsConnector};

/// What rustls keeps encrypted, and what is read from the pipe at once. Measured over the API server in CPU seconds
/// per GB: 16 KiB 4.7-5.1, 64 KiB 4.3, 256 KiB 3.3-3.8.
const BUFFER: usize = 256 << 10;

/// SHA-256 of a key's SubjectPublicKeyInfo: how a key is known.
pub type KeyHash = [u8; 32];

pub type TlsStream<S> = tokio_rustls::TlsStream<BufReader<S>>;

/// A key pair of one process (Ed25519), never stored.
#[derive(Clone)]
pub struct Identity {
    key: Arc<CertifiedKey>,
    hash: KeyHash,
}

/// Which sessions' keys may connect.
pub trait Admissions: Send + Sync {
    fn is_admitted(&self, key_hash: &KeyHash) -> bool;
}

impl Identity {
    /// A new key pair from the system's randomness.
    pub fn generate() -> io::Result<Self> {
        /// PrivateKeyInfo of an Ed25519 key up to its 32 bytes (RFC 8410 section 7).
        const PKCS8: [u8; 16] = [0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 0x22, 4, 0x20];
        let mut pkcs8 = [0; 48];
        pkcs8[..16].copy_from_slice(&PKCS8);
        let provider = ring::default_provider();
        provider
            .secure_random
            .fill(&mut pkcs8[16..])
            .map_err(|_| io::Error::other("the system gives no randomness"))?;
        let key = ring::sign::any_eddsa_type(&PrivatePkcs8KeyDer::from(pkcs8.as_slice())).map_err(io::Error::other)?;
        let public = key.public_key().ok_or_else(|| io::Error::other("the key pair has no public key"))?;
        let hash = key_hash(&public);
        let key = Arc::new(CertifiedKey::new(vec![CertificateDer::from(public.to_vec())], key));
        Ok(Identity { key, hash })
    }

    pub fn hash(&self) -> KeyHash {
        self.hash
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity").finish_non_exhaustive()
    }
}

/// The client's side: speaks with just the agent whose key has the hash `pin`.
pub fn client_tls(identity: &Identity, pin: KeyHash) -> Arc<ClientConfig> {
    let provider = Arc::new(provider());
    let verifier = Pinned { pins: Pins::One(pin), algorithms: provider.signature_verification_algorithms };
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("ring's suites include TLS 1.3")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_client_cert_resolver(Arc::new(AlwaysResolvesClientRawPublicKeys::new(identity.key.clone())));
    config.resumption = rustls::client::Resumption::disabled();
    config.enable_sni = false;
    Arc::new(config)
}

/// The agent's side: speaks with whom `admissions` names.
pub fn server_tls(identity: &Identity, admissions: Arc<dyn Admissions>) -> Arc<ServerConfig> {
    let provider = Arc::new(provider());
    let verifier = Pinned { pins: Pins::Asked(admissions), algorithms: provider.signature_verification_algorithms };
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("ring's suites include TLS 1.3")
        .with_client_cert_verifier(Arc::new(verifier))
        .with_cert_resolver(Arc::new(AlwaysResolvesServerRawPublicKeys::new(identity.key.clone())));
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Arc::new(config)
}

/// Shakes hands as the client.
pub async fn connect<S>(pipe: S, config: Arc<ClientConfig>) -> io::Result<TlsStream<S>>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let name = ServerName::try_from("agent").expect("a valid name; it is neither sent nor looked at");
    let mut stream = TlsConnector::from(config).connect(name, BufReader::with_capacity(BUFFER, pipe)).await?;
    stream.get_mut().1.set_buffer_limit(Some(BUFFER));
    Ok(TlsStream::Client(stream))
}

/// Shakes hands as the agent; returns the hash of the client's key, which is an admitted one.
pub async fn accept<S>(pipe: S, config: Arc<ServerConfig>) -> io::Result<(TlsStream<S>, KeyHash)>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut stream = TlsAcceptor::from(config).accept(BufReader::with_capacity(BUFFER, pipe)).await?;
    let connection = stream.get_mut().1;
    connection.set_buffer_limit(Some(BUFFER));
    let key = connection.peer_certificates().and_then(<[_]>::first).map(|key| key_hash(key));
    let key = key.ok_or_else(|| io::Error::other("the client showed no key"))?;
    Ok((TlsStream::Server(stream), key))
}

fn key_hash(public: &[u8]) -> KeyHash {
    Sha256::digest(public).into()
}

/// ring, AES-128-GCM first: 5-15 % less CPU than AES-256.
fn provider() -> CryptoProvider {
    let mut provider = ring::default_provider();
    provider.cipher_suites.sort_by_key(|suite| suite.suite() != CipherSuite::TLS13_AES_128_GCM_SHA256);
    provider
}

enum Pins {
    One(KeyHash),
    Asked(Arc<dyn Admissions>),
}

struct Pinned {
    pins: Pins,
    algorithms: WebPkiSupportedAlgorithms,
}

impl Pinned {
    fn check(&self, key: &CertificateDer<'_>) -> Result<(), rustls::Error> {
        let hash = key_hash(key);
        let known = match &self.pins {
            Pins::One(pin) => *pin == hash,
            Pins::Asked(admissions) => admissions.is_admitted(&hash),
        };
        let unknown = rustls::CertificateError::ApplicationVerificationFailure;
        if known { Ok(()) } else { Err(unknown.into()) }
    }
}

impl fmt::Debug for Pinned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pinned").finish_non_exhaustive()
    }
}

/// What rustls asks of both kinds of verifiers.
macro_rules! by_raw_public_key {
    () => {
        fn verify_tls12_signature(
            &self,
            _: &[u8],
            _: &CertificateDer<'_>,
            _: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, rustls::Error> {
            Err(rustls::Error::General("TLS 1.2 is not spoken here".into()))
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            key: &CertificateDer<'_>,
            signature: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, rustls::Error> {
            let key = SubjectPublicKeyInfoDer::from(key.as_ref());
            verify_tls13_signature_with_raw_key(message, &key, signature, &self.algorithms)
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            vec![SignatureScheme::ED25519]
        }

        fn requires_raw_public_keys(&self) -> bool {
            true
        }
    };
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        key: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.check(key).map(|()| ServerCertVerified::assertion())
    }

    by_raw_public_key!();
}

impl ClientCertVerifier for Pinned {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        key: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.check(key).map(|()| ClientCertVerified::assertion())
    }

    by_raw_public_key!();
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    struct Only(KeyHash);

    impl Admissions for Only {
        fn is_admitted(&self, key_hash: &KeyHash) -> bool {
            *key_hash == self.0
        }
    }

    /// Both sides' results, each side having exchanged a byte, since a TLS 1.3 client is done before it is checked.
    async fn shake(
        client: &Identity,
        pin: KeyHash,
        agent: &Identity,
        admitted: KeyHash,
    ) -> (io::Result<CipherSuite>, io::Result<KeyHash>) {
        let (near, far) = tokio::io::duplex(1 << 16);
        let connecting = async {
            let mut stream = connect(near, client_tls(client, pin)).await?;
            stream.write_all(b"x").await?;
            stream.flush().await?;
            stream.read_u8().await?;
            Ok(stream.get_ref().1.negotiated_cipher_suite().expect("handshake done").suite())
        };
        let accepting = async {
            let (mut stream, key) = accept(far, server_tls(agent, Arc::new(Only(admitted)))).await?;
            stream.read_u8().await?;
            stream.write_all(b"x").await?;
            stream.flush().await?;
            Ok(key)
        };
        tokio::join!(connecting, accepting)
    }

    #[tokio::test]
    async fn sides_that_know_each_other_connect() {
        let (client, agent) = (Identity::generate().expect("random"), Identity::generate().expect("random"));
        let (suite, key) = shake(&client, agent.hash(), &agent, client.hash()).await;
        assert_eq!(suite.expect("connected"), CipherSuite::TLS13_AES_128_GCM_SHA256);
        assert_eq!(key.expect("accepted"), client.hash());
    }

    #[tokio::test]
    async fn an_agent_with_another_key_is_not_spoken_with() {
        let (client, agent) = (Identity::generate().expect("random"), Identity::generate().expect("random"));
        let (connected, accepted) = shake(&client, client.hash(), &agent, client.hash()).await;
        assert!(connected.is_err() && accepted.is_err());
    }

    #[tokio::test]
    async fn a_client_that_is_not_admitted_gets_nothing() {
        let (client, agent) = (Identity::generate().expect("random"), Identity::generate().expect("random"));
        let (connected, accepted) = shake(&client, agent.hash(), &agent, agent.hash()).await;
        assert!(connected.is_err() && accepted.is_err());
    }

    #[tokio::test]
    async fn a_client_without_a_key_gets_nothing() {
        let (client, agent) = (Identity::generate().expect("random"), Identity::generate().expect("random"));
        let mut config = (*client_tls(&client, agent.hash())).clone();
        config.client_auth_cert_resolver = Arc::new(NoKey);
        let (near, far) = tokio::io::duplex(1 << 16);
        let admissions: Arc<dyn Admissions> = Arc::new(Only(client.hash()));
        let (_, accepted) = tokio::join!(connect(near, Arc::new(config)), accept(far, server_tls(&agent, admissions)));
        assert!(accepted.is_err());
    }

    #[derive(Debug)]
    struct NoKey;

    impl rustls::client::ResolvesClientCert for NoKey {
        fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
            None
        }

        fn only_raw_public_keys(&self) -> bool {
            true
        }

        fn has_certs(&self) -> bool {
            false
        }
    }
}
