//! E1's core: the container's environment, as Kubernetes resolves it.

use std::os::unix::fs::PermissionsExt as _;

use anyhow::ensure;
use serde_json::Value;
use testkit::lab::checked;

use super::{Row, row};
use crate::world::World;

pub(super) const ROWS: &[Row] = &[
    row("E1", "env, envFrom, ConfigMap, Secret, fieldRef are the command's", resolved),
    row("E1", "another container's by --container", other_container),
    row("E1", "nginx and Redis, which overwrite theirs", overwriting_servers),
    row("E1", "--env-include, --env-exclude and --env-file in each format", chosen),
    row("E1", "what steers loaders and interpreters, and the user's own, stay the machine's", steering),
];

fn resolved(world: &World) -> anyhow::Result<()> {
    let env = environment(world, "deploy/web", &[])?;
    let pod = world.pod(env["POD_NAME"].as_str().unwrap_or_default())?;
    let expected = [
        ("GREETING", "hi"),
        ("EMPTY", ""),
        ("COMPOSED", "hi there"),
        ("LINES", "one\ntwo"),
        ("COLOUR_OF", "blue"),
        ("PASSWORD_OF", "s3cret with 'quotes' and $dollars"),
        ("COLOUR", "blue"),
        ("SHAPE", "round"),
        ("SECRET_TOKEN", "abc"),
        ("POD_IP", pod["status"]["podIP"].as_str().unwrap_or("no pod of that name")),
        ("WEB_SERVICE_PORT_HTTP", "80"),
    ];
    check(&env, &expected)?;
    let host = env["KUBERNETES_SERVICE_HOST"].as_str().unwrap_or_default();
    ensure!(!host.is_empty(), "KUBERNETES_SERVICE_HOST is missing");
    Ok(())
}

fn other_container(world: &World) -> anyhow::Result<()> {
    let env = environment(world, "deploy/web", &["--container", "sidecar"])?;
    check(&env, &[("GREETING", "from the sidecar")])?;
    ensure!(env.get("COLOUR_OF").is_none(), "the sidecar has no COLOUR_OF");
    Ok(())
}

fn overwriting_servers(world: &World) -> anyhow::Result<()> {
    let nginx = environment(world, "deploy/nginx", &[])?;
    check(&nginx, &[("GREETING", "hi nginx"), ("TOKEN", "abc")])?;
    let redis = environment(world, "deploy/redis", &[])?;
    check(&redis, &[("GREETING", "hi redis"), ("COLOUR", "blue")])
}

fn chosen(world: &World) -> anyhow::Result<()> {
    let file = world.camera().account().home.join("pod.env");
    let path = file.display().to_string();
    let written = |format: &str| -> anyhow::Result<String> {
        let flags =
            ["--env-include", "NODE_OPTIONS", "--env-exclude", "COLOUR*", "--env-file", &path, "--env-format", format];
        let env = environment(world, "deploy/web", &flags)?;
        check(&env, &[("NODE_OPTIONS", "--require=/nonexistent/hostile.js"), ("SHAPE", "round")])?;
        ensure!(env.get("COLOUR").is_none() && env.get("COLOUR_OF").is_none(), "COLOUR* is excluded");
        let mode = std::fs::metadata(&file)?.permissions().mode() & 0o777;
        ensure!(mode == 0o600, "the file has mode {mode:o}");
        let text = std::fs::read_to_string(&file)?;
        std::fs::remove_file(&file)?;
        Ok(text)
    };
    let password = "s3cret with 'quotes' and $dollars";
    let json: Value = serde_json::from_str(&written("json")?)?;
    check(&json, &[("LINES", "one\ntwo"), ("PASSWORD_OF", password)])?;
    ensure!(json.get("HOME").is_none(), "the machine's own variables are in the file");
    let docker = written("docker")?;
    let has_password = docker.lines().any(|line| line.strip_prefix("PASSWORD_OF=") == Some(password));
    ensure!(has_password && !docker.contains("LINES="), "not docker's form: {docker}");
    let script = format!("{}printf '%s|%s' \"$PASSWORD_OF\" \"$LINES\"", written("sh")?);
    let read = checked(std::process::Command::new("sh").args(["-c", &script]))?;
    ensure!(read == format!("{password}|one\ntwo"), "a shell read {read:?}");
    ensure!(written("compose")?.contains("LINES='one\ntwo'\n"), "not Compose's form");
    Ok(())
}

fn steering(world: &World) -> anyhow::Result<()> {
    let env = environment(world, "deploy/web", &[])?;
    for name in ["LD_PRELOAD", "NODE_OPTIONS", "PYTHONSTARTUP", "BASH_ENV", "JAVA_TOOL_OPTIONS"] {
        let value = env.get(name).and_then(Value::as_str).unwrap_or_default();
        ensure!(!value.contains("hostile"), "{name} is the pod's: {value}");
    }
    let account = world.camera().account();
    check(&env, &[("HOME", &account.home.display().to_string()), ("USER", &testkit::lab::user_name())])?;
    ensure!(env["PATH"].as_str().is_some_and(|path| path.contains("/usr/bin")), "PATH is not the machine's");
    Ok(())
}

fn environment(world: &World, workload: &str, flags: &[&str]) -> anyhow::Result<Value> {
    let text = world.run(workload).flags(flags).stdout(&[world.testapp(), "env"])?;
    Ok(serde_json::from_str(&text)?)
}

fn check(env: &Value, expected: &[(&str, &str)]) -> anyhow::Result<()> {
    for (name, value) in expected {
        ensure!(env[*name] == **value, "{name} is {}, not {value:?}", env[*name]);
    }
    Ok(())
}
