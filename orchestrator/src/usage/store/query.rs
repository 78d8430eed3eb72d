//! Queries. On a read-only connection they do not delay the thread that writes.

use std::collections::BTreeMap;
use std::ops::Range;

use protocol::calendar::Month;
use protocol::time::{DAY_S, HOUR_S};
use protocol::usage::source_created_s;
use protocol::{GatewayId, Limits, TenantId, TierName};
use rusqlite::{OptionalExtension, params};

use super::{
    COLUMNS, Store, StoreError, quarantine, read_name, read_sums, read_sums_with_reasons, read_u64,
    to_i64,
};
use crate::usage::sums::{Sums, TenantSums};
use crate::usage::tally::Increase;

/// The aggregate of each of [`COLUMNS`].
pub(super) const SUMS: &str = "saturating_sum(reads), saturating_sum(writes), \
     saturating_sum(refused), saturating_sum(s0), saturating_sum(s1), saturating_sum(s2), \
     saturating_sum(s3), saturating_sum(s4), saturating_sum(s5), saturating_sum(bytes_in), \
     saturating_sum(bytes_out), saturating_sum(service_ms), saturating_sum(doze), \
     saturating_sum(start), saturating_sum(\"create\")";

/// A tenant's plan as of its newest row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TenantPlan {
    /// The tier's name.
    pub tier: TierName,
    /// The tier's limits with the tenant's exceptions.
    pub limits: Limits,
}

impl Store {
    /// Returns requests and bytes of every tenant in this month and the one before, by day, to rebuild
    /// the [`Tally`](crate::usage::tally::Tally).
    pub fn recent_increases(&self, now_s: u64) -> Result<Vec<Increase>, StoreError> {
        let month = Month::of(now_s);
        let from_s = Month(month.0.saturating_sub(1)).start_s();
        let sql = "SELECT name, day, saturating_sum(reads), saturating_sum(writes),
                     saturating_sum(bytes_out) FROM (
                     SELECT hour / 24 AS day, tenant, reads, writes, bytes_out FROM hours
                     WHERE hour >= ?1
                     UNION ALL
                     SELECT day, tenant, reads, writes, bytes_out FROM days WHERE day >= ?2)
                   JOIN tenants ON id = tenant GROUP BY tenant, day ORDER BY day";
        let mut statement = self.db.prepare(sql)?;
        let rows =
            statement.query_map([to_i64(from_s / HOUR_S), to_i64(from_s / DAY_S)], |row| {
                let day = read_u64(row, 1)?;
                Ok(Increase {
                    tenant: read_name(row, 0)?,
                    hour: day * 24,
                    reads: read_u64(row, 2)?,
                    writes: read_u64(row, 3)?,
                    bytes_out: read_u64(row, 4)?,
                })
            })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// Returns the sums of every tenant with usage in `span`, by name and without reasons, with
    /// tier and price as of its last month in the span.
    ///
    /// `span` is in seconds since 1970. Its bounds count as whole days where hours were summed up
    /// after [`HOURS_KEPT_DAYS`](super::HOURS_KEPT_DAYS), and as whole months after
    /// [`DAYS_KEPT`](super::DAYS_KEPT).
    pub fn sums_by_tenant(&self, span: Range<u64>) -> Result<Vec<TenantSums>, StoreError> {
        // A tenant whose first terms begin after the span gets these.
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
        let last_month = to_i64(Month::of(span.end.saturating_sub(1)).0);
        let rows = statement.query_map([h1, h2, d1, d2, m1, m2, last_month], |row| {
            Ok(TenantSums {
                tenant: read_name(row, 0)?,
                tier: read_name(row, 1)?,
                price_cents_month: row.get(2)?,
                sums: read_sums(row, 3)?,
            })
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// Returns one tenant's sums in `span`, with reasons.
    pub fn tenant_sums(&self, tenant: &TenantId, span: Range<u64>) -> Result<Sums, StoreError> {
        let sql = "SELECT id FROM tenants WHERE name = ?1";
        let id: Option<i64> =
            self.db.prepare_cached(sql)?.query_row([tenant.as_str()], |r| r.get(0)).optional()?;
        let mut total = Sums::default();
        let Some(id) = id else { return Ok(total) };
        let [h1, h2, d1, d2, m1, m2] = bounds(&span);
        for (table, key, from, to) in
            [("hours", "hour", h1, h2), ("days", "day", d1, d2), ("months", "month", m1, m2)]
        {
            // One seek per period, because the key starts with the period.
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
                total.add(&read_sums_with_reasons(row, 0)?);
            }
        }
        Ok(total)
    }

    /// Returns a tenant's tier and limits as last reported; `None` before its first report.
    pub fn tenant_plan(&self, tenant: &TenantId) -> Result<Option<TenantPlan>, StoreError> {
        let sql = "SELECT tier, limits FROM tenants JOIN plans ON plans.id = plan WHERE name = ?1";
        let mut statement = self.db.prepare_cached(sql)?;
        let plan = statement.query_row([tenant.as_str()], |row| {
            let limits: String = row.get(1)?;
            let limits = serde_json::from_str(&limits).unwrap_or_default();
            Ok(TenantPlan { tier: read_name(row, 0)?, limits })
        });
        Ok(plan.optional()?)
    }

    /// Returns the sums of those sources of `gateway` that began at `since_s` or later. With the
    /// start time of an Envoy this is that Envoy's run, whatever its age.
    pub fn gateway_sums(&self, gateway: &GatewayId, since_s: u64) -> Result<Sums, StoreError> {
        let sql = "SELECT id, source, first_s FROM sources WHERE gateway = ?1";
        let mut statement = self.db.prepare_cached(sql)?;
        let mut rows = statement.query([gateway.as_str()])?;
        let mut ids = Vec::new();
        // A source's name says when it began. Its first report is later: by then the Envoy may have
        // been replaced.
        let began = |source: &str, first_s| source_created_s(source).unwrap_or(first_s) >= since_s;
        while let Some(row) = rows.next()? {
            let source: String = row.get(1)?;
            if began(&source, read_u64(row, 2)?) {
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
        let first_hour = to_i64((since_s / HOUR_S).saturating_sub(1));
        let found = self.db.query_row(&sql, [first_hour], |r| read_sums(r, 0)).optional()?;
        let mut sums = found.unwrap_or_default();
        // Rows that wait for their tenant's first lease are not lost.
        for waiting in quarantine::waiting_of_gateway(&self.db, gateway)? {
            if began(&waiting.source, waiting.first_s)
                && let Some(row) = waiting.usage()
            {
                sums.add(&Sums { reasons: BTreeMap::new(), ..Sums::from_counters(&row.counters) });
            }
        }
        Ok(sums)
    }

    /// Returns the number of rows in `hours`.
    pub fn hour_rows(&self) -> Result<u64, StoreError> {
        self.count("hours")
    }
}

/// Converts `span` to bounds in hours, days and months. A day or month counts if it starts in the
/// span.
fn bounds(span: &Range<u64>) -> [i64; 6] {
    [
        span.start.div_ceil(HOUR_S),
        span.end.div_ceil(HOUR_S),
        span.start.div_ceil(DAY_S),
        span.end.div_ceil(DAY_S),
        first_month_from(span.start),
        first_month_from(span.end),
    ]
    .map(to_i64)
}

/// Returns the first month that starts at `from_s` or later.
fn first_month_from(from_s: u64) -> u64 {
    let month = Month::of(from_s);
    if month.start_s() == from_s { month.0 } else { month.next().0 }
}
