//! Certificates and kubeconfigs, by the `openssl` program. Elliptic keys, because they cost milliseconds.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde_json::json;

use crate::shell;
use crate::testbed::addresses::{API_SERVER, KUBERNETES_SERVICE, Node};
use crate::testbed::state::{StateDir, write};

const CONFIG: &str = "\
[req]\ndistinguished_name = dn\nprompt = no\n[dn]\n\
[authority]\nbasicConstraints = critical,CA:TRUE\nkeyUsage = critical,keyCertSign,digitalSignature\n\
[leaf]\nbasicConstraints = critical,CA:FALSE\nextendedKeyUsage = clientAuth,serverAuth\nsubjectAltName = ${ENV::SAN}\n\
[signer]\nnew_certs_dir = .\ndatabase = index\nserial = serial\ndefault_md = sha256\npolicy = policy\n\
preserve = yes\nunique_subject = no\nx509_extensions = leaf\n\
[policy]\norganizationName = optional\ncommonName = supplied\n";

const NEW_KEY: &str = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -batch";

/// Everything `up` needs.
pub(crate) fn make(state: &StateDir, nodes: u8) -> Result<()> {
    write(&state.pki("openssl.cnf"), CONFIG)?;
    write(&state.pki("index"), "")?;
    write(&state.pki("serial"), "01")?;
    let ca = format!(
        "req -x509 {NEW_KEY} -days 3650 -subj /CN=stead-testbed -extensions authority -keyout ca.key -out ca.crt"
    );
    openssl(state, &ca, "")?;
    openssl(state, "ecparam -name prime256v1 -genkey -noout -out sa.key", "")?;
    openssl(state, "pkey -in sa.key -pubout -out sa.pub", "")?;
    let first = Node { index: 1 }.addresses();
    let ips: Vec<_> = first.iter().map(String::as_str).chain(KUBERNETES_SERVICE).chain(["127.0.0.1", "::1"]).collect();
    let names = "DNS:localhost,DNS:kubernetes,DNS:kubernetes.default,DNS:kubernetes.default.svc,DNS:kubernetes.default.svc.cluster.local";
    leaf(state, "apiserver", "/CN=kube-apiserver", &format!("IP:{},{names}", ips.join(",IP:")))?;
    for (name, subject) in [
        ("admin", "/O=system:masters/CN=admin"),
        ("kubelet-client", "/O=system:masters/CN=apiserver-kubelet"),
        ("controllers", "/CN=system:kube-controller-manager"),
        ("scheduler", "/CN=system:kube-scheduler"),
        ("proxy", "/CN=system:kube-proxy"),
        ("front", "/CN=front-proxy-client"),
    ] {
        leaf(state, name, subject, "DNS:unused")?;
    }
    for node in Node::all(nodes) {
        let (name, [v4, v6]) = (node.name(), node.addresses());
        leaf(state, &name, &format!("/O=system:nodes/CN=system:node:{name}"), &format!("IP:{v4},IP:{v6},DNS:{name}"))?;
    }
    for user in ["admin", "controllers", "scheduler", "proxy"]
        .map(str::to_owned)
        .into_iter()
        .chain(Node::all(nodes).map(Node::name))
    {
        kubeconfig(state, &user)?;
    }
    Ok(())
}

fn leaf(state: &StateDir, name: &str, subject: &str, names: &str) -> Result<()> {
    let line = format!(
        "req -x509 {NEW_KEY} -days 3650 -CA ca.crt -CAkey ca.key -extensions leaf -keyout {name}.key -out {name}.crt -subj"
    );
    openssl_subject(state, &line, subject, names)
}

/// A kubeconfig for a user of that name and groups, whose certificate ends after `seconds`.
pub(crate) fn user(state: &StateDir, name: &str, groups: &[String], seconds: u64) -> Result<PathBuf> {
    for word in groups.iter().chain([&name.to_owned()]) {
        ensure!(
            !word.is_empty() && !word.contains(['/', '\\', '=', '+']),
            "{word:?} is no name that a certificate can carry"
        );
    }
    let file: String = name.chars().map(|c| if c.is_ascii_alphanumeric() || c == '-' { c } else { '_' }).collect();
    let file = format!("user-{file}");
    let subject: String = groups.iter().map(|group| format!("/O={group}")).chain([format!("/CN={name}")]).collect();
    openssl_subject(
        state,
        &format!("req -new {NEW_KEY} -keyout {file}.key -out {file}.csr -subj"),
        &subject,
        "DNS:unused",
    )?;
    let end = shell::run(&format!("date -u -d @{} +%Y%m%d%H%M%SZ", now()? + seconds))?;
    let sign = format!(
        "ca -batch -notext -rand_serial -cert ca.crt -keyfile ca.key -name signer -enddate {} -in {file}.csr -out {file}.crt",
        end.trim()
    );
    openssl(state, &sign, "DNS:unused")?;
    kubeconfig(state, &file)
}

fn now() -> Result<u64> {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).context("the clock is before 1970")?;
    Ok(now.as_secs())
}

fn kubeconfig(state: &StateDir, name: &str) -> Result<PathBuf> {
    let read = |file: String| fs::read(state.pki(&file)).with_context(|| format!("cannot read {file}"));
    let encoded = |file: String| -> Result<String> { Ok(base64(&read(file)?)) };
    let config = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "testbed",
        "clusters": [{ "name": "testbed", "cluster": {
            "server": API_SERVER, "certificate-authority-data": encoded("ca.crt".to_owned())? } }],
        "users": [{ "name": name, "user": {
            "client-certificate-data": encoded(format!("{name}.crt"))?, "client-key-data": encoded(format!("{name}.key"))? } }],
        "contexts": [{ "name": "testbed", "context": { "cluster": "testbed", "user": name } }],
    });
    let path = state.kubeconfig(name);
    write(&path, &serde_json::to_string_pretty(&config)?)?;
    Ok(path)
}

fn base64(bytes: &[u8]) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

fn openssl(state: &StateDir, line: &str, names: &str) -> Result<()> {
    run(&state.pki(""), shell::command(&format!("openssl {line}")), names)
}

/// The subject is one argument, blanks and all.
fn openssl_subject(state: &StateDir, line: &str, subject: &str, names: &str) -> Result<()> {
    let mut command = shell::command(&format!("openssl {line}"));
    command.arg(subject);
    run(&state.pki(""), command, names)
}

fn run(dir: &Path, mut command: std::process::Command, names: &str) -> Result<()> {
    let takes_config = command.get_args().next().is_some_and(|verb| verb == "req" || verb == "ca");
    if takes_config {
        command.args(["-config", "openssl.cnf"]);
    }
    let names = if names.is_empty() { "DNS:unused" } else { names };
    shell::output(command.current_dir(dir).env("SAN", names)).map(drop)
}
