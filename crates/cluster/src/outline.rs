//! What the kubeconfig says about the user's way in, looked at and not used: for `doctor`. Shows no secret.

use std::path::{Path, PathBuf};

use base64::Engine as _;
use kube::config::{AuthInfo, ExecConfig, Kubeconfig};

use crate::certificate::end_of_pem;
use crate::error::Error;
use crate::kubeconfig::{ConnectOptions, Surroundings, candidates, choose_context, none_found, read_merged, shown};

/// What could be read of it.
pub struct Outline {
    /// The files, as a list; "the pod's service account" where there is none.
    pub files: Result<String, Error>,
    /// `None` when there is no file to look into.
    pub context: Option<Result<Context, Error>>,
}

/// The context that a session would use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Context {
    pub name: String,
    /// The API server's URL.
    pub server: String,
    pub namespace: String,
    /// The entry's name in the kubeconfig, not the API server's name for the user.
    pub user: String,
    /// `--as`, or what the kubeconfig says.
    pub acts_as: Option<String>,
    pub credential: Credential,
}

/// How the user shows who they are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Credential {
    Missing,
    Token,
    Password,
    /// Read again by whoever uses it.
    TokenFile {
        path: PathBuf,
        unreadable: Option<String>,
    },
    Certificate {
        /// Seconds since 1970; unknown where the certificate cannot be understood.
        ends: Option<i64>,
        unreadable: Option<String>,
    },
    /// A plugin that is run for a credential.
    Exec {
        command: String,
        found: bool,
        install_hint: Option<String>,
    },
    /// A way of older kubeconfigs (`auth-provider`).
    Provider(String),
}

/// Looks at the kubeconfig that a session with these options would use.
pub fn outline(options: &ConnectOptions) -> Outline {
    outline_around(options, &Surroundings::of_process())
}

fn outline_around(options: &ConnectOptions, around: &Surroundings) -> Outline {
    let (paths, must_exist) = candidates(options, around);
    match read_merged(&paths, must_exist) {
        Err(error) => Outline { files: Err(error), context: None },
        Ok(None) if around.in_pod && options.context.is_none() => {
            Outline { files: Ok("the pod's service account".to_owned()), context: Some(Ok(in_cluster(options))) }
        }
        Ok(None) => Outline { files: Err(none_found(&paths, around)), context: None },
        Ok(Some(kubeconfig)) => {
            let existing: Vec<PathBuf> = paths.into_iter().filter(|path| path.exists()).collect();
            let context = choose_context(&kubeconfig, options.context.as_deref(), &existing)
                .map(|name| context(&kubeconfig, name, options));
            Outline { files: Ok(shown(&existing)), context: Some(context) }
        }
    }
}

fn in_cluster(options: &ConnectOptions) -> Context {
    Context {
        name: "in-cluster".to_owned(),
        server: "https://kubernetes.default.svc".to_owned(),
        namespace: options.namespace.clone().unwrap_or_else(|| "the pod's".to_owned()),
        user: "the pod's service account".to_owned(),
        acts_as: options.as_user.clone(),
        credential: Credential::Token,
    }
}

fn context(kubeconfig: &Kubeconfig, name: String, options: &ConnectOptions) -> Context {
    let entry = kubeconfig.contexts.iter().find(|entry| entry.name == name).and_then(|entry| entry.context.clone());
    let (cluster, user, namespace) = match entry {
        Some(entry) => (entry.cluster, entry.user.unwrap_or_default(), entry.namespace),
        None => Default::default(),
    };
    let server = kubeconfig.clusters.iter().find(|entry| entry.name == cluster);
    let server = server.and_then(|entry| entry.cluster.as_ref()?.server.clone());
    let auth = kubeconfig.auth_infos.iter().find(|entry| entry.name == user).and_then(|entry| entry.auth_info.as_ref());
    let namespace = options.namespace.clone().or(namespace).filter(|namespace| !namespace.is_empty());
    Context {
        name,
        server: server.unwrap_or_default(),
        namespace: namespace.unwrap_or_else(|| "default".to_owned()),
        acts_as: options.as_user.clone().or_else(|| auth?.impersonate.clone()),
        credential: auth.map_or(Credential::Missing, credential),
        user,
    }
}

/// The one that is used of those there are: tokens and plugins send a header, which the API server looks at after a
/// certificate.
fn credential(auth: &AuthInfo) -> Credential {
    if auth.client_certificate.is_some() || auth.client_certificate_data.is_some() {
        return certificate(auth);
    }
    if let Some(exec) = &auth.exec {
        return plugin(exec);
    }
    if let (None, Some(path)) = (&auth.token, &auth.token_file) {
        let unreadable = std::fs::read(path).err().map(|error| error.to_string());
        return Credential::TokenFile { path: path.into(), unreadable };
    }
    match (&auth.token, &auth.username, &auth.auth_provider) {
        (Some(_), ..) => Credential::Token,
        (_, Some(_), _) => Credential::Password,
        (.., Some(provider)) => Credential::Provider(provider.name.clone()),
        _ => Credential::Missing,
    }
}

/// When these credentials end, in seconds since 1970, where they tell.
pub(crate) fn end_of(auth: &AuthInfo) -> Option<i64> {
    match credential(auth) {
        Credential::Certificate { ends, .. } => ends,
        _ => None,
    }
}

fn certificate(auth: &AuthInfo) -> Credential {
    let pem = match (&auth.client_certificate_data, &auth.client_certificate) {
        (Some(data), _) => base64::engine::general_purpose::STANDARD.decode(data).map_err(|error| error.to_string()),
        (None, Some(path)) => std::fs::read(path).map_err(|error| format!("{path}: {error}")),
        (None, None) => Err("there is none".to_owned()),
    };
    let key = match (&auth.client_key_data, &auth.client_key) {
        (None, Some(path)) => std::fs::read(path).err().map(|error| format!("{path}: {error}")),
        (None, None) => Some("client-key is missing".to_owned()),
        (Some(_), _) => None,
    };
    match pem {
        Ok(pem) => {
            let ends = end_of_pem(&String::from_utf8_lossy(&pem)).map(|end| end.as_second());
            Credential::Certificate { ends, unreadable: key }
        }
        Err(error) => Credential::Certificate { ends: None, unreadable: Some(error) },
    }
}

fn plugin(exec: &ExecConfig) -> Credential {
    let command = exec.command.clone().unwrap_or_default();
    let found = !command.is_empty() && is_found(Path::new(&command), std::env::var_os("PATH").as_deref());
    Credential::Exec { found, command, install_hint: exec.install_hint.clone() }
}

/// As execvp(3) finds it.
fn is_found(command: &Path, path: Option<&std::ffi::OsStr>) -> bool {
    let runs = |file: &Path| {
        use std::os::unix::fs::PermissionsExt as _;
        file.metadata().is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
    };
    if command.components().count() > 1 {
        return runs(command);
    }
    path.is_some_and(|path| std::env::split_paths(path).any(|dir| runs(&dir.join(command))))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The credential of a kubeconfig with this user entry.
    fn of_user(user: &str) -> Credential {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("config");
        let text = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: c\nclusters:\n- name: k\n  cluster: {{server: \"https://k\"}}\n\
             contexts:\n- name: c\n  context: {{cluster: k, user: u}}\nusers:\n- name: u\n  user: {user}\n"
        );
        std::fs::write(&path, text).expect("written");
        let options = ConnectOptions { kubeconfig: Some(path), ..ConnectOptions::default() };
        let outline = outline_around(&options, &Surroundings::default());
        let context = outline.context.expect("a file").expect("a context");
        assert_eq!((context.name.as_str(), context.server.as_str()), ("c", "https://k"));
        assert_eq!((context.namespace.as_str(), context.user.as_str()), ("default", "u"));
        context.credential
    }

    fn data(text: &str) -> String {
        base64::engine::general_purpose::STANDARD.encode(text)
    }

    #[test]
    fn each_kind_of_credential_is_told() {
        assert_eq!(of_user("{}"), Credential::Missing);
        assert_eq!(of_user("{token: secret}"), Credential::Token);
        assert_eq!(of_user("{username: u, password: p}"), Credential::Password);
        assert_eq!(of_user("{auth-provider: {name: oidc, config: {}}}"), Credential::Provider("oidc".into()));
        let missing = of_user("{tokenFile: /nonexistent/token}");
        assert!(matches!(missing, Credential::TokenFile { unreadable: Some(_), .. }), "{missing:?}");
    }

    #[test]
    fn a_certificates_end_and_a_missing_key_are_told() {
        let pem = data(include_str!("certificate/ends-2031.pem"));
        let whole = of_user(&format!("{{client-certificate-data: {pem}, client-key-data: {}}}", data("key")));
        assert_eq!(whole, Credential::Certificate { ends: Some(1_927_857_906), unreadable: None });
        let keyless = of_user(&format!("{{client-certificate-data: {pem}}}"));
        assert!(matches!(keyless, Credential::Certificate { unreadable: Some(_), .. }), "{keyless:?}");
    }

    #[test]
    fn a_plugin_is_looked_for_as_the_shell_does() {
        let exec = |command: &str| {
            of_user(&format!(
                "{{exec: {{apiVersion: client.authentication.k8s.io/v1, command: {command}, interactiveMode: Never}}}}"
            ))
        };
        assert!(matches!(exec("sh"), Credential::Exec { found: true, .. }));
        assert!(matches!(exec("no-such-login"), Credential::Exec { found: false, .. }));
        assert!(matches!(exec("/nonexistent/login"), Credential::Exec { found: false, .. }));
    }
}
