//! How often the relay is asked about keys that nobody here has heard of.
//!
//! Whoever can reach the gateway can make such keys up. So there is one budget for all workers of an
//! Envoy, which a new life of a VM does not refill, and no client address gets more than a part of
//! it, so that one of them can't keep all others' new keys out. Both are virtual clocks (GCRA) in
//! shared data, touched by strangers only. Addresses share a fixed number of clocks: nothing that a
//! client chooses becomes a key there, for those are never freed.

use std::net::{IpAddr, SocketAddr};

use crate::shared::{Shared, update};

const SECOND_NS: u64 = 1_000_000_000;
/// Parts of the budget; one address gets one of them.
const SHARES: u64 = 4;
/// Further ahead no clock was moved, even as seen by the VM whose time is the oldest: the host's clock
/// went back.
const STEP_NS: u64 = 5 * SECOND_NS;
/// Clocks of addresses, 100 bytes each: two of a thousand busy addresses share one now and then,
/// and then also their part of the budget.
const SLOTS: u64 = 1_024;
/// The clock of all addresses.
const BUDGET_KEY: &str = "v1/ask";

/// The budget of one Envoy, as each of its VMs sees it.
#[derive(Debug)]
pub(crate) struct UnknownKeyLimiter {
    /// Time that one question takes from the budget.
    question_ns: u64,
}

impl UnknownKeyLimiter {
    /// So many questions per second, with a second's worth at once.
    pub(crate) fn new(verify_per_s: u32) -> Self {
        Self { question_ns: SECOND_NS / u64::from(verify_per_s.max(1)) }
    }

    /// Whether the relay may be asked now, for a client at `address` (`192.0.2.1:4711`,
    /// `[2001:db8::1]:4711`; what is neither counts as one address). If so, it counts as asked.
    /// `wall_ns` is the host's time, which all VMs share.
    pub(crate) fn may_ask(&self, address: &str, wall_ns: u64, shared: &mut dyn Shared) -> bool {
        let slot = format!("{BUDGET_KEY}/{}", hash(&network(address)) % SLOTS);
        take(&slot, self.question_ns * SHARES, wall_ns, shared)
            && take(BUDGET_KEY, self.question_ns, wall_ns, shared)
    }
}

/// Moves a clock on by `cost_ns`, unless it would be more than a second ahead.
fn take(key: &str, cost_ns: u64, wall_ns: u64, shared: &mut dyn Shared) -> bool {
    let mut taken = false;
    let written = update(shared, key, |bytes| {
        let clock = bytes.and_then(|b| Some(u64::from_le_bytes(b.try_into().ok()?))).unwrap_or(0);
        let clock = if clock > wall_ns.saturating_add(STEP_NS) { 0 } else { clock };
        let next = clock.max(wall_ns).saturating_add(cost_ns);
        // At least one, however few there are.
        taken = next.saturating_sub(wall_ns) <= SECOND_NS.max(cost_ns);
        taken.then(|| next.to_le_bytes().to_vec())
    });
    taken && written
}

/// What one client can't leave: its address, or the /64 that a host may number as it likes.
fn network(address: &str) -> Vec<u8> {
    match address.parse::<SocketAddr>().map(|address| address.ip().to_canonical()) {
        Ok(IpAddr::V4(ip)) => ip.octets().to_vec(),
        Ok(IpAddr::V6(ip)) => ip.octets()[..8].to_vec(),
        Err(_) => Vec::new(),
    }
}

/// FNV-1a.
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

    /// How many of a thousand questions are let through.
    fn flood(shared: &mut Local, wall_ns: u64, address: impl Fn(u32) -> String) -> u32 {
        let vms = [UnknownKeyLimiter::new(PER_S), UnknownKeyLimiter::new(PER_S)];
        (0..1_000)
            .filter(|n| vms[*n as usize % 2].may_ask(&address(*n), wall_ns, shared))
            .count()
            .try_into()
            .unwrap()
    }

    #[test]
    fn all_workers_and_addresses_together_ask_no_more_than_the_budget() {
        let mut shared = Local::default();
        let many = |n: u32| format!("192.0.{}.{}:80", n / 250, n % 250);
        assert_eq!(flood(&mut shared, NOW, many), PER_S);
        assert_eq!(flood(&mut shared, NOW, many), 0, "a new life of a VM has a budget of its own");
        let mut passed = 0;
        for tick in 1..=100 {
            passed += flood(&mut shared, NOW + tick * SECOND_NS / 10, many);
        }
        assert_eq!(passed, PER_S * 10);
    }

    #[test]
    fn one_address_gets_a_quarter_and_the_others_the_rest() {
        let mut shared = Local::default();
        let ports = |n: u32| format!("192.0.2.1:{n}");
        assert_eq!(flood(&mut shared, NOW, ports), PER_S / 4);
        let hosts = |n: u32| format!("[2001:db8::{n:x}]:80");
        assert_eq!(flood(&mut shared, NOW, hosts), PER_S / 4, "a host may number its /64");
        let other = |_| "192.0.2.2:80".to_owned();
        assert_eq!(flood(&mut shared, NOW, other), PER_S / 4);
        let mapped = |_| "[::ffff:192.0.2.1]:80".to_owned();
        assert_eq!(flood(&mut shared, NOW, mapped), 0, "the same address in another spelling");
    }

    #[test]
    fn a_clock_that_goes_back_ends_no_budget() {
        let mut shared = Local::default();
        let one = |_| "192.0.2.1:80".to_owned();
        assert_eq!(flood(&mut shared, NOW, one), PER_S / 4);
        assert_eq!(flood(&mut shared, NOW - 3_600 * SECOND_NS, one), PER_S / 4);
    }

    #[test]
    fn workers_whose_clocks_are_a_tick_apart_let_no_more_through() {
        let mut shared = Local::default();
        let vms = [UnknownKeyLimiter::new(PER_S), UnknownKeyLimiter::new(PER_S)];
        let mut passed = 0;
        for ms in 0..10_000_u64 {
            let behind_ms = if ms % 2 == 0 { 0 } else { 100 };
            let wall_ns = NOW + (ms - behind_ms.min(ms)) * 1_000_000;
            let asked = vms[(ms % 2) as usize].may_ask("192.0.2.1:80", wall_ns, &mut shared);
            passed += u32::from(asked);
        }
        assert!(passed <= (10 + 1) * PER_S / 4, "{passed} passed");
    }

    #[test]
    fn shared_data_does_not_grow_with_the_addresses() {
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
        assert!(shared.len() as u64 <= SLOTS + 1, "{} keys", shared.len());
    }
}
