//! Does one thing to a server and prints what happened. The judgement is the test's, which knows what is right.

mod connects;
mod datagrams;
mod ends;
mod hostile;
mod load;
mod uploads;

use std::net::{IpAddr, SocketAddr};

use serde_json::Value;

#[derive(clap::Subcommand)]
pub enum Probe {
    /// Many connects from many threads: how each group ended
    Connects {
        /// Connects here must succeed
        #[arg(long)]
        good: SocketAddr,
        /// Connects here must be refused
        #[arg(long)]
        refused: SocketAddr,
        #[arg(long, default_value_t = 8000)]
        good_count: usize,
        #[arg(long, default_value_t = 400)]
        refused_count: usize,
        #[arg(long, default_value_t = 32)]
        threads: usize,
    },
    /// One connect: its result and its time
    Connect {
        addr: SocketAddr,
        /// Seconds until it is given up
        #[arg(long, default_value_t = 5.0)]
        patience: f64,
    },
    /// Sends `bytes`, then a FIN, and reads what the server says to that (mode F)
    HalfClose {
        addr: SocketAddr,
        #[arg(long, default_value_t = 8 << 20)]
        bytes: usize,
    },
    /// The server resets (mode R): what this side sees
    ResetByPeer { addr: SocketAddr },
    /// The server resets as soon as it has the connection (port 9003)
    ResetAtOnce { addr: SocketAddr },
    /// This side ends a watched connection (port 9004) by a RST or a FIN: what the server saw
    EndsAtPeer {
        addr: SocketAddr,
        #[arg(long)]
        fin: bool,
    },
    /// Many connections at once: a line when they are open; a line on stdin, and each is used again
    Hold {
        addr: SocketAddr,
        #[arg(long, default_value_t = 10_000)]
        count: usize,
    },
    /// New connections at a pace that does not wait for them
    Pace {
        addr: SocketAddr,
        #[arg(long, default_value_t = 1000)]
        per_second: u32,
        #[arg(long, default_value_t = 10)]
        seconds: u32,
    },
    /// A download alone, then beside one that nobody reads: the seconds of each
    BesideStalled {
        addr: SocketAddr,
        #[arg(long, default_value_t = 100 << 20)]
        bytes: usize,
    },
    /// What the server says before it is asked (port 9002), then an echo
    ServerFirst { addr: SocketAddr },
    /// Parallel HTTP uploads whose echo must come back byte for byte
    Uploads {
        addr: SocketAddr,
        #[arg(long, default_value_t = 13)]
        count: usize,
        #[arg(long, default_value_t = 20 << 20)]
        bytes: u64,
    },
    /// Parallel GETs, each on its own connection, all at once
    Requests {
        addr: SocketAddr,
        #[arg(long, default_value_t = 90)]
        count: usize,
    },
    /// One GET whose body is printed
    Get { addr: SocketAddr, path: String },
    /// Every TCP port of an address: the open ones, and how many were neither open nor refused
    Scan { addr: IpAddr },
    /// Holds `count` connections that send a byte now and then, until stdin ends
    Slowloris {
        addr: SocketAddr,
        #[arg(long, default_value_t = 200)]
        count: usize,
    },
    /// Sends bytes to a port, prints what comes back before the end or the patience
    Poke { addr: SocketAddr, text: String },
    /// A datagram to each address from one socket, and what comes back
    Udp {
        #[arg(required = true)]
        addrs: Vec<SocketAddr>,
        #[arg(long, default_value_t = 100)]
        bytes: usize,
        /// Connect the socket to each before
        #[arg(long)]
        connected: bool,
        /// Seconds to wait for each answer
        #[arg(long, default_value_t = 60.0)]
        patience: f64,
    },
    /// Echo requests without capabilities: whether each came back as it was
    Ping {
        addr: IpAddr,
        #[arg(long, default_value_t = 3)]
        count: u16,
    },
    /// Connects to a unix socket, sends a line and prints the answer
    Unix { path: std::path::PathBuf },
}

impl Probe {
    /// Does it.
    pub fn run(&self) -> anyhow::Result<Value> {
        match self {
            Probe::Connects { good, refused, good_count, refused_count, threads } => {
                connects::many(*good, *good_count, *refused, *refused_count, *threads)
            }
            Probe::Connect { addr, patience } => connects::one(*addr, *patience),
            Probe::HalfClose { addr, bytes } => ends::half_close(*addr, *bytes),
            Probe::ResetByPeer { addr } => ends::reset_by_peer(*addr),
            Probe::ResetAtOnce { addr } => ends::reset_at_once(*addr),
            Probe::EndsAtPeer { addr, fin } => ends::seen_by_peer(*addr, *fin),
            Probe::Hold { addr, count } => load::hold(*addr, *count),
            Probe::Pace { addr, per_second, seconds } => load::pace(*addr, *per_second, *seconds),
            Probe::BesideStalled { addr, bytes } => load::beside_stalled(*addr, *bytes),
            Probe::ServerFirst { addr } => ends::server_first(*addr),
            Probe::Uploads { addr, count, bytes } => uploads::parallel(*addr, *count, *bytes),
            Probe::Requests { addr, count } => uploads::requests(*addr, *count),
            Probe::Get { addr, path } => uploads::get(*addr, path),
            Probe::Scan { addr } => hostile::scan(*addr),
            Probe::Slowloris { addr, count } => hostile::slowloris(*addr, *count),
            Probe::Poke { addr, text } => hostile::poke(*addr, text),
            Probe::Udp { addrs, bytes, connected, patience } => {
                datagrams::exchange(addrs, *bytes, *connected, *patience)
            }
            Probe::Ping { addr, count } => datagrams::ping(*addr, *count),
            Probe::Unix { path } => ends::unix_socket(path),
        }
    }
}
