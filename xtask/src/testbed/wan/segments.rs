//! Loss on segmentation-offload packets, segment by segment: pure, no devices, no clock.
//!
//! A packet is `virtio_net_hdr` (10 bytes, little endian) and an IP packet. Where it stands for several TCP segments
//! and some of them are lost, what survives leaves as several packets with their own sequence numbers and lengths.
//! Checksums are left to the kernel, which only wants the pseudo header's sum.

use rand::Rng;

use super::tun::HEADER;

const NEEDS_CSUM: u8 = 1;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
const FIN_PSH: u8 = 0x09;

/// What is left of a packet (with its header), when each segment is lost with probability `loss`.
pub(crate) fn survivors(packet: &[u8], loss: f64, random: &mut impl Rng) -> Vec<Vec<u8>> {
    if loss <= 0.0 {
        return vec![packet.to_vec()];
    }
    let Some(gso) = Gso::of(packet) else {
        return if random.random_bool(loss) { Vec::new() } else { vec![packet.to_vec()] };
    };
    let lost: Vec<bool> = (0..gso.segments()).map(|_| random.random_bool(loss)).collect();
    if !lost.contains(&true) {
        return vec![packet.to_vec()];
    }
    runs(&lost).into_iter().map(|(first, end)| gso.part(first, end)).collect()
}

/// Ranges of segments that are not lost.
fn runs(lost: &[bool]) -> Vec<(usize, usize)> {
    let mut runs: Vec<(usize, usize)> = Vec::new();
    for (index, _) in lost.iter().enumerate().filter(|(_, lost)| !**lost) {
        match runs.last_mut() {
            Some((_, end)) if *end == index => *end += 1,
            _ => runs.push((index, index + 1)),
        }
    }
    runs
}

/// A packet of several TCP segments, taken apart.
struct Gso<'a> {
    packet: &'a [u8],
    /// Where the TCP header begins, and where the payload does.
    tcp: usize,
    payload: usize,
    size: usize,
    is_v6: bool,
}

impl<'a> Gso<'a> {
    fn of(packet: &'a [u8]) -> Option<Self> {
        let kind = *packet.get(1)? & 0x7f; // without the ECN bit
        let size = usize::from(u16::from_le_bytes([*packet.get(4)?, *packet.get(5)?]));
        let start = usize::from(u16::from_le_bytes([*packet.get(6)?, *packet.get(7)?]));
        let tcp = HEADER + start;
        let payload = tcp + usize::from(packet.get(tcp + 12)? >> 4) * 4;
        let is_whole = packet[0] & NEEDS_CSUM != 0 && size > 0 && payload < packet.len();
        ((kind == GSO_TCPV4 || kind == GSO_TCPV6) && is_whole).then_some(Self {
            packet,
            tcp,
            payload,
            size,
            is_v6: kind == GSO_TCPV6,
        })
    }

    fn segments(&self) -> usize {
        (self.packet.len() - self.payload).div_ceil(self.size)
    }

    /// Segments `first..end` as a packet of its own.
    fn part(&self, first: usize, end: usize) -> Vec<u8> {
        let (from, to) = (first * self.size, (end * self.size).min(self.packet.len() - self.payload));
        let mut part = self.packet[..self.payload].to_vec();
        part.extend_from_slice(&self.packet[self.payload + from..self.payload + to]);
        if end - first == 1 {
            part[1] = 0; // one segment is no offload packet
            part[4..6].fill(0);
        }
        let sequence =
            u32::from_be_bytes([part[self.tcp + 4], part[self.tcp + 5], part[self.tcp + 6], part[self.tcp + 7]]);
        let offset = u32::try_from(from).unwrap_or(0); // a packet holds less than 64 KiB
        part[self.tcp + 4..self.tcp + 8].copy_from_slice(&sequence.wrapping_add(offset).to_be_bytes());
        if end < self.segments() {
            part[self.tcp + 13] &= !FIN_PSH;
        }
        self.set_lengths(&mut part, first);
        part
    }

    fn set_lengths(&self, part: &mut [u8], first: usize) {
        let ip = HEADER;
        let length = u16::try_from(part.len() - ip).unwrap_or(u16::MAX);
        let tcp_length = u16::try_from(part.len() - self.tcp).unwrap_or(u16::MAX);
        let pseudo = if self.is_v6 {
            let payload = length - 40;
            part[ip + 4..ip + 6].copy_from_slice(&payload.to_be_bytes());
            sum(&part[ip + 8..ip + 40])
        } else {
            let id = u16::from_be_bytes([part[ip + 4], part[ip + 5]]).wrapping_add(u16::try_from(first).unwrap_or(0));
            part[ip + 2..ip + 4].copy_from_slice(&length.to_be_bytes());
            part[ip + 4..ip + 6].copy_from_slice(&id.to_be_bytes());
            part[ip + 10..ip + 12].fill(0);
            let header = !fold(sum(&part[ip..self.tcp]));
            part[ip + 10..ip + 12].copy_from_slice(&header.to_be_bytes());
            sum(&part[ip + 12..ip + 20])
        };
        let partial = fold(pseudo + 6 + u32::from(tcp_length)); // 6: TCP's protocol number
        part[self.tcp + 16..self.tcp + 18].copy_from_slice(&partial.to_be_bytes());
    }
}

fn sum(bytes: &[u8]) -> u32 {
    bytes.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]))).sum()
}

fn fold(mut sum: u32) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    u16::try_from(sum).unwrap_or(u16::MAX)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    const SIZE: usize = 1000;

    /// 3.5 segments over IPv4 with FIN and PSH set.
    fn packet() -> Vec<u8> {
        let mut packet = vec![0; HEADER + 40];
        packet[0] = NEEDS_CSUM;
        packet[1] = GSO_TCPV4;
        packet[2..4].copy_from_slice(&40_u16.to_le_bytes());
        packet[4..6].copy_from_slice(&1000_u16.to_le_bytes());
        packet[6..8].copy_from_slice(&20_u16.to_le_bytes());
        packet[8..10].copy_from_slice(&16_u16.to_le_bytes());
        packet[HEADER] = 0x45;
        packet[HEADER + 9] = 6;
        packet[HEADER + 20 + 12] = 0x50;
        packet[HEADER + 20 + 13] = 0x10 | FIN_PSH;
        packet.extend((0..3500_usize).map(|i| u8::try_from(i / SIZE).unwrap()));
        packet
    }

    #[test]
    fn without_loss_a_packet_passes_as_it_is() {
        assert_eq!(survivors(&packet(), 0.0, &mut rand::rng()), [packet()]);
    }

    #[test]
    fn with_full_loss_nothing_passes() {
        assert!(survivors(&packet(), 1.0, &mut rand::rng()).is_empty());
    }

    #[test]
    fn segments_around_a_lost_one_keep_their_place() {
        let whole = packet();
        let gso = Gso::of(&whole).unwrap();
        assert_eq!(gso.segments(), 4);
        assert_eq!(runs(&[false, true, false, false]), [(0, 1), (2, 4)]);
        let (head, tail) = (gso.part(0, 1), gso.part(2, 4));
        assert_eq!((head.len() - 50, tail.len() - 50), (SIZE, 1500));
        assert_eq!((head[1], tail[1]), (0, GSO_TCPV4));
        assert_eq!(head[HEADER + 33] & FIN_PSH, 0, "only the last segment ends the flow");
        assert_eq!(tail[HEADER + 33] & FIN_PSH, FIN_PSH);
        assert_eq!(u32::from_be_bytes(tail[HEADER + 24..HEADER + 28].try_into().unwrap()), 2000);
        assert!(tail[50..1050].iter().all(|byte| *byte == 2));
        assert_eq!(fold(sum(&tail[HEADER..HEADER + 20])), 0xffff, "the IP header's sum is right");
        assert_eq!(u16::from_be_bytes([tail[HEADER + 2], tail[HEADER + 3]]), 1540);
    }
}
