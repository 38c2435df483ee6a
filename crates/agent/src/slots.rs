//! Who may wait for a handshake. Pure.
//!
//! Anybody in the cluster can open connections to the agent's port. They are bounded in number, and whoever opens most
//! of them pays: room is made by closing the oldest connection of the busiest address. So a flood from some pods
//! leaves the API server's pipes alone, which are of another address and wait for milliseconds.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;
use std::net::IpAddr;

/// Connections waiting at once.
pub(crate) const MOST: usize = 64;
/// Of one address. An API server carries every session's pipes, so some at once are honest.
pub(crate) const MOST_OF_ONE: usize = 16;

/// Connections that wait, known by `K`, in the order in which they came.
#[derive(Debug)]
pub(crate) struct Slots<K> {
    by_address: HashMap<IpAddr, VecDeque<K>>,
    taken: usize,
}

impl<K: Copy + Eq + Hash> Slots<K> {
    pub(crate) fn new() -> Self {
        Slots { by_address: HashMap::new(), taken: 0 }
    }

    /// Takes a slot for `key` and returns who has to go for it.
    pub(crate) fn take(&mut self, from: IpAddr, key: K) -> Option<K> {
        let from = from.to_canonical();
        let of_one = self.by_address.get(&from).map_or(0, VecDeque::len);
        let evicted = if of_one >= MOST_OF_ONE {
            self.evict(from)
        } else if self.taken >= MOST {
            let busiest = self.by_address.iter().max_by_key(|(_, waiting)| waiting.len()).map(|(ip, _)| *ip);
            busiest.and_then(|busiest| self.evict(busiest))
        } else {
            None
        };
        self.by_address.entry(from).or_default().push_back(key);
        self.taken += 1;
        evicted
    }

    /// `key` waits no more.
    pub(crate) fn free(&mut self, key: K) {
        let before = self.taken;
        self.by_address.retain(|_, waiting| {
            waiting.retain(|&have| {
                self.taken -= usize::from(have == key);
                have != key
            });
            !waiting.is_empty()
        });
        debug_assert!(before - self.taken <= 1, "keys are unique");
    }

    fn evict(&mut self, from: IpAddr) -> Option<K> {
        let evicted = self.by_address.get_mut(&from)?.pop_front();
        self.taken -= usize::from(evicted.is_some());
        evicted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(last: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, last])
    }

    #[test]
    fn one_address_loses_its_own_oldest() {
        let mut slots = Slots::new();
        assert_eq!(slots.take(ip(1), 1000), None);
        for key in 0..MOST_OF_ONE {
            assert_eq!(slots.take(ip(2), key), None);
        }
        assert_eq!(slots.take(ip(2), 100), Some(0));
        slots.free(1);
        assert_eq!(slots.take(ip(2), 101), None);
        assert_eq!(slots.taken, MOST_OF_ONE + 1);
        // The same address, as a dual-stack socket shows it.
        let mapped = IpAddr::V6(std::net::Ipv4Addr::new(10, 0, 0, 2).to_ipv6_mapped());
        assert_eq!(slots.take(mapped, 102), Some(2));
    }

    #[test]
    fn a_flood_from_many_addresses_leaves_a_quiet_one_alone() {
        let mut slots = Slots::new();
        slots.take(ip(1), usize::MAX);
        let gone: Vec<_> = (0..10 * MOST).filter_map(|key| slots.take(ip(2 + (key % 8) as u8), key)).collect();
        assert_eq!(gone.len(), 10 * MOST - (MOST - 1));
        assert!(!gone.contains(&usize::MAX));
        assert_eq!(slots.taken, MOST);
        gone.iter().for_each(|key| slots.free(*key));
        assert_eq!(slots.taken, MOST, "who was evicted holds no slot");
    }

    #[test]
    fn slots_come_back() {
        let mut slots = Slots::new();
        (0..MOST).for_each(|key| assert_eq!(slots.take(ip(key as u8), key), None));
        (0..MOST).for_each(|key| slots.free(key));
        assert_eq!(slots.taken, 0);
        assert!(slots.by_address.is_empty());
    }
}
