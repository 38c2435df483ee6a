//! Names of images: host, repository, tag. Pure.

use std::fmt;
use std::net::IpAddr;

use crate::Error;

/// Where an image is pushed to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reference {
    /// With its port, as the user wrote it: the key of its credentials.
    pub host: String,
    pub repository: String,
    pub tag: String,
}

impl Reference {
    /// The host must be written, since nobody pushes to the default registry's library; a name without a tag gets
    /// `default_tag`.
    pub fn parse(text: &str, default_tag: &str) -> Result<Self, Error> {
        let wrong = |why| Error::Reference(text.to_owned(), why);
        let (host, rest) = text.split_once('/').ok_or_else(|| wrong("it names no registry"))?;
        if !host.contains(['.', ':']) && host != "localhost" {
            return Err(wrong("its first part is no registry's host name"));
        }
        if rest.contains('@') {
            return Err(wrong("a push makes the digest, it cannot be chosen"));
        }
        let (repository, tag) = rest.rsplit_once(':').unwrap_or((rest, default_tag));
        let is_part = |part: &str| {
            let legal = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '.' | '_' | '-');
            !part.is_empty() && part.chars().all(legal) && part.starts_with(|c: char| c.is_ascii_alphanumeric())
        };
        if !repository.split('/').all(is_part) {
            return Err(wrong("a repository has lower-case letters, digits, '.', '_', '-' and '/'"));
        }
        let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        if tag.is_empty() || tag.len() > 128 || !tag.chars().all(legal) {
            return Err(wrong("a tag has letters, digits, '.', '_' and '-'"));
        }
        Ok(Reference { host: host.to_owned(), repository: repository.to_owned(), tag: tag.to_owned() })
    }

    /// Scheme, host and port of its API.
    pub(crate) fn base(&self, insecure: bool) -> String {
        let host = if self.host == "docker.io" { "registry-1.docker.io" } else { &self.host };
        let scheme = if insecure || self.is_this_machine() { "http" } else { "https" };
        format!("{scheme}://{host}")
    }

    /// As runtimes do, a registry on this machine is spoken with in plain HTTP.
    fn is_this_machine(&self) -> bool {
        let host = match self.host.rsplit_once(':') {
            Some((host, port)) if port.chars().all(|c| c.is_ascii_digit()) => host,
            _ => &self.host,
        };
        let host = host.trim_start_matches('[').trim_end_matches(']');
        host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}:{}", self.host, self.repository, self.tag)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_port_repository_and_tag_are_told_apart() {
        for (text, whole, base) in [
            ("registry.example/team/agent:2", "registry.example/team/agent:2", "https://registry.example"),
            ("registry.example:5000/agent", "registry.example:5000/agent:1", "https://registry.example:5000"),
            ("localhost:5000/agent", "localhost:5000/agent:1", "http://localhost:5000"),
            ("127.0.0.1:5000/agent", "127.0.0.1:5000/agent:1", "http://127.0.0.1:5000"),
            ("[::1]:5000/agent", "[::1]:5000/agent:1", "http://[::1]:5000"),
            ("docker.io/team/agent", "docker.io/team/agent:1", "https://registry-1.docker.io"),
        ] {
            let parsed = Reference::parse(text, "1").expect("a name");
            assert_eq!((parsed.to_string().as_str(), parsed.base(false).as_str()), (whole, base));
        }
        let plain = Reference::parse("registry.example/agent", "1").expect("a name");
        assert_eq!(plain.base(true), "http://registry.example");
    }

    #[test]
    fn what_is_no_name_is_refused() {
        for text in [
            "agent",
            "team/agent",
            "r.example/",
            "r.example/A",
            "r.example/a//b",
            "r.example/a:",
            "r.example/a@sha256:0",
            "r.example/../x",
        ] {
            assert!(Reference::parse(text, "1").is_err(), "{text}");
        }
    }
}
