//! Questions to the ledger. None holds up the thread that writes.

use std::ops::Range;

use protocol::calendar::Month;
use protocol::time::{DAY_S, HOUR_S};
use protocol::usage::born_s;
use protocol::{GatewayId, Limits, TenantId, TierName};
use rusqlite::{OptionalExtension, params};

use super::{COLUMNS, Store, StoreError, counter, name, sums, whole, with_reasons};
use crate::usage::sums::{Added, Line, Sums};

/// [`COLUMNS`], summed.
pub(super) const SUMS: &str = "sum(reads), sum(writes), sum(refused), sum(s0), sum(s1), sum(s2), sum(s3), \
                    sum(s4), sum(s5), sum(bytes_in), sum(bytes_out), sum(service_ms), sum(doze), \
                    sum(start), sum(\"create\")";

/// A tenant as its newest row has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TenantRecord {
    /// Its tier.
    pub tier: TierName,
    /// Its limits.
    pub limits: Limits,
}

impl Store {
    /// What every tenant has used in this month and the one before, for a new
    /// [`Tally`](crate::usage::sums::Tally).
    pub fn recent(&self, now_s: u64) -> Result<Vec<Added>, StoreError> {
        let month = Month::of(now_s);
        let from_s = Month(month.0.saturating_sub(1)).start_s();
        let sql = "SELECT name, day, sum(reads), sum(writes) FROM (
                     SELECT hour / 24 AS day, tenant, reads, writes FROM hours WHERE hour >= ?1
                     UNION ALL
                     SELECT day, tenant, reads, writes FROM days WHERE day >= ?2)
                   JOIN tenants ON id = tenant GROUP BY tenant, day ORDER BY day";
        let mut statement = self.db.prepare(sql)?;
        let rows = statement.query_map([whole(from_s / HOUR_S), whole(from_s / DAY_S)], |row| {
            let day = counter(row, 1)?;
            let (reads, writes) = (counter(row, 2)?, counter(row, 3)?);
            Ok(Added { tenant: name(row, 0)?, hour: day * 24, reads, writes })
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// One line per tenant with anything in `span` (seconds since 1970; whole days once they are
    /// older than [`HOURS_KEPT_DAYS`](super::HOURS_KEPT_DAYS), whole months after
    /// [`DAYS_KEPT`](super::DAYS_KEPT)), with tier and price as of its last month. Without reasons.
    pub fn lines(&self, span: Range<u64>) -> Result<Vec<Line>, StoreError> {
        // One that was first heard of after the span has its first terms in it, too.
        let sql = format!(
            "SELECT name, tier, price_cents, used.* FROM (
               SELECT {SUMS}, tenant FROM (
                 SELECT tenant, {COLUMNS} FROM hours WHERE hour >= ?1 AND hour < ?2
                 UNION ALL SELECT tenant, {COLUMNS} FROM days WHERE day >= ?3 AND day < ?4
                 UNION ALL SELECT tenant, {COLUMNS} FROM months WHERE month >= ?5 AND month < ?6)
               GROUP BY tenant) AS used
             JOIN tenants ON tenants.id = used.tenant
             JOIN terms ON terms.tenant = used.tenant AND terms.month = coalesce(
               (SELECT max(month) FROM terms WHERE tenant = used.tenant AND month <= ?7),
               (SELECT min(month) FROM terms WHERE tenant = used.tenant))
             ORDER BY name"
        );
        let mut statement = self.db.prepare(&sql)?;
        let [h1, h2, d1, d2, m1, m2] = bounds(&span);
        let last_month = whole(Month::of(span.end.saturating_sub(1)).0);
        let rows = statement.query_map([h1, h2, d1, d2, m1, m2, last_month], |row| {
            Ok(Line {
                tenant: name(row, 0)?,
                tier: name(row, 1)?,
                price_cents_month: row.get(2)?,
                sums: sums(row, 3)?,
            })
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// One tenant's sums in `span`, with reasons.
    pub fn tenant(&self, tenant: &TenantId, span: Range<u64>) -> Result<Sums, StoreError> {
        let sql = "SELECT id FROM tenants WHERE name = ?1";
        let id: Option<i64> =
            self.db.prepare_cached(sql)?.query_row([tenant.as_str()], |r| r.get(0)).optional()?;
        let mut total = Sums::default();
        let Some(id) = id else { return Ok(total) };
        let [h1, h2, d1, d2, m1, m2] = bounds(&span);
        for (table, key, from, to) in
            [("hours", "hour", h1, h2), ("days", "day", d1, d2), ("months", "month", m1, m2)]
        {
            // One seek per period, for the key starts with it.
            let sql = format!(
                "WITH RECURSIVE period(n) AS (
                   SELECT max(?1, (SELECT min({key}) FROM {table}))
                   UNION ALL SELECT n + 1 FROM period
                   WHERE n + 1 < min(?2, (SELECT max({key}) FROM {table}) + 1))
                 SELECT {COLUMNS}, reasons FROM period JOIN {table}
                 ON {key} = n AND {key} < ?2 AND tenant = ?3"
            );
            let mut statement = self.db.prepare_cached(&sql)?;
            let mut rows = statement.query(params![from, to, id])?;
            while let Some(row) = rows.next()? {
                total.add(&with_reasons(row, 0)?);
            }
        }
        Ok(total)
    }

    /// A tenant's tier and limits as last reported.
    pub fn record(&self, tenant: &TenantId) -> Result<Option<TenantRecord>, StoreError> {
        let sql = "SELECT tier, limits FROM tenants JOIN plans ON plans.id = plan WHERE name = ?1";
        let mut statement = self.db.prepare_cached(sql)?;
        let record = statement.query_row([tenant.as_str()], |row| {
            let limits: String = row.get(1)?;
            let limits = serde_json::from_str(&limits).unwrap_or_default();
            Ok(TenantRecord { tier: name(row, 0)?, limits })
        });
        Ok(record.optional()?)
    }

    /// All that sources of `gateway` have reported that began at `since_s` or later: with the start
    /// of an Envoy, that Envoy's life, whatever its age.
    pub fn gateway(&self, gateway: &GatewayId, since_s: u64) -> Result<Sums, StoreError> {
        let sql = "SELECT id, source, first_s FROM sources WHERE gateway = ?1";
        let mut statement = self.db.prepare_cached(sql)?;
        let mut rows = statement.query([gateway.as_str()])?;
        let mut ids = Vec::new();
        while let Some(row) = rows.next()? {
            let source: String = row.get(1)?;
            // Heard for the first time is later: an Envoy may be gone and its successor there.
            if born_s(&source).map_or_else(|| counter(row, 2), Ok)? >= since_s {
                ids.push(row.get::<_, i64>(0)?.to_string());
            }
        }
        let ids = ids.join(",");
        let sql = format!(
            "SELECT {SUMS} FROM (
               SELECT {COLUMNS} FROM hours WHERE hour >= ?1 AND source IN ({ids})
               UNION ALL SELECT {COLUMNS} FROM source_sums WHERE source IN ({ids}))
             HAVING count(*) > 0"
        );
        let first_hour = whole((since_s / HOUR_S).saturating_sub(1));
        let found = self.db.query_row(&sql, [first_hour], |r| sums(r, 0)).optional()?;
        Ok(found.unwrap_or_default())
    }

    /// Rows in `hours`.
    pub fn rows(&self) -> Result<u64, StoreError> {
        Ok(self.db.query_row("SELECT count(*) FROM hours", [], |r| counter(r, 0))?)
    }
}

/// `span` in hours, days and months. Days and months count where they start in it.
fn bounds(span: &Range<u64>) -> [i64; 6] {
    let month_up = |s: u64| {
        let month = Month::of(s);
        if month.start_s() == s { month.0 } else { month.next().0 }
    };
    [
        span.start.div_ceil(HOUR_S),
        span.end.div_ceil(HOUR_S),
        span.start.div_ceil(DAY_S),
        span.end.div_ceil(DAY_S),
        month_up(span.start),
        month_up(span.end),
    ]
    .map(whole)
}
