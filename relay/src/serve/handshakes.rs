//! Bounds concurrent TLS handshakes, fairly by address.
//!
//! Anyone who reaches the port can open a connection and stay silent until the handshake's time-out.
//! If the permits were handed out in order of arrival, one such client would delay every gateway. So a
//! new connection never waits: if all permits are taken, it displaces the oldest handshake of the
//! address that holds most of them. A handshake with a gateway takes milliseconds, so it is over
//! before a silent client can have displaced it, even if both share an address.

use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

/// Bound on concurrent handshakes: each takes some 20 kB and a file descriptor.
const HANDSHAKES_MAX: usize = 256;

/// The handshakes in progress. Clones share one table.
#[derive(Debug, Clone, Default)]
pub(super) struct Handshakes(Arc<Mutex<Table>>);

#[derive(Debug, Default)]
struct Table {
    /// Handshakes of each client, the oldest first. No list is empty.
    by_client: HashMap<ClientNetwork, VecDeque<Pending>>,
    count: usize,
    next_id: u64,
}

#[derive(Debug)]
struct Pending {
    id: u64,
    /// Its drop ends the handshake.
    _keep: oneshot::Sender<()>,
}

/// Addresses that count as one client: an IPv4 address, or an IPv6 network of 64 bits, which is the
/// least that a customer of a provider is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct ClientNetwork(IpAddr);

/// A permit of the table; freed on drop.
#[derive(Debug)]
pub(super) struct HandshakePermit {
    handshakes: Handshakes,
    client: ClientNetwork,
    id: u64,
    displaced: oneshot::Receiver<()>,
}

impl Handshakes {
    /// Takes a permit. Returns true beside it if that displaced another handshake.
    pub(super) fn begin(&self, address: IpAddr) -> (HandshakePermit, bool) {
        let client = ClientNetwork::of(address);
        let (keep, displaced) = oneshot::channel();
        let mut table = self.table();
        let is_full = table.count >= HANDSHAKES_MAX;
        if is_full {
            table.displace_oldest_of_largest();
        }
        let id = table.insert(client, keep);
        drop(table);
        (HandshakePermit { handshakes: self.clone(), client, id, displaced }, is_full)
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        // No operation on the table can panic half-way.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    fn insert(&mut self, client: ClientNetwork, keep: oneshot::Sender<()>) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        self.count += 1;
        self.by_client.entry(client).or_default().push_back(Pending { id, _keep: keep });
        id
    }

    fn displace_oldest_of_largest(&mut self) {
        // At most HANDSHAKES_MAX clients, so a scan takes microseconds.
        let largest = self.by_client.iter().max_by_key(|(_, pending)| pending.len());
        let oldest = largest.and_then(|(client, pending)| Some((*client, pending.front()?.id)));
        if let Some((client, id)) = oldest {
            self.remove(client, id);
        }
    }

    /// Does nothing if the handshake has been displaced.
    fn remove(&mut self, client: ClientNetwork, id: u64) {
        let Some(pending) = self.by_client.get_mut(&client) else { return };
        let Some(place) = pending.iter().position(|pending| pending.id == id) else { return };
        pending.remove(place);
        self.count -= 1;
        if pending.is_empty() {
            self.by_client.remove(&client);
        }
    }
}

impl ClientNetwork {
    fn of(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V6(address) => {
                Self(Ipv6Addr::from_bits(address.to_bits() & (u128::MAX << 64)).into())
            }
            v4 @ IpAddr::V4(_) => Self(v4),
        }
    }
}

impl HandshakePermit {
    /// Completes if a newer connection takes the permit.
    pub(super) async fn displaced(&mut self) {
        // Nothing is ever sent: the sender is dropped with its place in the table.
        let _ = (&mut self.displaced).await;
    }
}

impl Drop for HandshakePermit {
    fn drop(&mut self) {
        self.handshakes.table().remove(self.client, self.id);
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use proptest::prelude::*;

    use super::*;

    fn address(last: u8) -> IpAddr {
        Ipv4Addr::new(10, 0, 0, last).into()
    }

    fn is_displaced(permit: &mut HandshakePermit) -> bool {
        permit.displaced.try_recv() == Err(oneshot::error::TryRecvError::Closed)
    }

    #[test]
    fn flood_displaces_only_its_own_handshakes() {
        let handshakes = Handshakes::default();
        let (mut gateway, _) = handshakes.begin(address(1));
        let mut flood: Vec<_> =
            (0..HANDSHAKES_MAX + 10).map(|_| handshakes.begin(address(2)).0).collect();
        assert!(!is_displaced(&mut gateway));
        let displaced = flood.iter_mut().map(is_displaced).collect::<Vec<_>>();
        assert_eq!(displaced.iter().position(|displaced| !displaced), Some(11), "the oldest go");
        assert!(displaced[11..].iter().all(|displaced| !displaced));
    }

    #[test]
    fn newest_survives_a_flood_of_its_address() {
        let handshakes = Handshakes::default();
        let _flood: Vec<_> = (0..HANDSHAKES_MAX).map(|_| handshakes.begin(address(1)).0).collect();
        let (mut gateway, displaced_another) = handshakes.begin(address(1));
        assert!(displaced_another);
        let _later: Vec<_> =
            (0..HANDSHAKES_MAX - 1).map(|_| handshakes.begin(address(1)).0).collect();
        assert!(!is_displaced(&mut gateway));
    }

    #[test]
    fn networks_of_64_bits_count_as_one_client() {
        let of = |text: &str| ClientNetwork::of(text.parse().unwrap());
        assert_eq!(of("2001:db8::1"), of("2001:db8::ffff:1"));
        assert_ne!(of("2001:db8::1"), of("2001:db8:0:1::1"));
        assert_eq!(of("::ffff:10.0.0.1"), of("10.0.0.1"));
    }

    proptest! {
        #[test]
        fn table_counts_every_slot(steps in prop::collection::vec((any::<u8>(), any::<bool>()), 1..600)) {
            let handshakes = Handshakes::default();
            let mut permits = VecDeque::new();
            for (last, ends) in steps {
                permits.push_back(handshakes.begin(address(last % 8)).0);
                if ends {
                    permits.pop_front();
                }
                let live = permits.iter_mut().map(is_displaced).filter(|displaced| !displaced).count();
                let table = handshakes.table();
                prop_assert_eq!(table.count, live);
                prop_assert_eq!(table.by_client.values().map(VecDeque::len).sum::<usize>(), live);
                prop_assert!(live <= HANDSHAKES_MAX);
            }
            permits.clear();
            prop_assert!(handshakes.table().by_client.is_empty());
        }
    }
}
