//! One error for the whole crate: what class it is (and so the exit code), what failed, why, and what to do next.

use std::error::Error as StdError;
use std::fmt;

use kube::core::Status;

use crate::dial::DialError;
use crate::rights::{self, EPHEMERAL};

/// The class of an error. Each has one exit code, shown by `stead help exit-codes`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The name given cannot be understood or is ambiguous.
    Usage,
    /// The kubeconfig, its context, or its credentials are no good.
    Kubeconfig,
    /// There is no such workload, pod or container.
    NotFound,
    /// The workload exists and has no ready pod.
    NoReadyPod,
    /// The agent's image could not be pulled, or the agent did not start or has ended.
    AgentStart,
    /// The API server cannot be reached.
    Unreachable,
    Internal,
    /// Admission, Pod Security, quota, or a kind of pod that no agent may enter.
    PlacementRefused,
    Io,
    TimedOut,
    /// The agent answers something else than this release understands, or turned the session away.
    Protocol,
    /// RBAC does not allow it.
    MissingRight,
}

impl Kind {
    pub fn exit_code(self) -> u8 {
        match self {
            Kind::Usage => 64,
            Kind::Kubeconfig => 65,
            Kind::NotFound => 66,
            Kind::NoReadyPod => 67,
            Kind::AgentStart => 68,
            Kind::Unreachable => 69,
            Kind::Internal => 70,
            Kind::PlacementRefused => 73,
            Kind::Io => 74,
            Kind::TimedOut => 75,
            Kind::Protocol => 76,
            Kind::MissingRight => 77,
        }
    }
}

#[derive(Clone, Debug)]
pub struct Error {
    kind: Kind,
    message: String,
    causes: Vec<String>,
    hint: Option<String>,
    /// The resource that RBAC denies.
    denied: Option<&'static str>,
}

impl Error {
    pub(crate) fn new(kind: Kind, message: impl Into<String>) -> Self {
        Error { kind, message: message.into(), causes: Vec::new(), hint: None, denied: None }
    }

    pub(crate) fn because(mut self, cause: impl fmt::Display) -> Self {
        self.causes.push(cause.to_string());
        self
    }

    pub(crate) fn hint(mut self, next_step: impl Into<String>) -> Self {
        self.hint = Some(next_step.into());
        self
    }

    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// What failed, without its causes.
    pub fn message(&self) -> &str {
        &self.message
    }

    pub fn causes(&self) -> &[String] {
        &self.causes
    }

    /// What the user can do about it; may have several lines (YAML).
    pub fn next_step(&self) -> Option<&str> {
        self.hint.as_deref()
    }

    /// Whether an agent may not be placed in a workload's pod, so that another placement can serve.
    pub fn refuses_ephemeral(&self) -> bool {
        match self.kind {
            Kind::PlacementRefused => true,
            Kind::MissingRight => self.denied.is_some_and(|resource| resource == EPHEMERAL.full_resource()),
            _ => false,
        }
    }

    /// Sorts an answer or failure of the API server. `doing` completes "cannot …", `right` is what the request needs.
    pub(crate) fn from_kube(error: kube::Error, doing: impl fmt::Display, right: Right) -> Self {
        match error {
            kube::Error::Api(status) => Self::from_status(&status, doing, right),
            other => Self::from_chain(&other, doing),
        }
    }

    pub(crate) fn from_status(status: &Status, doing: impl fmt::Display, right: Right) -> Self {
        let message = format!("cannot {doing}");
        let cause = status.message.clone();
        match status.code {
            401 => Error::new(Kind::Kubeconfig, "the API server does not accept the credentials of this context")
                .because(cause)
                .hint("log in again, or renew the token or client certificate that the kubeconfig names"),
            403 if cause.contains("\"system:anonymous\"") => {
                Error::new(Kind::Kubeconfig, "this context has no credentials").because(cause).hint(
                    "the user entry of the context is missing or empty: log in, or name a token or client certificate",
                )
            }
            403 => Error {
                denied: Some(right.resource),
                ..Error::new(Kind::MissingRight, message).because(cause).hint(right.hint())
            },
            404 => Error::new(Kind::NotFound, message).because(cause),
            _ => Error::new(Kind::Internal, message).because(cause),
        }
    }

    pub(crate) fn from_chain(error: &(dyn StdError + 'static), doing: impl fmt::Display) -> Self {
        Self::known(error).unwrap_or_else(|| Error::new(Kind::Io, format!("cannot {doing}")).because(root_cause(error)))
    }

    /// The error for a failed dial or failed credentials, wherever they are in the chain.
    pub(crate) fn known(error: &(dyn StdError + 'static)) -> Option<Self> {
        let mut link = Some(error);
        while let Some(cause) = link {
            if let Some(dial) = cause.downcast_ref::<DialError>() {
                return Some(dial.to_error());
            }
            if let Some(auth) = cause.downcast_ref::<kube::client::AuthError>() {
                let error = Error::new(Kind::Kubeconfig, "cannot get the credentials that the kubeconfig names");
                return Some(error.because(auth).hint(
                    "run the kubeconfig's login command by hand; `kubectl get pods` needs the same credentials",
                ));
            }
            link = cause.source();
        }
        None
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        self.causes.iter().try_for_each(|cause| write!(f, ": {cause}"))
    }
}

impl StdError for Error {}

/// The innermost message: the outer ones of hyper and kube ("ServiceError: client error (Connect)") say less.
pub(crate) fn root_cause(error: &(dyn StdError + 'static)) -> String {
    let mut last = error;
    while let Some(source) = last.source() {
        last = source;
    }
    last.to_string()
}

/// One right in the API server's terms.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Right {
    pub group: &'static str,
    pub resource: &'static str,
    pub verbs: &'static [&'static str],
}

impl Right {
    pub(crate) const fn core(resource: &'static str, verbs: &'static [&'static str]) -> Self {
        Right { group: "", resource, verbs }
    }

    /// Names the right, with what an admin would apply.
    fn hint(self) -> String {
        let Right { group, resource, verbs } = self;
        let verbs_text = verbs.join(", ");
        let role = if resource == "pods/ephemeralcontainers" {
            "which the default roles `edit` and `admin` lack; an admin adds it to both by:"
        } else {
            "which the default role `edit` has (`kubectl create rolebinding NAME --clusterrole=edit --user=USER`); where \
             the cluster's own lacks it, an admin adds it by:"
        };
        format!("needs {verbs_text} on {resource}, {role}\n{}", rights::role(group, resource, verbs))
    }
}

/// Whether a refusal with code 403 is RBAC's (`User "u" cannot patch resource "pods/…"`) and not admission's, which
/// answers with the same code and reason.
pub(crate) fn is_rbac(status: &Status) -> bool {
    status.code == 403 && status.message.contains(" cannot ") && status.message.contains(" resource \"")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(code: u16, message: &str) -> Status {
        Status { code, message: message.into(), ..Status::failure("", "Forbidden") }
    }

    #[test]
    fn every_cause_is_in_one_line_after_the_message() {
        let error = Error::new(Kind::Io, "cannot read").because("connection reset").because("peer gone");
        assert_eq!(error.to_string(), "cannot read: connection reset: peer gone");
    }

    #[test]
    fn a_missing_right_is_told_with_the_role_that_gives_it() {
        let right = Right::core("pods/ephemeralcontainers", &["patch"]);
        let error = Error::from_status(&status(403, "pods \"a\" is forbidden"), "place an agent", right);
        assert_eq!(error.kind().exit_code(), 77);
        assert!(error.refuses_ephemeral());
        let attach = Error::from_status(&status(403, "no"), "attach", Right::core("pods/attach", &["get"]));
        assert!(!attach.refuses_ephemeral(), "no placement helps then");
        let hint = error.next_step().expect("a hint");
        assert!(hint.contains("name: stead-pods-ephemeralcontainers\n"), "{hint}");
        assert!(hint.contains("  labels:\n    rbac.authorization.k8s.io/aggregate-to-edit: \"true\"\n"), "{hint}");
        assert!(hint.ends_with("  resources: [\"pods/ephemeralcontainers\"]\n  verbs: [\"patch\"]"), "{hint}");
    }

    #[test]
    fn refused_credentials_point_at_the_kubeconfig() {
        let error = Error::from_status(&status(401, "Unauthorized"), "look", Right::core("pods", &["get"]));
        assert_eq!(error.kind(), Kind::Kubeconfig);
    }

    #[test]
    fn a_context_without_credentials_is_no_missing_right() {
        let refusal = status(403, "pods is forbidden: User \"system:anonymous\" cannot list resource \"pods\"");
        assert_eq!(Error::from_status(&refusal, "look", Right::core("pods", &["get"])).kind(), Kind::Kubeconfig);
    }

    #[test]
    fn rbac_and_admission_are_told_apart() {
        let rbac =
            r#"pods "a" is forbidden: User "u" cannot patch resource "pods/ephemeralcontainers" in API group """#;
        assert!(is_rbac(&status(403, rbac)));
        let security = r#"pods "a" is forbidden: violates PodSecurity "restricted:latest": privileged"#;
        assert!(!is_rbac(&status(403, security)));
    }
}
