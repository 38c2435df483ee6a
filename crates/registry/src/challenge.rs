//! What a registry asks for in `WWW-Authenticate` (RFC 9110 section 11.6.1). Pure.

use std::collections::BTreeMap;

/// How the registry wants to be shown who asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Challenge {
    Basic,
    /// A token from another server, for this service and scope.
    Bearer {
        realm: String,
        service: String,
        scope: Option<String>,
    },
}

impl Challenge {
    /// Bearer where it is offered; `None` for schemes that nobody knows here.
    pub(crate) fn parse(headers: &[&str]) -> Option<Self> {
        let parsed = headers.iter().filter_map(|header| {
            let (scheme, rest) = header.trim().split_once(' ').unwrap_or((header.trim(), ""));
            let mut parameters = parameters(rest);
            match scheme.to_ascii_lowercase().as_str() {
                "basic" => Some(Challenge::Basic),
                "bearer" => Some(Challenge::Bearer {
                    realm: parameters.remove("realm")?,
                    service: parameters.remove("service").unwrap_or_default(),
                    scope: parameters.remove("scope"),
                }),
                _ => None,
            }
        });
        parsed.max_by_key(|challenge| matches!(challenge, Challenge::Bearer { .. }))
    }
}

/// `a="b", c=d`; a quoted value may hold commas.
fn parameters(text: &str) -> BTreeMap<String, String> {
    let (mut found, mut rest) = (BTreeMap::new(), text);
    while let Some((name, after)) = rest.split_once('=') {
        let after = after.trim_start();
        let (value, next) = match after.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"').unwrap_or((quoted, "")),
            None => after.split_once(',').unwrap_or((after, "")),
        };
        let name = name.trim_matches(|c: char| c == ',' || c.is_whitespace());
        found.insert(name.to_ascii_lowercase(), value.trim().to_owned());
        rest = next;
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_server_is_found_with_its_service_and_scope() {
        let header =
            r#"Bearer realm="https://auth.example/token",service="registry.example",scope="repository:a/b:pull,push""#;
        let expected = Challenge::Bearer {
            realm: "https://auth.example/token".into(),
            service: "registry.example".into(),
            scope: Some("repository:a/b:pull,push".into()),
        };
        assert_eq!(Challenge::parse(&["Basic realm=x", header]), Some(expected));
    }

    #[test]
    fn passwords_are_asked_for_by_basic_and_unknown_schemes_by_nothing() {
        assert_eq!(Challenge::parse(&["Basic realm=\"Registry Realm\""]), Some(Challenge::Basic));
        assert_eq!(Challenge::parse(&["Negotiate"]), None);
        assert_eq!(Challenge::parse(&["Bearer service=x"]), None);
        assert_eq!(Challenge::parse(&[]), None);
    }
}
