//! Plans: a tier with its limits and price, kept once, for a million tenants share a handful.

use std::collections::HashMap;

use protocol::usage::UsageRow;
use protocol::{Limits, TierName};
use rusqlite::{Connection, params};

use super::{StoreError, name};

/// Plans that nobody has are dropped when there are more than this: each exception is one.
pub(super) const PLANS_MAX: usize = 1_000;

/// All plans, in memory as in the file.
#[derive(Debug, Default)]
pub(super) struct Plans {
    all: Vec<Plan>,
    /// Places in `all`, by tier and limits as they are stored.
    places: HashMap<(TierName, String), usize>,
}

#[derive(Debug)]
struct Plan {
    id: i64,
    tier: TierName,
    limits: Limits,
}

impl Plans {
    pub(super) fn load(db: &Connection) -> Result<Self, StoreError> {
        let mut plans = Self::default();
        let mut statement = db.prepare("SELECT id, tier, limits FROM plans")?;
        let rows = statement.query_map([], |r| Ok((r.get(0)?, name(r, 1)?, r.get(2)?)))?;
        for row in rows {
            let (id, tier, text): (i64, TierName, String) = row?;
            plans.add(id, tier, text);
        }
        Ok(plans)
    }

    fn add(&mut self, id: i64, tier: TierName, text: String) -> usize {
        let limits = serde_json::from_str(&text).unwrap_or_default();
        self.places.insert((tier.clone(), text), self.all.len());
        self.all.push(Plan { id, tier, limits });
        self.all.len() - 1
    }

    /// Whether the plan at `place` is the row's.
    pub(super) fn is(&self, place: usize, row: &UsageRow) -> bool {
        self.all.get(place).is_some_and(|p| p.tier == row.tier && p.limits == row.limits)
    }

    /// Place and id of the row's plan, which is kept from now on.
    pub(super) fn of(
        &mut self,
        db: &Connection,
        row: &UsageRow,
    ) -> Result<(usize, i64), rusqlite::Error> {
        let limits = serde_json::to_string(&row.limits).unwrap_or_default();
        let key = (row.tier.clone(), limits);
        if let Some(place) = self.places.get(&key)
            && let Some(plan) = self.all.get(*place)
        {
            return Ok((*place, plan.id));
        }
        let (tier, limits) = key;
        let sql = "INSERT INTO plans (tier, price_cents, limits) VALUES (?1, ?2, ?3) RETURNING id";
        let values = params![tier.as_str(), row.limits.price_cents_month, limits];
        let id = db.prepare_cached(sql)?.query_row(values, |r| r.get(0))?;
        Ok((self.add(id, tier, limits), id))
    }

    /// Places by id, for loading tenants.
    pub(super) fn by_id(&self) -> HashMap<i64, usize> {
        self.all.iter().enumerate().map(|(place, plan)| (plan.id, place)).collect()
    }

    pub(super) fn len(&self) -> usize {
        self.all.len()
    }
}
