//! What the API server says of itself, of the user and of the namespace: for `doctor`, and for whoever names the owner of
//! something.

use std::time::Duration;

use http::{Request, header};
use k8s_openapi::api::authentication::v1::SelfSubjectReview;
use k8s_openapi::api::core::v1::{Namespace, Node};
use k8s_openapi::apimachinery::pkg::version::Info;
use k8s_openapi::jiff::{Timestamp, fmt::rfc2822};
use kube::api::PostParams;
use kube::client::Body;
use kube::{Api, ResourceExt as _};
use tokio::time::{Instant, timeout};

use crate::Cluster;
use crate::error::{Error, Kind, Right};
use crate::place::running_agent;
use crate::ready::Target;

/// For the body of an answer whose head came, and for what may be left unknown.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// Any answer at all, whatever its status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Greeting {
    /// Of one request on a connection that is open.
    pub round_trip: Duration,
    /// Unknown where the API server tells nobody it does not know.
    pub version: Option<Version>,
    /// This machine's clock minus the API server's, in seconds. Its own is told in whole seconds.
    pub clock_ahead: Option<i64>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version {
    pub major: u32,
    pub minor: u32,
    /// `v1.34.1+k3s1`
    pub text: String,
}

/// The namespace that a session would enter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NamespaceFacts {
    Missing,
    /// It may not be read.
    Unknown,
    /// The level that Pod Security enforces; `None` where no label says so (a cluster-wide default may still apply).
    Exists {
        enforced: Option<String>,
    },
}

impl Cluster {
    /// Asks for the version, twice: once to open the connection, once to time it.
    pub async fn greet(&self) -> Result<Greeting, Error> {
        self.version_and_date().await?;
        let since = Instant::now();
        let (version, date) = self.version_and_date().await?;
        let clock_ahead = date.map(|date| Timestamp::now().as_second() - date.as_second());
        Ok(Greeting { round_trip: since.elapsed(), version, clock_ahead })
    }

    async fn version_and_date(&self) -> Result<(Option<Version>, Option<Timestamp>), Error> {
        let doing = "ask the API server for its version";
        let request = Request::get("/version")
            .body(Body::empty())
            .map_err(|error| Error::new(Kind::Internal, format!("cannot {doing}")).because(error))?;
        let answer = self.patient(doing, self.client().send(request)).await?;
        let answer = answer.map_err(|error| Error::from_chain(&error, doing))?;
        let date = answer.headers().get(header::DATE).and_then(|date| rfc2822::parse(date.to_str().ok()?).ok());
        let is_ok = answer.status().is_success();
        let body = timeout(ANSWER_TIMEOUT, answer.into_body().collect_bytes()).await.ok().and_then(Result::ok);
        let info = body.filter(|_| is_ok).and_then(|body| serde_json::from_slice::<Info>(&body).ok());
        Ok((info.and_then(Version::of), date.map(|date| date.timestamp())))
    }

    /// The API server's name for this user.
    pub async fn user_name(&self) -> Result<String, Error> {
        let review = Api::<SelfSubjectReview>::all(self.client().clone());
        let right = Right { group: "authentication.k8s.io", resource: "selfsubjectreviews", verbs: &["create"] };
        let (parameters, empty) = (PostParams::default(), SelfSubjectReview::default());
        let answer = self.ask("ask who this user is", right, review.create(&parameters, &empty)).await?;
        Ok(answer.status.and_then(|status| status.user_info?.username).unwrap_or_default())
    }

    /// Whether the namespace is there, and its Pod Security level.
    pub async fn namespace_facts(&self) -> Result<NamespaceFacts, Error> {
        const ENFORCED: &str = "pod-security.kubernetes.io/enforce";
        let namespaces = Api::<Namespace>::all(self.client().clone());
        let right = Right::core("namespaces", &["get"]);
        match self.ask("look at the namespace", right, namespaces.get_metadata_opt(self.namespace())).await {
            Ok(None) => Ok(NamespaceFacts::Missing),
            Ok(Some(found)) => Ok(NamespaceFacts::Exists { enforced: found.labels().get(ENFORCED).cloned() }),
            Err(error) if error.kind() == Kind::MissingRight => Ok(NamespaceFacts::Unknown),
            Err(error) => Err(error),
        }
    }

    /// The node's architecture in Go's words; `None` where nodes may not be read.
    pub async fn node_architecture(&self, node: &str) -> Option<String> {
        let nodes = Api::<Node>::all(self.client().clone());
        let found = timeout(ANSWER_TIMEOUT, nodes.get_metadata(node)).await.ok()?.ok()?;
        found.labels().get("kubernetes.io/arch").cloned()
    }
}

impl Target {
    /// The agent's container of this release that runs beside the target, or is about to.
    pub fn agent(&self) -> Option<&str> {
        running_agent(&self.object, &self.container, None)
    }
}

impl Version {
    /// Hosted clusters write minors as `34+`.
    fn of(info: Info) -> Option<Self> {
        let number = |text: &str| text.trim_end_matches(|c: char| !c.is_ascii_digit()).parse().ok();
        Some(Version { major: number(&info.major)?, minor: number(&info.minor)?, text: info.git_version })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn minors_of_hosted_clusters_are_numbers_too() {
        let info =
            Info { major: "1".into(), minor: "29+".into(), git_version: "v1.29.3-eks".into(), ..Info::default() };
        let version = Version::of(info).expect("a version");
        assert_eq!((version.major, version.minor, version.text.as_str()), (1, 29, "v1.29.3-eks"));
        assert_eq!(Version::of(Info::default()), None);
    }
}
