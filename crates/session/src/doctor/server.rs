//! The cluster: whether the API server answers, how old it is, whether it knows the user, and the namespace.

use cluster::{Cluster, Error, Greeting, Kind, NamespaceFacts};

use super::{Area, Finding, Verdict};

/// Kubernetes 1.28, the smallest (design 1).
const SMALLEST: (u32, u32) = (1, 28);

/// Seconds. Certificates and tokens are checked by both clocks; Kubernetes' own tolerate little.
const SKEW: i64 = 30;

pub(super) struct Facts {
    pub(super) greeting: Result<Greeting, Error>,
    /// Not asked where there was no greeting.
    pub(super) user: Option<Result<String, Error>>,
    /// Not asked where the user is not known.
    pub(super) namespace: Option<Result<NamespaceFacts, Error>>,
    pub(super) namespace_name: String,
    /// Which rungs carry links of this user's running sessions in this namespace.
    pub(super) rungs: Vec<String>,
}

pub(super) async fn look(cluster: &Cluster) -> Facts {
    let greeting = cluster.greet().await;
    let user = if greeting.is_ok() { Some(cluster.user_name().await) } else { None };
    let namespace = if matches!(user, Some(Ok(_))) { Some(cluster.namespace_facts().await) } else { None };
    let namespace_name = cluster.namespace().to_owned();
    Facts { greeting, user, namespace, namespace_name, rungs: rungs(cluster).await }
}

async fn rungs(cluster: &Cluster) -> Vec<String> {
    let sessions = crate::socket::Folder::of_this_user().sessions().await.unwrap_or_default();
    let mut rungs = Vec::new();
    for (_, path) in sessions {
        let asked = crate::socket::ask(&path, &crate::socket::Request::Status).await;
        let Ok(crate::socket::Answer::Status(status)) = asked else { continue };
        if status.context == cluster.context() && status.namespace == cluster.namespace() {
            rungs.extend(status.links.into_iter().filter(|link| link.up).map(|link| link.rung));
        }
    }
    rungs.sort();
    rungs.dedup();
    rungs
}

pub(super) fn judge(facts: &Facts) -> Vec<Finding> {
    let skip = |check: &str, why: &str| Finding::skip(Area::Cluster, check, why);
    let mut findings = match &facts.greeting {
        Ok(greeting) => {
            let milliseconds = greeting.round_trip.as_secs_f64() * 1e3;
            let answered = Finding::ok(Area::Cluster, "API server", format!("answers in {milliseconds:.1} ms"));
            vec![answered, version(greeting), clock(greeting)]
        }
        Err(error) => {
            let failed = Finding::fail(Area::Cluster, "API server", error.clone());
            let unknown = "the API server does not answer";
            vec![failed, skip("version", unknown), skip("clock", unknown)]
        }
    };
    findings.push(match &facts.user {
        None => skip("user", "the API server does not answer"),
        Some(Ok(name)) => Finding::ok(Area::Cluster, "user", name),
        Some(Err(error)) => Finding::fail(Area::Cluster, "user", error.clone()),
    });
    findings.extend(namespace(facts));
    findings.push(pods(facts));
    findings
}

fn version(greeting: &Greeting) -> Finding {
    let (major, minor) = SMALLEST;
    match &greeting.version {
        None => Finding::skip(Area::Cluster, "version", "the API server does not tell this user"),
        Some(version) if (version.major, version.minor) >= SMALLEST => {
            Finding::ok(Area::Cluster, "version", &version.text)
        }
        Some(version) => {
            let found = format!("{}: older than {major}.{minor}, which nobody tried", version.text);
            Finding::warn(Area::Cluster, "version", found).fix(format!("use a cluster of {major}.{minor} or newer"))
        }
    }
}

fn clock(greeting: &Greeting) -> Finding {
    let Some(ahead) = greeting.clock_ahead else {
        return Finding::skip(Area::Cluster, "clock", "the API server does not tell the time");
    };
    if ahead.abs() <= SKEW {
        return Finding::ok(Area::Cluster, "clock", "as the API server's");
    }
    let side = if ahead > 0 { "ahead of" } else { "behind" };
    let found = format!("this machine's clock is {} s {side} the API server's", ahead.abs());
    Finding::warn(Area::Cluster, "clock", found)
        .fix("set the clock (`timedatectl set-ntp true`): certificates and tokens are valid by time")
}

fn namespace(facts: &Facts) -> [Finding; 2] {
    const SECURITY: &str = "Pod Security";
    let name = &facts.namespace_name;
    let namespace = |verdict, found: String| Finding::new(Area::Cluster, "namespace", verdict, found);
    let unseen = |why: &str| Finding::skip(Area::Cluster, SECURITY, why);
    match &facts.namespace {
        None => {
            let why = "the API server does not know who asks";
            [Finding::skip(Area::Cluster, "namespace", why), unseen(why)]
        }
        Some(Ok(NamespaceFacts::Exists { enforced })) => {
            let level = enforced.as_deref().unwrap_or("no level is set for the namespace");
            let complies = format!("{level}; an agent that only observes complies with restricted");
            [namespace(Verdict::Ok, name.clone()), Finding::ok(Area::Cluster, SECURITY, complies)]
        }
        Some(Ok(NamespaceFacts::Unknown)) => {
            let found = format!("{name}; this user may not look whether it exists");
            [namespace(Verdict::Skip, found), unseen("this user may not read the namespace's labels")]
        }
        Some(Ok(NamespaceFacts::Missing)) => {
            let failed = Finding {
                exit_code: Kind::NotFound.exit_code(),
                ..namespace(Verdict::Fail, format!("there is no namespace {name}"))
            };
            [
                failed.fix("choose one with -n; `kubectl get namespaces` lists them"),
                unseen("there is no such namespace"),
            ]
        }
        Some(Err(error)) => {
            [Finding::fail(Area::Cluster, "namespace", error.clone()), unseen("the namespace cannot be read")]
        }
    }
}

fn pods(facts: &Facts) -> Finding {
    const CHECK: &str = "way to pods";
    if facts.rungs.is_empty() {
        let why = "known only while a session runs: run doctor beside one";
        return Finding::skip(Area::Cluster, CHECK, why);
    }
    Finding::ok(Area::Cluster, CHECK, format!("links are up by {}", facts.rungs.join(", ")))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use cluster::Version;

    use super::*;
    use crate::doctor::only_red;

    fn greeting(minor: u32, clock_ahead: i64) -> Greeting {
        let version = Some(Version { major: 1, minor, text: format!("v1.{minor}.0") });
        Greeting { round_trip: Duration::from_millis(2), version, clock_ahead: Some(clock_ahead) }
    }

    fn healthy() -> Facts {
        Facts {
            greeting: Ok(greeting(34, 1)),
            user: Some(Ok("dev".into())),
            namespace: Some(Ok(NamespaceFacts::Exists { enforced: Some("baseline".into()) })),
            namespace_name: "team".into(),
            rungs: vec!["proxy".into()],
        }
    }

    #[test]
    fn a_cluster_that_has_everything_is_all_ok() {
        assert!(crate::doctor::all_ok(&judge(&healthy())), "{:?}", judge(&healthy()));
    }

    #[test]
    fn an_old_version_and_a_wrong_clock_warn_alone() {
        let old = judge(&Facts { greeting: Ok(greeting(27, 0)), ..healthy() });
        assert_eq!((only_red(&old).check.as_str(), only_red(&old).verdict), ("version", Verdict::Warn));
        for ahead in [-90, 90] {
            let skewed = judge(&Facts { greeting: Ok(greeting(28, ahead)), ..healthy() });
            assert_eq!((only_red(&skewed).check.as_str(), only_red(&skewed).verdict), ("clock", Verdict::Warn));
        }
    }

    #[test]
    fn a_missing_namespace_fails_alone() {
        let findings = judge(&Facts { namespace: Some(Ok(NamespaceFacts::Missing)), ..healthy() });
        let red = only_red(&findings);
        assert_eq!((red.check.as_str(), red.exit_code), ("namespace", 66));
    }

    #[test]
    fn what_this_user_may_not_know_is_not_red() {
        let findings = judge(&Facts { namespace: Some(Ok(NamespaceFacts::Unknown)), rungs: Vec::new(), ..healthy() });
        assert!(findings.iter().all(|finding| matches!(finding.verdict, Verdict::Ok | Verdict::Skip)), "{findings:?}");
    }
}
