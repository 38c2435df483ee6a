//! Mutates messages of the corpus for a bounded time (`FUZZ_SECONDS`, 5 by default). A message that makes it fail is
//! written beside the corpus and stays there.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "seed and count are for who reads the test's output")]

use std::fs;
use std::panic;
use std::path::Path;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

#[test]
fn no_message_makes_the_decoder_panic() {
    let corpus_dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus");
    let corpus: Vec<Vec<u8>> = fs::read_dir(&corpus_dir)
        .expect("the corpus lies beside this test")
        .map(|entry| fs::read(entry.expect("readable").path()).expect("readable"))
        .collect();
    assert!(corpus.len() >= 8, "the corpus has {} messages", corpus.len());
    corpus.iter().for_each(|message| dns::fuzz_message(message));

    let seconds = std::env::var("FUZZ_SECONDS").ok().and_then(|s| s.parse().ok()).unwrap_or(5);
    let seed = std::env::var("FUZZ_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or_else(rand::random);
    let end = Instant::now() + Duration::from_secs(seconds);
    let mut rng = StdRng::seed_from_u64(seed);
    let mut runs = 0_u64;
    while Instant::now() < end {
        for _ in 0..1000 {
            let message = mutate(&corpus, &mut rng);
            if let Err(panic) = panic::catch_unwind(|| dns::fuzz_message(&message)) {
                let path = corpus_dir.join(format!("found-{seed:016x}-{runs}"));
                fs::write(&path, &message).expect("the checkout is writable");
                eprintln!("seed {seed}: {}", path.display());
                panic::resume_unwind(panic);
            }
            runs += 1;
        }
    }
    println!("{runs} messages, seed {seed}");
}

fn mutate(corpus: &[Vec<u8>], rng: &mut StdRng) -> Vec<u8> {
    let mut message = corpus[rng.random_range(0..corpus.len())].clone();
    for _ in 0..rng.random_range(1..6) {
        let at = rng.random_range(0..message.len().max(1));
        match rng.random_range(0..7) {
            _ if message.is_empty() => message.push(rng.random()),
            0 => message[at] = rng.random(),
            1 => message[at] ^= 1 << rng.random_range(0..8),
            // Pointers, length bytes and counts are where decoders stumble.
            2 => message[at] = [0, 0xc0, 0xff, 0x3f, 0x40, 12][rng.random_range(0..6)],
            3 => message.truncate(at),
            4 => message.insert(at, rng.random()),
            5 => {
                let other = &corpus[rng.random_range(0..corpus.len())];
                let from = rng.random_range(0..=other.len());
                message.truncate(at);
                message.extend_from_slice(&other[from..]);
            }
            _ => {
                let end = rng.random_range(at..=message.len()).min(at + 64);
                let part = message[at..end].to_vec();
                message.extend_from_slice(&part);
            }
        }
    }
    message
}
