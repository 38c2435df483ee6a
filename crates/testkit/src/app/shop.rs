//! The demo's shop: `web` asks `api`, `api` asks `db`; each answer says who answered.

use std::io::{self, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};

use anyhow::Context;
use serde_json::{Value, json};

use super::{http, net, resolve};

#[derive(clap::Args)]
pub struct Options {
    /// This service's name
    name: String,
    #[arg(long, default_value_t = 8080)]
    port: u16,
    /// The service behind it, `host:port`
    #[arg(long)]
    next: Option<String>,
}

/// Serves until the process is killed.
pub fn run(options: &Options) -> anyhow::Result<()> {
    let listener = net::listen(options.port).with_context(|| format!("cannot listen on port {}", options.port))?;
    for stream in listener.incoming().flatten() {
        let (name, next) = (options.name.clone(), options.next.clone());
        // A caller that went away needs no answer.
        net::spawn(move || drop(serve(stream, &name, next.as_deref())))?;
    }
    Ok(())
}

fn serve(mut stream: TcpStream, name: &str, next: Option<&str>) -> anyhow::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    while let Some(head) = http::Head::read(&mut reader)? {
        let path = head.first.get(1).map_or("/", String::as_str);
        if let Some(megabytes) = path.strip_prefix("/dump?megabytes=") {
            dump(&mut stream, megabytes.parse()?)?;
            continue;
        }
        let behind = next.map(|next| ask(next, path).unwrap_or_else(|error| json!({"error": format!("{error:#}")})));
        let body = json!({
            "service": name,
            "pod": std::env::var("HOSTNAME").unwrap_or_default(),
            "path": path,
            "behind": behind,
        });
        http::answer(&mut stream, "200 OK", format!("{body}\n").as_bytes())?;
    }
    Ok(())
}

/// Something large, that is never the same twice within it.
fn dump(stream: &mut TcpStream, megabytes: u32) -> io::Result<()> {
    write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", u64::from(megabytes) * 1_000_000)?;
    let mut block = vec![0; 1_000_000];
    for number in 0..megabytes {
        block.iter_mut().zip(number..).for_each(|(byte, value)| *byte = (value % 251) as u8);
        stream.write_all(&block)?;
    }
    Ok(())
}

fn ask(next: &str, path: &str) -> anyhow::Result<Value> {
    let (host, port) = next.rsplit_once(':').context("the next service is host:port")?;
    let address = SocketAddr::from((resolve::ipv4(host)?, port.parse()?));
    let mut stream = net::connect_patiently(address)?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n")?;
    let mut reader = BufReader::new(stream);
    let head = http::Head::read(&mut reader)?.context("no answer")?;
    let mut body = String::new();
    reader.take(head.length()).read_to_string(&mut body)?;
    Ok(serde_json::from_str(&body)?)
}
