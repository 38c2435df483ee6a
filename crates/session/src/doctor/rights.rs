//! Rights: each of the table, as the API server answers a SelfSubjectAccessReview.

use cluster::{Cluster, Error, NEEDS, Need};

use super::{Area, Finding, Verdict};

/// Without one of these nothing of a session works, whichever way is taken.
const VITAL: [&str; 2] = ["get pods", "get pods/attach"];

const ROLE: &str = "an admin adds all of these to the role edit by `stead doctor --yaml | kubectl apply -f -`, and gives that role by \
                    `kubectl create rolebinding NAME --clusterrole=edit --user=USER`";

pub(super) async fn findings(cluster: &Cluster) -> Vec<Finding> {
    let asked = NEEDS.iter().map(|need| async move { (need, cluster.may(need).await) });
    let answers = futures::future::join_all(asked).await;
    answers.into_iter().map(|(need, answer)| judge(need, answer)).collect()
}

fn judge(need: &Need, answer: Result<bool, Error>) -> Finding {
    let check = need.to_string();
    match answer {
        Ok(true) => Finding::ok(Area::Rights, check, need.purpose),
        Ok(false) => {
            let found = format!("missing, needed to {}; without it, {}", need.purpose, need.lost_without);
            if VITAL.contains(&&*check) {
                let exit_code = cluster::Kind::MissingRight.exit_code();
                return Finding { exit_code, ..Finding::new(Area::Rights, check, Verdict::Fail, found) }.fix(ROLE);
            }
            Finding::warn(Area::Rights, check, found).fix(ROLE)
        }
        Err(error) => Finding::skip(Area::Rights, check, format!("cannot be asked: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::{all_ok, only_red};

    fn judged(missing: Option<&Need>) -> Vec<Finding> {
        let is_missing = |need: &Need| missing.is_some_and(|missing| std::ptr::eq(missing, need));
        NEEDS.iter().map(|need| judge(need, Ok(!is_missing(need)))).collect()
    }

    #[test]
    fn each_missing_right_turns_red_alone_and_says_what_is_lost() {
        assert!(all_ok(&judged(None)));
        for need in NEEDS {
            let findings = judged(Some(need));
            let red = only_red(&findings);
            assert_eq!(red.check, need.to_string());
            assert!(red.found.contains(need.lost_without) && red.fix.is_some(), "{red:?}");
        }
    }

    #[test]
    fn only_the_vital_ones_fail() {
        let failed: Vec<String> = NEEDS
            .iter()
            .map(|need| judge(need, Ok(false)))
            .filter(|finding| finding.verdict == Verdict::Fail)
            .map(|finding| finding.check)
            .collect();
        assert_eq!(failed, VITAL);
    }
}
