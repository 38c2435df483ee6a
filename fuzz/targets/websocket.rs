//! Whatever bytes come over pods/portforward, in whatever pieces: the decoder never panics, gives no more than came, and
//! means the same however they are cut.

#![no_main]

use libfuzzer_sys::fuzz_target;

use websocket::{Decoder, Incoming, Malformed};

// The crate it lives in brings all of Kubernetes' types.
#[path = "../../crates/cluster/src/pipe/websocket.rs"]
#[allow(dead_code, reason = "only what decodes is fuzzed")]
mod websocket;

fuzz_target!(|data: &[u8]| {
    let Some((piece, bytes)) = data.split_first() else { return };
    let whole = decode(bytes, bytes.len().max(1));
    let pieces = decode(bytes, usize::from(*piece).max(1));
    assert_eq!(whole, pieces);
});

/// All data as one, all that ends or is to be answered, and what was wrong.
fn decode(bytes: &[u8], piece: usize) -> (Vec<u8>, Vec<Incoming>, Option<Malformed>) {
    let mut decoder = Decoder::new();
    let (mut data, mut others) = (Vec::new(), Vec::new());
    for piece in bytes.chunks(piece) {
        decoder.buffer().extend_from_slice(piece);
        loop {
            match decoder.poll() {
                Ok(Some(Incoming::Data(came))) => data.extend_from_slice(&came),
                Ok(Some(other)) => others.push(other),
                Ok(None) => break,
                Err(malformed) => return (data, others, Some(malformed)),
            }
        }
    }
    assert!(data.len() <= bytes.len());
    (data, others, None)
}
