//! The README's commands work as they stand there.

use std::path::PathBuf;

use anyhow::{Context, ensure};

use super::{Row, row};
use crate::world::World;

pub(super) const ROWS: &[Row] =
    &[row("DOC", "every fenced sh block of README.md succeeds for the unprivileged user", blocks)];

fn blocks(world: &World) -> anyhow::Result<()> {
    let root = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
    let text = std::fs::read_to_string(root.join("README.md")).context("there is no README.md")?;
    let blocks = fenced(&text);
    ensure!(!blocks.is_empty(), "README.md has no ```sh block");
    for (line, block) in blocks {
        let stead = PathBuf::from(world.stead());
        let bin = stead.parent().context("stead lies in a directory")?.display();
        let script = format!("set -eu\nexport PATH={bin}:$PATH\n{block}");
        let mut command = world.lab().user(["bash", "-c", &script]);
        command.current_dir(&root).env("STEAD_AGENT_IMAGE", world.agent_image());
        let output = command.output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "the block at line {line} ended with {}:\n{block}\n{said}", output.status);
    }
    Ok(())
}

/// Blocks that are fenced as `sh`, with their line numbers.
fn fenced(text: &str) -> Vec<(usize, String)> {
    let mut blocks = Vec::new();
    let mut open: Option<(usize, String)> = None;
    for (number, line) in text.lines().enumerate() {
        match (&mut open, line.trim_end()) {
            (None, "```sh") => open = Some((number + 2, String::new())),
            (Some(_), "```") => blocks.extend(open.take()),
            (Some((_, block)), line) => {
                block.push_str(line);
                block.push('\n');
            }
            _ => {}
        }
    }
    blocks
}

#[cfg(test)]
mod tests {
    use super::fenced;

    #[test]
    fn only_sh_blocks_are_taken() {
        let text = "a\n```sh\none\ntwo\n```\n```text\nthree\n```\n";
        assert_eq!(fenced(text), [(3, "one\ntwo\n".to_owned())]);
    }
}
