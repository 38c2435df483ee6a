//! Puts the agent's binary into `stead`, so that `image save` needs nothing else.
//!
//! `cargo xtask dist` builds the agent first and names it in STEAD_AGENT_BINARY. A plain `cargo build` has no agent
//! inside, and `image save` says so.

use std::path::PathBuf;

fn main() {
    println!("cargo::rerun-if-env-changed=STEAD_AGENT_BINARY");
    let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets OUT_DIR")).join("stead-agent");
    match std::env::var_os("STEAD_AGENT_BINARY") {
        Some(path) => {
            println!("cargo::rerun-if-changed={}", PathBuf::from(&path).display());
            std::fs::copy(&path, &out).expect("STEAD_AGENT_BINARY names a readable file");
        }
        None => std::fs::write(&out, []).expect("OUT_DIR is writable"),
    }
}
