use std::process::ExitCode;

use session::status::{ApiRate, Health, Link, Port, Status};

use super::sessions;
use crate::error::Failure;
use crate::output::{self, OutputArgs};

/// Show how the running sessions do
///
/// Exit code: 0 all healthy, 1 one degraded, 2 one lost, 3 no session.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Beginning of a session's id (default: all)
    session: Option<String>,
    #[command(flatten)]
    output: OutputArgs,
}

pub(crate) fn run(args: &Args) -> ExitCode {
    let format = args.output.output;
    match sessions::block_on(sessions::matching(args.session.as_deref())) {
        Ok(found) => {
            let all: Vec<Status> = found.into_iter().map(|(_, status)| status).collect();
            output::result(format, &all, |all| text(all));
            ExitCode::from(exit_code(&all))
        }
        Err(failure) => failure_code(&failure, format),
    }
}

fn failure_code(failure: &Failure, format: output::Format) -> ExitCode {
    let _ = failure.show(format);
    // A session that does not answer is lost, one that is not there is none.
    ExitCode::from(if failure.error.starts_with("no session") { 3 } else { 2 })
}

fn exit_code(all: &[Status]) -> u8 {
    all.iter().map(|s| s.health).max().map_or(3, |worst| worst as u8)
}

fn text(all: &[Status]) -> String {
    if all.is_empty() {
        return "no session\n".to_owned();
    }
    all.iter().map(one).collect::<Vec<_>>().join("\n")
}

fn one(status: &Status) -> String {
    let health = match status.health {
        Health::Healthy => "healthy",
        Health::Degraded => "degraded",
        Health::Lost => "lost",
    };
    let reason = status.reason.as_deref().map(|r| format!(": {r}")).unwrap_or_default();
    let mut lines = vec![
        format!("session    {} ({health}{reason})", status.session),
        format!("cluster    {}, namespace {}", status.context, status.namespace),
        format!("pod        {}, container {}, agent {}", status.pod, status.container, status.agent),
        format!("command    {} (pid {})", output::short(&status.command), status.command_pid.unwrap_or_default()),
        format!("age        {} s", status.age_seconds),
    ];
    for attachment in &status.attachments {
        lines.push(format!("attached   {} {}", attachment.kind, attachment.workload));
    }
    lines.extend(status.links.iter().map(link));
    if let Some(ApiRate { bytes_per_second, slow_api_server }) = status.api_rate {
        let why = if slow_api_server { "its answers take longer than usual" } else { "--api-rate" };
        let mib = bytes_per_second as f64 / f64::from(1 << 20);
        lines.push(format!("pace       {mib:.1} MiB/s through the API server, each way: {why}"));
    }
    for Port { port, machine_port } in &status.ports {
        lines.push(format!("port       {port} of the command is 127.0.0.1:{machine_port}"));
    }
    let flows = status.flows;
    lines.push(format!(
        "flows      {} open; {} through the pod, {} from this machine, {} refused",
        flows.open, flows.through_pod, flows.by_machine, flows.refused
    ));
    lines.join("\n") + "\n"
}

fn link(link: &Link) -> String {
    let state = match (&link.error, link.up) {
        (_, true) => "up".to_owned(),
        (Some(error), false) => format!("down: {error}"),
        (None, false) => "down".to_owned(),
    };
    let round_trip = link.round_trip_us.map(|us| format!(", round trip {:.1} ms", us as f64 / 1e3)).unwrap_or_default();
    let heard = link.heard_ms_ago.map(|ms| format!(", heard {:.1} s ago", ms as f64 / 1e3)).unwrap_or_default();
    format!(
        "link {}     {} {state}, sent {} B, received {} B{round_trip}{heard}",
        link.number, link.rung, link.sent_bytes, link.received_bytes
    )
}
