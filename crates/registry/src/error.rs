//! Why an image could not be pushed.

use std::io;
use std::path::PathBuf;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{0:?} is no name of an image: {1}")]
    Reference(String, &'static str),
    #[error("the registry {host} cannot be reached: {cause}")]
    Unreachable { host: String, cause: io::Error },
    #[error("the registry {host} answers what it must not: {what}")]
    Protocol { host: String, what: String },
    /// 401 or 403. `known`: whether credentials were sent.
    #[error("the registry {host} does not let {} push there{}", if *.known { "these credentials" } else { "anybody" }, after(.said))]
    Denied { host: String, known: bool, said: String },
    #[error("the registry {host} refused to {doing}: status {status}{}", after(.said))]
    Refused { host: String, doing: String, status: u16, said: String },
    #[error("cannot read the credentials in {}: {cause}", path.display())]
    Credentials { path: PathBuf, cause: io::Error },
    #[error("the credential helper {helper} failed: {cause}")]
    Helper { helper: String, cause: String },
}

fn after(said: &str) -> String {
    if said.is_empty() { String::new() } else { format!(": {said}") }
}

impl Error {
    /// The next step, for the user.
    pub fn hint(&self) -> Option<String> {
        match self {
            Error::Reference(..) => Some("a whole name is meant, as registry.example/team/stead-agent:1".to_owned()),
            Error::Unreachable { host, .. } => Some(format!(
                "check the name and the network; a registry that speaks plain HTTP wants --insecure, one with a \
                 certificate of your own SSL_CERT_FILE (`curl -v https://{host}/v2/` asks the same)"
            )),
            Error::Denied { host, known, .. } => {
                let right = if *known { " as a user who may push to this repository" } else { "" };
                Some(format!("`docker login {host}` or `podman login {host}`{right}, then push again"))
            }
            Error::Helper { helper, .. } => Some(format!("run `{helper} list` by hand, or log in again")),
            Error::Protocol { .. } | Error::Refused { .. } | Error::Credentials { .. } => None,
        }
    }

    /// As in `stead help exit-codes`.
    pub fn exit_code(&self) -> u8 {
        match self {
            Error::Reference(..) => 64,
            Error::Denied { .. } => 77,
            Error::Credentials { .. } | Error::Helper { .. } => 78,
            Error::Unreachable { .. } | Error::Protocol { .. } | Error::Refused { .. } => 74,
        }
    }
}
