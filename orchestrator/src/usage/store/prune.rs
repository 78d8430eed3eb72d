//! Old hours become days, old days become months; sums stay, by tenant and by source.
//!
//! Hours that became days are not taken any more, so a clock that is far ahead must not make them
//! so: what is old is judged by the newest row where that is older than now.

use std::collections::BTreeMap;

use protocol::calendar::Month;
use protocol::time::{DAY_S, HOUR_S};
use rusqlite::{OptionalExtension, Transaction, params};

use super::plans::PLANS_MAX;
use super::query::SUMS;
use super::write::put;
use super::{COLUMNS, Store, StoreError, sums, whole, with_reasons};
use crate::usage::sums::Sums;

/// How long hours are kept apart. An Envoy that was cut off from its orchestrator for longer loses
/// what it had counted before.
pub const HOURS_KEPT_DAYS: u64 = 14;
/// How long days are kept apart: a year and some to compare with; then there are months. Also how
/// long a source is remembered after its last report.
pub const DAYS_KEPT: u64 = 400;

/// Rows of one transaction: reports wait for some 50 ms.
pub const PRUNE_ROWS: u64 = 10_000;

/// A part of a period: what one transaction moves.
struct Part {
    from: (&'static str, &'static str),
    to: (&'static str, &'static str),
    /// The period that is over, and the one it becomes a part of.
    periods: (i64, i64),
    /// Tenants below this id.
    end: i64,
}

impl Store {
    /// Turns a part of an hour (or of a day) that is old enough into a part of its day (or month).
    /// Says whether it did: call it again then, with reports in between.
    pub fn prune(&mut self, now_s: u64) -> Result<bool, StoreError> {
        let now_s = self.pruning_s(now_s)?;
        let hour_end = (now_s / DAY_S).saturating_sub(HOURS_KEPT_DAYS) * 24;
        let day_end = (now_s / DAY_S).saturating_sub(DAYS_KEPT);
        let oldest = |sql: &str| self.db.query_row(sql, [], |r| r.get::<_, Option<i64>>(0));
        let hour = oldest("SELECT min(hour) FROM hours")?.and_then(|h| u64::try_from(h).ok());
        let day = oldest("SELECT min(day) FROM days")?.and_then(|d| u64::try_from(d).ok());
        if let Some(hour) = hour.filter(|h| *h < hour_end) {
            let tx = self.db.unchecked_transaction()?;
            // With the first part, for from then on some of the sources' maxima are gone.
            let pruned_hour = self.pruned_hour.max(hour + 1);
            set_meta(&tx, "pruned_hour", pruned_hour)?;
            let periods = (whole(hour), whole(hour / 24));
            roll_up(&tx, ("hours", "hour"), ("days", "day"), periods)?;
            tx.commit()?;
            self.pruned_hour = pruned_hour;
            return Ok(true);
        }
        if let Some(day) = day.filter(|d| *d < day_end) {
            let tx = self.db.unchecked_transaction()?;
            let periods = (whole(day), whole(Month::of(day * DAY_S).0));
            roll_up(&tx, ("days", "day"), ("months", "month"), periods)?;
            tx.commit()?;
            return Ok(true);
        }
        self.drop_unused(day_end * DAY_S)?;
        Ok(false)
    }

    /// `now_s`, or the end of the newest row's hour where that is earlier.
    pub fn pruning_s(&self, now_s: u64) -> Result<u64, StoreError> {
        let sql = "SELECT coalesce((SELECT max(hour) FROM hours),
                                   (SELECT max(day) * 24 + 23 FROM days))";
        let newest: Option<i64> = self.db.query_row(sql, [], |r| r.get(0))?;
        let newest = newest.and_then(|hour| u64::try_from(hour).ok());
        Ok(newest.map_or(now_s, |hour| now_s.min((hour + 1).saturating_mul(HOUR_S))))
    }

    /// Sources that are over, and plans that nobody has.
    fn drop_unused(&mut self, heard_s: u64) -> Result<(), StoreError> {
        let tx = self.db.unchecked_transaction()?;
        tx.execute("DELETE FROM sources WHERE last_s < ?1", [whole(heard_s)])?;
        tx.execute("DELETE FROM source_sums WHERE source NOT IN (SELECT id FROM sources)", [])?;
        tx.commit()?;
        self.sources.clear();
        if self.plans.len() > PLANS_MAX {
            let sql = "DELETE FROM plans WHERE id NOT IN (SELECT plan FROM tenants)";
            if self.db.execute(sql, [])? > 0 {
                self.load_tenants()?;
            }
        }
        Ok(())
    }
}

/// Adds the next rows of a period to those of the longer one and drops them.
fn roll_up(
    tx: &Transaction<'_>,
    from: (&'static str, &'static str),
    to: (&'static str, &'static str),
    periods: (i64, i64),
) -> Result<(), rusqlite::Error> {
    let (table, key) = from;
    let nth =
        format!("SELECT tenant FROM {table} WHERE {key} = ?1 ORDER BY tenant LIMIT 1 OFFSET ?2");
    let mut nth = tx.prepare_cached(&nth)?;
    let mut tenant =
        |n: u64| nth.query_row([periods.0, whole(n)], |r| r.get::<_, i64>(0)).optional();
    // Whole tenants, one at least.
    let first = tenant(0)?.unwrap_or(0);
    let end = tenant(PRUNE_ROWS)?.map_or(i64::MAX, |end| end.max(first + 1));
    move_part(tx, &Part { from, to, periods, end })
}

fn move_part(tx: &Transaction<'_>, part: &Part) -> Result<(), rusqlite::Error> {
    let Part { from: (from, from_key), to: (to, to_key), periods, end } = part;
    let which = format!("{from} WHERE {from_key} = ?1 AND tenant < ?2");
    let mut by_tenant: BTreeMap<i64, Sums> = BTreeMap::new();
    let mut statement =
        tx.prepare_cached(&format!("SELECT tenant, {COLUMNS}, reasons FROM {which}"))?;
    let mut rows = statement.query([periods.0, *end])?;
    while let Some(row) = rows.next()? {
        by_tenant.entry(row.get(0)?).or_default().add(&with_reasons(row, 1)?);
    }
    let sql = format!("SELECT {COLUMNS}, reasons FROM {to} WHERE {to_key} = ?1 AND tenant = ?2");
    let mut statement = tx.prepare_cached(&sql)?;
    for (tenant, mut sum) in by_tenant {
        let there = statement.query_row([periods.1, tenant], |r| with_reasons(r, 0)).optional()?;
        sum.add(&there.unwrap_or_default());
        put(tx, to, &[periods.1, tenant], &sum)?;
    }
    if *from == "hours" {
        keep_by_source(tx, &which, [periods.0, *end])?;
    }
    tx.execute(&format!("DELETE FROM {which}"), [periods.0, *end])?;
    Ok(())
}

/// Adds what leaves `hours` to the sums of its sources.
fn keep_by_source(
    tx: &Transaction<'_>,
    which: &str,
    bounds: [i64; 2],
) -> Result<(), rusqlite::Error> {
    let sql = format!("SELECT source, {SUMS} FROM {which} GROUP BY source");
    let mut statement = tx.prepare_cached(&sql)?;
    let mut rows = statement.query(bounds)?;
    let sql = format!("SELECT {COLUMNS} FROM source_sums WHERE source = ?1");
    let mut before = tx.prepare_cached(&sql)?;
    while let Some(row) = rows.next()? {
        let source: i64 = row.get(0)?;
        let mut sum = before.query_row([source], |r| sums(r, 0)).optional()?.unwrap_or_default();
        sum.add(&sums(row, 1)?);
        put(tx, "source_sums", &[source], &sum)?;
    }
    Ok(())
}

fn set_meta(tx: &Transaction<'_>, key: &str, value: u64) -> Result<(), rusqlite::Error> {
    let sql = "INSERT OR REPLACE INTO meta (key, value) VALUES (?1, ?2)";
    tx.execute(sql, params![key, whole(value)])?;
    Ok(())
}
