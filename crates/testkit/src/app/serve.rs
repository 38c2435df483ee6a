//! The server in the pods. Each port has one habit, so that a probe can tell what the path between did to it.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context;
use sha2::{Digest, Sha256};

use super::{http, net};

/// What the server on port 9002 says before anything was asked.
pub const GREETING: &[u8] = b"220 the server speaks first\r\n";
/// Bytes of an acknowledged upload (mode `A`) per acknowledgement.
pub const ACK_EVERY: usize = 1 << 20;
const BULK: usize = 256 << 10;

#[derive(clap::Args)]
pub struct Options {
    /// First byte decides: D discard, A discard with acknowledgements, S source, E echo, F hash until FIN, R reset.
    /// Over UDP: every datagram is sent back
    #[arg(long, default_value_t = 9000)]
    raw: u16,
    /// HTTP: /hello /env /headers /echo (POST) /up (Upgrade: raw)
    #[arg(long, default_value_t = 9001)]
    http: u16,
    /// Speaks first
    #[arg(long, default_value_t = 9002)]
    first: u16,
    /// Resets every connection as soon as it is there
    #[arg(long, default_value_t = 9003)]
    reset: u16,
    /// Remembers how a connection ended and tells the next one
    #[arg(long, default_value_t = 9004)]
    record: u16,
}

/// Serves until the process is killed.
pub fn run(options: &Options) -> anyhow::Result<()> {
    let records = Arc::new(Records::default());
    let ports: Vec<(u16, Handler)> = vec![
        (options.raw, Arc::new(|stream: TcpStream| raw_of(stream))),
        (options.http, Arc::new(http::serve_connection)),
        (options.first, Arc::new(speak_first)),
        (options.reset, Arc::new(|stream: TcpStream| net::reset(&stream))),
        (options.record, Arc::new(move |stream| records.serve(stream))),
    ];
    let socket = net::bind_udp(options.raw).with_context(|| format!("cannot bind UDP port {}", options.raw))?;
    let mut threads = vec![net::spawn(move || echo_datagrams(&socket))?];
    for (port, handler) in ports {
        let listener = net::listen(port).with_context(|| format!("cannot listen on port {port}"))?;
        threads.push(net::spawn(move || accept_all(&listener, &handler))?);
    }
    for thread in threads {
        let _ = thread.join();
    }
    Ok(())
}

fn echo_datagrams(socket: &UdpSocket) {
    let mut buffer = vec![0; 1 << 16];
    loop {
        // An error is of one datagram: who sent it is gone.
        if let Ok((length, from)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(&buffer[..length], from);
        }
    }
}

type Handler = Arc<dyn Fn(TcpStream) -> io::Result<()> + Send + Sync>;

fn accept_all(listener: &TcpListener, handler: &Handler) {
    for stream in listener.incoming().flatten() {
        let handler = Arc::clone(handler);
        // A connection that ends badly is what many tests are about; a thread that cannot start drops it.
        let _ = net::spawn(move || stream.set_nodelay(true).and_then(|()| handler(stream)));
    }
}

fn raw_of(stream: TcpStream) -> io::Result<()> {
    raw(&stream, &stream)
}

/// The raw protocol on a connection of its own or on what is left of one after an HTTP upgrade. One descriptor serves both
/// directions: a process has a limited number of them.
pub fn raw(mut stream: &TcpStream, mut reader: impl Read) -> io::Result<()> {
    let mut mode = [0];
    reader.read_exact(&mut mode)?;
    match &mode {
        b"D" => io::copy(&mut reader, &mut io::sink()).map(drop),
        b"A" => discard_with_acks(stream, &mut reader),
        b"S" => {
            let block = vec![0x5a; BULK];
            loop {
                stream.write_all(&block)?;
            }
        }
        b"E" => echo(stream, &mut reader),
        b"F" => hash_until_fin(stream, &mut reader),
        b"R" => net::reset(stream),
        _ => stream.write_all(b"unknown mode\n"),
    }
}

fn echo(mut stream: &TcpStream, reader: &mut impl Read) -> io::Result<()> {
    let mut block = vec![0; 64 << 10];
    loop {
        match reader.read(&mut block)? {
            0 => return Ok(()),
            n => stream.write_all(&block[..n])?,
        }
    }
}

/// One byte back for each `ACK_EVERY` bytes taken: an upload measured without the buffers on its way.
fn discard_with_acks(mut stream: &TcpStream, reader: &mut impl Read) -> io::Result<()> {
    let mut block = vec![0; BULK];
    let mut taken = 0;
    loop {
        let n = reader.read(&mut block)?;
        if n == 0 {
            return Ok(());
        }
        taken += n;
        while taken >= ACK_EVERY {
            taken -= ACK_EVERY;
            stream.write_all(b"k")?;
        }
    }
}

/// SHA-256 (32 bytes) and count (8 bytes, big-endian) of everything up to the FIN, then a close.
fn hash_until_fin(mut stream: &TcpStream, reader: &mut impl Read) -> io::Result<()> {
    let mut hash = Sha256::new();
    let mut count = 0u64;
    let mut block = vec![0; BULK];
    loop {
        let n = reader.read(&mut block)?;
        if n == 0 {
            break;
        }
        hash.update(&block[..n]);
        count += n as u64;
    }
    stream.write_all(&hash.finalize())?;
    stream.write_all(&count.to_be_bytes())
}

fn speak_first(mut stream: TcpStream) -> io::Result<()> {
    stream.write_all(GREETING)?;
    echo(&stream, &mut &stream)
}

/// How watched connections ended, by the number their client chose.
#[derive(Default)]
struct Records {
    ended: Mutex<HashMap<[u8; 8], String>>,
    changed: Condvar,
}

impl Records {
    /// `w` + 8 bytes: watch this connection (answered by `k`). `q` + 8 bytes: how did that one end?
    fn serve(&self, mut stream: TcpStream) -> io::Result<()> {
        let mut request = [0; 9];
        stream.read_exact(&mut request)?;
        let mut number = [0; 8];
        number.copy_from_slice(&request[1..]);
        if request[0] == b'w' {
            stream.write_all(b"k")?;
            let end = match io::copy(&mut stream, &mut io::sink()) {
                Ok(count) => format!("fin after {count}"),
                Err(error) => net::errno_name(&error),
            };
            self.ended.lock().unwrap_or_else(PoisonError::into_inner).insert(number, end);
            self.changed.notify_all();
            return Ok(());
        }
        let ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        let (ended, _) = self
            .changed
            .wait_timeout_while(ended, Duration::from_secs(5), |ended| !ended.contains_key(&number))
            .unwrap_or_else(PoisonError::into_inner);
        stream.write_all(ended.get(&number).map_or("still open", String::as_str).as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;

    fn serve_one(handler: impl FnOnce(TcpStream) -> io::Result<()> + Send + 'static) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has free ports");
        let address = listener.local_addr().expect("a bound listener has an address");
        net::spawn(move || handler(listener.accept()?.0)).expect("a thread starts");
        address
    }

    #[test]
    fn a_fin_is_answered_with_hash_and_count() {
        let mut stream = net::connect_patiently(serve_one(raw_of)).expect("it listens");
        stream.write_all(b"Fabc").expect("it reads");
        stream.shutdown(std::net::Shutdown::Write).expect("open");
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).expect("it answers");
        assert_eq!(answer[..32], Sha256::digest(b"abc")[..]);
        assert_eq!(answer[32..], 3u64.to_be_bytes());
    }

    #[test]
    fn mode_r_resets() {
        let mut stream = net::connect_patiently(serve_one(raw_of)).expect("it listens");
        stream.write_all(b"R").expect("it reads");
        let error = stream.read(&mut [0]).expect_err("a reset is an error");
        assert_eq!(net::errno_name(&error), "ECONNRESET");
    }
}
