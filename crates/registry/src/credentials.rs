//! What `docker login` and `podman login` left: user and password by registry, in a file or with a helper program.

use std::collections::BTreeMap;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

use crate::Error;

/// Docker's own name for its registry in these files.
const DOCKER_HUB: &str = "https://index.docker.io/v1/";

/// Who pushes.
#[derive(Clone, PartialEq, Eq)]
pub enum Credentials {
    Password {
        user: String,
        password: String,
    },
    /// Changed at the token server for one that the registry takes.
    IdentityToken(String),
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Credentials")
    }
}

/// The files that are looked into, in this order; those that do not exist are passed over.
#[derive(Clone, Debug, Default)]
pub struct Keys(pub Vec<PathBuf>);

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct File {
    auths: BTreeMap<String, Entry>,
    cred_helpers: BTreeMap<String, String>,
    creds_store: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Entry {
    auth: String,
    username: String,
    password: String,
    identitytoken: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct FromHelper {
    username: String,
    secret: String,
}

impl Keys {
    /// Podman's and Docker's, as these tools find them.
    pub fn of_this_user() -> Self {
        let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let docker = set("DOCKER_CONFIG").or_else(|| Some(set("HOME")?.join(".docker")));
        let paths = [
            set("REGISTRY_AUTH_FILE"),
            set("XDG_RUNTIME_DIR").map(|dir| dir.join("containers/auth.json")),
            docker.map(|dir| dir.join("config.json")),
        ];
        Keys(paths.into_iter().flatten().collect())
    }

    /// The credentials for a registry; `None` where nobody logged in to it. May run a helper, and so block.
    pub fn of(&self, host: &str) -> Result<Option<Credentials>, Error> {
        for path in &self.0 {
            let file = match std::fs::read(path) {
                Ok(bytes) => serde_json::from_slice::<File>(&bytes).map_err(io::Error::from),
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => Err(error),
            };
            let file = file.map_err(|cause| Error::Credentials { path: path.clone(), cause })?;
            if let Some(found) = file.of(host, path)? {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }
}

impl File {
    fn of(&self, host: &str, path: &Path) -> Result<Option<Credentials>, Error> {
        let key = if host == "docker.io" { DOCKER_HUB } else { host };
        if let Some(helper) = self.cred_helpers.get(key) {
            return ask(helper, key);
        }
        let same = |name: &str| name == key || (host_of(name) == host && host != "docker.io");
        let entry = self.auths.iter().find(|(name, _)| same(name)).map(|(_, entry)| entry);
        if let Some(found) = entry.map(|entry| entry.credentials(path)).transpose()?.flatten() {
            return Ok(Some(found));
        }
        if self.creds_store.is_empty() { Ok(None) } else { ask(&self.creds_store, key) }
    }
}

/// `https://registry.example/v1/` → `registry.example`
fn host_of(name: &str) -> &str {
    let rest = name.split_once("://").map_or(name, |(_, rest)| rest);
    rest.split('/').next().unwrap_or_default()
}

impl Entry {
    fn credentials(&self, path: &Path) -> Result<Option<Credentials>, Error> {
        if !self.identitytoken.is_empty() {
            return Ok(Some(Credentials::IdentityToken(self.identitytoken.clone())));
        }
        if !self.username.is_empty() {
            let (user, password) = (self.username.clone(), self.password.clone());
            return Ok(Some(Credentials::Password { user, password }));
        }
        if self.auth.is_empty() {
            return Ok(None);
        }
        let decoded = STANDARD.decode(&self.auth).ok().and_then(|bytes| String::from_utf8(bytes).ok());
        let pair = decoded.as_deref().and_then(|text| text.split_once(':'));
        let (user, password) = pair.ok_or_else(|| Error::Credentials {
            path: path.to_owned(),
            cause: io::Error::new(io::ErrorKind::InvalidData, "an \"auth\" is not base64 of user:password"),
        })?;
        Ok(Some(Credentials::Password { user: user.to_owned(), password: password.trim_matches('\0').to_owned() }))
    }
}

/// The protocol of docker-credential-helpers: the registry on stdin, JSON on stdout.
fn ask(helper: &str, key: &str) -> Result<Option<Credentials>, Error> {
    let program = format!("docker-credential-{helper}");
    let failed = |cause: String| Error::Helper { helper: program.clone(), cause };
    let mut child = Command::new(&program)
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .map_err(|error| failed(error.to_string()))?;
    if let Some(mut stdin) = child.stdin.take() {
        // A helper that ends without reading says why by its exit.
        let _ = stdin.write_all(key.as_bytes());
    }
    let output = child.wait_with_output().map_err(|error| failed(error.to_string()))?;
    let said = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        let is_unknown = said.to_ascii_lowercase().contains("credentials not found");
        return if is_unknown { Ok(None) } else { Err(failed(format!("{}: {}", output.status, said.trim()))) };
    }
    let FromHelper { username, secret } =
        serde_json::from_str(&said).map_err(|_| failed("its answer is not what helpers answer".to_owned()))?;
    Ok(Some(match username.as_str() {
        "<token>" => Credentials::IdentityToken(secret),
        _ => Credentials::Password { user: username, password: secret },
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str, host: &str) -> Option<Credentials> {
        let dir = tempfile::tempdir().expect("a directory");
        let (missing, path) = (dir.path().join("missing"), dir.path().join("config.json"));
        std::fs::write(&path, text).expect("written");
        Keys(vec![missing, path]).of(host).expect("readable")
    }

    fn password(user: &str, password: &str) -> Option<Credentials> {
        Some(Credentials::Password { user: user.to_owned(), password: password.to_owned() })
    }

    #[test]
    fn each_form_of_an_entry_is_read() {
        let auth = STANDARD.encode("dev:pass:word");
        let text = format!(
            r#"{{"auths": {{"https://r.example/v1/": {{"auth": "{auth}"}}, "r.example:5000": {{"username": "u", "password": "p"}},
                "https://index.docker.io/v1/": {{"identitytoken": "it"}}, "empty.example": {{}}}}}}"#
        );
        assert_eq!(of(&text, "r.example"), password("dev", "pass:word"));
        assert_eq!(of(&text, "r.example:5000"), password("u", "p"));
        assert_eq!(of(&text, "docker.io"), Some(Credentials::IdentityToken("it".into())));
        assert_eq!(of(&text, "empty.example"), None);
        assert_eq!(of(&text, "other.example"), None);
    }

    #[test]
    fn what_is_no_json_is_named() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("config.json");
        std::fs::write(&path, "{").expect("written");
        let error = Keys(vec![path.clone()]).of("r.example").expect_err("malformed");
        assert!(error.to_string().contains(&path.display().to_string()), "{error}");
    }

    #[test]
    fn a_helper_that_is_missing_is_named() {
        let error = ask("stead-no-such-helper", "r.example").expect_err("missing");
        assert!(error.to_string().contains("docker-credential-stead-no-such-helper"), "{error}");
        assert_eq!(error.exit_code(), 78);
    }
}
