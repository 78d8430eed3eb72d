//! A month's revenue by the prices of the tiers, against a target.
//!
//! A tenant counts in every month in which at least one of its requests was forwarded, with the
//! last price that it had in that month. One whose requests were all refused, as a suspended
//! tenant's are, does not count. The registry is the list of paying tenants: one that pays and
//! never sends a request is known only there.

use std::collections::BTreeMap;

use protocol::TierName;
use serde::{Deserialize, Serialize};

use crate::usage::sums::TenantSums;

/// A month's revenue.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Revenue {
    /// Sum over the tiers, in US cents.
    pub cents: u64,
    /// The operator's target, in US cents.
    pub target_cents: u64,
    /// Revenue by tier.
    pub tiers: BTreeMap<TierName, TierRevenue>,
}

/// One tier's part of a month's revenue.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TierRevenue {
    /// Tenants of the tier that were served.
    pub tenants: u64,
    /// Sum of their prices, in US cents.
    pub cents: u64,
}

impl Revenue {
    /// Adds up a month of all tenants.
    pub fn from_tenants(tenants: &[TenantSums], target_usd: u64) -> Self {
        let mut revenue = Self { target_cents: target_usd.saturating_mul(100), ..Self::default() };
        for tenant in tenants.iter().filter(|tenant| tenant.sums.forwarded() > 0) {
            let cents = u64::from(tenant.price_cents_month);
            let tier = revenue.tiers.entry(tenant.tier.clone()).or_default();
            tier.tenants += 1;
            tier.cents = tier.cents.saturating_add(cents);
            revenue.cents = revenue.cents.saturating_add(cents);
        }
        revenue
    }

    /// Returns the reached part of the target in percent; a target of 0 is always reached.
    pub fn percent(&self) -> u64 {
        self.cents.saturating_mul(100).checked_div(self.target_cents).unwrap_or(100)
    }
}

#[cfg(test)]
mod tests {
    use protocol::TenantId;

    use super::*;
    use crate::usage::sums::Sums;

    fn tenant(name: &str, tier: &str, cents: u32, sums: Sums) -> TenantSums {
        TenantSums {
            tenant: TenantId::parse(name).unwrap(),
            tier: TierName::parse(tier).unwrap(),
            price_cents_month: cents,
            sums,
        }
    }

    #[test]
    fn revenue_sums_prices_of_served_tenants() {
        let served = Sums { writes: 1, ..Sums::default() };
        let suspended = Sums { refused: 9, ..Sums::default() };
        let tenants = [
            tenant("a", "pro", 1_900, served.clone()),
            tenant("b", "pro", 1_900, served.clone()),
            tenant("c", "free", 0, served),
            tenant("suspended", "team", 9_900, suspended),
        ];
        let revenue = Revenue::from_tenants(&tenants, 380);
        assert_eq!((revenue.cents, revenue.percent()), (3_800, 10));
        assert_eq!(revenue.tiers[&TierName::parse("pro").unwrap()].tenants, 2);
        assert_eq!(revenue.tiers.get(&TierName::parse("team").unwrap()), None);
    }
}
