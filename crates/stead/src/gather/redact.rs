//! Takes secrets out of text and JSON, and on request names and addresses. Pure.
//!
//! Three nets: values known to be secret are replaced wherever they stand; what stands behind a name that sounds secret is
//! replaced, whatever it is; and what looks like a key, token or password in a URL is replaced, wherever it stands.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Mutex, PoisonError};

use serde_json::Value;

const REDACTED: &str = "[redacted]";

/// Shorter known values are words that stand everywhere.
const SHORTEST: usize = 4;

/// A run of letters of both cases and digits this long is a key, not a name: 30 bytes in base64.
const KEY_LENGTH: usize = 40;

/// Parts of names whose values are not for others.
const SECRET_NAMES: [&str; 14] = [
    "password",
    "passwd",
    "passphrase",
    "secret",
    "token",
    "apikey",
    "api_key",
    "api-key",
    "access_key",
    "access-key",
    "private_key",
    "private-key",
    "credential",
    "client-key-data",
];

/// Headers, whose values may have several words.
const HEADERS: [&str; 5] = ["authorization", "cookie", "x-api-key", "x-auth-token", "www-authenticate"];

/// Whether a value of this name is a secret.
pub(crate) fn looks_secret(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    SECRET_NAMES.iter().any(|part| name.contains(part)) || name.ends_with("_key") || name.ends_with("_pass")
}

pub(crate) struct Redactor {
    /// Longest first, so that a value that holds another is taken whole.
    known: Vec<String>,
    /// Name and what stands for it; empty unless anonymous.
    names: Vec<(String, String)>,
    /// Addresses and what stands for them, where anonymous.
    addresses: Option<Mutex<BTreeMap<IpAddr, usize>>>,
}

impl Redactor {
    /// `known` are secret values. With `names` (kind and name: `("user", "dev")`) the text is made anonymous, too.
    pub(crate) fn new(known: impl IntoIterator<Item = String>, names: Option<&[(&str, String)]>) -> Self {
        let mut known: Vec<String> = known.into_iter().filter(|value| value.len() >= SHORTEST).collect();
        known.sort_by_key(|value| std::cmp::Reverse(value.len()));
        known.dedup();
        let mut stand_ins: Vec<(String, String)> = Vec::new();
        for (kind, name) in names.unwrap_or_default() {
            if !name.is_empty() && !stand_ins.iter().any(|(other, _)| other == name) {
                stand_ins.push((name.clone(), format!("{kind}-{}", stand_ins.len() + 1)));
            }
        }
        stand_ins.sort_by_key(|(name, _)| std::cmp::Reverse(name.len()));
        Redactor { known, names: stand_ins, addresses: names.map(|_| Mutex::default()) }
    }

    /// Every text in it; what a secret name holds is gone, whatever its form.
    pub(crate) fn json(&self, value: Value) -> Value {
        match value {
            Value::String(text) => Value::String(self.text(&text)),
            Value::Array(all) => Value::Array(all.into_iter().map(|value| self.json(value)).collect()),
            Value::Object(all) => {
                let redacted = |(name, value): (String, Value)| {
                    let is_text = value.is_string() || value.is_array() || value.is_object();
                    let value = if looks_secret(&name) && is_text { REDACTED.into() } else { self.json(value) };
                    (name, value)
                };
                Value::Object(all.into_iter().map(redacted).collect())
            }
            other => other,
        }
    }

    pub(crate) fn text(&self, text: &str) -> String {
        let mut text = without_pem(text);
        for value in &self.known {
            text = text.replace(value.as_str(), REDACTED);
        }
        let mut text: String = text.split_inclusive('\n').map(line).collect();
        for (name, stand_in) in &self.names {
            text = replace_word(&text, name, stand_in);
        }
        match &self.addresses {
            Some(addresses) => without_addresses(&text, addresses),
            None => text,
        }
    }
}

/// Certificates and keys, from BEGIN to END, or to the end of the text.
fn without_pem(text: &str) -> String {
    const BEGIN: &str = "-----BEGIN ";
    const END: &str = "-----END ";
    let (mut kept, mut rest) = (String::new(), text);
    while let Some(begin) = rest.find(BEGIN) {
        kept += &rest[..begin];
        kept += REDACTED;
        let body = &rest[begin + BEGIN.len()..];
        rest = match body.split_once(END).and_then(|(_, end)| end.split_once("-----")) {
            Some((_, after)) => after,
            None => "",
        };
    }
    kept + rest
}

/// One line, its end included.
fn line(line: &str) -> String {
    let (body, end) = line.strip_suffix('\n').map_or((line, ""), |body| (body, "\n"));
    let lower = body.to_ascii_lowercase();
    let header = HEADERS.iter().filter_map(|name| value_of_header(&lower, name)).min();
    let body = match header {
        // To the end: where a header's value ends is for its own grammar to say.
        Some(at) => format!("{} {REDACTED}", words(&body[..at])),
        None => words(body),
    };
    body + end
}

/// Where the value of this header begins, behind its colon or equals sign.
fn value_of_header(lower: &str, name: &str) -> Option<usize> {
    let at = lower.find(name)? + name.len();
    let rest = &lower[at..];
    let sign = rest.find([':', '='])?;
    let between_is_quotes = rest[..sign].chars().all(|c| matches!(c, '"' | '\'' | '\\' | ' '));
    between_is_quotes.then_some(at + sign + 1)
}

fn is_word(c: char) -> bool {
    !c.is_whitespace()
        && !matches!(c, '"' | '\'' | '\\' | ',' | ';' | '(' | ')' | '{' | '}' | '[' | ']' | '<' | '>' | '&' | '?')
}

/// Words of a line, each looked at beside the one before it.
fn words(text: &str) -> String {
    let (mut out, mut rest) = (String::with_capacity(text.len()), text);
    // The value of a secret name, or of `Bearer`, comes next.
    let mut is_secret = false;
    while !rest.is_empty() {
        let between = rest.find(is_word).unwrap_or(rest.len());
        let quote = rest[..between].chars().next_back().filter(|c| matches!(c, '"' | '\''));
        out += &rest[..between];
        rest = &rest[between..];
        let plain = rest.find(|c| !is_word(c)).unwrap_or(rest.len());
        let is_sign = rest[..plain].chars().all(|c| matches!(c, ':' | '='));
        let quoted = quote.filter(|_| is_secret && !is_sign).and_then(|quote| rest.find(quote));
        let (word, after) = rest.split_at(quoted.unwrap_or(plain));
        rest = after;
        if is_sign {
            out += word;
            continue;
        }
        out += &if is_secret { REDACTED.to_owned() } else { self::word(word) };
        is_secret = !is_secret && announces(word, rest);
    }
    out
}

/// Whether what follows this word is a secret: `token:`, `"password": …`, `secret = …`, `Bearer …`.
fn announces(word: &str, rest: &str) -> bool {
    if word.eq_ignore_ascii_case("bearer") || word.eq_ignore_ascii_case("basic") {
        return true;
    }
    let name = word.trim_end_matches([':', '=']);
    let ends_in_sign = name.len() < word.len();
    let is_flag = word.starts_with("--") && !word.contains('=');
    let sign_follows = rest.trim_start_matches(['"', '\'', '\\', ' ']).starts_with([':', '=']);
    looks_secret(name) && (ends_in_sign || is_flag || sign_follows)
}

fn word(word: &str) -> String {
    if let Some((scheme, rest)) = word.split_once("://") {
        let authority = rest.split('/').next().unwrap_or_default();
        if let Some((_, host)) = authority.rsplit_once('@') {
            return format!("{scheme}://{REDACTED}@{host}{}", &rest[authority.len()..]);
        }
    }
    if let Some(at) = word.find(['=', ':'])
        && at + 1 < word.len()
        && looks_secret(&word[..at])
    {
        return format!("{}{REDACTED}", &word[..=at]);
    }
    let value = word.rsplit(['=', ':']).next().unwrap_or_default();
    if looks_like_key(value) { format!("{}{REDACTED}", &word[..word.len() - value.len()]) } else { word.to_owned() }
}

fn looks_like_key(word: &str) -> bool {
    let is_base64 = |c: char| c.is_ascii_alphanumeric() || matches!(c, '+' | '/' | '_' | '-' | '=' | '.' | '~');
    let has = |is: fn(&char) -> bool| word.chars().any(|c| is(&c));
    let mixed = has(char::is_ascii_uppercase) && has(char::is_ascii_lowercase) && has(char::is_ascii_digit);
    let is_jwt = word.starts_with("eyJ") && word.len() >= 20;
    let is_aws = word.len() == 20 && word.starts_with("AKIA");
    is_jwt || is_aws || (word.len() >= KEY_LENGTH && mixed && word.chars().all(is_base64))
}

/// `name` where it is a word of its own.
fn replace_word(text: &str, name: &str, stand_in: &str) -> String {
    let (mut out, mut rest) = (String::with_capacity(text.len()), text);
    while let Some(at) = rest.find(name) {
        let after = &rest[at + name.len()..];
        let before = rest[..at].chars().next_back().or_else(|| out.chars().next_back());
        let is_part = |c: Option<char>| c.is_some_and(char::is_alphanumeric);
        out += &rest[..at];
        out += if is_part(before) || is_part(after.chars().next()) { name } else { stand_in };
        rest = after;
    }
    out + rest
}

fn without_addresses(text: &str, seen: &Mutex<BTreeMap<IpAddr, usize>>) -> String {
    let belongs = |c: char| c.is_ascii_hexdigit() || matches!(c, '.' | ':');
    let (mut out, mut rest) = (String::with_capacity(text.len()), text);
    while !rest.is_empty() {
        let before = rest.find(belongs).unwrap_or(rest.len());
        out += &rest[..before];
        rest = &rest[before..];
        let length = rest.find(|c| !belongs(c)).unwrap_or(rest.len());
        let (run, after) = rest.split_at(length);
        let run_end = run.trim_end_matches(['.', ':']);
        let address = run_end.parse::<SocketAddr>().map(|it| it.ip()).or_else(|_| run_end.parse::<IpAddr>());
        match address {
            Ok(address) => {
                let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
                let next = seen.len() + 1;
                out += &format!("address-{}", seen.entry(address).or_insert(next));
                out += &run[run_end.len()..];
            }
            Err(_) => out += run,
        }
        rest = after;
    }
    out
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn plain() -> Redactor {
        Redactor::new([], None)
    }

    #[test]
    fn secrets_in_all_their_dresses_are_gone() {
        let jwt = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJkZXYifQ.c2lnbmF0dXJl";
        for text in [
            "Authorization: Bearer XsecretX and more".to_owned(),
            r#"{"headers":{"cookie":"a=XsecretX; b=XsecretX"}}"#.to_owned(),
            "got bearer XsecretX".to_owned(),
            "DB_PASSWORD=XsecretX".to_owned(),
            r#""password": "XsecretX with XsecretX""#.to_owned(),
            "api_key = XsecretX".to_owned(),
            "token: XsecretX".to_owned(),
            "curl --token XsecretX http://a".to_owned(),
            "dial postgres://dev:XsecretX@db:5432/app failed".to_owned(),
            "before -----BEGIN PRIVATE KEY-----\nXsecretX\n-----END PRIVATE KEY----- after".to_owned(),
            "-----BEGIN CERTIFICATE-----\nXsecretX cut off".to_owned(),
            "uses AKIAXsecretXABCDEFGH".to_owned(),
            format!("jwt {jwt}XsecretX"),
            "key c2VjcmV0IHZhbHVlIHRoYXQgaXMgbG9uZyBlbm91Z2ggMTIzXsecretX".to_owned(),
        ] {
            let text = plain().text(&text);
            assert!(!text.contains("XsecretX"), "{text}");
            assert!(text.contains(REDACTED), "{text}");
        }
    }

    #[test]
    fn what_helps_to_understand_stays() {
        for text in [
            "pods \"web-56f9d45fd9-fp4nk\" is forbidden: User \"dev\" cannot list resource \"secrets\" in API group \"\"",
            "lost the cluster: connection reset; reconnecting, open connections wait\n",
            "Pulling image \"registry.example:5000/stead-agent@sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08\"",
            "session 1b7e60b5d5031b9522f9ab931f54bba6 https://172.29.0.2:6443/api 2026-11-23T05:00:01.000001Z",
        ] {
            assert_eq!(plain().text(text), text);
        }
    }

    #[test]
    fn known_values_are_gone_wherever_they_stand() {
        let redactor = Redactor::new(["hunter2".to_owned(), "hunter2-long".to_owned(), "a".to_owned()], None);
        assert_eq!(redactor.text("xhunter2-longx hunter2 a"), "x[redacted]x [redacted] a");
    }

    #[test]
    fn json_stays_json_and_loses_values_of_secret_names() {
        let value = json!({"name": "web", "token": "t", "nested": [{"clientSecret": {"a": 1}, "note": "password=x"}], "tokens": 3});
        let expected = json!({"name": "web", "token": "[redacted]", "nested": [{"clientSecret": "[redacted]", "note": "password=[redacted]"}], "tokens": 3});
        assert_eq!(plain().json(value), expected);
    }

    #[test]
    fn anonymous_text_tells_the_same_name_by_the_same_stand_in() {
        let names = [("user", "dev".to_owned()), ("host", "box.example".to_owned()), ("user", "dev".to_owned())];
        let redactor = Redactor::new([], Some(&names));
        assert_eq!(
            redactor.text("dev@box.example /home/dev/device 10.0.0.1:80 [fd00::1]:80 10.0.0.1. 12:30:15 1.2"),
            "user-1@host-2 /home/user-1/device address-1 [address-2]:80 address-1. 12:30:15 1.2"
        );
        assert_eq!(plain().text("dev 10.0.0.1"), "dev 10.0.0.1");
    }
}
