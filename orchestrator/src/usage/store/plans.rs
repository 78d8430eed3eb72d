//! Plans: a tier with its limits and price, stored once, because a million tenants share a handful.

use std::collections::{HashMap, HashSet};

use protocol::usage::UsageRow;
use protocol::{Limits, TierName};
use rusqlite::{Connection, params};

use super::read_name;

/// Number of plans above which unused ones are deleted; each tenant's own exceptions make one.
pub(super) const PLANS_MAX: usize = 1_000;

/// All plans, in memory as in the file.
#[derive(Debug, Default)]
pub(super) struct Plans {
    all: Vec<Plan>,
    /// Indices into `all`, by tier and limits as they are stored.
    indices: HashMap<(TierName, String), usize>,
    tiers: HashSet<TierName>,
}

#[derive(Debug)]
struct Plan {
    id: i64,
    tier: TierName,
    limits: Limits,
}

impl Plans {
    pub(super) fn load(db: &Connection) -> Result<Self, rusqlite::Error> {
        let mut plans = Self::default();
        let mut statement = db.prepare("SELECT id, tier, limits FROM plans")?;
        let rows =
            statement.query_map([], |row| Ok((row.get(0)?, read_name(row, 1)?, row.get(2)?)))?;
        for row in rows {
            let (id, tier, limits): (i64, TierName, String) = row?;
            plans.insert(id, tier, limits);
        }
        Ok(plans)
    }

    fn insert(&mut self, id: i64, tier: TierName, limits_json: String) -> usize {
        let limits = serde_json::from_str(&limits_json).unwrap_or_default();
        let index = self.all.len();
        self.indices.insert((tier.clone(), limits_json), index);
        self.tiers.insert(tier.clone());
        self.all.push(Plan { id, tier, limits });
        index
    }

    /// Returns true if the plan at `index` is the row's.
    pub(super) fn matches(&self, index: usize, row: &UsageRow) -> bool {
        self.all.get(index).is_some_and(|plan| plan.tier == row.tier && plan.limits == row.limits)
    }

    /// Returns index and id of the row's plan, which is stored if it is new.
    pub(super) fn find_or_insert(
        &mut self,
        db: &Connection,
        row: &UsageRow,
    ) -> Result<(usize, i64), rusqlite::Error> {
        let limits = serde_json::to_string(&row.limits).unwrap_or_default();
        let key = (row.tier.clone(), limits);
        if let Some(index) = self.indices.get(&key)
            && let Some(plan) = self.all.get(*index)
        {
            return Ok((*index, plan.id));
        }
        let (tier, limits) = key;
        let sql = "INSERT INTO plans (tier, price_cents, limits) VALUES (?1, ?2, ?3) RETURNING id";
        let values = params![tier.as_str(), row.limits.price_cents_month, limits];
        let id = db.prepare_cached(sql)?.query_row(values, |row| row.get(0))?;
        Ok((self.insert(id, tier, limits), id))
    }

    pub(super) fn indices_by_id(&self) -> HashMap<i64, usize> {
        self.all.iter().enumerate().map(|(index, plan)| (plan.id, index)).collect()
    }

    /// Returns true if a plan of this tier is stored.
    pub(super) fn has_tier(&self, tier: &TierName) -> bool {
        self.tiers.contains(tier)
    }

    pub(super) fn len(&self) -> usize {
        self.all.len()
    }
}

/// Deletes the plans of no tenant. Returns their number.
pub(super) fn delete_unused(db: &Connection) -> Result<usize, rusqlite::Error> {
    db.execute("DELETE FROM plans WHERE id NOT IN (SELECT plan FROM tenants)", [])
}
