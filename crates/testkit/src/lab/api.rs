//! The API server through `kubectl proxy` on a unix socket: hundreds of requests without a process each.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context, ensure};
use serde_json::Value;

use super::Lab;
use crate::app::http::Head;

/// Ends its kubectl when dropped.
pub struct Api {
    proxy: Child,
    dir: tempfile::TempDir,
}

impl Api {
    /// Starts the proxy and waits until it answers.
    pub fn start(lab: &Lab) -> anyhow::Result<Api> {
        let dir = tempfile::tempdir()?;
        let socket = format!("--unix-socket={}", dir.path().join("api").display());
        let mut command = lab.root(["kubectl", "proxy", &socket]);
        let proxy = command.stdout(Stdio::null()).spawn().context("cannot start kubectl proxy")?;
        let api = Api { proxy, dir };
        super::within(Duration::from_secs(20), || api.get("/version"))?;
        Ok(api)
    }

    /// One object or list.
    pub fn get(&self, path: &str) -> anyhow::Result<Value> {
        let mut stream = UnixStream::connect(self.dir.path().join("api")).context("kubectl proxy is not there")?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
        let mut reader = BufReader::new(stream);
        let head = Head::read(&mut reader)?.context("kubectl proxy said nothing")?;
        let chunked = head.get("transfer-encoding").is_some_and(|value| value.eq_ignore_ascii_case("chunked"));
        let body = if chunked { dechunk(&mut reader)? } else { rest(&mut reader)? };
        let status = head.first.get(1).map(String::as_str).unwrap_or_default();
        ensure!(status == "200", "GET {path}: {status} {}", String::from_utf8_lossy(&body));
        serde_json::from_slice(&body).with_context(|| format!("GET {path} gave no JSON"))
    }

    /// The items of a list.
    pub fn list(&self, path: &str) -> anyhow::Result<Vec<Value>> {
        match self.get(path)?["items"].take() {
            Value::Array(items) => Ok(items),
            _ => Ok(Vec::new()),
        }
    }
}

impl Drop for Api {
    fn drop(&mut self) {
        // Both fail only when it is gone already.
        let _ = self.proxy.kill();
        let _ = self.proxy.wait();
    }
}

fn rest(reader: &mut impl Read) -> anyhow::Result<Vec<u8>> {
    let mut body = Vec::new();
    reader.read_to_end(&mut body)?;
    Ok(body)
}

fn dechunk(reader: &mut impl BufRead) -> anyhow::Result<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let size = usize::from_str_radix(line.trim(), 16).with_context(|| format!("not a chunk size: {line:?}"))?;
        if size == 0 {
            return Ok(body);
        }
        let start = body.len();
        body.resize(start + size, 0);
        reader.read_exact(&mut body[start..])?;
        reader.read_line(&mut line)?;
    }
}
