//! Finding what the user named: `web`, `deploy/web`, `deployments.apps/web`, `pod/web-0`.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures::future::{join, join_all};
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{Namespace, Pod, PodSpec, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use kube::api::ListParams;
use kube::{Api, Resource, ResourceExt};
use tokio::time::timeout;

use crate::Cluster;
use crate::error::{Error, Kind, Right};
use crate::near::near;
use crate::ready::DEFAULT_CONTAINER;
use crate::stand_in::Template;

/// How long an error about an unknown name may take longer to name near ones.
const NEAR_NAMES: Duration = Duration::from_millis(500);

/// The same for the look into other namespaces, which few users may take.
const OTHER_NAMESPACES: Duration = Duration::from_millis(200);

/// Names listed per kind for near ones.
const LISTED: u32 = 500;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum WorkloadKind {
    Deployment,
    StatefulSet,
    DaemonSet,
    ReplicaSet,
    Job,
    Pod,
}

/// One workload of the cluster, as found.
#[derive(Clone, Debug)]
pub struct Workload {
    pub kind: WorkloadKind,
    pub name: String,
    pub namespace: String,
    pub uid: String,
    /// Pods asked for by its spec; 1 for a bare pod.
    pub replicas: i32,
    /// In the query form of the API (`app=web,tier in (a,b)`); empty for a bare pod.
    pub(crate) selector: String,
    /// What its pods are made from; for a bare pod, the pod itself.
    pub(crate) template: Arc<Template>,
}

impl WorkloadKind {
    pub const ALL: [WorkloadKind; 6] = [
        WorkloadKind::Deployment,
        WorkloadKind::StatefulSet,
        WorkloadKind::DaemonSet,
        WorkloadKind::ReplicaSet,
        WorkloadKind::Job,
        WorkloadKind::Pod,
    ];

    /// The word before the slash, as stead itself writes it.
    pub fn short(self) -> &'static str {
        self.spec().short
    }

    /// The resource's name in the API, plural.
    pub fn plural(self) -> &'static str {
        self.spec().plural
    }

    fn spec(self) -> &'static KindSpec {
        // `ALL` and `KINDS` have the same order as the enum.
        &KINDS[self as usize]
    }

    fn parse(word: &str) -> Option<Self> {
        let word = word.to_ascii_lowercase();
        let (resource, group) = word.split_once('.').unwrap_or((&word, ""));
        Self::ALL.into_iter().find(|kind| {
            let spec = kind.spec();
            let named = resource == spec.plural || resource == spec.singular || spec.aliases.contains(&resource);
            // `deployments.apps`, `deployments.v1.apps`
            let group_fits = group.is_empty() || group == spec.group || group.strip_prefix("v1.") == Some(spec.group);
            named && group_fits
        })
    }

    fn right(self) -> Right {
        let spec = self.spec();
        Right { group: spec.group, resource: spec.plural, verbs: &["get", "list"] }
    }
}

struct KindSpec {
    short: &'static str,
    singular: &'static str,
    plural: &'static str,
    aliases: &'static [&'static str],
    group: &'static str,
}

const KINDS: [KindSpec; 6] = [
    KindSpec { short: "deploy", singular: "deployment", plural: "deployments", aliases: &["deploy"], group: "apps" },
    KindSpec { short: "sts", singular: "statefulset", plural: "statefulsets", aliases: &["sts"], group: "apps" },
    KindSpec { short: "ds", singular: "daemonset", plural: "daemonsets", aliases: &["ds"], group: "apps" },
    KindSpec { short: "rs", singular: "replicaset", plural: "replicasets", aliases: &["rs"], group: "apps" },
    KindSpec { short: "job", singular: "job", plural: "jobs", aliases: &[], group: "batch" },
    KindSpec { short: "pod", singular: "pod", plural: "pods", aliases: &["po"], group: "" },
];

impl fmt::Display for WorkloadKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.spec().singular)
    }
}

impl fmt::Display for Workload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.kind.short(), self.name)
    }
}

impl Cluster {
    /// Finds the workload that `name` means in this namespace: one round trip, whatever the form.
    pub async fn workload(&self, name: &str) -> Result<Workload, Error> {
        let query = Query::parse(name)?;
        let kinds = match query.kind {
            Some(kind) => vec![kind],
            None => WorkloadKind::ALL.to_vec(),
        };
        let looks = kinds.iter().map(|kind| self.look(*kind, query.name));
        match choose(&query, self.namespace(), join_all(looks).await)? {
            Some(workload) => Ok(workload),
            None => Err(self.unknown(&query).await),
        }
    }

    async fn look(&self, kind: WorkloadKind, name: &str) -> Result<Option<Found>, Error> {
        let doing = format!("look for the {kind} \"{name}\"");
        let right = kind.right();
        match kind {
            WorkloadKind::Deployment => self.ask(doing, right, self.get(name, Deployment::found)).await,
            WorkloadKind::StatefulSet => self.ask(doing, right, self.get(name, StatefulSet::found)).await,
            WorkloadKind::DaemonSet => self.ask(doing, right, self.get(name, DaemonSet::found)).await,
            WorkloadKind::ReplicaSet => self.ask(doing, right, self.get(name, ReplicaSet::found)).await,
            WorkloadKind::Job => self.ask(doing, right, self.get(name, Job::found)).await,
            WorkloadKind::Pod => self.ask(doing, right, self.get(name, Pod::found)).await,
        }
    }

    async fn get<K>(&self, name: &str, found: fn(K) -> Found) -> kube::Result<Option<Found>>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + fmt::Debug,
        K: serde::de::DeserializeOwned,
    {
        Ok(self.api::<K>().get_opt(name).await?.map(found))
    }

    /// The error for a name that nothing has, with what the user may have meant.
    async fn unknown(&self, query: &Query<'_>) -> Error {
        let namespace = self.namespace();
        let kinds = query.kind.map_or(WorkloadKind::ALL.to_vec(), |kind| vec![kind]);
        let here = async {
            let lists = kinds.iter().map(|kind| self.names(*kind));
            timeout(NEAR_NAMES, join(join_all(lists), self.namespace_exists())).await.ok()
        };
        let elsewhere = async {
            // Controllers only: pods and their like have made-up names.
            let lists = kinds.iter().take(3).map(|kind| self.namespaces_with(*kind, query.name));
            timeout(OTHER_NAMESPACES, join_all(lists)).await.unwrap_or_default()
        };
        let (here, elsewhere) = join(here, elsewhere).await;
        let (lists, exists) = here.unwrap_or_default();
        let error = Error::new(Kind::NotFound, format!("no workload \"{query}\" in namespace {namespace}"));
        if exists == Some(false) {
            return Error::new(Kind::NotFound, format!("no namespace \"{namespace}\" in {}", self.context()))
                .hint("choose one with -n; `kubectl get namespaces` lists them");
        }
        error.hint(advice(query, &lists.concat(), &elsewhere.concat()))
    }

    /// Names of this kind that a user would use; empty where they may not be listed.
    async fn names(&self, kind: WorkloadKind) -> Vec<(WorkloadKind, String)> {
        let parameters = ListParams::default().limit(LISTED);
        let metadata = match kind {
            WorkloadKind::Deployment => metadata(self.api::<Deployment>(), &parameters).await,
            WorkloadKind::StatefulSet => metadata(self.api::<StatefulSet>(), &parameters).await,
            WorkloadKind::DaemonSet => metadata(self.api::<DaemonSet>(), &parameters).await,
            WorkloadKind::ReplicaSet => metadata(self.api::<ReplicaSet>(), &parameters).await,
            WorkloadKind::Job => metadata(self.api::<Job>(), &parameters).await,
            WorkloadKind::Pod => metadata(self.api::<Pod>(), &parameters).await,
        };
        let named = metadata.into_iter().filter(|meta| !is_owned(kind, meta));
        named.filter_map(|meta| Some((kind, meta.name?))).collect()
    }

    async fn namespaces_with(&self, kind: WorkloadKind, name: &str) -> Vec<String> {
        let parameters = ListParams::default().fields(&format!("metadata.name={name}")).limit(5);
        let client = self.client().clone();
        let metadata = match kind {
            WorkloadKind::Deployment => metadata(Api::<Deployment>::all(client), &parameters).await,
            WorkloadKind::StatefulSet => metadata(Api::<StatefulSet>::all(client), &parameters).await,
            WorkloadKind::DaemonSet => metadata(Api::<DaemonSet>::all(client), &parameters).await,
            WorkloadKind::ReplicaSet => metadata(Api::<ReplicaSet>::all(client), &parameters).await,
            WorkloadKind::Job => metadata(Api::<Job>::all(client), &parameters).await,
            WorkloadKind::Pod => metadata(Api::<Pod>::all(client), &parameters).await,
        };
        metadata.into_iter().filter_map(|meta| meta.namespace).collect()
    }

    /// `None` where it may not be known.
    async fn namespace_exists(&self) -> Option<bool> {
        let namespaces = Api::<Namespace>::all(self.client().clone());
        namespaces.get_metadata_opt(self.namespace()).await.ok().map(|found| found.is_some())
    }
}

async fn metadata<K>(api: Api<K>, parameters: &ListParams) -> Vec<ObjectMeta>
where
    K: Resource<DynamicType = ()> + Clone + fmt::Debug + serde::de::DeserializeOwned,
{
    let listed = api.list_metadata(parameters).await;
    listed.map(|list| list.items.into_iter().map(|item| item.metadata).collect()).unwrap_or_default()
}

/// What the user wrote.
#[derive(Debug, PartialEq)]
struct Query<'a> {
    kind: Option<WorkloadKind>,
    name: &'a str,
}

impl<'a> Query<'a> {
    fn parse(text: &'a str) -> Result<Self, Error> {
        let (kind, name) = match text.split_once('/') {
            None => (None, text),
            Some((word, name)) => {
                let kind = WorkloadKind::parse(word).ok_or_else(|| {
                    Error::new(Kind::Usage, format!("\"{word}\" in \"{text}\" is no kind of workload"))
                        .hint("deploy, sts, ds, rs, job or pod, as in deploy/web")
                })?;
                (Some(kind), name)
            }
        };
        let legal = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '.';
        if name.is_empty() || name.len() > 253 || !name.chars().all(legal) {
            return Err(Error::new(Kind::Usage, format!("\"{name}\" cannot be the name of a workload"))
                .hint("names have lower-case letters, digits, '-' and '.'; as in web or deploy/web"));
        }
        Ok(Query { kind, name })
    }
}

impl fmt::Display for Query<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            Some(kind) => write!(f, "{}/{}", kind.short(), self.name),
            None => f.write_str(self.name),
        }
    }
}

#[derive(Debug)]
struct Found {
    workload: Workload,
    /// A controller made it, so that its name is hardly what the user meant.
    owned: bool,
}

/// Whether a controller made this object. A Deployment made by an operator still is what a user names.
fn is_owned(kind: WorkloadKind, meta: &ObjectMeta) -> bool {
    matches!(kind, WorkloadKind::ReplicaSet | WorkloadKind::Job | WorkloadKind::Pod)
        && meta.owner_references.iter().flatten().any(|owner| owner.controller == Some(true))
}

/// Which of the looks found what is meant; `None` when none did.
fn choose(
    query: &Query<'_>,
    namespace: &str,
    looks: Vec<Result<Option<Found>, Error>>,
) -> Result<Option<Workload>, Error> {
    let (mut found, mut failed) = (Vec::new(), Vec::new());
    for look in looks {
        match look {
            Ok(Some(hit)) => found.push(hit),
            Ok(None) => {}
            Err(error) => failed.push(error),
        }
    }
    if found.iter().any(|hit| !hit.owned) {
        found.retain(|hit| !hit.owned);
    }
    if found.len() > 1 {
        let names: Vec<String> = found.iter().map(|hit| hit.workload.to_string()).collect();
        let message = format!("\"{}\" is ambiguous in namespace {namespace}: {}", query.name, names.join(", "));
        return Err(Error::new(Kind::Usage, message).hint(format!("write the kind before it, as in {}", names[0])));
    }
    if let Some(hit) = found.pop() {
        return Ok(Some(hit.workload));
    }
    // Anything but a missing right (an unreachable API server) speaks for every kind; a right missing for some kinds
    // matters only when the name was not found by the others.
    match failed.iter().position(|error| error.kind() != Kind::MissingRight) {
        Some(other) => Err(failed.swap_remove(other)),
        None if failed.is_empty() => Ok(None),
        None => Err(failed.swap_remove(0)),
    }
}

fn advice(query: &Query<'_>, here: &[(WorkloadKind, String)], elsewhere: &[String]) -> String {
    if !elsewhere.is_empty() {
        let mut namespaces = elsewhere.to_vec();
        namespaces.sort();
        namespaces.dedup();
        return format!("it exists in namespace {}: choose it with -n", namespaces.join(", "));
    }
    let close = near(query.name, here.iter().map(|(_, name)| name.as_str()));
    let full: Vec<String> = close
        .iter()
        .flat_map(|name| here.iter().filter(move |(_, other)| other == name))
        .map(|(kind, name)| format!("{}/{name}", kind.short()))
        .collect();
    match (full.is_empty(), here.is_empty()) {
        (false, _) => format!("near to it: {}", full.join(", ")),
        (true, false) => {
            let mut all: Vec<String> = here.iter().map(|(kind, name)| format!("{}/{name}", kind.short())).collect();
            let more = all.len().saturating_sub(10);
            all.truncate(10);
            let more = if more > 0 { format!(" and {more} more") } else { String::new() };
            format!("there are: {}{more}", all.join(", "))
        }
        (true, true) => "there is no workload in this namespace that you may list; choose another with -n".to_owned(),
    }
}

/// Kinds by which `Workload` is filled.
trait Describe: Resource<DynamicType = ()> + Sized {
    const KIND: WorkloadKind;
    fn selector(&self) -> Option<&LabelSelector>;
    fn replicas(&self) -> i32;
    fn pods(&self) -> Option<(&PodSpec, &ObjectMeta)>;

    fn template(&self) -> Template {
        let selector = self.selector();
        let labels = selector.and_then(|it| it.match_labels.as_ref()).into_iter().flat_map(|it| it.keys().cloned());
        let expressions = selector.and_then(|it| it.match_expressions.as_ref());
        let keys = expressions.into_iter().flatten().map(|it| it.key.clone());
        let selected_by = labels.chain(keys).collect();
        let Some((spec, meta)) = self.pods() else { return Template { selected_by, ..Template::default() } };
        let annotations = meta.annotations.as_ref();
        Template {
            spec: spec.clone(),
            labels: meta.labels.clone().unwrap_or_default(),
            selected_by,
            default_container: annotations.and_then(|all| all.get(DEFAULT_CONTAINER)).cloned(),
        }
    }

    fn found(self) -> Found {
        let workload = Workload {
            kind: Self::KIND,
            name: self.name_any(),
            namespace: self.namespace().unwrap_or_default(),
            uid: self.uid().unwrap_or_default(),
            replicas: self.replicas(),
            selector: self.selector().map(selector_text).unwrap_or_default(),
            template: Arc::new(self.template()),
        };
        Found { owned: is_owned(Self::KIND, self.meta()), workload }
    }
}

macro_rules! describe {
    ($kind:ident, $selector:expr, $replicas:expr, $pods:expr) => {
        impl Describe for $kind {
            const KIND: WorkloadKind = WorkloadKind::$kind;

            fn selector(&self) -> Option<&LabelSelector> {
                let selector: fn(&$kind) -> Option<&LabelSelector> = $selector;
                selector(self)
            }

            fn replicas(&self) -> i32 {
                let replicas: fn(&$kind) -> Option<i32> = $replicas;
                replicas(self).unwrap_or(1)
            }

            fn pods(&self) -> Option<(&PodSpec, &ObjectMeta)> {
                let pods: fn(&$kind) -> Option<(&PodSpec, &ObjectMeta)> = $pods;
                pods(self)
            }
        }
    };
}

describe!(Deployment, |it| Some(&it.spec.as_ref()?.selector), |it| it.spec.as_ref()?.replicas, |it| parts(
    &it.spec.as_ref()?.template
));
describe!(StatefulSet, |it| Some(&it.spec.as_ref()?.selector), |it| it.spec.as_ref()?.replicas, |it| parts(
    &it.spec.as_ref()?.template
));
describe!(
    DaemonSet,
    |it| Some(&it.spec.as_ref()?.selector),
    |it| Some(it.status.as_ref()?.desired_number_scheduled),
    |it| parts(&it.spec.as_ref()?.template)
);
describe!(ReplicaSet, |it| Some(&it.spec.as_ref()?.selector), |it| it.spec.as_ref()?.replicas, |it| parts(
    it.spec.as_ref()?.template.as_ref()?
));
describe!(Job, |it| it.spec.as_ref()?.selector.as_ref(), |it| it.spec.as_ref()?.parallelism, |it| parts(
    &it.spec.as_ref()?.template
));
describe!(Pod, |_| None, |_| Some(1), |it| Some((it.spec.as_ref()?, &it.metadata)));

fn parts(template: &PodTemplateSpec) -> Option<(&PodSpec, &ObjectMeta)> {
    Some((template.spec.as_ref()?, template.metadata.as_ref()?))
}

/// The selector as a list request takes it.
fn selector_text(selector: &LabelSelector) -> String {
    let labels = selector.match_labels.iter().flatten().map(|(key, value)| format!("{key}={value}"));
    let expressions = selector.match_expressions.iter().flatten().map(|expression| {
        let (key, values) = (&expression.key, expression.values.clone().unwrap_or_default().join(","));
        match expression.operator.as_str() {
            "In" => format!("{key} in ({values})"),
            "NotIn" => format!("{key} notin ({values})"),
            "DoesNotExist" => format!("!{key}"),
            _ => key.clone(),
        }
    });
    labels.chain(expressions).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests;
