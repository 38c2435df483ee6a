//! Well-known servers by their own clients.

use anyhow::{Context, ensure};

use super::{Row, row};
use crate::world::World;

pub(super) const ROWS: &[Row] = &[
    row("F5", "PostgreSQL by psql and pgbench", postgres),
    row("F5", "Redis by redis-benchmark", redis),
    row("F5", "nginx by curl, six connections at once as a browser has", nginx),
];

fn postgres(world: &World) -> anyhow::Result<()> {
    let mut shell = world.shell()?;
    let psql = "psql -h postgres -U postgres -v ON_ERROR_STOP=1 -qtA";
    // The server takes connections before its database is made.
    testkit::lab::within(std::time::Duration::from_secs(30), || shell.ok(&format!("{psql} -c 'select 1'")))?;
    let sum = "create temp table t as select g, repeat('x', 1000) as text from generate_series(1, 20000) g; \
               select sum(g), sum(length(text)) from t";
    ensure!(shell.ok(&format!("{psql} -c \"{sum}\""))? == "200010000|20000000");
    let refused = shell.line(&format!("{psql} -c 'select nonsense'"))?;
    ensure!(refused.0 != 0, "an error is none");
    let bench = "$(ls -d /usr/lib/postgresql/*/bin/pgbench | tail -1) -h postgres -U postgres -n";
    shell.ok(&format!("{bench} -i -q -s 1 postgres"))?;
    // New connections for each transaction, then kept ones.
    for flags in ["-c 8 -t 25 -C", "-c 8 -t 250"] {
        let said = shell.ok(&format!("{bench} {flags} postgres"))?;
        ensure!(said.contains("number of failed transactions: 0 (0.000%)"), "{said}");
        let rate = said.lines().find(|line| line.starts_with("tps")).context("no rate")?;
        println!("       pgbench {flags}: {rate}");
    }
    Ok(())
}

fn redis(world: &World) -> anyhow::Result<()> {
    let mut shell = world.shell()?;
    for flags in ["-n 20000 -c 50 -t ping,set,get,lrange_100 -d 1000", "-n 50000 -c 50 -P 16 -t set,get"] {
        let said = shell.ok(&format!("redis-benchmark -h redis --csv {flags}"))?;
        let rows = said.lines().filter(|line| line.starts_with('"') && !line.contains("\"test\"")).collect::<Vec<_>>();
        ensure!(rows.len() >= 2, "{said}");
        println!("       redis-benchmark {flags}: {}", rows.iter().map(|row| rate(row)).collect::<Vec<_>>().join(", "));
    }
    ensure!(shell.ok("redis-cli -h redis llen mylist")?.parse::<u64>()? > 0, "nothing was written");
    Ok(())
}

/// `"GET","21000.00",…`
fn rate(row: &str) -> String {
    let fields: Vec<&str> = row.split(',').map(|field| field.trim_matches('"')).collect();
    format!("{} {}/s", fields.first().unwrap_or(&"?"), fields.get(1).unwrap_or(&"?"))
}

fn nginx(world: &World) -> anyhow::Result<()> {
    let mut shell = world.shell()?;
    let page = shell.ok("curl -fsS http://nginx/")?;
    ensure!(page.trim() == "nginx of the testbed", "{page}");
    let line = "curl -fsS --parallel --parallel-immediate --parallel-max 6 -o /dev/null -w '%{http_code} %{num_connects}\\n' \
                'http://nginx/?[1-300]'";
    let said = shell.ok(line)?;
    let codes: Vec<&str> = said.lines().filter_map(|line| line.split(' ').next()).collect();
    ensure!(codes.len() == 300 && codes.iter().all(|code| *code == "200"), "{said}");
    let (code, _) = shell.line("curl -fsS http://nginx/missing")?;
    ensure!(code == 22, "curl ended with {code} for a page that is not there");
    Ok(())
}
