//! Pure: echo messages as the kernel's ping sockets take and give them (RFC 792, RFC 4443).
//!
//! Checksum and identifier are the kernel's. What follows the sequence number is the payload.

use std::net::{IpAddr, SocketAddr};

/// Type, code, checksum, identifier, sequence number.
const HEADER: usize = 8;

/// The request with this peer's port as its sequence number.
pub(crate) fn request(peer: SocketAddr, payload: &[u8]) -> Vec<u8> {
    let kind = if peer.is_ipv4() { 8 } else { 128 };
    let [high, low] = peer.port().to_be_bytes();
    let mut message = Vec::with_capacity(HEADER + payload.len());
    message.extend_from_slice(&[kind, 0, 0, 0, 0, 0, high, low]);
    message.extend_from_slice(payload);
    message
}

/// Sequence number and payload of an echo reply.
pub(crate) fn reply(from: IpAddr, message: &[u8]) -> Option<(u16, &[u8])> {
    let kind = if from.is_ipv4() { 0 } else { 129 };
    (message.first() == Some(&kind)).then(|| parts(message))?
}

/// Sequence number of a request that an error quotes.
pub(crate) fn quoted(message: &[u8]) -> Option<u16> {
    parts(message).map(|(sequence, _)| sequence)
}

fn parts(message: &[u8]) -> Option<(u16, &[u8])> {
    let (head, payload) = message.split_at_checked(HEADER)?;
    Some((u16::from_be_bytes([head[6], head[7]]), payload))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_carries_its_sequence_number_and_a_reply_gives_it_back() {
        for (peer, answer) in [("10.0.0.1:513", 0), ("[fd00::1]:513", 129)] {
            let peer: SocketAddr = peer.parse().expect("a literal");
            let mut message = request(peer, b"abc");
            assert_eq!(quoted(&message), Some(513));
            assert_eq!(reply(peer.ip(), &message), None, "a request is no reply");
            message[0] = answer;
            assert_eq!(reply(peer.ip(), &message), Some((513, &b"abc"[..])));
            assert_eq!(reply(peer.ip(), &message[..7]), None);
        }
    }
}
