//! Netlink messages as bytes, and a blocking socket that sends a batch of them and reads the acknowledgements.
//!
//! Just what the sandbox needs to set its own network namespace up; no dumps, no listening for events. Building is pure.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::net::netlink::{self, SocketAddrNetlink};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

/// Bytes of `struct nlmsghdr`.
const HEADER: usize = 16;
const NLMSG_ERROR: u16 = libc::NLMSG_ERROR as u16;

/// Several requests in one send; each is acknowledged and carries a name for error reports.
pub(crate) struct Batch {
    bytes: Vec<u8>,
    /// Name of the request with sequence number `index + 1`; `None` asks for no acknowledgement.
    steps: Vec<Option<&'static str>>,
}

impl Batch {
    pub(crate) fn new() -> Batch {
        Batch { bytes: Vec::with_capacity(4096), steps: Vec::new() }
    }

    /// Adds a request: its fixed `header` (ifinfomsg, rtmsg…), then what `body` writes.
    pub(crate) fn request(
        &mut self,
        step: &'static str,
        kind: u16,
        flags: i32,
        header: &[u8],
        body: impl FnOnce(&mut Attributes),
    ) {
        self.message(Some(step), kind, flags | libc::NLM_F_ACK, header, body);
    }

    /// Adds a message that the kernel does not acknowledge (the begin and end of an nftables transaction).
    pub(crate) fn marker(&mut self, kind: u16, header: &[u8]) {
        self.message(None, kind, 0, header, |_| ());
    }

    fn message(
        &mut self,
        step: Option<&'static str>,
        kind: u16,
        flags: i32,
        header: &[u8],
        body: impl FnOnce(&mut Attributes),
    ) {
        self.steps.push(step);
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 4]);
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(&((flags | libc::NLM_F_REQUEST) as u16).to_ne_bytes());
        self.bytes.extend_from_slice(&(self.steps.len() as u32).to_ne_bytes());
        self.bytes.extend_from_slice(&0u32.to_ne_bytes());
        self.bytes.extend_from_slice(header);
        let mut attributes = Attributes(std::mem::take(&mut self.bytes));
        attributes.align();
        body(&mut attributes);
        self.bytes = attributes.0;
        let length = (self.bytes.len() - start) as u32;
        self.bytes[start..start + 4].copy_from_slice(&length.to_ne_bytes());
    }

    fn step(&self, sequence: u32) -> &'static str {
        self.steps.get((sequence as usize).wrapping_sub(1)).copied().flatten().unwrap_or("netlink transaction")
    }

    #[cfg(test)]
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

/// Attributes (type, length, value, padded to 4 bytes) at the end of a message.
pub(crate) struct Attributes(Vec<u8>);

impl Attributes {
    pub(crate) fn put(&mut self, kind: u16, value: &[u8]) {
        self.nest_raw(kind, |bytes| bytes.0.extend_from_slice(value));
    }

    pub(crate) fn put_u32(&mut self, kind: u16, value: u32) {
        self.put(kind, &value.to_ne_bytes());
    }

    /// nftables and tproxy speak network byte order.
    pub(crate) fn put_u32_be(&mut self, kind: u16, value: u32) {
        self.put(kind, &value.to_be_bytes());
    }

    /// A string with its final zero.
    pub(crate) fn put_str(&mut self, kind: u16, value: &str) {
        self.nest_raw(kind, |bytes| {
            bytes.0.extend_from_slice(value.as_bytes());
            bytes.0.push(0);
        });
    }

    pub(crate) fn nest(&mut self, kind: u16, body: impl FnOnce(&mut Attributes)) {
        self.nest_raw(kind | libc::NLA_F_NESTED as u16, body);
    }

    fn nest_raw(&mut self, kind: u16, body: impl FnOnce(&mut Attributes)) {
        let start = self.0.len();
        self.0.extend_from_slice(&[0; 2]);
        self.0.extend_from_slice(&kind.to_ne_bytes());
        body(self);
        let length = (self.0.len() - start) as u16;
        self.0[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        self.align();
    }

    fn align(&mut self) {
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }
}

/// A request that the kernel refused.
#[derive(Debug)]
pub(crate) struct Refused {
    pub(crate) step: &'static str,
    pub(crate) source: io::Error,
}

pub(crate) struct Socket(OwnedFd);

impl Socket {
    fn open(protocol: Option<rustix::net::Protocol>) -> io::Result<Socket> {
        let fd = rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, protocol)?;
        rustix::net::bind(&fd, &SocketAddrNetlink::new(0, 0))?;
        // Acknowledgements are queued before send returns; the limit only turns a kernel's surprise into an error.
        rustix::net::sockopt::set_socket_timeout(
            &fd,
            rustix::net::sockopt::Timeout::Recv,
            Some(Duration::from_secs(2)),
        )?;
        Ok(Socket(fd))
    }

    pub(crate) fn route() -> io::Result<Socket> {
        // NETLINK_ROUTE is 0.
        Socket::open(None)
    }

    pub(crate) fn netfilter() -> io::Result<Socket> {
        Socket::open(Some(netlink::NETFILTER))
    }

    pub(crate) fn sock_diag() -> io::Result<Socket> {
        Socket::open(Some(netlink::SOCK_DIAG))
    }

    pub(crate) fn into_fd(self) -> OwnedFd {
        self.0
    }

    /// Sends the batch and waits until each request was acknowledged; stops at the first refusal.
    pub(crate) fn run(&self, batch: &Batch) -> Result<(), Refused> {
        let failed = |step| move |e: rustix::io::Errno| Refused { step, source: e.into() };
        rustix::net::sendto(&self.0, &batch.bytes, SendFlags::empty(), &SocketAddrNetlink::new(0, 0))
            .map_err(failed("netlink send"))?;
        let mut missing = batch.steps.iter().flatten().count();
        let mut buffer = vec![0u8; 16 << 10];
        while missing > 0 {
            let (length, _) = rustix::net::recv(&self.0, buffer.as_mut_slice(), RecvFlags::empty())
                .map_err(failed("netlink acknowledgement"))?;
            for (sequence, errno) in acknowledgements(&buffer[..length]) {
                if errno != 0 {
                    let source = io::Error::from_raw_os_error(-errno);
                    return Err(Refused { step: batch.step(sequence), source });
                }
                missing -= 1;
            }
        }
        Ok(())
    }
}

/// The (sequence, negative errno) pairs of the NLMSG_ERROR messages in a datagram.
fn acknowledgements(mut bytes: &[u8]) -> Vec<(u32, i32)> {
    let mut found = Vec::new();
    while let Some((length, kind, sequence)) = header(bytes) {
        if kind == NLMSG_ERROR
            && let Some(errno) = bytes.get(HEADER..HEADER + 4)
        {
            found.push((sequence, i32::from_ne_bytes(errno.try_into().expect("4 bytes"))));
        }
        bytes = bytes.get((length as usize).next_multiple_of(4)..).unwrap_or_default();
    }
    found
}

/// (length, type, sequence) of the message at the start of `bytes`, if it is a whole one.
pub(crate) fn header(bytes: &[u8]) -> Option<(u32, u16, u32)> {
    let head: &[u8; HEADER] = bytes.first_chunk()?;
    let length = u32::from_ne_bytes(head[0..4].try_into().expect("4 bytes"));
    let kind = u16::from_ne_bytes(head[4..6].try_into().expect("2 bytes"));
    let sequence = u32::from_ne_bytes(head[8..12].try_into().expect("4 bytes"));
    (length as usize >= HEADER && length as usize <= bytes.len()).then_some((length, kind, sequence))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_carries_its_length_and_padded_attributes() {
        let mut batch = Batch::new();
        batch.request("first", 16, 0, &[7; 4], |a| a.put_str(3, "tun0"));
        let bytes = batch.bytes();
        assert_eq!(header(bytes), Some((32, 16, 1)));
        assert_eq!(bytes[6..8], ((libc::NLM_F_REQUEST | libc::NLM_F_ACK) as u16).to_ne_bytes());
        assert_eq!(&bytes[16..20], &[7; 4]);
        assert_eq!(&bytes[20..32], &[9, 0, 3, 0, b't', b'u', b'n', b'0', 0, 0, 0, 0]);
    }

    #[test]
    fn a_nest_covers_what_is_inside_it() {
        let mut batch = Batch::new();
        batch.request("x", 1, 0, &[], |a| a.nest(5, |a| a.put_u32_be(1, 0x0102_0304)));
        assert_eq!(&batch.bytes()[16..], &[12, 0, 5, 0x80, 8, 0, 1, 0, 1, 2, 3, 4]);
    }

    #[test]
    fn acknowledgements_are_found_behind_each_other_and_garbage_ends_the_search() {
        let mut bytes = Vec::new();
        for (sequence, errno) in [(1u32, 0i32), (2, -libc::EPERM)] {
            bytes.extend_from_slice(&36u32.to_ne_bytes());
            bytes.extend_from_slice(&NLMSG_ERROR.to_ne_bytes());
            bytes.extend_from_slice(&[0; 2]);
            bytes.extend_from_slice(&sequence.to_ne_bytes());
            bytes.extend_from_slice(&[0; 4]);
            bytes.extend_from_slice(&errno.to_ne_bytes());
            bytes.extend_from_slice(&[0; 16]);
        }
        bytes.extend_from_slice(&[0xff; 20]);
        assert_eq!(acknowledgements(&bytes), [(1, 0), (2, -libc::EPERM)]);
    }

    #[test]
    fn a_refusal_names_the_step() {
        let mut batch = Batch::new();
        batch.marker(16, &[]);
        batch.request("add the address", 20, 0, &[], |_| ());
        assert_eq!(batch.step(2), "add the address");
        assert_eq!(batch.step(1), "netlink transaction");
        assert_eq!(batch.step(0), "netlink transaction");
    }
}
