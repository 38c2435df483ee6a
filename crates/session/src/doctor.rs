//! What `stead doctor` finds: each thing that a session needs, looked at one by one, with the fix where it is missing.
//!
//! Every part has facts, gathered by looking and changing nothing that stays, and a judgement, which is pure: so that each
//! check is shown to turn red, alone, when exactly its thing is broken.

mod access;
mod machine;
mod rights;
mod server;
mod workload;

use cluster::Cluster;
use serde::Serialize;

use crate::Error;

/// How one thing stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    Ok,
    /// A session runs, with less.
    Warn,
    /// No session runs.
    Fail,
    /// Not looked at, since something before it failed or it cannot be known.
    Skip,
}

/// What a check is about, in the order they are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Area {
    Machine,
    Kubeconfig,
    Cluster,
    Rights,
    Workload,
}

/// One line of the report.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    pub area: Area,
    pub check: String,
    pub verdict: Verdict,
    /// What was seen, or why it was not looked at.
    pub found: String,
    /// The next step; may have several lines.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fix: Option<String>,
    /// Class of the failure as an exit code; 0 unless it failed.
    #[serde(skip)]
    pub exit_code: u8,
}

impl Finding {
    fn new(area: Area, check: impl Into<String>, verdict: Verdict, found: impl Into<String>) -> Self {
        Finding { area, check: check.into(), verdict, found: found.into(), fix: None, exit_code: 0 }
    }

    fn ok(area: Area, check: impl Into<String>, found: impl Into<String>) -> Self {
        Self::new(area, check, Verdict::Ok, found)
    }

    fn warn(area: Area, check: impl Into<String>, found: impl Into<String>) -> Self {
        Self::new(area, check, Verdict::Warn, found)
    }

    fn skip(area: Area, check: impl Into<String>, why: impl Into<String>) -> Self {
        Self::new(area, check, Verdict::Skip, why)
    }

    /// From the error that a session would have ended with.
    fn fail(area: Area, check: impl Into<String>, error: impl Into<Error>) -> Self {
        let error = error.into();
        let exit_code = error.exit_code();
        Finding { fix: error.hint(), exit_code, ..Self::new(area, check, Verdict::Fail, error.to_string()) }
    }

    fn fix(mut self, fix: impl Into<String>) -> Self {
        self.fix = Some(fix.into());
        self
    }
}

/// All findings, in the order they were made.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Whether nothing failed.
    pub ok: bool,
    pub findings: Vec<Finding>,
}

impl Report {
    fn of(findings: Vec<Finding>) -> Self {
        Report { ok: findings.iter().all(|finding| finding.verdict != Verdict::Fail), findings }
    }

    /// 0, or the class of the first thing that failed.
    pub fn exit_code(&self) -> u8 {
        self.findings.iter().find(|finding| finding.verdict == Verdict::Fail).map_or(0, |finding| finding.exit_code)
    }
}

/// What is to be looked at.
#[derive(Clone, Debug, Default)]
pub struct Questions {
    pub connect: cluster::ConnectOptions,
    /// Looked for where given: `deploy/web`.
    pub workload: Option<String>,
    pub container: Option<String>,
    /// Architectures that the agent's image has, in Go's words.
    pub agent_architectures: Vec<String>,
}

/// Looks at everything; takes as long as the slowest answer of the API server. `sandbox` is one prepared to no other end:
/// its set-up is the real one, and it is taken down again.
pub async fn examine(sandbox: Result<sandbox::Prepared, sandbox::Error>, questions: &Questions) -> Report {
    let mut findings = machine::judge(&machine::look(sandbox).await);
    let outline = cluster::outline(&questions.connect);
    findings.extend(access::judge(&outline, now()));
    match outline.context {
        Some(Ok(_)) => {
            let of_cluster = cluster_findings(questions).await;
            findings.extend(of_cluster);
            quiet_consequences(&mut findings);
        }
        _ => findings.push(Finding::skip(Area::Cluster, "API server", "the kubeconfig does not say where it is")),
    }
    Report::of(findings)
}

/// Credentials that are known to be no good are said once: that the API server refuses them follows.
fn quiet_consequences(findings: &mut [Finding]) {
    if !findings.iter().any(|finding| finding.area == Area::Kubeconfig && finding.verdict == Verdict::Fail) {
        return;
    }
    for finding in findings.iter_mut().filter(|finding| finding.area == Area::Cluster) {
        if finding.verdict == Verdict::Fail && finding.exit_code == cluster::Kind::Kubeconfig.exit_code() {
            *finding = Finding::skip(Area::Cluster, &*finding.check, "the kubeconfig's credentials are no good");
        }
    }
}

/// Seconds since 1970.
fn now() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

async fn cluster_findings(questions: &Questions) -> Vec<Finding> {
    let cluster = match Cluster::connect(&questions.connect).await {
        Ok(cluster) => cluster,
        Err(error) => return vec![Finding::fail(Area::Cluster, "credentials", error)],
    };
    let facts = server::look(&cluster).await;
    let mut findings = server::judge(&facts);
    if facts.user.as_ref().is_none_or(Result::is_err) {
        findings.push(Finding::skip(Area::Rights, "rights", "the API server does not know who asks"));
        return findings;
    }
    findings.extend(rights::findings(&cluster).await);
    if let Some(name) = &questions.workload {
        findings.extend(workload::findings(&cluster, name, questions).await);
    }
    findings
}

/// The one finding that is neither ok nor skipped; for tests.
#[cfg(test)]
fn only_red(findings: &[Finding]) -> &Finding {
    let red: Vec<&Finding> =
        findings.iter().filter(|finding| matches!(finding.verdict, Verdict::Warn | Verdict::Fail)).collect();
    assert_eq!(red.len(), 1, "just one is to be red: {findings:#?}");
    red[0]
}

#[cfg(test)]
fn all_ok(findings: &[Finding]) -> bool {
    findings.iter().all(|finding| finding.verdict == Verdict::Ok)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_follows_from_bad_credentials_is_not_red_beside_them() {
        let failed = |area, check, exit_code| Finding { exit_code, ..Finding::new(area, check, Verdict::Fail, "no") };
        let refused = || failed(Area::Cluster, "user", 65);
        let mut findings = vec![failed(Area::Kubeconfig, "credentials", 65), refused()];
        quiet_consequences(&mut findings);
        assert_eq!(only_red(&findings).check, "credentials");
        let mut findings = vec![Finding::ok(Area::Kubeconfig, "credentials", "a token"), refused()];
        quiet_consequences(&mut findings);
        assert_eq!(only_red(&findings).check, "user");
    }
}
