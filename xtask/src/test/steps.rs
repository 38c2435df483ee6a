//! The steps of a test run.

use std::path::PathBuf;
use std::process::Stdio;

use anyhow::{Context, Result};

use crate::arena::{Arena, Found, own_command};
use crate::cargo::{cargo, metadata, target_dir};
use crate::test::tally::{Tally, run, run_with_lines};
use crate::test::{Args, edges};
use crate::testbed::gobuild::REGISTRY;
use crate::{cache, shell};

/// Formatting, lints, licences, dependency edges.
pub(crate) fn style(tally: &mut Tally) {
    tally.step("formatting", || run(&mut cargo(&["fmt", "--all", "--check"])));
    tally.step("lints", || {
        run(&mut cargo(&["clippy", "--workspace", "--all-targets", "--locked", "--quiet", "--", "--deny", "warnings"]))
    });
    tally.step("dependency edges", edges::check);
    tally.step("licences and bans", || {
        let mut deny = std::process::Command::new(cargo_deny()?);
        deny.current_dir(cache::checkout());
        run(deny.args(["--workspace", "--log-level", "error", "check", "licenses", "bans", "sources"]))
    });
}

/// Installed once, into the cache.
fn cargo_deny() -> Result<PathBuf> {
    const VERSION: &str = "0.19.0";
    let root = cache::root()?.join(format!("cargo-deny-{VERSION}"));
    let program = root.join("bin/cargo-deny");
    if !program.exists() {
        // A debug build: five minutes less to build, a second more to run.
        let mut install = cargo(&["install", "cargo-deny", "--locked", "--quiet", "--debug", "--version", VERSION]);
        // The checkout's configuration names a target and static linking; this is a tool of this machine.
        install.current_dir("/").env("CARGO_TARGET_DIR", root.join("target"));
        run(install.arg("--root").arg(&root)).context("cannot install cargo-deny")?;
        std::fs::remove_dir_all(root.join("target"))?;
    }
    Ok(program)
}

/// Every test that is not of the namespace lab.
pub(crate) fn unit(tally: &mut Tally) {
    let Ok(targets) = test_targets() else {
        tally.step("unit", || test_targets().map(drop));
        return;
    };
    let mut words = vec!["test", "--workspace", "--locked", "--quiet", "--no-fail-fast", "--lib", "--bins"];
    for name in targets.iter().filter(|name| !is_lab(name)) {
        words.extend(["--test", name]);
    }
    tally.count("unit tests", || cargo_test(&words));
}

/// Test targets called `lab…` make namespaces.
pub(crate) fn lab(tally: &mut Tally) {
    let targets = test_targets().unwrap_or_default();
    let mut words = vec!["test", "--workspace", "--locked", "--quiet", "--no-fail-fast"];
    for name in targets.iter().filter(|name| is_lab(name)) {
        words.extend(["--test", name]);
    }
    tally.count("namespace lab", || cargo_test(&words));
}

/// Each fuzz target for a short while, from its kept corpus.
pub(crate) fn fuzz(tally: &mut Tally) {
    const SECONDS: &str = "10";
    for target in ["frames", "messages", "websocket"] {
        tally.step(&format!("fuzzing {target} for {SECONDS} s"), || {
            let mut command = std::process::Command::new(cache::checkout().join("fuzz/run"));
            run(command.args([target, SECONDS]).stdin(Stdio::null()).stderr(Stdio::null()))
        });
    }
}

fn is_lab(name: &str) -> bool {
    name == "lab" || name.starts_with("lab_")
}

fn test_targets() -> Result<Vec<String>> {
    let metadata = metadata(false)?;
    let packages = metadata["packages"].as_array().into_iter().flatten();
    let targets = packages.filter_map(|package| package["targets"].as_array()).flatten();
    let tests =
        targets.filter(|target| target["kind"].as_array().is_some_and(|kinds| kinds.iter().any(|k| k == "test")));
    Ok(tests.filter_map(|target| Some(target["name"].as_str()?.to_owned())).collect())
}

/// Sums up the summaries of every test binary.
fn cargo_test(words: &[&str]) -> Result<(usize, usize)> {
    let (mut passed, mut failed) = (0, 0);
    let done = run_with_lines(&mut cargo(words), |line| {
        if let Some(summary) = line.strip_prefix("test result: ") {
            passed += figure(summary, " passed");
            failed += figure(summary, " failed");
        }
    });
    match done {
        Err(error) if failed == 0 => Err(error),
        _ => Ok((passed, failed)),
    }
}

/// The number before a word.
fn figure(text: &str, word: &str) -> usize {
    let before = text.split(word).next().unwrap_or_default();
    before.rsplit(|c: char| !c.is_ascii_digit()).next().and_then(|digits| digits.parse().ok()).unwrap_or(0)
}

/// The rows, and in a whole run the short benchmark, on one testbed.
pub(crate) fn cluster(tally: &mut Tally, args: &Args, with_bench: bool) {
    let mut arena = None;
    let found = if args.keep { Found::Keep } else { Found::Replace };
    let is_ready = tally.step("testbed, binaries, images", || {
        install_clients()?;
        arena = Some(Arena::prepare(found, &["nginx", "redis", "postgres"])?);
        Ok(())
    });
    if let (true, Some(arena)) = (is_ready, &arena) {
        tally.count("cluster rows", || rows(arena, args));
        if with_bench {
            tally.step("benchmark at half strength", || run(&mut own_command(&["bench", "--smoke"])?));
        }
    }
}

fn rows(arena: &Arena, args: &Args) -> Result<(usize, usize)> {
    let results = tempfile::NamedTempFile::new()?;
    let mut command = cargo(&["run", "--quiet", "--locked", "--package", "cluster-tests", "--", "--repeat"]);
    command.arg(args.repeat.to_string()).arg("--results").arg(results.path());
    if let Some(row) = &args.row {
        command.args(["--row", row]);
    }
    command
        .env("STEAD_XTASK", std::env::current_exe()?)
        .env("STEAD_BIN", &arena.dist.stead)
        .env("STEAD_TESTAPP", &arena.testapp)
        .env("STEAD_TESTAPP_IMAGE", &arena.testapp_image)
        .env("STEAD_AGENT_IMAGE", &arena.agent_image)
        .env("STEAD_REGISTRY", REGISTRY.program()?)
        .env("STEAD_CLIENTS", target_dir()?.join("clients"));
    let done = run(&mut command);
    let text = std::fs::read_to_string(results.path())?;
    let Ok(counted) = serde_json::from_str::<serde_json::Value>(&text) else {
        return Err(done.err().unwrap_or_else(|| anyhow::anyhow!("the rows wrote no results")));
    };
    let number = |key: &str| counted[key].as_u64().and_then(|n| usize::try_from(n).ok()).unwrap_or(0);
    Ok((number("passed"), number("failed")))
}

/// What the rows need from Debian beside the testbed's own packages.
/// What the rows run in sandboxes: compilers, interpreters, and clients of well-known servers.
fn install_clients() -> Result<()> {
    let needed = [
        ("musl-gcc", "musl-tools"),
        ("ruby", "ruby"),
        ("node", "nodejs"),
        ("javac", "default-jdk-headless"),
        ("curl", "curl"),
        ("redis-benchmark", "redis-tools"),
        ("pgbench", "postgresql"),
    ];
    let missing: Vec<&str> = needed
        .iter()
        .filter(|(program, _)| shell::run(&format!("which {program}")).is_err())
        .map(|(_, p)| *p)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    eprintln!("installing {} from Debian", missing.join(" "));
    // pgbench comes with the server, which is not to start here.
    let settings = std::path::Path::new("/etc/postgresql-common");
    std::fs::create_dir_all(settings)?;
    std::fs::write(settings.join("createcluster.conf"), "create_main_cluster = false\n")?;
    shell::run(&format!("apt-get install --yes --no-install-recommends {}", missing.join(" "))).map(drop)
}

#[cfg(test)]
mod tests {
    use super::figure;

    #[test]
    fn figures_of_a_summary_are_read() {
        let summary = "FAILED. 12 passed; 3 failed; 0 ignored; 0 measured; 1 filtered out; finished in 0.02s";
        assert_eq!((figure(summary, " passed"), figure(summary, " failed")), (12, 3));
        assert_eq!(figure("nothing", " failed"), 0);
    }
}
