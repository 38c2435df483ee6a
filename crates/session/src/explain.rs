//! Pure: how a session reaches the cluster, and why so, in words (`--explain`).

use std::fmt::Write as _;

use cluster::{AgentContainer, Need, Ranges, role_yaml};

/// What is known when an agent has admitted the session.
pub(crate) struct Known<'a> {
    pub(crate) namespace: &'a str,
    pub(crate) agent: &'a AgentContainer,
    /// Why no ephemeral container was placed in the workload's pod; `None` when one was.
    pub(crate) instead: Option<&'a str>,
    /// Each right and whether the user has it; `None` where the API server did not say.
    pub(crate) rights: &'a [(&'static Need, Option<bool>)],
    pub(crate) ranges: &'a Ranges,
}

pub(crate) fn explain(known: &Known<'_>) -> String {
    let mut text = String::from("how this session reaches the cluster");
    placements(known, &mut text);
    rights(known, &mut text);
    addresses(known.ranges, &mut text);
    text
}

fn placements(known: &Known<'_>, text: &mut String) {
    let AgentContainer { pod, name, target, image, job, .. } = known.agent;
    let begin = if known.agent.reused { "which ran already" } else { "placed now" };
    let (ephemeral, stand_in) = match job {
        None => (
            format!("taken: {name} in pod {pod} looks into container {target}, {begin}, without any capability"),
            "not needed".to_owned(),
        ),
        Some(job) => {
            let why = known.instead.unwrap_or("no workload is named");
            (format!("not taken: {why}"), format!("taken: pod {pod} of job {job}, which ends with the session"))
        }
    };
    let _ = write!(text, "\n  1. ephemeral container: {ephemeral}\n  2. stand-in: {stand_in}\n  image: {image}");
}

fn rights(known: &Known<'_>, text: &mut String) {
    let missing: Vec<Need> =
        known.rights.iter().filter(|(_, has)| *has == Some(false)).map(|(need, _)| **need).collect();
    let unknown = known.rights.iter().filter(|(_, has)| has.is_none()).count();
    if unknown > 0 {
        let _ = write!(text, "\n  rights: the API server did not say of {unknown}");
    }
    if missing.is_empty() {
        let _ = write!(text, "\n  rights in namespace {}: none is missing", known.namespace);
        return;
    }
    let _ = write!(text, "\n  rights that are missing in namespace {}:", known.namespace);
    for need in &missing {
        let _ = write!(text, "\n    {need}, to {}; without it, {}", need.purpose, need.lost_without);
    }
    let _ = write!(text, "\n  what an admin would apply:");
    for line in role_yaml(&missing).lines() {
        let _ = write!(text, "\n    {line}");
    }
}

fn addresses(ranges: &Ranges, text: &mut String) {
    let _ = write!(text, "\n  addresses that go through the pod:");
    let known = [
        ("Services, by ServiceCIDR", ranges.services.iter().map(ToString::to_string).collect::<Vec<_>>()),
        ("pods, by the nodes", ranges.pods.iter().map(ToString::to_string).collect()),
        ("Services of the namespace", ranges.service_ips.iter().map(ToString::to_string).collect()),
        ("pods of the namespace", ranges.pod_ips.iter().map(ToString::to_string).collect()),
    ];
    for (source, list) in known {
        let _ = write!(text, "\n    {source}: {}", shortened(&list));
    }
    let _ = write!(
        text,
        "\n    besides: what the pod's DNS answers with, and private addresses that this machine is not attached to"
    );
}

fn shortened(list: &[String]) -> String {
    const SHOWN: usize = 4;
    match list.len() {
        0 => "unknown".to_owned(),
        1..=SHOWN => list.join(", "),
        more => format!("{} and {} more", list[..SHOWN].join(", "), more - SHOWN),
    }
}

#[cfg(test)]
mod tests {
    use cluster::{EPHEMERAL, NEEDS};

    use super::*;

    fn agent(job: Option<&str>) -> AgentContainer {
        AgentContainer {
            namespace: "shop".into(),
            pod: "web-1".into(),
            pod_uid: "u".into(),
            pod_ips: Vec::new(),
            name: "stead-agent-1".into(),
            image: "stead-agent:1".into(),
            target: "app".into(),
            reused: false,
            job: job.map(str::to_owned),
        }
    }

    fn explained(job: Option<&str>, lacks: Option<Need>) -> String {
        let rights: Vec<_> = NEEDS.iter().map(|need| (need, Some(Some(*need) != lacks))).collect();
        let ranges = Ranges {
            services: vec!["10.96.0.0/16".parse().expect("a literal")],
            service_ips: (1..7).map(|last| [10, 96, 0, last].into()).collect(),
            ..Ranges::default()
        };
        let instead = job.map(|_| "no right to patch pods/ephemeralcontainers");
        explain(&Known { namespace: "shop", agent: &agent(job), instead, rights: &rights, ranges: &ranges })
    }

    #[test]
    fn the_placement_that_was_taken_is_named_and_what_is_known_of_addresses() {
        let text = explained(None, None);
        assert!(
            text.contains("1. ephemeral container: taken: stead-agent-1 in pod web-1 looks into container app"),
            "{text}"
        );
        assert!(text.contains("2. stand-in: not needed"), "{text}");
        assert!(text.contains("rights in namespace shop: none is missing"), "{text}");
        assert!(text.contains("Services, by ServiceCIDR: 10.96.0.0/16"), "{text}");
        assert!(
            text.contains("Services of the namespace: 10.96.0.1, 10.96.0.2, 10.96.0.3, 10.96.0.4 and 2 more"),
            "{text}"
        );
        assert!(text.contains("pods, by the nodes: unknown"), "{text}");
    }

    #[test]
    fn a_missing_right_is_told_with_what_is_lost_and_what_gives_it() {
        let text = explained(Some("stead-web-abc234"), Some(EPHEMERAL));
        assert!(
            text.contains("1. ephemeral container: not taken: no right to patch pods/ephemeralcontainers"),
            "{text}"
        );
        assert!(text.contains("2. stand-in: taken: pod web-1 of job stead-web-abc234"), "{text}");
        assert!(text.contains("    patch pods/ephemeralcontainers, to place an agent"), "{text}");
        assert!(text.contains("aggregate-to-edit: \"true\""), "{text}");
        assert!(text.contains("resources: [pods/ephemeralcontainers], verbs: [patch]"), "{text}");
    }
}
