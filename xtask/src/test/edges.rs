//! Dependencies point one way: binary → shells → pure crates → `wire`. Here stand the edges that must not be.

use std::collections::{HashMap, HashSet};

use anyhow::{Result, ensure};
use serde_json::Value;

use crate::cargo::metadata;

/// Who must not depend on what, directly or through others.
const FORBIDDEN: [(&str, &[&str]); 12] = [
    ("wire", &["tokio", "kube", "cluster", "datagram", "link", "sandbox", "dns", "agent", "session", "oci", "rand"]),
    ("oci", &["tokio", "kube", "wire", "link", "cluster", "sandbox", "session"]),
    ("link", &["kube", "wire", "cluster", "sandbox", "dns", "session"]),
    ("sandbox", &["kube", "link", "wire", "cluster", "dns", "session", "rustls"]),
    ("datagram", &["kube", "link", "cluster", "sandbox", "session", "rustls"]),
    ("dns", &["kube", "link", "wire", "cluster", "sandbox", "session", "rustls"]),
    ("registry", &["kube", "link", "wire", "cluster", "sandbox", "session"]),
    ("cluster", &["link", "sandbox", "session"]),
    // The agent can do nothing but be an agent: no client of the API server is in it.
    ("stead-agent", &["kube", "cluster", "sandbox", "session", "clap"]),
    ("session", &["oci", "clap"]),
    // What tests need is not shipped.
    ("stead", &["testkit", "cluster-tests", "xtask", "proptest", "insta"]),
    ("testkit", &["tokio", "kube", "link", "cluster", "sandbox", "session"]),
];

pub(crate) fn check() -> Result<()> {
    let edges = edges(&metadata(true)?);
    let mut found = Vec::new();
    for (from, forbidden) in FORBIDDEN {
        let reached = reach(from, &edges);
        found.extend(forbidden.iter().filter(|to| reached.contains(**to)).map(|to| format!("{from} depends on {to}")));
    }
    ensure!(found.is_empty(), "forbidden edges: {}", found.join(", "));
    Ok(())
}

/// Package name → names of its normal dependencies (not those of builds and tests).
fn edges(metadata: &Value) -> HashMap<String, Vec<String>> {
    let name = |id: &Value| names(metadata).get(id.as_str().unwrap_or_default()).cloned().unwrap_or_default();
    let mut edges = HashMap::new();
    for node in metadata["resolve"]["nodes"].as_array().into_iter().flatten() {
        let dependencies = node["deps"].as_array().into_iter().flatten();
        let normal = dependencies.filter(|dependency| {
            dependency["dep_kinds"].as_array().is_some_and(|kinds| kinds.iter().any(|kind| kind["kind"].is_null()))
        });
        edges.insert(name(&node["id"]), normal.map(|dependency| name(&dependency["pkg"])).collect());
    }
    edges
}

fn names(metadata: &Value) -> HashMap<&str, String> {
    let packages = metadata["packages"].as_array().into_iter().flatten();
    packages.filter_map(|package| Some((package["id"].as_str()?, package["name"].as_str()?.to_owned()))).collect()
}

/// Everything that `from` needs, directly or not.
fn reach<'a>(from: &'a str, edges: &'a HashMap<String, Vec<String>>) -> HashSet<&'a str> {
    let mut reached = HashSet::new();
    let mut open = vec![from];
    while let Some(name) = open.pop() {
        for next in edges.get(name).into_iter().flatten() {
            if reached.insert(next.as_str()) {
                open.push(next);
            }
        }
    }
    reached
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edges_through_others_are_found() {
        let edges = HashMap::from([
            ("stead".to_owned(), vec!["session".to_owned()]),
            ("session".to_owned(), vec!["kube".to_owned()]),
        ]);
        assert!(reach("stead", &edges).contains("kube"));
        assert!(!reach("kube", &edges).contains("stead"));
    }

    #[test]
    fn build_and_test_dependencies_are_no_edges() {
        let metadata = serde_json::json!({
            "packages": [{"id": "a#1", "name": "a"}, {"id": "b#1", "name": "b"}, {"id": "c#1", "name": "c"}],
            "resolve": {"nodes": [{"id": "a#1", "deps": [
                {"pkg": "b#1", "dep_kinds": [{"kind": null}]},
                {"pkg": "c#1", "dep_kinds": [{"kind": "dev"}]},
            ]}]},
        });
        assert_eq!(edges(&metadata)["a"], ["b"]);
    }
}
