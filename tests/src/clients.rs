//! The clients in other languages: compiled once into the cache, asked by one command line, answering one line of JSON.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context;
use testkit::lab::checked;

const SOURCES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/clients");

/// How each client is started.
pub(crate) struct Clients {
    dir: PathBuf,
}

/// What a client can do beside fetching and connecting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Client {
    pub(crate) name: &'static str,
    pub(crate) resolves: bool,
    /// Can ask for SRV records
    pub(crate) srv: bool,
    /// Can ask for PTR records
    pub(crate) ptr: bool,
    /// Starts many connects without waiting for each
    pub(crate) non_blocking: bool,
}

const fn client(name: &'static str, [resolves, srv, ptr, non_blocking]: [bool; 4]) -> Client {
    Client { name, resolves, srv, ptr, non_blocking }
}

/// All of R10's. Names: libc (c, python, bash), Go's own resolver, c-ares beside libc (node), Java, musl, Ruby.
pub(crate) const ALL: [Client; 9] = [
    client("go", [true, true, true, true]),
    client("c", [true, false, true, true]),
    client("musl", [true, false, true, true]),
    client("io_uring", [false, false, false, true]),
    client("python", [true, false, true, true]),
    client("node", [true, true, true, true]),
    client("java", [true, false, true, true]),
    client("bash", [true, false, false, false]),
    client("ruby", [true, false, true, false]),
];

impl Clients {
    /// Compiles what is missing, where the unprivileged user can run it.
    pub(crate) fn make() -> anyhow::Result<Clients> {
        let root = PathBuf::from(std::env::var_os("STEAD_CLIENTS").context("STEAD_CLIENTS is not set")?);
        let dir = root.join(format!("{:016x}", key()?));
        if !dir.join("done").exists() {
            std::fs::create_dir_all(&dir)?;
            compile(&dir)?;
            std::fs::write(dir.join("done"), "")?;
        }
        Ok(Clients { dir })
    }

    /// The words that start a client; its four arguments follow.
    pub(crate) fn start(&self, client: Client) -> String {
        let built = |name: &str| self.dir.join(name).display().to_string();
        match client.name {
            // Debian's own, as every user of this machine may run it.
            "python" => format!("/usr/bin/python3 {SOURCES}/client.py"),
            "node" => format!("node {SOURCES}/client.js"),
            "java" => format!("java -XX:TieredStopAtLevel=1 -XX:-UsePerfData -cp {} Client", self.dir.display()),
            "bash" => format!("bash {SOURCES}/client.bash"),
            "ruby" => format!("ruby {SOURCES}/client.rb"),
            name => built(name),
        }
    }
}

fn key() -> anyhow::Result<u64> {
    let mut hash = DefaultHasher::new();
    for file in ["client.c", "uring.c", "go/main.go", "Client.java"] {
        std::fs::read(Path::new(SOURCES).join(file))?.hash(&mut hash);
    }
    Ok(hash.finish())
}

fn compile(dir: &Path) -> anyhow::Result<()> {
    let source = |name: &str| format!("{SOURCES}/{name}");
    let out = |name: &str| dir.join(name).display().to_string();
    let run = |program: &str, args: &[&str]| checked(Command::new(program).args(args)).map(drop);
    run("gcc", &["-O2", "-Wall", "-o", &out("c"), &source("client.c")])?;
    run("musl-gcc", &["-O2", "-static", "-DCLIENT=\"musl\"", "-o", &out("musl"), &source("client.c")])
        .context("musl-gcc is in Debian's musl-tools")?;
    run("gcc", &["-O2", "-Wall", "-static", "-o", &out("io_uring"), &source("uring.c")])?;
    run("javac", &["-d", &dir.display().to_string(), &source("Client.java")])?;
    let mut go = Command::new("go");
    go.current_dir(source("go")).env("CGO_ENABLED", "0").args(["build", "-o", &out("go"), "."]);
    checked(&mut go).map(drop)
}
