//! Pure: an environment as a file that other tools read.

use std::ffi::{OsStr, OsString};
use std::fmt::Write as _;

/// Who is to read the file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// `docker run --env-file`: `NAME=VALUE` lines as they are; it knows no quotes, so no value of several lines.
    #[default]
    Docker,
    /// Compose's `env_file`, and other readers of `.env` files.
    Compose,
    /// A shell: `export NAME='VALUE'`.
    Sh,
    /// One object.
    Json,
}

/// A file's text, and the names of the variables that the format cannot carry.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Rendered {
    pub(crate) text: String,
    pub(crate) left_out: Vec<String>,
}

pub(crate) fn render<'a>(env: impl Iterator<Item = &'a (OsString, OsString)>, format: Format) -> Rendered {
    let (mut text, mut left_out, mut object) = (String::new(), Vec::new(), serde_json::Map::new());
    for (name, value) in env {
        let Some((name, value)) = name.to_str().zip(value.to_str()).filter(|(n, v)| format.can_carry(n, v)) else {
            left_out.push(OsStr::to_string_lossy(name).into_owned());
            continue;
        };
        // Writing to a string does not fail.
        let _ = match format {
            Format::Docker => writeln!(text, "{name}={value}"),
            Format::Compose if value.contains('\'') => writeln!(text, "{name}=\"{}\"", escaped(value)),
            Format::Compose => writeln!(text, "{name}='{value}'"),
            Format::Sh => writeln!(text, "export {name}='{}'", value.replace('\'', r"'\''")),
            Format::Json => {
                object.insert(name.to_owned(), value.into());
                Ok(())
            }
        };
    }
    if format == Format::Json {
        text = format!("{:#}\n", serde_json::Value::Object(object));
    }
    Rendered { text, left_out }
}

impl Format {
    fn can_carry(self, name: &str, value: &str) -> bool {
        let is_word = || {
            let is_letter = |c: char| c.is_ascii_alphanumeric() || c == '_';
            name.chars().all(is_letter) && !name.starts_with(|c: char| c.is_ascii_digit())
        };
        match self {
            // A name that begins so would be a comment; one with a space is refused by docker.
            Format::Docker => {
                !value.contains(['\n', '\r']) && !name.starts_with('#') && !name.contains(char::is_whitespace)
            }
            Format::Compose | Format::Sh => is_word(),
            Format::Json => true,
        }
    }
}

/// Within double quotes Compose reads escapes and puts variables in.
fn escaped(value: &str) -> String {
    let escape = |c: char| match c {
        '\\' => r"\\".to_owned(),
        '"' => "\\\"".to_owned(),
        '$' => r"\$".to_owned(),
        '\n' => r"\n".to_owned(),
        '\r' => r"\r".to_owned(),
        other => other.to_string(),
    };
    value.chars().map(escape).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rendered(format: Format) -> Rendered {
        let env = [("PLAIN", "a b=c"), ("QUOTES", "it's \"$HOME\" \\n"), ("LINES", "one\ntwo"), ("with.dot", "x")];
        let env = env.map(|(name, value)| (name.into(), value.into()));
        render(env.iter(), format)
    }

    #[test]
    fn docker_takes_values_as_they_are_and_no_lines() {
        let Rendered { text, left_out } = rendered(Format::Docker);
        assert_eq!(text, "PLAIN=a b=c\nQUOTES=it's \"$HOME\" \\n\nwith.dot=x\n");
        assert_eq!(left_out, ["LINES"]);
    }

    #[test]
    fn compose_gets_quotes_and_nothing_is_put_in() {
        let Rendered { text, left_out } = rendered(Format::Compose);
        assert_eq!(text, "PLAIN='a b=c'\nQUOTES=\"it's \\\"\\$HOME\\\" \\\\n\"\nLINES='one\ntwo'\n");
        assert_eq!(left_out, ["with.dot"]);
    }

    #[test]
    fn a_shell_reads_back_what_was_written() {
        let Rendered { text, left_out } = rendered(Format::Sh);
        assert_eq!(left_out, ["with.dot"]);
        let script = format!("{text}printf '%s|%s|%s' \"$PLAIN\" \"$QUOTES\" \"$LINES\"");
        let output = std::process::Command::new("sh").args(["-c", &script]).output().expect("a shell");
        assert_eq!(String::from_utf8_lossy(&output.stdout), "a b=c|it's \"$HOME\" \\n|one\ntwo");
    }

    #[test]
    fn json_carries_everything_that_is_text() {
        let Rendered { text, left_out } = rendered(Format::Json);
        let object: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!((&object["LINES"], &object["with.dot"]), (&"one\ntwo".into(), &"x".into()));
        assert!(left_out.is_empty());
    }
}
