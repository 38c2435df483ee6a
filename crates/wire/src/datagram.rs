//! Datagrams as a flow's byte stream carries them: a record each, both ways.
//!
//! ```text
//! u16 length of all that follows | u8 kind | 4 or 16 bytes of address | u16 port | payload
//! ```
//! The address is the other end's: where the client's datagram goes, where the agent's came from. `kind` is 4 or 6 for a
//! datagram of that family, 0x14 or 0x16 for news that one to this address could not be delivered; its payload is then one
//! byte, the reason. The port of an echo is its sequence number. All in network order.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use bytes::{Buf, BufMut, Bytes, BytesMut};

/// Most that a datagram carries: UDP over IPv4 has 65,507 bytes.
pub const MOST_PAYLOAD: usize = 65_507;

const UNDELIVERED: u8 = 0x10;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Datagram {
    /// The other end.
    pub peer: SocketAddr,
    pub what: Delivery,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Delivery {
    Payload(Bytes),
    Undelivered(Undelivered),
}

/// Why a datagram did not arrive, as ICMP says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Undelivered {
    /// Nobody listens there.
    Port,
    Host,
    Network,
    Prohibited,
}

impl Undelivered {
    const ALL: [Undelivered; 4] = [Undelivered::Port, Undelivered::Host, Undelivered::Network, Undelivered::Prohibited];
}

/// A record that no release of ours writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed;

impl Datagram {
    /// Appends the record. A payload that is too long is cut, which nobody's kernel lets happen.
    pub fn put(&self, out: &mut BytesMut) {
        let reason;
        let (flag, payload) = match &self.what {
            Delivery::Payload(payload) => (0, &payload[..payload.len().min(MOST_PAYLOAD)]),
            Delivery::Undelivered(why) => {
                reason = [*why as u8];
                (UNDELIVERED, &reason[..])
            }
        };
        let address = if self.peer.is_ipv4() { 4 } else { 16 };
        out.reserve(5 + address + payload.len());
        out.put_u16((3 + address + payload.len()) as u16);
        match self.peer.ip() {
            IpAddr::V4(ip) => {
                out.put_u8(4 | flag);
                out.put_slice(&ip.octets());
            }
            IpAddr::V6(ip) => {
                out.put_u8(6 | flag);
                out.put_slice(&ip.octets());
            }
        }
        out.put_u16(self.peer.port());
        out.put_slice(payload);
    }

    /// Takes the first record out of `bytes`; `None` until it is whole.
    pub fn take(bytes: &mut BytesMut) -> Result<Option<Datagram>, Malformed> {
        let Some(&head) = bytes.first_chunk::<2>() else { return Ok(None) };
        let length = usize::from(u16::from_be_bytes(head));
        if bytes.len() < 2 + length {
            return Ok(None);
        }
        bytes.advance(2);
        Datagram::read(bytes.split_to(length).freeze()).map(Some)
    }

    fn read(mut record: Bytes) -> Result<Datagram, Malformed> {
        let kind = record.try_get_u8().map_err(|_| Malformed)?;
        let ip = match kind & !UNDELIVERED {
            4 => record.try_get_u32().map(|bits| IpAddr::V4(Ipv4Addr::from_bits(bits))),
            6 => record.try_get_u128().map(|bits| IpAddr::V6(Ipv6Addr::from_bits(bits))),
            _ => return Err(Malformed),
        };
        let (Ok(ip), Ok(port)) = (ip, record.try_get_u16()) else { return Err(Malformed) };
        let what = if kind & UNDELIVERED == 0 {
            Delivery::Payload(record)
        } else {
            let [reason] = record[..] else { return Err(Malformed) };
            // A later release may know more reasons.
            Delivery::Undelivered(*Undelivered::ALL.get(usize::from(reason)).unwrap_or(&Undelivered::Host))
        };
        Ok(Datagram { peer: SocketAddr::new(ip, port), what })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples() -> Vec<Datagram> {
        let peers = ["10.96.0.10:53", "[fd00::5]:65535"].map(|peer| peer.parse().expect("a literal"));
        let payloads = [Bytes::new(), Bytes::from_static(b"x"), Bytes::from(vec![7; MOST_PAYLOAD])];
        let deliveries = payloads.map(Delivery::Payload).into_iter();
        let all: Vec<_> = deliveries.chain(Undelivered::ALL.map(Delivery::Undelivered)).collect();
        peers.iter().flat_map(|peer| all.iter().map(|what| Datagram { peer: *peer, what: what.clone() })).collect()
    }

    #[test]
    fn records_are_read_as_they_were_written_however_the_stream_is_cut() {
        for cut in [1, 7, 4096, usize::MAX] {
            let mut stream = BytesMut::new();
            samples().iter().for_each(|datagram| datagram.put(&mut stream));
            let (mut buffer, mut read) = (BytesMut::new(), Vec::new());
            for part in stream.chunks(cut.min(stream.len())) {
                buffer.extend_from_slice(part);
                while let Some(datagram) = Datagram::take(&mut buffer).expect("well formed") {
                    read.push(datagram);
                }
            }
            assert_eq!(read, samples());
        }
    }

    #[test]
    fn what_no_release_writes_is_malformed() {
        let records: [&[u8]; 5] = [b"", b"\x05abcd", b"\x04abc", b"\x06\0\0\0\0\0\0", b"\x14\x0a\0\0\x01\0\x35"];
        for record in records {
            let mut bytes = BytesMut::new();
            bytes.put_u16(record.len() as u16);
            bytes.put_slice(record);
            assert_eq!(Datagram::take(&mut bytes), Err(Malformed), "{record:?}");
        }
    }
}
