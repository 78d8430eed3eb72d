//! Rate-limits verification of unknown keys.
//!
//! Any client that can reach the gateway can invent such keys. All workers of an Envoy share one
//! budget, which a reloaded VM does not refill. Each client address gets only a part of it, so that
//! one client cannot keep out the new keys of all others. Both are virtual clocks (GCRA) in shared
//! data, which only unknown keys touch. Addresses are hashed onto a fixed number of clocks, because
//! the host never frees a key of its shared data: no client may choose one.

use std::net::{IpAddr, SocketAddr};

use protocol::time::SECOND_NS;

use crate::shared::{Shared, update};

/// One client address gets this fraction of the budget.
const SHARES: u64 = 4;
/// A stored time further in the future means that the host's clock stepped back; it is discarded.
/// A correct one is at most a second ahead, plus the age of a VM's cached time.
const STEP_NS: u64 = 5 * SECOND_NS;
/// Number of per-address clocks, 100 bytes each. Two addresses that hash onto the same clock share
/// one part of the budget, which is rare among a thousand busy addresses.
const ADDRESS_CLOCKS: u64 = 1_024;
/// Key of the clock that all addresses share.
const BUDGET_KEY: &str = "v1/ask";

/// The budget of one Envoy, as each of its VMs sees it.
#[derive(Debug)]
pub(crate) struct UnknownKeyLimiter {
    /// Interval between two verifications at the sustained rate.
    interval_ns: u64,
}

impl UnknownKeyLimiter {
    /// Allows `verify_per_s` verifications per second, and one second's worth at once.
    pub(crate) fn new(verify_per_s: u32) -> Self {
        Self { interval_ns: SECOND_NS / u64::from(verify_per_s.max(1)) }
    }

    /// Takes one verification from the budget of a client at `address` (`192.0.2.1:4711` or
    /// `[2001:db8::1]:4711`; all other texts count as one address). Returns whether the budget
    /// allows it. `wall_ns` is the time of the event.
    pub(crate) fn may_ask(&self, address: &str, wall_ns: u64, shared: &mut dyn Shared) -> bool {
        // That of the event may be from before Envoy stood still, and other VMs' clocks ahead of it.
        let wall_ns = wall_ns.max(shared.now_ns());
        let clock = format!("{BUDGET_KEY}/{}", hash(&network(address)) % ADDRESS_CLOCKS);
        take(&clock, self.interval_ns * SHARES, wall_ns, shared)
            && take(BUDGET_KEY, self.interval_ns, wall_ns, shared)
    }
}

/// Advances a clock by `cost_ns`, unless it would then be more than a second ahead.
fn take(key: &str, cost_ns: u64, wall_ns: u64, shared: &mut dyn Shared) -> bool {
    let mut taken = false;
    let written = update(shared, key, |bytes| {
        let clock = bytes.and_then(|b| Some(u64::from_le_bytes(b.try_into().ok()?))).unwrap_or(0);
        let clock = if clock > wall_ns.saturating_add(STEP_NS) { 0 } else { clock };
        let next = clock.max(wall_ns).saturating_add(cost_ns);
        // A cost above one second must pass once, or a rate below one per second never would.
        taken = next.saturating_sub(wall_ns) <= SECOND_NS.max(cost_ns);
        taken.then(|| next.to_le_bytes().to_vec())
    });
    taken && written
}

/// The part of an address that a client cannot vary: an IPv4 address, or a /64 of IPv6, in which
/// a host may choose any address.
fn network(address: &str) -> Vec<u8> {
    match address.parse::<SocketAddr>().map(|address| address.ip().to_canonical()) {
        Ok(IpAddr::V4(ip)) => ip.octets().to_vec(),
        Ok(IpAddr::V6(ip)) => ip.octets()[..8].to_vec(),
        Err(_) => Vec::new(),
    }
}

/// Hashes with FNV-1a, 64 bits.
fn hash(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shared::Local;
    #[cfg(target_family = "wasm")]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    const NOW: u64 = 1_800_000_000 * SECOND_NS;
    const PER_S: u32 = 40;

    /// Number of verifications that pass, of a thousand.
    fn flood(shared: &mut Local, wall_ns: u64, address: impl Fn(u32) -> String) -> u32 {
        let vms = [UnknownKeyLimiter::new(PER_S), UnknownKeyLimiter::new(PER_S)];
        (0..1_000)
            .filter(|n| vms[*n as usize % 2].may_ask(&address(*n), wall_ns, shared))
            .count()
            .try_into()
            .unwrap()
    }

    #[test]
    fn workers_and_addresses_share_one_budget() {
        let mut shared = Local::default();
        let many = |n: u32| format!("192.0.{}.{}:80", n / 250, n % 250);
        assert_eq!(flood(&mut shared, NOW, many), PER_S);
        assert_eq!(flood(&mut shared, NOW, many), 0, "a reloaded VM got a new budget");
        let mut passed = 0;
        for tick in 1..=100 {
            passed += flood(&mut shared, NOW + tick * SECOND_NS / 10, many);
        }
        assert_eq!(passed, PER_S * 10);
    }

    #[test]
    fn one_address_gets_a_quarter() {
        let mut shared = Local::default();
        let ports = |n: u32| format!("192.0.2.1:{n}");
        assert_eq!(flood(&mut shared, NOW, ports), PER_S / 4);
        let hosts = |n: u32| format!("[2001:db8::{n:x}]:80");
        assert_eq!(flood(&mut shared, NOW, hosts), PER_S / 4, "a host chooses within its /64");
        let other = |_| "192.0.2.2:80".to_owned();
        assert_eq!(flood(&mut shared, NOW, other), PER_S / 4);
        let mapped = |_| "[::ffff:192.0.2.1]:80".to_owned();
        assert_eq!(flood(&mut shared, NOW, mapped), 0, "the same address in another spelling");
    }

    #[test]
    fn backward_clock_step_keeps_the_budget_open() {
        let mut shared = Local::default();
        let one = |_| "192.0.2.1:80".to_owned();
        assert_eq!(flood(&mut shared, NOW, one), PER_S / 4);
        assert_eq!(flood(&mut shared, NOW - 3_600 * SECOND_NS, one), PER_S / 4);
    }

    #[test]
    fn clock_skew_between_workers_passes_no_more() {
        let mut shared = Local::default();
        let vms = [UnknownKeyLimiter::new(PER_S), UnknownKeyLimiter::new(PER_S)];
        let mut passed = 0;
        for ms in 0..10_000_u64 {
            let behind_ms = if ms % 2 == 0 { 0 } else { 100 };
            let wall_ns = NOW + (ms - behind_ms.min(ms)) * 1_000_000;
            let allowed = vms[(ms % 2) as usize].may_ask("192.0.2.1:80", wall_ns, &mut shared);
            passed += u32::from(allowed);
        }
        assert!(passed <= (10 + 1) * PER_S / 4, "{passed} passed");
    }

    #[test]
    fn standstill_of_envoy_costs_no_verification() {
        let mut shared = Local::default();
        let one = |_| "192.0.2.1:80".to_owned();
        flood(&mut shared, NOW, one);
        // Ten seconds later, one worker has ticked and the other has the time of before.
        shared.now_ns = NOW + 10 * SECOND_NS;
        assert_eq!(
            flood(&mut shared, NOW + 10 * SECOND_NS, |_| "192.0.2.2:80".to_owned()),
            PER_S / 4
        );
        assert_eq!(flood(&mut shared, NOW, one), PER_S / 4);
        assert_eq!(flood(&mut shared, NOW, one), 0, "the budget was filled twice");
    }

    #[test]
    fn shared_data_does_not_grow_with_addresses() {
        let mut shared = Local::default();
        for n in 0..20_000_u32 {
            let second = NOW + u64::from(n) * SECOND_NS;
            let [_, b, c, d] = n.to_be_bytes();
            UnknownKeyLimiter::new(PER_S).may_ask(
                &format!("10.{b}.{c}.{d}:80"),
                second,
                &mut shared,
            );
        }
        assert!(shared.len() as u64 <= ADDRESS_CLOCKS + 1, "{} keys", shared.len());
    }
}
