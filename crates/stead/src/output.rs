//! The two forms of output: text for people, JSON for programs. stdout is data, stderr is talk.

use std::io::Write as _;

use serde::Serialize;

/// How results and errors are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Format {
    #[default]
    Text,
    Json,
}

/// Shared by every command that has results.
#[derive(Clone, Copy, Debug, clap::Args)]
pub(crate) struct OutputArgs {
    /// Form of results and errors
    #[arg(short, long, value_enum, default_value_t, value_name = "FORM")]
    pub(crate) output: Format,
}

/// Writes a result in the asked form.
pub(crate) fn result<T: Serialize>(format: Format, value: &T, text: impl FnOnce(&T) -> String) {
    let shown = match format {
        Format::Text => text(value),
        Format::Json => serde_json::to_string_pretty(value).unwrap_or_default() + "\n",
    };
    // A closed stdout (a pipe to `head`) is the reader's choice, not an error.
    let _ = std::io::stdout().write_all(shown.as_bytes());
}

/// A line of talk, for people only.
pub(crate) fn talk(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// A command line in one line of at most 60 characters.
pub(crate) fn short(command: &[String]) -> String {
    const LONGEST: usize = 60;
    let line = command.join(" ").replace(char::is_control, " ");
    if line.chars().count() <= LONGEST { line } else { line.chars().take(LONGEST - 1).chain(['…']).collect() }
}

/// Columns padded to their widest cell, as kubectl prints tables.
pub(crate) fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|r| r.get(column)).map(|c| c.chars().count());
        cells.chain([head[column].len()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let line = |cells: &mut dyn Iterator<Item = &str>| {
        let padded: Vec<String> = cells.zip(&widths).map(|(cell, &width)| format!("{cell:width$}")).collect();
        padded.join("   ").trim_end().to_owned() + "\n"
    };
    let mut text = line(&mut head.iter().copied());
    for row in rows {
        text += &line(&mut row.iter().map(String::as_str));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_command_is_shown_shortened() {
        assert_eq!(short(&["sh".into(), "-c\n".into()]), "sh -c ");
        assert_eq!(short(&["x".repeat(100)]).chars().count(), 60);
    }

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = [vec!["web".to_owned(), "observe".to_owned()], vec!["a-long-name".to_owned(), String::new()]];
        assert_eq!(table(&["NAME", "KIND"], &rows), "NAME          KIND\nweb           observe\na-long-name\n");
    }
}
