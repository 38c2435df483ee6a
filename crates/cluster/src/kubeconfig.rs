//! Which API server, user and namespace are meant: the kubeconfig as kubectl reads it, and what the command line says
//! over it. Opens no connection.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use kube::Config;
use kube::config::{KubeConfigOptions, Kubeconfig, KubeconfigError};

use crate::error::{Error, Kind};
use crate::near::near;

/// What the command line says about the cluster; everything unset comes from the kubeconfig.
#[derive(Clone, Debug, Default)]
pub struct ConnectOptions {
    pub kubeconfig: Option<PathBuf>,
    pub context: Option<String>,
    pub namespace: Option<String>,
    pub as_user: Option<String>,
    pub as_groups: Vec<String>,
}

/// What the process's surroundings say, read once at the edge.
#[derive(Clone, Debug, Default)]
pub(crate) struct Surroundings {
    pub kubeconfig: Option<OsString>,
    pub home: Option<PathBuf>,
    pub in_pod: bool,
}

impl Surroundings {
    pub(crate) fn of_process() -> Self {
        Surroundings {
            kubeconfig: std::env::var_os("KUBECONFIG"),
            home: std::env::var_os("HOME").map(PathBuf::from),
            in_pod: std::env::var_os("KUBERNETES_SERVICE_HOST").is_some()
                && Path::new("/var/run/secrets/kubernetes.io/serviceaccount/token").exists(),
        }
    }
}

/// What `load` found.
pub(crate) struct Loaded {
    pub config: Config,
    /// `in-cluster` where a pod's own service account is used.
    pub context: String,
    pub of_pod: bool,
}

pub(crate) async fn load(options: &ConnectOptions, around: &Surroundings) -> Result<Loaded, Error> {
    let (paths, must_exist) = candidates(options, around);
    let merged = read_merged(&paths, must_exist)?;
    let mut loaded = match merged {
        Some(kubeconfig) => from_kubeconfig(kubeconfig, options.context.as_deref(), &paths).await?,
        None if around.in_pod && options.context.is_none() => in_cluster()?,
        None => return Err(none_found(&paths, around)),
    };
    if let Some(namespace) = &options.namespace {
        loaded.config.default_namespace.clone_from(namespace);
    }
    if let Some(user) = &options.as_user {
        loaded.config.auth_info.impersonate = Some(user.clone());
    }
    if !options.as_groups.is_empty() {
        loaded.config.auth_info.impersonate_groups = Some(options.as_groups.clone());
    }
    Ok(loaded)
}

/// The files to merge, first wins; and whether each must exist (kubectl skips missing files of KUBECONFIG's list).
pub(crate) fn candidates(options: &ConnectOptions, around: &Surroundings) -> (Vec<PathBuf>, bool) {
    if let Some(path) = &options.kubeconfig {
        return (vec![path.clone()], true);
    }
    let listed: Vec<PathBuf> = around
        .kubeconfig
        .iter()
        .flat_map(|list| std::env::split_paths(list).collect::<Vec<_>>())
        .filter(|path| !path.as_os_str().is_empty())
        .collect();
    if !listed.is_empty() {
        return (listed, false);
    }
    (around.home.iter().map(|home| home.join(".kube/config")).collect(), false)
}

/// `None` when no file exists.
pub(crate) fn read_merged(paths: &[PathBuf], must_exist: bool) -> Result<Option<Kubeconfig>, Error> {
    let mut merged: Option<Kubeconfig> = None;
    for path in paths {
        let next = match Kubeconfig::read_from(path) {
            Ok(next) => next,
            Err(KubeconfigError::ReadConfig(error, _))
                if error.kind() == std::io::ErrorKind::NotFound && !must_exist =>
            {
                continue;
            }
            Err(KubeconfigError::ReadConfig(error, _)) => {
                return Err(Error::new(Kind::Kubeconfig, format!("cannot read the kubeconfig {}", path.display()))
                    .because(error)
                    .hint("check the path and its permissions"));
            }
            Err(error) => {
                return Err(Error::new(Kind::Kubeconfig, format!("the kubeconfig {} is malformed", path.display()))
                    .because(error)
                    .hint("`kubectl config view` shows how kubectl reads it"));
            }
        };
        merged = Some(match merged {
            None => next,
            Some(first) => first.merge(next).map_err(|error| {
                Error::new(Kind::Kubeconfig, "the files of KUBECONFIG do not go together").because(error)
            })?,
        });
    }
    Ok(merged)
}

/// The name of the context that is meant, which exists.
pub(crate) fn choose_context(
    kubeconfig: &Kubeconfig,
    wanted: Option<&str>,
    paths: &[PathBuf],
) -> Result<String, Error> {
    let files = shown(paths);
    let names: Vec<&str> = kubeconfig.contexts.iter().map(|c| c.name.as_str()).collect();
    let current = kubeconfig.current_context.as_deref().filter(|name| !name.is_empty());
    let Some(context) = wanted.or(current) else {
        return Err(Error::new(Kind::Kubeconfig, format!("no current context in {files}"))
            .hint(format!("choose one with --context{}", listing(": ", &names))));
    };
    if !names.contains(&context) {
        let close = near(context, names.iter().copied());
        let offered = if close.is_empty() { listing("it has: ", &names) } else { listing("near to it: ", &close) };
        return Err(Error::new(Kind::Kubeconfig, format!("no context \"{context}\" in {files}")).hint(offered));
    }
    Ok(context.to_owned())
}

async fn from_kubeconfig(kubeconfig: Kubeconfig, wanted: Option<&str>, paths: &[PathBuf]) -> Result<Loaded, Error> {
    let context = choose_context(&kubeconfig, wanted, paths)?;
    let files = shown(paths);
    let options = KubeConfigOptions { context: Some(context.clone()), ..KubeConfigOptions::default() };
    let mut config = Config::from_custom_kubeconfig(kubeconfig, &options).await.map_err(|error| {
        Error::new(Kind::Kubeconfig, format!("the context \"{context}\" of {files} cannot be used"))
            .because(error)
            .hint(format!("`kubectl --context {context} config view --minify` shows what it refers to"))
    })?;
    // An empty namespace in a context means "default" to kubectl.
    if config.default_namespace.is_empty() {
        config.default_namespace = "default".to_owned();
    }
    Ok(Loaded { config, context, of_pod: false })
}

fn in_cluster() -> Result<Loaded, Error> {
    let config = Config::incluster_env().map_err(|error| {
        Error::new(Kind::Kubeconfig, "the service account of this pod cannot be used").because(error)
    })?;
    Ok(Loaded { config, context: "in-cluster".to_owned(), of_pod: true })
}

pub(crate) fn none_found(paths: &[PathBuf], around: &Surroundings) -> Error {
    let looked = match (paths.is_empty(), &around.kubeconfig) {
        (true, _) => "neither KUBECONFIG nor HOME is set".to_owned(),
        (false, Some(list)) if !list.is_empty() => format!("KUBECONFIG names {}", shown(paths)),
        (false, _) => format!("KUBECONFIG is not set and {} does not exist", shown(paths)),
    };
    Error::new(Kind::Kubeconfig, "no kubeconfig found")
        .because(looked)
        .hint("point KUBECONFIG or --kubeconfig at the file that kubectl uses for this cluster")
}

pub(crate) fn shown(paths: &[PathBuf]) -> String {
    paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
}

/// The names, sorted and bounded; empty text for none.
fn listing(before: &str, names: &[&str]) -> String {
    const SHOWN: usize = 10;
    let sorted: BTreeMap<&str, ()> = names.iter().map(|name| (*name, ())).collect();
    if sorted.is_empty() {
        return String::new();
    }
    let mut text = sorted.keys().take(SHOWN).copied().collect::<Vec<_>>().join(", ");
    if sorted.len() > SHOWN {
        text.push_str(&format!(" and {} more", sorted.len() - SHOWN));
    }
    format!("{before}{text}")
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn kubeconfig(server: &str, context: &str, namespace: &str) -> String {
        format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: {context}\n\
             clusters:\n- name: c-{context}\n  cluster: {{server: \"{server}\"}}\n\
             contexts:\n- name: {context}\n  context: {{cluster: c-{context}, user: u, namespace: \"{namespace}\"}}\n\
             users:\n- name: u\n  user: {{token: t}}\n"
        )
    }

    fn around(list: &str) -> Surroundings {
        Surroundings { kubeconfig: Some(list.into()), ..Surroundings::default() }
    }

    #[tokio::test]
    async fn files_of_the_list_are_merged_and_the_first_one_wins() {
        let dir = tempfile::tempdir().expect("a directory");
        let (a, b, missing) = (dir.path().join("a"), dir.path().join("b"), dir.path().join("missing"));
        fs::write(&a, kubeconfig("https://a.example:1", "one", "team")).expect("written");
        fs::write(&b, kubeconfig("https://b.example:2", "two", "")).expect("written");
        let list = format!("{}:{}:{}", missing.display(), a.display(), b.display());

        let loaded = load(&ConnectOptions::default(), &around(&list)).await.expect("loads");
        assert_eq!((loaded.context.as_str(), loaded.config.default_namespace.as_str()), ("one", "team"));
        let options = ConnectOptions {
            context: Some("two".into()),
            as_user: Some("dev".into()),
            as_groups: vec!["g".into()],
            ..ConnectOptions::default()
        };
        let loaded = load(&options, &around(&list)).await.expect("loads");
        assert_eq!(loaded.config.cluster_url.host(), Some("b.example"));
        assert_eq!(loaded.config.default_namespace, "default");
        assert_eq!(loaded.config.auth_info.impersonate.as_deref(), Some("dev"));
        assert_eq!(loaded.config.auth_info.impersonate_groups, Some(vec!["g".to_owned()]));
    }

    #[tokio::test]
    async fn no_kubeconfig_names_every_path_looked_at() {
        let dir = tempfile::tempdir().expect("a directory");
        let home = Surroundings { home: Some(dir.path().into()), ..Surroundings::default() };
        let error = load(&ConnectOptions::default(), &home).await.err().expect("an error");
        assert_eq!(error.kind().exit_code(), 65);
        assert!(error.to_string().contains(".kube/config does not exist"), "{error}");
        assert!(error.next_step().is_some());
    }

    #[tokio::test]
    async fn a_file_named_by_the_command_line_must_exist() {
        let options = ConnectOptions { kubeconfig: Some("/nonexistent/kc".into()), ..ConnectOptions::default() };
        let error = load(&options, &Surroundings::default()).await.err().expect("an error");
        assert!(error.to_string().starts_with("cannot read the kubeconfig /nonexistent/kc"), "{error}");
    }

    #[tokio::test]
    async fn an_unknown_context_is_answered_with_near_names() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("config");
        fs::write(&path, kubeconfig("https://a.example:1", "staging", "")).expect("written");
        let options = ConnectOptions { context: Some("stagign".into()), ..ConnectOptions::default() };
        let error = load(&options, &around(&path.display().to_string())).await.err().expect("an error");
        assert_eq!(error.kind(), Kind::Kubeconfig);
        assert_eq!(error.next_step(), Some("near to it: staging"));
    }

    #[tokio::test]
    async fn a_malformed_file_is_named() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("config");
        fs::write(&path, "contexts: 5").expect("written");
        let error = load(&ConnectOptions::default(), &around(&path.display().to_string())).await.err();
        assert!(error.expect("an error").to_string().contains("config is malformed"));
    }
}
