//! The sandbox's nftables rules as netlink bytes: which packets go to the TUN, and where a SYN that comes back is taken.
//!
//! One table per family, two chains. Pure; no listing, no change of rules later. See `setup` for what the marks mean.

use std::net::{IpAddr, SocketAddr};

use crate::netlink::{Attributes, Batch};
use crate::packet::INSIDE;

/// What one family's table needs to know.
pub(crate) struct Rules<'a> {
    /// Addresses whose connections begin like all others, although they are inside: localhost, which the sandbox shares with
    /// the machine. A SYN that comes back with [`INSIDE`] hops is for a listener in the sandbox.
    pub(crate) shared: &'a [(IpAddr, u8)],
    /// Addresses that stay inside the sandbox, as (address, prefix length). All of one family.
    pub(crate) inside: &'a [(IpAddr, u8)],
    /// The transparent listener that takes SYNs which come back from the TUN.
    pub(crate) listener: SocketAddr,
    /// Interface index of the TUN.
    pub(crate) tun: u32,
    /// The mark that routes a packet to the TUN.
    pub(crate) mark: u32,
    /// The mark of the client's connections to listeners inside, which go nowhere else.
    pub(crate) inward: u32,
}

/// One transaction: a table named `stead`, made as a whole or not at all.
///
/// ```text
/// chain out { type route hook output priority mangle
///   meta mark <inward> accept
///   ip daddr <shared> tcp flags & (syn|ack) == syn meta mark set <mark> accept
///   ip daddr <inside> accept
///   tcp flags & (syn|ack) == syn meta mark set <mark> accept
///   meta l4proto tcp accept
///   meta l4proto udp meta mark set <mark> accept
///   meta l4proto <icmp or icmpv6> meta mark set <mark> accept
///   drop                                   # others: sendto fails with EPERM at once, as behind a local firewall
/// }
/// chain in { type filter hook prerouting priority mangle
///   iif <tun> ip daddr <shared> ip ttl 255 accept
///   iif <tun> tcp flags & (syn|ack) == syn tproxy to <listener> accept
/// }
/// ```
pub(crate) fn transaction(rules: &[Rules]) -> Batch {
    let mut batch = Batch::new();
    batch.marker(libc::NFNL_MSG_BATCH_BEGIN as u16, &nfgenmsg(libc::AF_UNSPEC, NFNL_SUBSYS_NFTABLES));
    for family in rules {
        family.add(&mut batch);
    }
    batch.marker(libc::NFNL_MSG_BATCH_END as u16, &nfgenmsg(libc::AF_UNSPEC, NFNL_SUBSYS_NFTABLES));
    batch
}

impl Rules<'_> {
    fn family(&self) -> i32 {
        if self.listener.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 }
    }

    fn add(&self, batch: &mut Batch) {
        let header = nfgenmsg(self.family(), 0);
        batch.request("add the nftables table", message(libc::NFT_MSG_NEWTABLE), libc::NLM_F_CREATE, &header, |a| {
            a.put_str(attr::TABLE_NAME, TABLE);
        });
        self.chain(batch, OUT, "route", libc::NF_INET_LOCAL_OUT);
        self.chain(batch, IN, "filter", libc::NF_INET_PRE_ROUTING);
        self.rule(batch, OUT, |e| {
            e.meta_is(libc::NFT_META_MARK, &self.inward.to_ne_bytes());
            e.accept();
        });
        for (address, prefix) in self.shared {
            self.rule(batch, OUT, |e| {
                e.destination_in(*address, *prefix);
                e.tcp_syn();
                e.set_mark(self.mark);
                e.accept();
            });
            self.rule(batch, IN, |e| {
                e.meta_is(libc::NFT_META_IIF, &self.tun.to_ne_bytes());
                e.destination_in(*address, *prefix);
                e.hops_are(self.family(), INSIDE);
                e.accept();
            });
        }
        for (address, prefix) in self.inside {
            self.rule(batch, OUT, |e| {
                e.destination_in(*address, *prefix);
                e.accept();
            });
        }
        self.rule(batch, OUT, |e| {
            e.tcp_syn();
            e.set_mark(self.mark);
            e.accept();
        });
        self.rule(batch, OUT, |e| {
            e.meta_is(libc::NFT_META_L4PROTO, &[libc::IPPROTO_TCP as u8]);
            e.accept();
        });
        let icmp = if self.listener.is_ipv4() { libc::IPPROTO_ICMP } else { libc::IPPROTO_ICMPV6 };
        for protocol in [libc::IPPROTO_UDP, icmp] {
            self.rule(batch, OUT, |e| {
                e.meta_is(libc::NFT_META_L4PROTO, &[protocol as u8]);
                e.set_mark(self.mark);
                e.accept();
            });
        }
        self.rule(batch, OUT, |e| e.verdict(libc::NF_DROP));
        self.rule(batch, IN, |e| {
            e.meta_is(libc::NFT_META_IIF, &self.tun.to_ne_bytes());
            e.tcp_syn();
            e.tproxy(self.family(), self.listener);
            e.accept();
        });
    }

    fn chain(&self, batch: &mut Batch, name: &str, kind: &str, hook: i32) {
        let header = nfgenmsg(self.family(), 0);
        batch.request("add an nftables chain", message(libc::NFT_MSG_NEWCHAIN), libc::NLM_F_CREATE, &header, |a| {
            a.put_str(attr::CHAIN_TABLE, TABLE);
            a.put_str(attr::CHAIN_NAME, name);
            a.nest(attr::CHAIN_HOOK, |a| {
                a.put_u32_be(attr::HOOK_HOOKNUM, hook as u32);
                a.put_u32_be(attr::HOOK_PRIORITY, PRIORITY_MANGLE as u32);
            });
            a.put_str(attr::CHAIN_TYPE, kind);
        });
    }

    fn rule(&self, batch: &mut Batch, chain: &str, body: impl FnOnce(&mut Expressions)) {
        let header = nfgenmsg(self.family(), 0);
        let flags = libc::NLM_F_CREATE | libc::NLM_F_APPEND;
        batch.request("add an nftables rule (nft_tproxy)", message(libc::NFT_MSG_NEWRULE), flags, &header, |a| {
            a.put_str(attr::RULE_TABLE, TABLE);
            a.put_str(attr::RULE_CHAIN, chain);
            a.nest(attr::RULE_EXPRESSIONS, |a| body(&mut Expressions(a)));
        });
    }
}

const TABLE: &str = "stead";
const OUT: &str = "out";
const IN: &str = "in";
/// NF_IP_PRI_MANGLE and NF_IP6_PRI_MANGLE.
const PRIORITY_MANGLE: i32 = -150;
/// linux/netfilter/nfnetlink.h
const NFNL_SUBSYS_NFTABLES: u16 = 10;

/// Attribute numbers of linux/netfilter/nf_tables.h.
mod attr {
    pub(super) const TABLE_NAME: u16 = 1;
    pub(super) const CHAIN_TABLE: u16 = 1;
    pub(super) const CHAIN_NAME: u16 = 3;
    pub(super) const CHAIN_HOOK: u16 = 4;
    pub(super) const CHAIN_TYPE: u16 = 7;
    pub(super) const HOOK_HOOKNUM: u16 = 1;
    pub(super) const HOOK_PRIORITY: u16 = 2;
    pub(super) const RULE_TABLE: u16 = 1;
    pub(super) const RULE_CHAIN: u16 = 2;
    pub(super) const RULE_EXPRESSIONS: u16 = 4;
    pub(super) const LIST_ELEM: u16 = 1;
    pub(super) const EXPR_NAME: u16 = 1;
    pub(super) const EXPR_DATA: u16 = 2;
    pub(super) const DATA_VALUE: u16 = 1;
    pub(super) const DATA_VERDICT: u16 = 2;
    pub(super) const VERDICT_CODE: u16 = 1;
    pub(super) const META_DREG: u16 = 1;
    pub(super) const META_KEY: u16 = 2;
    pub(super) const META_SREG: u16 = 3;
    pub(super) const CMP_SREG: u16 = 1;
    pub(super) const CMP_OP: u16 = 2;
    pub(super) const CMP_DATA: u16 = 3;
    pub(super) const PAYLOAD_DREG: u16 = 1;
    pub(super) const PAYLOAD_BASE: u16 = 2;
    pub(super) const PAYLOAD_OFFSET: u16 = 3;
    pub(super) const PAYLOAD_LEN: u16 = 4;
    pub(super) const BITWISE_SREG: u16 = 1;
    pub(super) const BITWISE_DREG: u16 = 2;
    pub(super) const BITWISE_LEN: u16 = 3;
    pub(super) const BITWISE_MASK: u16 = 4;
    pub(super) const BITWISE_XOR: u16 = 5;
    pub(super) const IMMEDIATE_DREG: u16 = 1;
    pub(super) const IMMEDIATE_DATA: u16 = 2;
    pub(super) const TPROXY_FAMILY: u16 = 1;
    pub(super) const TPROXY_REG_ADDR: u16 = 2;
    pub(super) const TPROXY_REG_PORT: u16 = 3;
}

const REG_VERDICT: u32 = libc::NFT_REG_VERDICT as u32;
const REG_1: u32 = libc::NFT_REG_1 as u32;
const REG_2: u32 = libc::NFT_REG_2 as u32;

/// `struct nfgenmsg`: family, version 0, resource id in network order.
fn nfgenmsg(family: i32, resource: u16) -> [u8; 4] {
    let [high, low] = resource.to_be_bytes();
    [family as u8, 0, high, low]
}

fn message(kind: i32) -> u16 {
    (NFNL_SUBSYS_NFTABLES << 8) | kind as u16
}

/// The expressions of one rule, in the order they are evaluated.
struct Expressions<'a>(&'a mut Attributes);

impl Expressions<'_> {
    fn expression(&mut self, name: &str, body: impl FnOnce(&mut Attributes)) {
        self.0.nest(attr::LIST_ELEM, |a| {
            a.put_str(attr::EXPR_NAME, name);
            a.nest(attr::EXPR_DATA, body);
        });
    }

    fn destination_in(&mut self, address: IpAddr, prefix: u8) {
        // Offset of the destination in the IPv4 and IPv6 header.
        let (offset, bytes) = match address {
            IpAddr::V4(a) => (16, a.octets().to_vec()),
            IpAddr::V6(a) => (24, a.octets().to_vec()),
        };
        self.payload(libc::NFT_PAYLOAD_NETWORK_HEADER, offset, bytes.len());
        if usize::from(prefix) < bytes.len() * 8 {
            self.mask(&prefix_mask(prefix, bytes.len()));
        }
        self.equals(&bytes);
    }

    fn hops_are(&mut self, family: i32, hops: u8) {
        // Offset of the TTL in the IPv4 header, of the hop limit in that of IPv6.
        let offset = if family == libc::AF_INET { 8 } else { 7 };
        self.payload(libc::NFT_PAYLOAD_NETWORK_HEADER, offset, 1);
        self.equals(&[hops]);
    }

    fn tcp_syn(&mut self) {
        self.meta_is(libc::NFT_META_L4PROTO, &[libc::IPPROTO_TCP as u8]);
        // Byte 13 of the TCP header: of SYN (2) and ACK (16) just SYN.
        self.payload(libc::NFT_PAYLOAD_TRANSPORT_HEADER, 13, 1);
        self.mask(&[0x12]);
        self.equals(&[0x02]);
    }

    fn meta_is(&mut self, key: i32, value: &[u8]) {
        self.expression("meta", |a| {
            a.put_u32_be(attr::META_DREG, REG_1);
            a.put_u32_be(attr::META_KEY, key as u32);
        });
        self.equals(value);
    }

    fn payload(&mut self, base: i32, offset: u32, length: usize) {
        self.expression("payload", |a| {
            a.put_u32_be(attr::PAYLOAD_DREG, REG_1);
            a.put_u32_be(attr::PAYLOAD_BASE, base as u32);
            a.put_u32_be(attr::PAYLOAD_OFFSET, offset);
            a.put_u32_be(attr::PAYLOAD_LEN, length as u32);
        });
    }

    fn mask(&mut self, mask: &[u8]) {
        self.expression("bitwise", |a| {
            a.put_u32_be(attr::BITWISE_SREG, REG_1);
            a.put_u32_be(attr::BITWISE_DREG, REG_1);
            a.put_u32_be(attr::BITWISE_LEN, mask.len() as u32);
            a.nest(attr::BITWISE_MASK, |a| a.put(attr::DATA_VALUE, mask));
            a.nest(attr::BITWISE_XOR, |a| a.put(attr::DATA_VALUE, &vec![0; mask.len()]));
        });
    }

    fn equals(&mut self, value: &[u8]) {
        self.expression("cmp", |a| {
            a.put_u32_be(attr::CMP_SREG, REG_1);
            a.put_u32_be(attr::CMP_OP, libc::NFT_CMP_EQ as u32);
            a.nest(attr::CMP_DATA, |a| a.put(attr::DATA_VALUE, value));
        });
    }

    fn load(&mut self, register: u32, value: &[u8]) {
        self.expression("immediate", |a| {
            a.put_u32_be(attr::IMMEDIATE_DREG, register);
            a.nest(attr::IMMEDIATE_DATA, |a| a.put(attr::DATA_VALUE, value));
        });
    }

    fn set_mark(&mut self, mark: u32) {
        self.load(REG_1, &mark.to_ne_bytes());
        self.expression("meta", |a| {
            a.put_u32_be(attr::META_KEY, libc::NFT_META_MARK as u32);
            a.put_u32_be(attr::META_SREG, REG_1);
        });
    }

    fn tproxy(&mut self, family: i32, to: SocketAddr) {
        match to.ip() {
            IpAddr::V4(a) => self.load(REG_1, &a.octets()),
            IpAddr::V6(a) => self.load(REG_1, &a.octets()),
        }
        self.load(REG_2, &to.port().to_be_bytes());
        self.expression("tproxy", |a| {
            a.put_u32_be(attr::TPROXY_FAMILY, family as u32);
            a.put_u32_be(attr::TPROXY_REG_ADDR, REG_1);
            a.put_u32_be(attr::TPROXY_REG_PORT, REG_2);
        });
    }

    fn accept(&mut self) {
        self.verdict(libc::NF_ACCEPT);
    }

    fn verdict(&mut self, verdict: i32) {
        self.expression("immediate", |a| {
            a.put_u32_be(attr::IMMEDIATE_DREG, REG_VERDICT);
            a.nest(attr::IMMEDIATE_DATA, |a| {
                a.nest(attr::DATA_VERDICT, |a| a.put_u32_be(attr::VERDICT_CODE, verdict as u32));
            });
        });
    }
}

/// `prefix` one bits, then zeros, in `length` bytes.
fn prefix_mask(prefix: u8, length: usize) -> Vec<u8> {
    (0..length)
        .map(|i| match usize::from(prefix).saturating_sub(i * 8) {
            0 => 0,
            bits if bits >= 8 => 0xff,
            bits => !(0xff >> bits),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink;

    #[test]
    fn masks_have_as_many_ones_as_the_prefix() {
        assert_eq!(prefix_mask(8, 4), [0xff, 0, 0, 0]);
        assert_eq!(prefix_mask(30, 4), [0xff, 0xff, 0xff, 0xfc]);
        assert_eq!(prefix_mask(0, 2), [0, 0]);
        assert_eq!(prefix_mask(128, 16), [0xff; 16]);
    }

    #[test]
    fn a_transaction_is_begun_and_ended_and_holds_table_chains_and_rules_of_each_family() {
        let inside4 = [(IpAddr::from([127, 0, 0, 0]), 8)];
        let inside6 = [(IpAddr::from([0, 0, 0, 0, 0, 0, 0, 1u16]), 128)];
        let batch = transaction(&[
            Rules {
                shared: &inside4,
                inside: &inside4,
                listener: ([198, 18, 0, 5], 1).into(),
                tun: 2,
                mark: 1,
                inward: 2,
            },
            Rules {
                shared: &[],
                inside: &inside6,
                listener: ([0xfdu16, 0, 0, 0, 0, 0, 0, 5], 1).into(),
                tun: 2,
                mark: 1,
                inward: 2,
            },
        ]);
        let mut kinds = Vec::new();
        let mut rest = batch.bytes();
        while let Some((length, kind, _)) = netlink::header(rest) {
            kinds.push(kind & 0xff);
            rest = &rest[length as usize..];
        }
        assert!(rest.is_empty());
        let (table, chain, rule) = (0, 3, 6);
        let family = [table, chain, chain, rule, rule, rule, rule, rule, rule, rule, rule];
        assert_eq!(kinds, [&[16][..], &family, &[rule, rule], &family, &[17]].concat());
    }
}
