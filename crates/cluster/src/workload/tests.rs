use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use serde_json::json;

use super::*;

fn hit(kind: WorkloadKind, name: &str, owned: bool) -> Result<Option<Found>, Error> {
    let workload = Workload {
        template: Default::default(),
        kind,
        name: name.into(),
        namespace: "ns".into(),
        uid: "u".into(),
        replicas: 1,
        selector: String::new(),
    };
    Ok(Some(Found { workload, owned }))
}

fn bare(name: &str) -> Query<'_> {
    Query { kind: None, name }
}

fn forbidden() -> Result<Option<Found>, Error> {
    Err(Error::new(Kind::MissingRight, "cannot look"))
}

#[test]
fn every_form_names_its_kind() {
    for (text, kind) in [
        ("web", None),
        ("deploy/web", Some(WorkloadKind::Deployment)),
        ("deployment/web", Some(WorkloadKind::Deployment)),
        ("deployments.apps/web", Some(WorkloadKind::Deployment)),
        ("Deployment.v1.apps/web", Some(WorkloadKind::Deployment)),
        ("sts/web", Some(WorkloadKind::StatefulSet)),
        ("ds/web", Some(WorkloadKind::DaemonSet)),
        ("rs/web", Some(WorkloadKind::ReplicaSet)),
        ("job/web", Some(WorkloadKind::Job)),
        ("jobs.batch/web", Some(WorkloadKind::Job)),
        ("po/web", Some(WorkloadKind::Pod)),
        ("pod/web", Some(WorkloadKind::Pod)),
    ] {
        assert_eq!(Query::parse(text).expect("legal"), Query { kind, name: "web" }, "{text}");
    }
}

#[test]
fn what_cannot_be_a_name_is_refused_before_any_request() {
    for text in ["service/web", "deploy/", "", "web/x/y", "Web", "deployments.batch/web", "web?x=1"] {
        let error = Query::parse(text).expect_err(text);
        assert_eq!(error.kind().exit_code(), 64, "{text}");
        assert!(error.next_step().is_some());
    }
}

#[test]
fn a_name_of_two_kinds_is_refused_and_both_are_listed() {
    let looks = vec![hit(WorkloadKind::Deployment, "web", false), hit(WorkloadKind::StatefulSet, "web", false)];
    let error = choose(&bare("web"), "ns", looks).expect_err("ambiguous");
    assert_eq!(error.to_string(), "\"web\" is ambiguous in namespace ns: deploy/web, sts/web");
}

#[test]
fn what_a_controller_made_is_no_second_kind() {
    let looks = vec![hit(WorkloadKind::StatefulSet, "web", false), hit(WorkloadKind::Pod, "web", true)];
    let chosen = choose(&bare("web"), "ns", looks).expect("one").expect("found");
    assert_eq!(chosen.to_string(), "sts/web");
    let alone = choose(&bare("web"), "ns", vec![hit(WorkloadKind::Pod, "web", true)]).expect("one");
    assert_eq!(alone.expect("found").to_string(), "pod/web");
}

#[test]
fn a_missing_right_matters_only_when_the_name_was_not_found() {
    let looks = vec![forbidden(), hit(WorkloadKind::StatefulSet, "web", false)];
    assert!(choose(&bare("web"), "ns", looks).expect("tolerated").is_some());
    let error = choose(&bare("web"), "ns", vec![forbidden(), Ok(None)]).expect_err("unknown");
    assert_eq!(error.kind(), Kind::MissingRight);
}

#[test]
fn an_unreachable_server_speaks_for_every_kind() {
    let unreachable = Err(Error::new(Kind::Unreachable, "down"));
    let error = choose(&bare("web"), "ns", vec![forbidden(), unreachable]).expect_err("down");
    assert_eq!(error.kind(), Kind::Unreachable);
}

#[test]
fn advice_prefers_other_namespaces_then_near_names_then_all() {
    let here = vec![(WorkloadKind::Deployment, "frontend".to_owned()), (WorkloadKind::Job, "api".to_owned())];
    let elsewhere = ["b".to_owned(), "a".to_owned(), "b".to_owned()];
    assert_eq!(advice(&bare("x"), &here, &elsewhere), "it exists in namespace a, b: choose it with -n");
    assert_eq!(advice(&bare("frontned"), &here, &[]), "near to it: deploy/frontend");
    assert_eq!(advice(&bare("zzz"), &here, &[]), "there are: deploy/frontend, job/api");
    assert!(advice(&bare("zzz"), &[], &[]).starts_with("there is no workload"));
}

#[test]
fn selectors_are_written_as_list_requests_take_them() {
    let selector = serde_json::from_value(json!({
        "matchLabels": {"app": "web"},
        "matchExpressions": [
            {"key": "tier", "operator": "In", "values": ["a", "b"]},
            {"key": "old", "operator": "DoesNotExist"},
            {"key": "team", "operator": "Exists"},
            {"key": "env", "operator": "NotIn", "values": ["prod"]},
        ],
    }))
    .expect("a selector");
    assert_eq!(selector_text(&selector), "app=web,tier in (a,b),!old,team,env notin (prod)");
}

#[test]
fn an_operators_deployment_is_still_what_users_name() {
    let owner = OwnerReference { controller: Some(true), ..OwnerReference::default() };
    let meta = ObjectMeta { owner_references: Some(vec![owner]), ..ObjectMeta::default() };
    assert!(!is_owned(WorkloadKind::Deployment, &meta));
    assert!(is_owned(WorkloadKind::ReplicaSet, &meta));
}
