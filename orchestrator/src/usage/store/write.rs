//! Writes one transaction of reports.

use std::collections::HashMap;

use protocol::calendar::Month;
use protocol::time::HOUR_S;
use protocol::usage::UsageRow;
use protocol::{GatewayId, TenantId, UsageReport};
use rusqlite::{OptionalExtension, Transaction, params};

use super::plans::Plans;
use super::{COLUMNS, Committed, TenantRow, read_sums_with_reasons, to_i64};
use crate::usage::sums::Sums;
use crate::usage::tally::Increase;

/// Rows further ahead than this come from a broken clock and are refused.
const AHEAD_HOURS_MAX: u64 = 48;

/// A transaction with the store's maps of names to ids.
pub(super) struct Writer<'a> {
    pub(super) tx: &'a Transaction<'a>,
    pub(super) tenants: &'a mut HashMap<TenantId, TenantRow>,
    pub(super) plans: &'a mut Plans,
    pub(super) sources: &'a mut HashMap<(GatewayId, String), i64>,
    pub(super) pruned_hour: u64,
    pub(super) now_s: u64,
}

impl Writer<'_> {
    pub(super) fn write(
        &mut self,
        reports: &[UsageReport],
        committed: &mut Committed,
    ) -> Result<(), rusqlite::Error> {
        for report in reports {
            let source = self.source_id(report)?;
            for row in &report.rows {
                if row.hour < self.pruned_hour || is_too_far_ahead(row, self.now_s) {
                    committed.refused_rows += 1;
                    continue;
                }
                let tenant = self.tenant_id(row)?;
                self.merge_row(row, tenant, source, committed)?;
            }
        }
        Ok(())
    }

    /// Returns the source's id, and records that it has reported now.
    fn source_id(&mut self, report: &UsageReport) -> Result<i64, rusqlite::Error> {
        let key = (report.gateway.clone(), report.source.clone());
        if let Some(id) = self.sources.get(&key).copied() {
            let sql = "UPDATE sources SET last_s = ?2 WHERE id = ?1";
            self.tx.prepare_cached(sql)?.execute([id, to_i64(self.now_s)])?;
            return Ok(id);
        }
        let sql = "INSERT INTO sources (gateway, source, first_s, last_s)
                   VALUES (?1, ?2, ?3, ?3)
                   ON CONFLICT (gateway, source) DO UPDATE SET last_s = excluded.last_s
                   RETURNING id";
        let values = params![report.gateway.as_str(), report.source, to_i64(self.now_s)];
        let id = self.tx.prepare_cached(sql)?.query_row(values, |row| row.get(0))?;
        self.sources.insert(key, id);
        Ok(id)
    }

    /// Returns the tenant's id. If the row has another plan than before, stores the plan as the
    /// tenant's newest, and its tier and price as the terms from the row's month on.
    fn tenant_id(&mut self, row: &UsageRow) -> Result<i64, rusqlite::Error> {
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

    /// Merges a row with what the same source has reported for the same hour.
    fn merge_row(
        &self,
        row: &UsageRow,
        tenant: i64,
        source: i64,
        committed: &mut Committed,
    ) -> Result<(), rusqlite::Error> {
        let hour = to_i64(row.hour);
        let sql = format!(
            "SELECT {COLUMNS}, reasons FROM hours WHERE hour = ?1 AND tenant = ?2 AND source = ?3"
        );
        let before = self
            .tx
            .prepare_cached(&sql)?
            .query_row([hour, tenant, source], |row| read_sums_with_reasons(row, 0))
            .optional()?
            .unwrap_or_default();
        let mut after = before.clone();
        after.merge(&Sums::from_counters(&row.counters));
        if after == before {
            return Ok(());
        }
        put(self.tx, "hours", &[hour, tenant, source], &after)?;
        let mut new = after;
        new.subtract(&before);
        if new.forwarded() > 0 || new.bytes_out > 0 {
            committed.increases.push(Increase {
                tenant: row.tenant.clone(),
                hour: row.hour,
                reads: new.reads,
                writes: new.writes,
                bytes_out: new.bytes_out,
            });
        }
        committed.sums.add(&new);
        Ok(())
    }
}

fn is_too_far_ahead(row: &UsageRow, now_s: u64) -> bool {
    row.hour > now_s / HOUR_S + AHEAD_HOURS_MAX
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
