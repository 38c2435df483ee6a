//! One workload: whether it is there, has a pod that an agent may enter, and runs one already.

use cluster::{Cluster, Target};

use super::{Area, Finding, Questions};

pub(super) async fn findings(cluster: &Cluster, name: &str, questions: &Questions) -> Vec<Finding> {
    let skip = |check: &str, why: &str| Finding::skip(Area::Workload, check, why);
    let workload = match cluster.workload(name).await {
        Ok(workload) => workload,
        Err(error) => {
            let why = "the workload was not found";
            let failed = Finding::fail(Area::Workload, "workload", error);
            return vec![failed, skip("pod", why), skip("agent", why), skip("architecture", why)];
        }
    };
    let found = Finding::ok(Area::Workload, "workload", workload.to_string());
    let target = match cluster.ready_pod(&workload, questions.container.as_deref(), None).await {
        Ok(target) => target,
        Err(error) => {
            let failed = Finding::fail(Area::Workload, "pod", error);
            return vec![found, failed, skip("agent", "no pod is ready"), skip("architecture", "no pod is ready")];
        }
    };
    let pod = format!("{}, container {}, on node {}", target.pod, target.container, target.node);
    let architecture = cluster.node_architecture(&target.node).await;
    vec![
        found,
        Finding::ok(Area::Workload, "pod", pod),
        agent(&target),
        judge_architecture(architecture.as_deref(), &questions.agent_architectures),
    ]
}

fn agent(target: &Target) -> Finding {
    match target.agent() {
        Some(name) => Finding::ok(Area::Workload, "agent", format!("{name} runs there already")),
        None => Finding::ok(Area::Workload, "agent", "none runs there yet; the first session starts one"),
    }
}

fn judge_architecture(node: Option<&str>, image: &[String]) -> Finding {
    const CHECK: &str = "architecture";
    let Some(node) = node else {
        return Finding::skip(Area::Workload, CHECK, "this user may not look at nodes");
    };
    if image.iter().any(|has| has == node) {
        return Finding::ok(Area::Workload, CHECK, node);
    }
    let has = if image.is_empty() { "none".to_owned() } else { image.join(", ") };
    Finding::warn(
        Area::Workload,
        CHECK,
        format!("the node is {node}, and this build of stead carries an agent for {has}"),
    )
    .fix(format!("name an image that has {node} with --agent-image"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Verdict;

    #[test]
    fn a_node_of_another_architecture_warns_and_an_unknown_one_does_not() {
        let image = ["amd64".to_owned()];
        assert_eq!(judge_architecture(Some("amd64"), &image).verdict, Verdict::Ok);
        let other = judge_architecture(Some("arm64"), &image);
        assert_eq!(other.verdict, Verdict::Warn);
        assert!(other.fix.is_some_and(|fix| fix.contains("arm64")));
        assert_eq!(judge_architecture(None, &image).verdict, Verdict::Skip);
    }
}
