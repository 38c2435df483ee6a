//! What the sandbox costs: the same client against the same servers, without and within. `measure inside` is the client.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use crate::Outcome;

/// Commands of the first byte a client sends.
const ECHO: u8 = b'e';
const DOWN: u8 = b'd';
const UP: u8 = b'u';
const BULK: u64 = 4 << 30;
const BLOCK: usize = 256 << 10;

pub(crate) fn measure(arguments: &[String]) -> Outcome {
    if let [inside, to] = arguments
        && inside == "inside"
    {
        return client(to.parse()?).map(|()| ExitCode::SUCCESS);
    }
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let port = listener.local_addr()?.port();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || serve(stream));
        }
    });
    let own = std::env::current_exe()?;
    let start = |arguments: &[&str]| Command::new(&own).args(arguments).status();
    println!("without a sandbox");
    start(&["measure", "inside", &format!("127.0.0.1:{port}")])?;
    println!("in the sandbox");
    start(&["run", "--", "@self", "measure", "inside", &format!("10.96.0.5:{port}")])?;
    let mut times: Vec<Duration> = Vec::new();
    for _ in 0..51 {
        let begun = Instant::now();
        start(&["run", "--", "true"])?;
        times.push(begun.elapsed());
    }
    times.sort();
    println!("a whole `run -- true`, p50 {:?}, p90 {:?}", times[25], times[45]);
    Ok(ExitCode::SUCCESS)
}

fn serve(mut stream: TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut buffer = vec![0; BLOCK];
    let mut what = [0];
    stream.read_exact(&mut what)?;
    match what[0] {
        DOWN => {
            for _ in 0..BULK / BLOCK as u64 {
                stream.write_all(&buffer)?;
            }
        }
        UP => {
            while stream.read(&mut buffer)? > 0 {}
            stream.write_all(&what)?;
        }
        _ => loop {
            stream.write_all(&what)?;
            stream.read_exact(&mut what)?;
        },
    }
    Ok(())
}

fn client(to: SocketAddr) -> Result<(), Box<dyn std::error::Error>> {
    let open = |what: u8| -> std::io::Result<TcpStream> {
        let mut stream = TcpStream::connect(to)?;
        stream.set_nodelay(true)?;
        stream.write_all(&[what])?;
        Ok(stream)
    };
    let mut byte = [0];
    let mut echo = open(ECHO)?;
    echo.read_exact(&mut byte)?;
    let trips = times(20_000, || {
        echo.write_all(&[ECHO])?;
        echo.read_exact(&mut byte)
    })?;
    println!("  round trip p50 {:?}, p99 {:?}", trips[10_000], trips[19_800]);
    let start = Instant::now();
    let connects = times(5_000, || open(ECHO)?.read_exact(&mut byte))?;
    let rate = 5_000.0 / start.elapsed().as_secs_f64();
    println!("  connect and first byte p50 {:?}, p99 {:?}, {rate:.0} per s", connects[2_500], connects[4_950]);
    println!("  down {:.1} Gbit/s, up {:.1} Gbit/s", down(open(DOWN)?)?, up(open(UP)?)?);
    Ok(())
}

fn times(count: usize, mut one: impl FnMut() -> std::io::Result<()>) -> std::io::Result<Vec<Duration>> {
    let mut times = Vec::with_capacity(count);
    for _ in 0..count {
        let start = Instant::now();
        one()?;
        times.push(start.elapsed());
    }
    times.sort();
    Ok(times)
}

fn gigabits(bytes: u64, start: Instant) -> f64 {
    bytes as f64 * 8.0 / 1e9 / start.elapsed().as_secs_f64()
}

fn down(mut stream: TcpStream) -> std::io::Result<f64> {
    let mut buffer = vec![0; BLOCK];
    let (mut bytes, start) = (0, Instant::now());
    loop {
        match stream.read(&mut buffer)? {
            0 => return Ok(gigabits(bytes, start)),
            length => bytes += length as u64,
        }
    }
}

fn up(mut stream: TcpStream) -> std::io::Result<f64> {
    let buffer = vec![0; BLOCK];
    let start = Instant::now();
    for _ in 0..BULK / BLOCK as u64 {
        stream.write_all(&buffer)?;
    }
    stream.shutdown(Shutdown::Write)?;
    stream.read_exact(&mut [0])?;
    Ok(gigabits(BULK, start))
}
