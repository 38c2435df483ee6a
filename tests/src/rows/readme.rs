//! The README's and the user guide's commands work as they stand there.

use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use testkit::lab::within;
use testkit::shop;

use super::{Row, row};
use crate::world::World;

pub(super) const ROWS: &[Row] = &[
    row("DOC", "every fenced sh block of README.md succeeds for the unprivileged user", blocks),
    row("DOC", "every command of the user guide prints what the guide shows", guide),
];

/// `cargo xtask` is the build that runs already, as the user may not build where it was built; its `test` is what asks.
const CARGO: &str = "#!/bin/sh\n[ \"$1 $2\" = 'xtask test' ] && exit\n[ \"$1\" = xtask ] && shift && exec \"$STEAD_XTASK\" \"$@\"\nexit 64\n";

fn root() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

fn blocks(world: &World) -> anyhow::Result<()> {
    let root = root();
    let text = std::fs::read_to_string(root.join("README.md")).context("there is no README.md")?;
    let blocks = fenced(&text, "sh");
    ensure!(!blocks.is_empty(), "README.md has no ```sh block");
    let shop = Shop::open(world)?;
    let tools = tools()?;
    for (line, block) in blocks {
        let script = format!("set -eu\nexport PATH={}:{}:$PATH\n{block}", tools.path().display(), bin(world)?);
        let mut command = world.lab().user(["bash", "-c", &script]);
        command.current_dir(&root).env("STEAD_AGENT_IMAGE", world.agent_image());
        let output = command.output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "the block at line {line} ended with {}:\n{block}\n{said}", output.status);
    }
    shop.close()
}

/// Where `stead` lies.
fn bin(world: &World) -> anyhow::Result<String> {
    let stead = PathBuf::from(world.stead());
    Ok(stead.parent().context("stead lies in a directory")?.display().to_string())
}

/// Each page in a directory of its own, in which its commands may write.
fn guide(world: &World) -> anyhow::Result<()> {
    let shop = Shop::open(world)?;
    let mut pages: Vec<PathBuf> =
        std::fs::read_dir(root().join("docs/guide"))?.map(|page| Ok(page?.path())).collect::<anyhow::Result<_>>()?;
    pages.sort();
    // Later ones find an agent there, and say nothing of a slow start.
    world.run("deploy/web").flags(&["-n", "default", "--park", "10m"]).stdout(&["true"])?;
    let (mut wrong, mut run) = (Vec::new(), 0);
    for page in pages {
        let dir = tempfile::tempdir()?;
        std::fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o777))?;
        let text = std::fs::read_to_string(&page)?;
        for (line, command, shown) in fenced(&text, "console").iter().flat_map(|(line, block)| commands(*line, block)) {
            run += 1;
            // The terminal shows both.
            let script =
                format!("exec 2>&1\nexport PATH={}:$PATH\ncd {}\n{command}", bin(world)?, dir.path().display());
            let mut bash = world.lab().user(["bash", "-c", &script]);
            let output = bash.env("STEAD_AGENT_IMAGE", world.agent_image()).output()?;
            let said = String::from_utf8_lossy(&output.stdout);
            // What is not shown only must succeed; the exit code is shown where it matters.
            let fails = shown.is_empty() && !output.status.success();
            if fails || (!shown.is_empty() && !matches(&shown, &said)) {
                let name = page.file_name().unwrap_or_default().display();
                wrong.push(format!("{name}:{line}: $ {command}\n{said}\nand not\n{shown}"));
            }
        }
    }
    ensure!(run > 20, "only {run} commands are in the guide");
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    shop.close()
}

/// The commands of a console block, each with its line number and what is shown below it.
fn commands(first: usize, block: &str) -> Vec<(usize, String, String)> {
    let mut found: Vec<(usize, String, String)> = Vec::new();
    for (number, line) in block.lines().enumerate() {
        match (line.strip_prefix("$ "), found.last_mut()) {
            (Some(command), _) => found.push((first + number, command.to_owned(), String::new())),
            (None, Some((.., shown))) => {
                shown.push_str(line);
                shown.push('\n');
            }
            (None, None) => {}
        }
    }
    found
}

/// Whether `said` is what is shown: `...` stands for any text of a line, on a line of its own for any lines.
fn matches(shown: &str, said: &str) -> bool {
    fn lines(shown: &[&str], said: &[&str]) -> bool {
        match (shown.split_first(), said.split_first()) {
            (None, None) => true,
            (Some((&"...", rest)), None) => lines(rest, said),
            (Some((&"...", rest)), Some((_, later))) => lines(rest, said) || lines(shown, later),
            (Some((first, rest)), Some((line, later))) => one(first, line) && lines(rest, later),
            _ => false,
        }
    }
    fn one(shown: &str, line: &str) -> bool {
        match shown.split_once("...") {
            None => shown == line,
            Some((before, after)) => line.strip_prefix(before).is_some_and(|rest| {
                rest.char_indices().map(|(at, _)| at).chain([rest.len()]).any(|at| one(after, &rest[at..]))
            }),
        }
    }
    let split = |text| -> Vec<&str> { str::lines(text).map(str::trim_end).collect() };
    lines(&split(shown), &split(said))
}

fn tools() -> anyhow::Result<tempfile::TempDir> {
    let dir = tempfile::tempdir()?;
    let cargo = dir.path().join("cargo");
    std::fs::write(&cargo, CARGO)?;
    for place in [dir.path(), &cargo] {
        std::fs::set_permissions(place, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    }
    Ok(dir)
}

/// The README's services, in the default namespace while this lives.
struct Shop<'a> {
    world: &'a World,
    file: tempfile::TempPath,
}

impl Shop<'_> {
    fn open(world: &World) -> anyhow::Result<Shop<'_>> {
        let file = tempfile::Builder::new().suffix(".yaml").tempfile()?;
        std::fs::write(file.path(), shop::manifest("default", world.testapp_image()))?;
        let shop = Shop { world, file: file.into_temp_path() };
        world.lab().apply(&shop.file)?;
        for service in shop::SERVICES {
            let name = format!("deployment/{service}");
            world.lab().kubectl(&["wait", &name, "--for=condition=Available", "--timeout=60s"])?;
        }
        Ok(shop)
    }

    /// Removes it and waits until its pods are gone.
    fn close(self) -> anyhow::Result<()> {
        self.delete()?;
        within(std::time::Duration::from_secs(30), || {
            let pods = self.world.camera().api().list("/api/v1/namespaces/default/pods")?;
            ensure!(pods.is_empty(), "{} pods of the shop are left", pods.len());
            Ok(())
        })
    }

    fn delete(&self) -> anyhow::Result<()> {
        let file: &Path = &self.file;
        let words = ["delete", "--ignore-not-found", "-f", &file.display().to_string()];
        self.world.lab().kubectl(&words).map(drop)
    }
}

impl Drop for Shop<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.delete() {
            eprintln!("the README's services stay: {error:#}");
        }
    }
}

/// Blocks that are fenced as this language, with their line numbers.
fn fenced(text: &str, language: &str) -> Vec<(usize, String)> {
    let mut blocks = Vec::new();
    let mut open: Option<(usize, String)> = None;
    for (number, line) in text.lines().enumerate() {
        match (&mut open, line.trim_end()) {
            (None, fence) if fence.strip_prefix("```") == Some(language) => open = Some((number + 2, String::new())),
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
    use super::{commands, fenced, matches};

    #[test]
    fn only_sh_blocks_are_taken() {
        let text = "a\n```sh\none\ntwo\n```\n```text\nthree\n```\n";
        assert_eq!(fenced(text, "sh"), [(3, "one\ntwo\n".to_owned())]);
    }

    #[test]
    fn a_console_block_is_commands_and_what_they_print() {
        let found = commands(7, "$ one\n$ two; echo $?\na\nb\n");
        assert_eq!(found, [(7, "one".into(), String::new()), (8, "two; echo $?".into(), "a\nb\n".into())]);
    }

    #[test]
    fn dots_stand_for_any_text_and_any_lines() {
        assert!(matches("a ... c\n...\nz\n", "a b c\n1\n2\nz\n") && matches("...\nz", "z") && matches("a\n...", "a"));
        assert!(
            !matches("a ... c", "a b d")
                && !matches("a\n...\nz", "a\nb\n")
                && !matches("a", "a\nb")
                && !matches("a\nb", "a")
        );
    }
}
