//! Puts the agent's binary into `stead`, so that `image save` needs nothing else.
//!
//! `cargo xtask dist` builds the agent first and names it in STEAD_AGENT_BINARY. A plain `cargo build` has no agent
//! inside, and `image save` says so. Compressed, it is less than half as large.

use std::io::Write as _;
use std::path::PathBuf;

use flate2::Compression;
use flate2::write::GzEncoder;

fn main() {
    // A position-independent program of this size has 31,000 relocations; packed, they take 20 KB instead of 740.
    println!("cargo::rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
    println!("cargo::rerun-if-env-changed=STEAD_AGENT_BINARY");
    let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets OUT_DIR")).join("stead-agent.gz");
    match std::env::var_os("STEAD_AGENT_BINARY") {
        Some(path) => {
            println!("cargo::rerun-if-changed={}", PathBuf::from(&path).display());
            let agent = std::fs::read(&path).expect("STEAD_AGENT_BINARY names a readable file");
            let mut compressed = GzEncoder::new(Vec::new(), Compression::best());
            compressed.write_all(&agent).expect("memory takes all bytes");
            std::fs::write(&out, compressed.finish().expect("memory takes all bytes")).expect("OUT_DIR is writable");
        }
        None => std::fs::write(&out, []).expect("OUT_DIR is writable"),
    }
}
