//! The tenants of a host: their number in each state, names, keys and limits.

use std::ops::Range;

use anyhow::{Result, ensure};
use protocol::key::{KEY_HEX_DIGITS, KEY_PREFIX};
use protocol::{CountLimit, KeepAwake, Limits};

/// The tier of tenants that are never paused.
pub(super) const AWAKE_TIER: &str = "awake";
/// The tier of all other tenants: paused one second after their last lease.
pub(super) const IDLE_TIER: &str = "idle";
/// The first tenant, which is always awake.
pub(super) const AWAKE_TENANT: &str = "t00000";

/// The number of tenants in each state. Tenants are numbered: first those awake, then those dozing,
/// then those asleep.
#[derive(Debug, Clone, Copy)]
pub(super) struct Population {
    /// Tenants in all states.
    pub(super) tenants: usize,
    /// Tenants that stay awake.
    pub(super) awake: usize,
    /// Tenants that doze between requests.
    pub(super) dozing: usize,
}

impl Population {
    /// Divides the tenants: 2 % awake, 10 % dozing, the others asleep.
    pub(super) fn new(tenants: usize) -> Result<Self> {
        ensure!((100..=50_000).contains(&tenants), "--tenants must be 100 to 50,000");
        Ok(Self { tenants, awake: tenants / 50, dozing: tenants / 10 })
    }

    /// Returns the number of sleeping tenants.
    pub(super) fn asleep(self) -> usize {
        self.tenants - self.running()
    }

    /// Returns the number of tenants with an SQ, awake or dozing.
    pub(super) fn running(self) -> usize {
        self.awake + self.dozing
    }

    /// Returns the numbers of the sleeping tenants, except the last: the last measurement wakes it.
    pub(super) fn sleeping_numbers(self) -> Range<usize> {
        self.running()..self.tenants - 1
    }

    /// Returns the tier of a tenant.
    pub(super) fn tier(self, number: usize) -> &'static str {
        if number < self.awake { AWAKE_TIER } else { IDLE_TIER }
    }
}

/// Formats the name of a tenant.
pub(super) fn tenant_name(number: usize) -> String {
    format!("t{number:05}")
}

/// Formats the key of a tenant.
pub(super) fn tenant_key(tenant: &str) -> Result<String> {
    let number: u64 = tenant.trim_start_matches('t').parse()?;
    Ok(format!("{KEY_PREFIX}{number:0KEY_HEX_DIGITS$x}"))
}

/// Returns the limits of a tier, equal to those in the registry.
pub(super) fn limits(tier: &str) -> Limits {
    let keep = if tier == AWAKE_TIER { KeepAwake::Awake } else { KeepAwake::Sleep };
    let doze_after_s = (tier == IDLE_TIER).then_some(1);
    Limits { keep, doze_after_s, wakes_per_hour: CountLimit::Unlimited, ..Limits::default() }
}
