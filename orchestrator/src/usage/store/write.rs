//! Writes one transaction of reports.

use std::collections::{BTreeSet, HashMap};

use protocol::calendar::Month;
use protocol::time::HOUR_S;
use protocol::usage::bounds::REPORT_ROWS_MAX;
use protocol::usage::{UsageRow, source_created_s};
use protocol::{GatewayId, TenantId, TierName};
use rusqlite::{OptionalExtension, Transaction, params};

use super::plans::{self, PLANS_MAX, Plans};
use super::quarantine::{self, QuarantinedRow, Suspect};
use super::{
    COLUMNS, Committed, Recorded, SOURCES_STORED_MAX, SourceRow, TenantRow, load_tenants,
    read_sums_with_reasons, read_u64, to_i64,
};
use crate::usage::names::Names;
use crate::usage::received::ReceivedReport;
use crate::usage::sums::Sums;
use crate::usage::suspicion::{Budget, HourWindow, Suspicion, judge};
use crate::usage::tally::Increase;

/// A transaction with the store's maps of names to ids.
pub(super) struct Writer<'a> {
    pub(super) tx: &'a Transaction<'a>,
    pub(super) names: &'a dyn Names,
    pub(super) tenants: &'a mut HashMap<TenantId, TenantRow>,
    pub(super) plans: &'a mut Plans,
    pub(super) sources: &'a mut HashMap<(GatewayId, String), SourceRow>,
    pub(super) source_count: &'a mut u64,
    /// True if the quarantine had rows at the begin of the transaction.
    pub(super) has_quarantine: bool,
    pub(super) window: HourWindow,
    pub(super) now_s: u64,
    pub(super) committed: Committed,
}

/// The source of a row, with the budget that its report has left.
struct Origin<'a> {
    gateway: &'a GatewayId,
    source: &'a str,
    row: Option<SourceRow>,
    budget: Budget,
}

impl Writer<'_> {
    pub(super) fn write(mut self, reports: &[ReceivedReport]) -> rusqlite::Result<Committed> {
        for received in reports {
            let recorded = self.write_report(received)?;
            self.committed.reports.push(recorded);
        }
        self.finish()
    }

    /// Brings the quarantine within its bound.
    pub(super) fn finish(mut self) -> rusqlite::Result<Committed> {
        if !self.committed.quarantined.is_empty() {
            self.committed.dropped += quarantine::trim(self.tx)?;
        }
        Ok(self.committed)
    }

    fn write_report(&mut self, received: &ReceivedReport) -> rusqlite::Result<Recorded> {
        self.delete_unused_plans()?;
        let report = &received.report;
        let gateway = report.gateway.as_str();
        let source = report.source.as_str();
        let now_s = self.now_s;
        let suspect = |reason| Suspect { gateway, source, reason, now_s };
        let mut recorded = Recorded::default();
        for text in &received.malformed {
            suspect(Suspicion::Malformed).quarantine_text(self.tx, text)?;
            self.committed.count(Suspicion::Malformed);
            recorded.quarantined += 1;
        }
        let mut origin = self.origin(&report.gateway, &report.source)?;
        let mut new_tenants = BTreeSet::new();
        for (index, row) in report.rows.iter().enumerate() {
            let is_new = !self.tenants.contains_key(&row.tenant);
            let reason = match self.judge(index, row) {
                None => self.take(row, &mut origin)?,
                suspicion => suspicion,
            };
            let Some(reason) = reason else {
                if is_new {
                    new_tenants.insert(row.tenant.clone());
                }
                continue;
            };
            suspect(reason).quarantine(self.tx, row)?;
            self.committed.count(reason);
            recorded.quarantined += 1;
            if reason == Suspicion::UnknownTenant {
                recorded.unknown.insert(row.tenant.clone());
            }
        }
        for tenant in new_tenants {
            self.release_waiting(Some(&tenant), None)?;
        }
        Ok(recorded)
    }

    /// Judges a row and the names that it contains.
    fn judge(&self, index: usize, row: &UsageRow) -> Option<Suspicion> {
        if index >= REPORT_ROWS_MAX {
            return Some(Suspicion::TooManyRows);
        }
        judge(row, self.window).or_else(|| self.judge_names(&row.tenant, &row.tier))
    }

    /// Judges tenant and tier. The first row of a tenant may have any tier: after the loss of a ledger
    /// no other part of this host has the tiers. A later change must be to one that a lease or another
    /// row had.
    fn judge_names(&self, tenant: &TenantId, tier: &TierName) -> Option<Suspicion> {
        if !self.tenants.contains_key(tenant) {
            return (!self.names.is_tenant(tenant)).then_some(Suspicion::UnknownTenant);
        }
        let is_tier = self.plans.has_tier(tier) || self.names.is_tier(tier);
        (!is_tier).then_some(Suspicion::UnknownTier)
    }

    /// Moves the rows that wait for this tenant or tier into the ledger.
    pub(super) fn release_waiting(
        &mut self,
        tenant: Option<&TenantId>,
        tier: Option<&TierName>,
    ) -> rusqlite::Result<()> {
        let mut released = Vec::new();
        for waiting in quarantine::waiting(self.tx, tenant, tier)? {
            let Some(row) = waiting.usage() else { continue };
            if self.judge_names(&row.tenant, &row.tier).is_none()
                && self.release(&waiting, &row)?.is_none()
            {
                released.push(waiting.id);
            }
        }
        self.committed.released += released.len() as u64;
        quarantine::delete(self.tx, &released)
    }

    /// Takes a row of the quarantine, which its source has had time to count.
    pub(super) fn release(
        &mut self,
        waiting: &QuarantinedRow,
        row: &UsageRow,
    ) -> rusqlite::Result<Option<Suspicion>> {
        let Ok(gateway) = GatewayId::parse(&waiting.gateway) else {
            return Ok(Some(Suspicion::Malformed));
        };
        let mut origin = self.origin(&gateway, &waiting.source)?;
        origin.budget = Budget::UNLIMITED;
        self.take(row, &mut origin)
    }

    fn origin<'n>(
        &mut self,
        gateway: &'n GatewayId,
        source: &'n str,
    ) -> rusqlite::Result<Origin<'n>> {
        let key = (gateway.clone(), source.to_owned());
        let mut row = self.sources.get(&key).copied();
        if row.is_none() {
            let sql = "SELECT id, last_s FROM sources WHERE gateway = ?1 AND source = ?2";
            let found = self.tx.prepare_cached(sql)?.query_row([gateway.as_str(), source], |row| {
                Ok(SourceRow { id: row.get(0)?, last_s: read_u64(row, 1)? })
            });
            row = found.optional()?;
            if let Some(row) = row {
                self.sources.insert(key, row);
            }
        }
        // A source that is new here may have counted since it was created, or since an hour ago if
        // its name does not say.
        let began_s = row.map(|row| row.last_s).or_else(|| source_created_s(source));
        let elapsed_s = began_s.map_or(HOUR_S, |began_s| self.now_s.saturating_sub(began_s));
        Ok(Origin { gateway, source, row, budget: Budget::after(elapsed_s) })
    }

    /// Merges a row with what the same source has reported for the same hour, unless its source
    /// can't have counted that much.
    fn take(
        &mut self,
        row: &UsageRow,
        origin: &mut Origin<'_>,
    ) -> rusqlite::Result<Option<Suspicion>> {
        if origin.row.is_none() && *self.source_count >= SOURCES_STORED_MAX {
            return Ok(Some(Suspicion::TooManySources));
        }
        let before = self.stored(row, origin)?;
        let mut after = before.clone();
        after.merge(&Sums::from_counters(&row.counters));
        let mut new = after.clone();
        new.subtract(&before);
        if !origin.budget.take(&new) {
            return Ok(Some(Suspicion::Jump));
        }
        let source = self.source_id(origin)?;
        let tenant = self.tenant_id(row)?;
        if after == before {
            return Ok(None);
        }
        put(self.tx, "hours", &[to_i64(row.hour), tenant, source], &after)?;
        if new.forwarded() > 0 || new.bytes_out > 0 {
            self.committed.increases.push(Increase {
                tenant: row.tenant.clone(),
                hour: row.hour,
                reads: new.reads,
                writes: new.writes,
                bytes_out: new.bytes_out,
            });
        }
        self.committed.sums.add(&new);
        self.committed.newest_hour = self.committed.newest_hour.max(row.hour);
        if self.has_quarantine {
            let Origin { gateway, source, .. } = *origin;
            quarantine::delete_contained_jump(self.tx, gateway, source, row, &after)?;
        }
        Ok(None)
    }

    /// Keeps a flood of invented limits from filling the table of plans.
    fn delete_unused_plans(&mut self) -> rusqlite::Result<()> {
        if self.plans.len() > PLANS_MAX + 2 * self.tenants.len() {
            plans::delete_unused(self.tx)?;
            (*self.plans, *self.tenants) = load_tenants(self.tx)?;
        }
        Ok(())
    }

    /// Returns what the row's source has reported earlier for the row's tenant and hour.
    fn stored(&self, row: &UsageRow, origin: &Origin<'_>) -> rusqlite::Result<Sums> {
        let (Some(tenant), Some(source)) = (self.tenants.get(&row.tenant), origin.row) else {
            return Ok(Sums::default());
        };
        let sql = format!(
            "SELECT {COLUMNS}, reasons FROM hours WHERE hour = ?1 AND tenant = ?2 AND source = ?3"
        );
        let mut statement = self.tx.prepare_cached(&sql)?;
        let key = [to_i64(row.hour), tenant.id, source.id];
        let stored = statement.query_row(key, |row| read_sums_with_reasons(row, 0)).optional()?;
        Ok(stored.unwrap_or_default())
    }

    /// Returns the source's id, and records once per report that it has reported now.
    fn source_id(&mut self, origin: &mut Origin<'_>) -> rusqlite::Result<i64> {
        if let Some(row) = origin.row
            && row.last_s == self.now_s
        {
            return Ok(row.id);
        }
        let sql = "INSERT INTO sources (gateway, source, first_s, last_s)
                   VALUES (?1, ?2, ?3, ?3)
                   ON CONFLICT (gateway, source) DO UPDATE SET last_s = excluded.last_s
                   RETURNING id";
        let values = params![origin.gateway.as_str(), origin.source, to_i64(self.now_s)];
        let id = self.tx.prepare_cached(sql)?.query_row(values, |row| row.get(0))?;
        *self.source_count += u64::from(origin.row.is_none());
        let row = SourceRow { id, last_s: self.now_s };
        origin.row = Some(row);
        self.sources.insert((origin.gateway.clone(), origin.source.to_owned()), row);
        Ok(id)
    }

    /// Returns the tenant's id. If the row has another plan than before, stores the plan as the
    /// tenant's newest, and its tier and price as the terms from the row's month on.
    fn tenant_id(&mut self, row: &UsageRow) -> rusqlite::Result<i64> {
        if let Some(tenant) = self.tenants.get(&row.tenant)
            && self.plans.matches(tenant.plan, row)
        {
            return Ok(tenant.id);
        }
        let (plan, plan_id) = self.plans.find_or_insert(self.tx, row)?;
        let sql = "INSERT INTO tenants (name, plan) VALUES (?1, ?2)
                   ON CONFLICT (name) DO UPDATE SET plan = excluded.plan RETURNING id";
        let values = params![row.tenant.as_str(), plan_id];
        let id: i64 = self.tx.prepare_cached(sql)?.query_row(values, |row| row.get(0))?;
        let month = to_i64(Month::of(row.hour * HOUR_S).0);
        let sql = "INSERT OR REPLACE INTO terms VALUES (?1, ?2, ?3, ?4)";
        let values = params![id, month, row.tier.as_str(), row.limits.price_cents_month];
        self.tx.prepare_cached(sql)?.execute(values)?;
        self.tenants.insert(row.tenant.clone(), TenantRow { id, plan });
        Ok(id)
    }
}

/// Writes one table row: its key, then the counters and the reasons.
pub(super) fn put(
    tx: &Transaction<'_>,
    table: &str,
    key: &[i64],
    sums: &Sums,
) -> Result<(), rusqlite::Error> {
    let placeholders = vec!["?"; key.len() + Sums::COLUMNS + 1].join(", ");
    let sql = format!("INSERT OR REPLACE INTO {table} VALUES ({placeholders})");
    let mut statement = tx.prepare_cached(&sql)?;
    let numbers = key.iter().copied().chain(sums.columns().map(to_i64));
    let mut index = 1;
    for number in numbers {
        statement.raw_bind_parameter(index, number)?;
        index += 1;
    }
    let reasons =
        if sums.reasons.is_empty() { None } else { serde_json::to_string(&sums.reasons).ok() };
    statement.raw_bind_parameter(index, reasons)?;
    statement.raw_execute()?;
    Ok(())
}
