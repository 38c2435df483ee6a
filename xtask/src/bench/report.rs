//! The figures as text for the terminal, as the page docs/benchmarks.md, and raw as JSON.

use std::fmt::Write as _;
use std::path::Path as File;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::bench::Plan;
use crate::bench::goals::Judged;
use crate::bench::paths::Path;
use crate::bench::samples::Samples;
use crate::{cache, shell};

const PATHS: [Path; 8] = [
    Path::Pod,
    Path::Plain,
    Path::Raw,
    Path::Forward,
    Path::Telepresence,
    Path::Stead,
    Path::SteadDirect,
    Path::SteadForward,
];

/// Both tables.
pub(crate) fn text(samples: &Samples, goals: &[Judged]) -> String {
    format!("{}\n{}", figures(samples), judgement(goals))
}

/// Writes the raw figures, and the page where no other place was named for them.
pub(crate) fn write(out: Option<&File>, samples: &Samples, goals: &[Judged], plan: &Plan) -> Result<()> {
    let date = shell::run("date +%F")?.trim().to_owned();
    let docs = cache::checkout().join("docs");
    let raw = out.map_or_else(|| docs.join("benchmarks").join(format!("{date}.json")), File::to_owned);
    if let Some(dir) = raw.parent() {
        std::fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    }
    let machine = machine()?;
    let goals_json = goals
        .iter()
        .map(|goal| json!({"row": goal.what, "value": goal.value, "by_rung": goal.by_rung, "goal": goal.goal(), "verdict": goal.verdict()}));
    let all = json!({
        "date": date,
        "machine": machine,
        "rounds": plan.rounds,
        "seconds_each": plan.seconds,
        "figures": samples.to_json(),
        "goals": goals_json.collect::<Value>(),
    });
    std::fs::write(&raw, serde_json::to_string_pretty(&all)? + "\n")?;
    if out.is_none() {
        std::fs::write(docs.join("benchmarks.md"), page(&date, &machine, samples, goals, plan))?;
    }
    Ok(())
}

fn page(date: &str, machine: &Value, samples: &Samples, goals: &[Judged], plan: &Plan) -> String {
    format!(
        "# Benchmarks\n\nMeasured by `cargo xtask bench` on {date}: {}. Client, API server, agent, server and load share \
         the machine's cores. {} interleaved rounds of {} s each ({} of {} s over 20 ms); medians, and for goals the \
         median of each round's ratio. The raw figures are in `benchmarks/{date}.json`.\n\n## Goals\n\n{}\n## Figures\n\n{}",
        machine["text"].as_str().unwrap_or_default(),
        plan.rounds,
        plan.seconds,
        plan.wan_rounds,
        plan.wan_seconds,
        judgement(goals),
        figures(samples)
    )
}

fn figures(samples: &Samples) -> String {
    let mut out = String::from("| |");
    let paths: Vec<Path> = PATHS.into_iter().filter(|path| samples.has(*path)).collect();
    paths.iter().for_each(|path| out += &format!(" {} |", path.name()));
    out += &format!("\n|{}\n", "---|".repeat(paths.len() + 1));
    for name in samples.names() {
        let _ = write!(out, "| {name} |"); // writing to a String cannot fail
        for path in &paths {
            let _ = write!(out, " {} |", cell(samples.median(name, *path)));
        }
        out.push('\n');
    }
    out
}

fn judgement(goals: &[Judged]) -> String {
    let mut out = String::from("| | measured | goal | | over direct | over forward |\n|---|---|---|---|---|---|\n");
    let mut obstacles = Vec::new();
    for goal in goals {
        let [_, direct, forward] = goal.by_rung.map(cell);
        let value = cell(goal.value);
        let _ = write!(out, "| {} | {value} | {} | {}", goal.what, goal.goal(), goal.verdict());
        if let Some(obstacle) = goal.obstacle() {
            let known = obstacles.iter().position(|known| *known == obstacle);
            let number = known.unwrap_or_else(|| {
                obstacles.push(obstacle);
                obstacles.len() - 1
            });
            let _ = write!(out, " ({})", number + 1);
        }
        let _ = writeln!(out, " | {direct} | {forward} |");
    }
    for (number, obstacle) in obstacles.iter().enumerate() {
        let _ = write!(out, "\n({}) {obstacle}\n", number + 1);
    }
    out
}

fn cell(figure: Option<f64>) -> String {
    figure.map_or_else(|| "–".to_owned(), short)
}

/// Three figures that count.
fn short(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        size if size >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

fn machine() -> Result<Value> {
    let read = |file: &str| std::fs::read_to_string(file).unwrap_or_default();
    let cpus = read("/proc/cpuinfo");
    let model =
        cpus.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": ")).map_or("", |(_, name)| name);
    let cores = cpus.lines().filter(|line| line.starts_with("processor")).count();
    let kernel = read("/proc/sys/kernel/osrelease").trim().to_owned();
    let memory = read("/proc/meminfo");
    let kb = memory.split_whitespace().nth(1).and_then(|kb| kb.parse::<f64>().ok()).unwrap_or(0.0);
    let commit = shell::output(shell::command("git rev-parse --short HEAD").current_dir(cache::checkout()))?;
    let text = format!("{cores} cores of {model}, {:.0} GB, Linux {kernel}", kb / 1e6);
    Ok(json!({"text": text, "cores": cores, "cpu": model, "kernel": kernel, "commit": commit.trim()}))
}

#[cfg(test)]
mod tests {
    use super::short;

    #[test]
    fn figures_are_short() {
        assert_eq!([1234.5, 12.345, 1.2345, 0.01234].map(short), ["1234", "12.3", "1.23", "0.012"]);
    }
}
