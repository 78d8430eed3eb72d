//! Sums up old hours into days and old days into months, in bounded steps.
//!
//! Rows of an hour that has become part of a day are refused, so a clock that is far ahead must not
//! make hours old: age is judged by the newest row where that is older than the clock.

use std::collections::BTreeMap;

use protocol::calendar::Month;
use protocol::time::{DAY_S, HOUR_S};
use rusqlite::{OptionalExtension, Transaction, params};

use super::plans::{self, PLANS_MAX};
use super::query::SUMS;
use super::write::put;
use super::{COLUMNS, Store, StoreError, read_sums, read_sums_with_reasons, to_i64};
use crate::usage::sums::Sums;

/// Days that hourly rows are kept. An Envoy that is cut off from its orchestrator for longer loses
/// what it counted before.
pub const HOURS_KEPT_DAYS: u64 = 14;
/// Days that daily rows are kept: over a year, to compare with the year before. A source is
/// kept as long after its last report.
pub const DAYS_KEPT: u64 = 400;

/// Bound on rows per step, so that reports wait for some 50 ms.
pub(super) const PRUNE_ROWS: u64 = 10_000;

/// A table of periods and the name of its key column.
#[derive(Debug, Clone, Copy)]
struct PeriodTable {
    name: &'static str,
    key: &'static str,
}

const HOURS: PeriodTable = PeriodTable { name: "hours", key: "hour" };
const DAYS: PeriodTable = PeriodTable { name: "days", key: "day" };
const MONTHS: PeriodTable = PeriodTable { name: "months", key: "month" };

/// A period that is over, and the longer one that it becomes a part of.
#[derive(Debug, Clone, Copy)]
struct RollUp {
    from: PeriodTable,
    from_period: i64,
    to: PeriodTable,
    to_period: i64,
}

impl Store {
    /// Sums up a part of the oldest hour or day that is old enough. Returns true if it did: then
    /// there may be more, and the caller comes back after serving reports.
    pub fn prune(&mut self, now_s: u64) -> Result<bool, StoreError> {
        let now_s = self.prune_clock_s(now_s)?;
        let today = now_s / DAY_S;
        let hours_end = today.saturating_sub(HOURS_KEPT_DAYS) * 24;
        let days_end = today.saturating_sub(DAYS_KEPT);
        let hour = self.read_period("SELECT min(hour) FROM hours")?;
        if let Some(hour) = hour.filter(|hour| *hour < hours_end) {
            self.prune_hour(hour)?;
            return Ok(true);
        }
        let day = self.read_period("SELECT min(day) FROM days")?;
        if let Some(day) = day.filter(|day| *day < days_end) {
            self.prune_day(day)?;
            return Ok(true);
        }
        self.delete_unused(days_end * DAY_S)?;
        Ok(false)
    }

    /// Returns `now_s`, or the end of the newest row's hour where that is earlier.
    pub fn prune_clock_s(&self, now_s: u64) -> Result<u64, StoreError> {
        let sql = "SELECT coalesce((SELECT max(hour) FROM hours),
                                   (SELECT max(day) * 24 + 23 FROM days))";
        let newest_hour = self.read_period(sql)?;
        Ok(newest_hour.map_or(now_s, |hour| now_s.min((hour + 1).saturating_mul(HOUR_S))))
    }

    /// Reads one period; `None` if the tables are empty.
    fn read_period(&self, sql: &str) -> Result<Option<u64>, StoreError> {
        let period: Option<i64> = self.db.query_row(sql, [], |row| row.get(0))?;
        Ok(period.and_then(|period| u64::try_from(period).ok()))
    }

    fn prune_hour(&mut self, hour: u64) -> Result<(), StoreError> {
        let tx = self.db.unchecked_transaction()?;
        // The first part already refuses the hour's late rows: some maxima of its sources are gone.
        let pruned_hour = self.pruned_hour.max(hour + 1);
        set_meta(&tx, "pruned_hour", pruned_hour)?;
        let from_period = to_i64(hour);
        let to_period = to_i64(hour / 24);
        roll_up(&tx, RollUp { from: HOURS, from_period, to: DAYS, to_period })?;
        tx.commit()?;
        self.pruned_hour = pruned_hour;
        Ok(())
    }

    fn prune_day(&mut self, day: u64) -> Result<(), StoreError> {
        let tx = self.db.unchecked_transaction()?;
        let from_period = to_i64(day);
        let to_period = to_i64(Month::of(day * DAY_S).0);
        roll_up(&tx, RollUp { from: DAYS, from_period, to: MONTHS, to_period })?;
        Ok(tx.commit()?)
    }

    /// Deletes sources whose last report is before `reported_s`, and unused plans.
    fn delete_unused(&mut self, reported_s: u64) -> Result<(), StoreError> {
        let tx = self.db.unchecked_transaction()?;
        tx.execute("DELETE FROM sources WHERE last_s < ?1", [to_i64(reported_s)])?;
        tx.execute("DELETE FROM source_sums WHERE source NOT IN (SELECT id FROM sources)", [])?;
        tx.commit()?;
        self.sources.clear();
        self.source_count = self.count_sources()?;
        if self.plans.len() > PLANS_MAX && plans::delete_unused(&self.db)? > 0 {
            self.load_tenants()?;
        }
        Ok(())
    }
}

/// Moves the next rows of a period into the longer one.
fn roll_up(tx: &Transaction<'_>, roll_up: RollUp) -> Result<(), rusqlite::Error> {
    // Whole tenants, at least one: find the tenant at which the part ends.
    let PeriodTable { name, key } = roll_up.from;
    let sql =
        format!("SELECT tenant FROM {name} WHERE {key} = ?1 ORDER BY tenant LIMIT 1 OFFSET ?2");
    let mut nth_tenant = tx.prepare_cached(&sql)?;
    let mut tenant_at = |n: u64| {
        nth_tenant
            .query_row([roll_up.from_period, to_i64(n)], |row| row.get::<_, i64>(0))
            .optional()
    };
    let first = tenant_at(0)?.unwrap_or(0);
    let end = tenant_at(PRUNE_ROWS)?.map_or(i64::MAX, |end| end.max(first + 1));
    move_tenants(tx, roll_up, end)
}

/// Moves the rows of tenants with an id below `end`.
fn move_tenants(tx: &Transaction<'_>, roll_up: RollUp, end: i64) -> Result<(), rusqlite::Error> {
    let RollUp { from, from_period, to, to_period } = roll_up;
    let selection = format!("{} WHERE {} = ?1 AND tenant < ?2", from.name, from.key);
    // Sum up the part by tenant.
    let mut by_tenant: BTreeMap<i64, Sums> = BTreeMap::new();
    let mut statement =
        tx.prepare_cached(&format!("SELECT tenant, {COLUMNS}, reasons FROM {selection}"))?;
    let mut rows = statement.query([from_period, end])?;
    while let Some(row) = rows.next()? {
        by_tenant.entry(row.get(0)?).or_default().add(&read_sums_with_reasons(row, 1)?);
    }
    // Add each sum to the longer period.
    let sql =
        format!("SELECT {COLUMNS}, reasons FROM {} WHERE {} = ?1 AND tenant = ?2", to.name, to.key);
    let mut statement = tx.prepare_cached(&sql)?;
    for (tenant, mut sum) in by_tenant {
        let before = statement
            .query_row([to_period, tenant], |row| read_sums_with_reasons(row, 0))
            .optional()?;
        sum.add(&before.unwrap_or_default());
        put(tx, to.name, &[to_period, tenant], &sum)?;
    }
    // Days have no source any more: keep the sums by source, then delete the rows.
    if from.name == HOURS.name {
        keep_by_source(tx, &selection, [from_period, end])?;
    }
    tx.execute(&format!("DELETE FROM {selection}"), [from_period, end])?;
    Ok(())
}

/// Adds the rows that leave `hours` to the sums of their sources.
fn keep_by_source(
    tx: &Transaction<'_>,
    selection: &str,
    bounds: [i64; 2],
) -> Result<(), rusqlite::Error> {
    let sql = format!("SELECT source, {SUMS} FROM {selection} GROUP BY source");
    let mut statement = tx.prepare_cached(&sql)?;
    let mut rows = statement.query(bounds)?;
    let sql = format!("SELECT {COLUMNS} FROM source_sums WHERE source = ?1");
    let mut before = tx.prepare_cached(&sql)?;
    while let Some(row) = rows.next()? {
        let source: i64 = row.get(0)?;
        let earlier = before.query_row([source], |row| read_sums(row, 0)).optional()?;
        let mut sum = earlier.unwrap_or_default();
        sum.add(&read_sums(row, 1)?);
        put(tx, "source_sums", &[source], &sum)?;
    }
    Ok(())
}

fn set_meta(tx: &Transaction<'_>, key: &str, value: u64) -> Result<(), rusqlite::Error> {
    let sql = "INSERT OR REPLACE INTO meta (key, value) VALUES (?1, ?2)";
    tx.execute(sql, params![key, to_i64(value)])?;
    Ok(())
}
