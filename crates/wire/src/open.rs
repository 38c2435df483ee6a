use std::net::{IpAddr, SocketAddr};

use prost::Message as _;

/// The first frame of every link, both ways.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Hello {
    #[prost(uint32, tag = "1")]
    pub protocol: u32,
    #[prost(string, tag = "2")]
    pub release: String,
    /// 16 bytes; must be the id that the link's key was admitted for.
    #[prost(bytes = "vec", tag = "3")]
    pub session: Vec<u8>,
    /// Chosen by the client, from 0; the lowest live one is the interactive link.
    #[prost(uint32, tag = "4")]
    pub link: u32,
    /// Others share the way of this link (an API server's connections): it keeps to what a `Pace` says.
    #[prost(bool, tag = "5")]
    pub shared_way: bool,
}

/// What the opener of a flow wants connected. Payload of an OPEN frame.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Open {
    #[prost(enumeration = "Transport", tag = "1")]
    pub transport: i32,
    /// 4 or 16 bytes, network order.
    #[prost(bytes = "vec", tag = "2")]
    pub address: Vec<u8>,
    #[prost(uint32, tag = "3")]
    pub port: u32,
    /// A container's id, if not empty: refused unless a process of another container listens on this port of the pod's
    /// localhost.
    #[prost(string, tag = "4")]
    pub unless_listened_by: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
pub enum Transport {
    Unspecified = 0,
    Tcp = 1,
    /// Datagrams from one port to any other end; what passes is records, see [`crate::Datagram`].
    Udp = 2,
    /// ICMP echo requests of one identifier, likewise.
    Echo = 3,
}

impl Open {
    pub fn tcp(to: SocketAddr) -> Self {
        Open {
            transport: Transport::Tcp as i32,
            address: octets(to.ip()),
            port: u32::from(to.port()),
            unless_listened_by: String::new(),
        }
    }

    /// Refused where the listener is this container's own, or whose it is cannot be told.
    pub fn unless_listened_by(self, container_id: &str) -> Self {
        Open { unless_listened_by: container_id.to_owned(), ..self }
    }

    /// `any` is the unspecified address of the family.
    pub fn datagrams(transport: Transport, any: IpAddr) -> Self {
        Open { transport: transport as i32, address: octets(any), port: 0, unless_listened_by: String::new() }
    }

    /// The address to dial, or `None` when the message names none.
    pub fn socket_addr(&self) -> Option<SocketAddr> {
        let port = u16::try_from(self.port).ok()?;
        let ip = match self.address.len() {
            4 => IpAddr::from(<[u8; 4]>::try_from(self.address.as_slice()).ok()?),
            16 => IpAddr::from(<[u8; 16]>::try_from(self.address.as_slice()).ok()?),
            _ => return None,
        };
        Some(SocketAddr::new(ip, port))
    }

    pub fn to_bytes(&self) -> Vec<u8> {
        self.encode_to_vec()
    }

    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        Self::decode(bytes).ok()
    }
}

fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

impl Hello {
    pub fn to_bytes(&self) -> Vec<u8> {
        self.encode_to_vec()
    }

    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        Self::decode(bytes).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_open_names_the_address_it_was_made_from() {
        for to in ["10.96.0.1:443", "[fd00::1]:80"] {
            let to: SocketAddr = to.parse().expect("a literal");
            assert_eq!(Open::from_bytes(&Open::tcp(to).to_bytes()).and_then(|o| o.socket_addr()), Some(to));
        }
    }

    #[test]
    fn an_open_with_a_bad_address_names_none() {
        let mut open = Open::tcp(([10, 0, 0, 1], 80).into());
        open.address.push(0);
        assert_eq!(open.socket_addr(), None);
        let mut open = Open::tcp(([10, 0, 0, 1], 80).into());
        open.port = 65_536;
        assert_eq!(open.socket_addr(), None);
    }
}
