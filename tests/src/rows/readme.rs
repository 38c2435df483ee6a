//! The README's commands work as they stand there.

use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use testkit::lab::within;
use testkit::shop;

use super::{Row, row};
use crate::world::World;

pub(super) const ROWS: &[Row] =
    &[row("DOC", "every fenced sh block of README.md succeeds for the unprivileged user", blocks)];

/// `cargo xtask` is the build that runs already, as the user may not build where it was built; its `test` is what asks.
const CARGO: &str = "#!/bin/sh\n[ \"$1 $2\" = 'xtask test' ] && exit\n[ \"$1\" = xtask ] && shift && exec \"$STEAD_XTASK\" \"$@\"\nexit 64\n";

fn blocks(world: &World) -> anyhow::Result<()> {
    let root = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
    let text = std::fs::read_to_string(root.join("README.md")).context("there is no README.md")?;
    let blocks = fenced(&text);
    ensure!(!blocks.is_empty(), "README.md has no ```sh block");
    let shop = Shop::open(world)?;
    let tools = tools()?;
    for (line, block) in blocks {
        let stead = PathBuf::from(world.stead());
        let bin = stead.parent().context("stead lies in a directory")?.display();
        let script = format!("set -eu\nexport PATH={}:{bin}:$PATH\n{block}", tools.path().display());
        let mut command = world.lab().user(["bash", "-c", &script]);
        command.current_dir(&root).env("STEAD_AGENT_IMAGE", world.agent_image());
        let output = command.output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "the block at line {line} ended with {}:\n{block}\n{said}", output.status);
    }
    shop.close()
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
