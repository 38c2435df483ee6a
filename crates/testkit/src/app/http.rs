//! Just enough HTTP/1.1 for the tests: keep-alive, Content-Length, Upgrade. It trusts its peer.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpStream;

use super::serve;

/// One message's head: the first line split at spaces, and its header lines as they came.
pub struct Head {
    pub first: Vec<String>,
    pub lines: Vec<String>,
}

impl Head {
    /// Reads a head; `None` when the peer is done.
    pub fn read(reader: &mut impl BufRead) -> io::Result<Option<Head>> {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Ok(None);
        }
        let first = line.split_whitespace().map(str::to_owned).collect();
        let mut lines = Vec::new();
        loop {
            line.clear();
            if reader.read_line(&mut line)? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            match line.trim_end() {
                "" => return Ok(Some(Head { first, lines })),
                header => lines.push(header.to_owned()),
            }
        }
    }

    /// A header's first value.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.lines.iter().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }

    /// The body's length as announced, 0 where it is not.
    pub fn length(&self) -> u64 {
        self.get("content-length").and_then(|value| value.parse().ok()).unwrap_or(0)
    }
}

/// Serves one connection until its client closes it or upgrades it.
pub fn serve_connection(mut stream: TcpStream) -> io::Result<()> {
    let mut reader = BufReader::with_capacity(64 << 10, stream.try_clone()?);
    let hostname = std::env::var("HOSTNAME").unwrap_or_default();
    while let Some(head) = Head::read(&mut reader)? {
        let path = head.first.get(1).map_or("/", String::as_str);
        match path.split('?').next().unwrap_or(path) {
            "/hello" => {
                let user = head.get("x-user").unwrap_or_default();
                answer(&mut stream, "200 OK", format!("hello from {hostname} {user}\n").as_bytes())?;
            }
            "/env" => answer(&mut stream, "200 OK", super::environment().to_string().as_bytes())?,
            "/headers" => answer(&mut stream, "200 OK", head.lines.join("\n").as_bytes())?,
            "/echo" => echo(&mut stream, &mut reader, head.length())?,
            "/up" => {
                stream.write_all(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: raw\r\n\r\n")?;
                return serve::raw(&stream, reader);
            }
            _ => answer(&mut stream, "404 Not Found", b"no such path\n")?,
        }
    }
    Ok(())
}

/// Sends one whole response in one write.
pub fn answer(stream: &mut impl Write, status: &str, body: &[u8]) -> io::Result<()> {
    let mut message = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n", body.len()).into_bytes();
    message.extend_from_slice(body);
    stream.write_all(&message)
}

/// The body comes back while it arrives.
fn echo(stream: &mut TcpStream, reader: &mut impl Read, length: u64) -> io::Result<()> {
    stream.write_all(format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n").as_bytes())?;
    io::copy(&mut reader.take(length), stream).map(drop)
}
