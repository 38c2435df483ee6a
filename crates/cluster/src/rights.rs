//! What stead asks the API server for, why, and what is lost where it may not. The one table of rights: the docs,
//! `doctor` and `--explain` read it.

use std::fmt;

use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec, SubjectAccessReviewStatus,
};
use kube::Api;
use kube::api::PostParams;

use crate::Cluster;
use crate::error::{Error, Kind, Right};

/// One right: a verb on a resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Need {
    pub verb: &'static str,
    /// API group; empty for core.
    pub group: &'static str,
    pub resource: &'static str,
    /// Empty for the resource itself.
    pub subresource: &'static str,
    /// False for what belongs to the whole cluster.
    pub namespaced: bool,
    /// Completes "needed to …".
    pub purpose: &'static str,
    /// Completes "without it, …".
    pub lost_without: &'static str,
}

const NO_WORKLOAD: &str = "no workload of this kind can be named; `stead run -- CMD` needs none";
const NO_ADMISSION: &str = "there is no session: an agent answers only whom the API server let attach";
const NO_STAND_IN: &str = "a session needs a workload whose pods may be given an ephemeral container";
const NO_PROXY: &str = "links take the slower rung `forward`";
const NO_FORWARD: &str = "links need the rung `proxy`: an API server that reaches pod addresses";
const FEWER_RANGES: &str = "addresses are known one by one (Services, DNS answers), not by their ranges";

/// Every right, the indispensable ones first.
pub const NEEDS: &[Need] = &[
    core("get", "pods", "", "look at one pod", "there is no session"),
    core("list", "pods", "", "find a ready pod of a workload", "no workload but a pod can be named"),
    core(
        "watch",
        "pods",
        "",
        "see an agent start and a pod end",
        "a start that fails and a pod that goes are seen late",
    ),
    ATTACH,
    core("create", "pods", "attach", "be admitted by an agent (Kubernetes 1.35 and later)", NO_ADMISSION),
    EPHEMERAL,
    namespaced("create", "batch", "jobs", "", "make a stand-in", NO_STAND_IN),
    namespaced("patch", "batch", "jobs", "", "let a stand-in live as long as its session", NO_STAND_IN),
    namespaced("delete", "batch", "jobs", "", "remove a stand-in at once", "it goes when the session's lease ends"),
    core("create", "pods", "", "try whether a stand-in may be made", "what forbids it is said some seconds later"),
    core("get", "pods", "proxy", "carry links by the rung `proxy`", NO_PROXY),
    core("get", "pods", "portforward", "carry links by the rung `forward`", NO_FORWARD),
    core("create", "pods", "portforward", "carry links by the rung `forward` (Kubernetes 1.35 and later)", NO_FORWARD),
    namespaced("get", "apps", "deployments", "", "find a Deployment", NO_WORKLOAD),
    namespaced("get", "apps", "statefulsets", "", "find a StatefulSet", NO_WORKLOAD),
    namespaced("get", "apps", "daemonsets", "", "find a DaemonSet", NO_WORKLOAD),
    namespaced("get", "apps", "replicasets", "", "find a ReplicaSet", NO_WORKLOAD),
    namespaced("get", "batch", "jobs", "", "find a Job", NO_WORKLOAD),
    namespaced(
        "list",
        "apps",
        "replicasets",
        "",
        "take a pod of the newest revision of a Deployment",
        "any ready pod of it may be taken while it is rolled out",
    ),
    core("list", "services", "", "know the addresses of Services", FEWER_RANGES),
    core(
        "list",
        "events",
        "",
        "say why an agent does not start",
        "a failed pull of its image is seen up to 15 s later",
    ),
    core("get", "pods", "log", "say why an agent ended", "its last words are left out"),
    cluster_wide("list", "", "nodes", "know the ranges of pods", FEWER_RANGES),
    cluster_wide("list", "networking.k8s.io", "servicecidrs", "know the ranges of Services", FEWER_RANGES),
];

/// Without it nothing works, whichever way is taken.
pub const ATTACH: Need = core("get", "pods", "attach", "be admitted by an agent", NO_ADMISSION);

/// The one right that the default roles `edit` and `admin` lack.
pub const EPHEMERAL: Need = core(
    "patch",
    "pods",
    "ephemeralcontainers",
    "place an agent in a workload's pod",
    "a stand-in pod serves: no look into the workload's own processes, localhost and pod address",
);

const fn core(
    verb: &'static str,
    resource: &'static str,
    subresource: &'static str,
    purpose: &'static str,
    lost_without: &'static str,
) -> Need {
    namespaced(verb, "", resource, subresource, purpose, lost_without)
}

const fn namespaced(
    verb: &'static str,
    group: &'static str,
    resource: &'static str,
    subresource: &'static str,
    purpose: &'static str,
    lost_without: &'static str,
) -> Need {
    Need { verb, group, resource, subresource, namespaced: true, purpose, lost_without }
}

const fn cluster_wide(
    verb: &'static str,
    group: &'static str,
    resource: &'static str,
    purpose: &'static str,
    lost_without: &'static str,
) -> Need {
    Need { verb, group, resource, subresource: "", namespaced: false, purpose, lost_without }
}

impl Need {
    /// What an admin would apply so that everybody bound to `edit` (or `admin`) has it.
    pub fn role(&self) -> String {
        role(self.group, &self.full_resource(), &[self.verb])
    }

    /// `pods/attach`, as roles name it.
    pub fn full_resource(&self) -> String {
        match self.subresource {
            "" => self.resource.to_owned(),
            subresource => format!("{}/{subresource}", self.resource),
        }
    }
}

/// `patch pods/ephemeralcontainers`, `list servicecidrs.networking.k8s.io`
impl fmt::Display for Need {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let dot = if self.group.is_empty() { "" } else { "." };
        write!(f, "{} {}{dot}{}", self.verb, self.full_resource(), self.group)
    }
}

/// A ClusterRole that aggregates to `edit`.
pub(crate) fn role(group: &str, resource: &str, verbs: &[&str]) -> String {
    let name = resource.replace('/', "-");
    let verbs: Vec<String> = verbs.iter().map(|verb| format!("\"{verb}\"")).collect();
    format!(
        "apiVersion: rbac.authorization.k8s.io/v1\n\
         kind: ClusterRole\n\
         metadata:\n  \
           name: stead-{name}\n  \
           labels:\n    \
             rbac.authorization.k8s.io/aggregate-to-edit: \"true\"\n\
         rules:\n\
         - apiGroups: [\"{group}\"]\n  \
           resources: [\"{resource}\"]\n  \
           verbs: [{}]",
        verbs.join(", ")
    )
}

impl Cluster {
    /// Fails when the API server says that the user does not have this right; when it does not say, whoever needs it will.
    pub async fn require(&self, need: &Need) -> Result<(), Error> {
        match self.may(need).await {
            Ok(false) => {
                let hint =
                    format!("needed to {}; an admin adds it to the role edit by:\n{}", need.purpose, need.role());
                let error =
                    Error::new(Kind::MissingRight, format!("no right to {need} in namespace {}", self.namespace()));
                Err(error.because(need.lost_without).hint(hint))
            }
            _ => Ok(()),
        }
    }

    /// Whether the user has this right, in the session's namespace. Everybody may ask (`system:basic-user`).
    pub async fn may(&self, need: &Need) -> Result<bool, Error> {
        let attributes = ResourceAttributes {
            verb: Some(need.verb.to_owned()),
            group: Some(need.group.to_owned()),
            resource: Some(need.resource.to_owned()),
            subresource: (!need.subresource.is_empty()).then(|| need.subresource.to_owned()),
            namespace: need.namespaced.then(|| self.namespace().to_owned()),
            ..ResourceAttributes::default()
        };
        let review = SelfSubjectAccessReview {
            spec: SelfSubjectAccessReviewSpec { resource_attributes: Some(attributes), ..Default::default() },
            ..SelfSubjectAccessReview::default()
        };
        let reviews = Api::<SelfSubjectAccessReview>::all(self.client().clone());
        let right = Right { group: "authorization.k8s.io", resource: "selfsubjectaccessreviews", verbs: &["create"] };
        let parameters = PostParams::default();
        let asked = self.ask(format!("ask for the right to {need}"), right, reviews.create(&parameters, &review));
        Ok(asked.await?.status.is_some_and(|SubjectAccessReviewStatus { allowed, .. }| allowed))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_right_is_in_the_table_once_and_says_what_it_is_for() {
        let names: HashSet<String> = NEEDS.iter().map(Need::to_string).collect();
        assert_eq!(names.len(), NEEDS.len());
        assert!(NEEDS.iter().all(|need| !need.purpose.is_empty() && !need.lost_without.is_empty()));
        assert!(names.contains("patch pods/ephemeralcontainers"), "{names:?}");
        assert!(names.contains("list servicecidrs.networking.k8s.io"), "{names:?}");
    }

    #[test]
    fn the_role_for_a_right_aggregates_to_edit() {
        let role = EPHEMERAL.role();
        assert!(role.contains("  name: stead-pods-ephemeralcontainers\n"), "{role}");
        assert!(role.contains("    rbac.authorization.k8s.io/aggregate-to-edit: \"true\"\n"), "{role}");
        assert!(role.ends_with("  resources: [\"pods/ephemeralcontainers\"]\n  verbs: [\"patch\"]"), "{role}");
    }
}
