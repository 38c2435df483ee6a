//! Pictures of everything a session could leave behind, and what differs between two of them.
//!
//! A picture is a flat map from a thing's name to its normalised text, so that a difference names the thing. What
//! changes by itself (heartbeats, counters, versions) is left out; what design 2.1 allows to stay is left out too:
//! entries of finished ephemeral containers and, where asked for, a parked agent.

mod api;
mod machine;
mod pods;

pub use machine::processes_of;

use std::collections::BTreeMap;
use std::fmt::Write;

use anyhow::Context;

use crate::lab::{Account, Api, Lab};

/// Prefix of an agent's container name.
pub const AGENT: &str = "stead-agent-";

/// What is looked at.
pub struct Camera {
    lab: Lab,
    api: Api,
    account: Account,
    namespace: String,
}

/// May a parked agent still be there?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parked {
    Allowed,
    Forbidden,
}

/// One picture.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Picture(BTreeMap<String, String>);

impl Camera {
    /// Looks at the whole API, the machine, and the insides of one namespace's pods.
    pub fn new(lab: &Lab, namespace: &str) -> anyhow::Result<Camera> {
        let api = Api::start(lab)?;
        Ok(Camera { api, account: lab.account()?, namespace: namespace.to_owned(), lab: lab.clone() })
    }

    /// The API, for tests that ask it more.
    pub fn api(&self) -> &Api {
        &self.api
    }

    /// The unprivileged user.
    pub fn account(&self) -> &Account {
        &self.account
    }

    /// The cluster's objects and the insides of the pods.
    pub fn cluster(&self, parked: Parked) -> anyhow::Result<Picture> {
        let mut picture = Picture::default();
        api::take(&self.api, &self.namespace, parked, &mut picture).context("cannot list the API's objects")?;
        let pods = self.api.list(&format!("/api/v1/namespaces/{}/pods", self.namespace))?;
        pods::take(&pods, parked, &mut picture)?;
        Ok(picture)
    }

    /// The developer's machine: what must be as before as soon as the client is gone.
    pub fn machine(&self) -> anyhow::Result<Picture> {
        let mut picture = Picture::default();
        machine::take(&self.lab, &self.account, &mut picture).context("cannot look at the developer's machine")?;
        Ok(picture)
    }
}

impl Picture {
    fn put(&mut self, name: impl Into<String>, text: impl Into<String>) {
        self.0.insert(name.into(), text.into());
    }

    /// What is in the other picture, gone or different, one line each; empty when they are equal.
    pub fn differences(&self, after: &Picture) -> Vec<String> {
        let mut found = Vec::new();
        for (name, text) in &after.0 {
            match self.0.get(name) {
                None => found.push(format!("new: {name}: {}", head(text))),
                Some(before) if before != text => {
                    found.push(format!("changed: {name}:{}", changed_lines(before, text)))
                }
                Some(_) => {}
            }
        }
        let gone = self.0.keys().filter(|name| !after.0.contains_key(*name));
        found.extend(gone.map(|name| format!("gone: {name}")));
        found
    }
}

fn head(text: &str) -> String {
    let line = text.lines().next().unwrap_or_default();
    line.chars().take(160).collect()
}

/// The lines that only one side has, at most six of each.
fn changed_lines(before: &str, after: &str) -> String {
    let mut out = String::new();
    for (sign, here, there) in [('-', before, after), ('+', after, before)] {
        for line in here.lines().filter(|line| !there.lines().any(|other| other == *line)).take(6) {
            let _ = write!(out, "\n    {sign} {}", line.trim()); // writing to a String cannot fail
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn picture(entries: &[(&str, &str)]) -> Picture {
        Picture(entries.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect())
    }

    #[test]
    fn equal_pictures_differ_in_nothing() {
        let one = picture(&[("route", "default"), ("link", "lo")]);
        assert!(one.differences(&one.clone()).is_empty());
    }

    #[test]
    fn each_kind_of_difference_is_named() {
        let before = picture(&[("a", "1"), ("b", "x\ny"), ("c", "same")]);
        let after = picture(&[("b", "x\nz"), ("c", "same"), ("d", "4")]);
        let found = before.differences(&after);
        assert_eq!(found, ["changed: b:\n    - y\n    + z", "new: d: 4", "gone: a"]);
    }
}
