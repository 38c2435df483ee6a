use std::process::ExitCode;

use session::status::Status;

use super::sessions;
use crate::output::{self, OutputArgs};

/// List what the running sessions are attached to
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(serde::Serialize)]
struct Row {
    workload: String,
    namespace: String,
    kind: String,
    context: String,
    session: String,
    command: Vec<String>,
}

pub(crate) fn run(args: &Args) -> ExitCode {
    let format = args.output.output;
    match sessions::block_on(sessions::all()) {
        Ok(found) => {
            let rows: Vec<Row> = found.into_iter().flat_map(|(_, status)| rows(status)).collect();
            output::result(format, &rows, |rows| text(rows));
            ExitCode::SUCCESS
        }
        Err(failure) => failure.show(format),
    }
}

fn rows(status: Status) -> Vec<Row> {
    let row = |a: session::status::Attachment| Row {
        workload: a.workload,
        namespace: a.namespace,
        kind: a.kind,
        context: status.context.clone(),
        session: status.session.clone(),
        command: status.command.clone(),
    };
    status.attachments.into_iter().map(row).collect()
}

fn text(rows: &[Row]) -> String {
    if rows.is_empty() {
        return "no session\n".to_owned();
    }
    let cells = |r: &Row| {
        let (workload, namespace) = (r.workload.clone(), r.namespace.clone());
        let session = r.session.chars().take(8).collect();
        vec![workload, namespace, r.kind.clone(), r.context.clone(), session, output::short(&r.command)]
    };
    let rows: Vec<Vec<String>> = rows.iter().map(cells).collect();
    output::table(&["WORKLOAD", "NAMESPACE", "KIND", "CONTEXT", "SESSION", "COMMAND"], &rows)
}
