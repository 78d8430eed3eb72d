//! One transaction of reports.

use std::collections::HashMap;

use protocol::calendar::Month;
use protocol::time::HOUR_S;
use protocol::usage::UsageRow;
use protocol::{GatewayId, TenantId, UsageReport};
use rusqlite::{OptionalExtension, Transaction, params};

use super::plans::Plans;
use super::{COLUMNS, Committed, Known, whole, with_reasons};
use crate::usage::sums::{Added, Sums, is_plausible};

/// One transaction of reports.
pub(super) struct Writer<'a> {
    pub(super) tx: &'a Transaction<'a>,
    pub(super) tenants: &'a mut HashMap<TenantId, Known>,
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
            let source = self.source(report)?;
            for row in &report.rows {
                if row.hour < self.pruned_hour || !is_plausible(row, self.now_s) {
                    committed.refused_rows += 1;
                    continue;
                }
                let tenant = self.tenant(row)?;
                self.row(row, (tenant, source), committed)?;
            }
        }
        Ok(())
    }

    fn source(&mut self, report: &UsageReport) -> Result<i64, rusqlite::Error> {
        let key = (report.gateway.clone(), report.source.clone());
        let (gateway, source) = (report.gateway.as_str(), report.source.as_str());
        let Some(id) = self.sources.get(&key).copied() else {
            let sql = "INSERT INTO sources (gateway, source, first_s, last_s)
                       VALUES (?1, ?2, ?3, ?3)
                       ON CONFLICT (gateway, source) DO UPDATE SET last_s = excluded.last_s
                       RETURNING id";
            let names = params![gateway, source, whole(self.now_s)];
            let id = self.tx.prepare_cached(sql)?.query_row(names, |r| r.get(0))?;
            self.sources.insert(key, id);
            return Ok(id);
        };
        let sql = "UPDATE sources SET last_s = ?2 WHERE id = ?1";
        self.tx.prepare_cached(sql)?.execute([id, whole(self.now_s)])?;
        Ok(id)
    }

    /// The tenant's id; its tier and limits as of the newest row, its terms from the row's month on.
    fn tenant(&mut self, row: &UsageRow) -> Result<i64, rusqlite::Error> {
        if let Some(known) = self.tenants.get(&row.tenant)
            && self.plans.is(known.plan, row)
        {
            return Ok(known.id);
        }
        let (plan, plan_id) = self.plans.of(self.tx, row)?;
        let sql = "INSERT INTO tenants (name, plan) VALUES (?1, ?2)
                   ON CONFLICT (name) DO UPDATE SET plan = excluded.plan RETURNING id";
        let values = params![row.tenant.as_str(), plan_id];
        let id: i64 = self.tx.prepare_cached(sql)?.query_row(values, |r| r.get(0))?;
        let month = whole(Month::of(row.hour * HOUR_S).0);
        let sql = "INSERT OR REPLACE INTO terms VALUES (?1, ?2, ?3, ?4)";
        let values = params![id, month, row.tier.as_str(), row.limits.price_cents_month];
        self.tx.prepare_cached(sql)?.execute(values)?;
        self.tenants.insert(row.tenant.clone(), Known { id, plan });
        Ok(id)
    }

    /// Keeps the maximum of what this source has said of this hour.
    fn row(
        &self,
        row: &UsageRow,
        (tenant, source): (i64, i64),
        committed: &mut Committed,
    ) -> Result<(), rusqlite::Error> {
        let hour = whole(row.hour);
        let sql = format!(
            "SELECT {COLUMNS}, reasons FROM hours WHERE hour = ?1 AND tenant = ?2 AND source = ?3"
        );
        let before = self
            .tx
            .prepare_cached(&sql)?
            .query_row([hour, tenant, source], |r| with_reasons(r, 0))
            .optional()?
            .unwrap_or_default();
        let mut after = before.clone();
        after.merge(&Sums::of(&row.counters));
        if after == before {
            return Ok(());
        }
        put(self.tx, "hours", &[hour, tenant, source], &after)?;
        let (reads, writes) = (after.reads - before.reads, after.writes - before.writes);
        if reads + writes > 0 {
            let tenant = row.tenant.clone();
            committed.added.push(Added { tenant, hour: row.hour, reads, writes });
        }
        let mut new = after.columns();
        for (new, old) in new.iter_mut().zip(before.columns()) {
            *new -= old;
        }
        let mut new = Sums::from_columns(new);
        for (name, times) in after.reasons {
            let old = before.reasons.get(&name).copied().unwrap_or(0);
            new.reasons.insert(name, times - old);
        }
        committed.sums.add(&new);
        Ok(())
    }
}

/// Writes a row: its key, then the counters and the reasons.
pub(super) fn put(
    tx: &Transaction<'_>,
    table: &str,
    key: &[i64],
    sums: &Sums,
) -> Result<(), rusqlite::Error> {
    let marks = vec!["?"; key.len() + Sums::COLUMNS + 1].join(", ");
    let sql = format!("INSERT OR REPLACE INTO {table} VALUES ({marks})");
    let mut statement = tx.prepare_cached(&sql)?;
    let numbers = key.iter().copied().chain(sums.columns().map(whole));
    let mut index = 1;
    for number in numbers {
        statement.raw_bind_parameter(index, number)?;
        index += 1;
    }
    let reasons = (!sums.reasons.is_empty()).then(|| serde_json::to_string(&sums.reasons));
    statement.raw_bind_parameter(index, reasons.transpose().unwrap_or_default())?;
    statement.raw_execute()?;
    Ok(())
}
