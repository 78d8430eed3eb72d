//! What a month earns by the prices of the tiers, against a target.
//!
//! A tenant counts in every month in which a request of its was forwarded, with the last price that
//! it had in that month; not one that was only refused, as a suspended tenant is. The registry is the
//! list of who pays; a tenant that pays and never comes is known only there.

use std::collections::BTreeMap;

use protocol::TierName;
use serde::{Deserialize, Serialize};

use crate::usage::sums::Line;

/// A month's revenue.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Revenue {
    /// Sum in US cents.
    pub cents: u64,
    /// What it is hoped to be, in US cents.
    pub target_cents: u64,
    /// By tier.
    pub tiers: BTreeMap<TierName, TierRevenue>,
}

/// A tier's part.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TierRevenue {
    /// Tenants of the tier that were served.
    pub tenants: u64,
    /// What they pay, in US cents.
    pub cents: u64,
}

impl Revenue {
    /// The revenue of a month's lines.
    pub fn of(lines: &[Line], target_usd: u64) -> Self {
        let mut revenue = Self { target_cents: target_usd.saturating_mul(100), ..Self::default() };
        for line in lines.iter().filter(|line| line.sums.forwarded() > 0) {
            let cents = u64::from(line.price_cents_month);
            let tier = revenue.tiers.entry(line.tier.clone()).or_default();
            tier.tenants += 1;
            tier.cents += cents;
            revenue.cents += cents;
        }
        revenue
    }

    /// Part of the target that is reached, in percent.
    pub fn percent(&self) -> u64 {
        self.cents.saturating_mul(100).checked_div(self.target_cents).unwrap_or(100)
    }
}
