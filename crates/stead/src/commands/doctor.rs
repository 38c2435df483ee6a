use std::process::ExitCode;

use session::doctor::{Area, Finding, Questions, Report, Verdict};

use super::image;
use super::run::ClusterArgs;
use crate::error::Failure;
use crate::output::{self, OutputArgs};

/// Look at everything a session needs, and say what to do about what is missing
///
/// Looks at this machine (by setting a sandbox up and taking it down), the kubeconfig, the cluster, your rights there and,
/// where it is named, a workload. Changes nothing.
///
/// Exit code: 0 when nothing failed, else the class of the first failure (`stead help exit-codes`).
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  stead doctor\n  stead doctor deploy/web -n shop\n  \
                        stead doctor --yaml | kubectl apply -f -      (as an admin)")]
pub(crate) struct Args {
    /// Workload to look at, too: web, deploy/web, sts/db
    workload: Option<String>,
    /// Container of the pod (default: the one kubectl would take)
    #[arg(short, long, value_name = "NAME", requires = "workload")]
    container: Option<String>,
    /// Only print the role that an admin would apply to give all rights
    #[arg(long, conflicts_with = "workload")]
    yaml: bool,
    #[command(flatten)]
    cluster: ClusterArgs,
    #[command(flatten)]
    output: OutputArgs,
}

pub(crate) fn run(args: Args) -> ExitCode {
    let format = args.output.output;
    if args.yaml {
        output::result(output::Format::Text, &(), |()| cluster::role_yaml(cluster::NEEDS));
        return ExitCode::SUCCESS;
    }
    let questions = Questions {
        connect: args.cluster.into(),
        workload: args.workload,
        container: args.container,
        agent_architectures: image::architectures(),
    };
    match examine(&questions) {
        Ok(report) => {
            output::result(format, &report, text);
            ExitCode::from(report.exit_code())
        }
        Err(failure) => failure.show(format),
    }
}

/// Before any thread exists: a sandbox is made on the way.
fn examine(questions: &Questions) -> Result<Report, Failure> {
    let sandbox = sandbox::prepare(&[]);
    let runtime = session::runtime().map_err(|error| Failure::io("cannot start the runtime", &error))?;
    let report = runtime.block_on(session::doctor::examine(sandbox, questions));
    runtime.shutdown_background();
    Ok(report)
}

fn text(report: &Report) -> String {
    let widest = report.findings.iter().map(|finding| finding.check.chars().count()).max().unwrap_or(0);
    let mut lines = Vec::new();
    let mut area = None;
    for (at, finding) in report.findings.iter().enumerate() {
        if area.replace(finding.area) != Some(finding.area) {
            lines.push(title(finding.area).to_owned());
        }
        // One fix for many is shown below the last of them.
        let is_last = !report.findings[at + 1..].iter().any(|later| later.fix == finding.fix);
        lines.extend(in_lines(finding, widest, is_last));
    }
    lines.push(summary(report));
    lines.join("\n") + "\n"
}

fn in_lines(finding: &Finding, widest: usize, with_fix: bool) -> Vec<String> {
    let mark = match finding.verdict {
        Verdict::Ok => "ok",
        Verdict::Warn => "WARN",
        Verdict::Fail => "FAIL",
        Verdict::Skip => "-",
    };
    let Finding { check, found, fix, .. } = finding;
    let mut lines = vec![format!("  {mark:<4}  {check:<widest$}  {found}")];
    let fix = fix.iter().filter(|_| with_fix).flat_map(|fix| fix.lines());
    lines.extend(fix.enumerate().map(|(n, line)| format!("        {}{line}", if n == 0 { "fix: " } else { "     " })));
    lines
}

fn title(area: Area) -> &'static str {
    match area {
        Area::Machine => "This machine",
        Area::Kubeconfig => "Kubeconfig",
        Area::Cluster => "Cluster",
        Area::Rights => "Rights",
        Area::Workload => "Workload",
    }
}

fn summary(report: &Report) -> String {
    let count = |verdict| report.findings.iter().filter(|finding| finding.verdict == verdict).count();
    match (count(Verdict::Fail), count(Verdict::Warn)) {
        (0, 0) => "Nothing is missing.".to_owned(),
        (0, warned) => format!("Sessions can run; {warned} to look at."),
        (failed, warned) => format!("{failed} failed, {warned} to look at."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finding(verdict: Verdict, fix: Option<&str>) -> Finding {
        let (check, found) = ("user".to_owned(), "seen".to_owned());
        Finding { area: Area::Machine, check, verdict, found, fix: fix.map(str::to_owned), exit_code: 65 }
    }

    #[test]
    fn a_fix_of_several_lines_is_shown_once_below_the_last_that_it_is_for() {
        let failed = || finding(Verdict::Fail, Some("first\n  second"));
        let findings = vec![finding(Verdict::Ok, None), failed(), failed()];
        let report = Report { ok: false, findings };
        let shown = "This machine\n  ok    user  seen\n  FAIL  user  seen\n  FAIL  user  seen\n        fix: first\n               second\n\
                     2 failed, 0 to look at.\n";
        assert_eq!(text(&report), shown);
        assert_eq!(report.exit_code(), 65);
    }
}
