//! Rows that the ledger does not believe, kept for the operator.
//!
//! ```text
//!  reported row ─ not believed ─► quarantine ─ first lease, or the operator ─► hours
//!                                     └─ dropped by the operator, or by the bound
//! ```
//!
//! Counters are cumulative, so one record per source, tenant and hour suffices: it keeps the maximum
//! of the reported counters. When there are too many records, the source with the most records loses
//! its oldest: a flood displaces itself.

use protocol::usage::UsageRow;
use protocol::{Counters, GatewayId, TenantId, TierName};
use rusqlite::{Connection, OptionalExtension, Row, params, params_from_iter};
use serde::{Deserialize, Serialize};

use super::{Store, StoreError, read_u64, to_i64};
use crate::usage::sums::{Sums, known_reasons};
use crate::usage::suspicion::Suspicion;

/// Bound on records, each of about 2 kB: weeks of honest mistakes, and 20 MB.
pub const QUARANTINE_MAX: u64 = 10_000;
/// Bound on the name of a tenant in a malformed row.
const NAME_MAX_CHARS: usize = 64;
/// The reasons for which a first lease releases a row.
const WAITING: &str = "('unknown-tenant', 'unknown-tier')";

/// A row in the quarantine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct QuarantinedRow {
    /// Number by which the operator names it.
    pub id: u64,
    /// Reason why it is here.
    pub reason: Suspicion,
    /// The reporting gateway.
    pub gateway: String,
    /// The reporting source.
    pub source: String,
    /// The named tenant.
    pub tenant: String,
    /// The hour, counted from 1970; the number of the day or month if it was found in one.
    pub hour: u64,
    /// Time of the first report with this row, in seconds since 1970.
    pub first_s: u64,
    /// Time of the last report with this row.
    pub last_s: u64,
    /// Number of reports with this row.
    pub reports: u64,
    /// The row as JSON.
    pub row: String,
}

/// A selection of rows of the quarantine: those to which every given field applies.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Selection {
    /// The row with this number.
    pub id: Option<u64>,
    /// Rows of this tenant, whether or not the name is valid.
    pub tenant: Option<String>,
    /// Rows of this source.
    pub source: Option<String>,
    /// Rows with this reason.
    pub reason: Option<Suspicion>,
}

/// A row on its way into the quarantine.
pub(super) struct Suspect<'a> {
    pub(super) gateway: &'a str,
    pub(super) source: &'a str,
    pub(super) reason: Suspicion,
    pub(super) now_s: u64,
}

impl Selection {
    /// True if no field is given, so that every row is meant.
    pub fn is_everything(&self) -> bool {
        *self == Self::default()
    }
}

impl QuarantinedRow {
    /// Reads the row; `None` if it is malformed.
    pub fn usage(&self) -> Option<UsageRow> {
        serde_json::from_str(&self.row).ok()
    }
}

impl Suspect<'_> {
    /// Puts a row into the quarantine, or into the record that is there.
    pub(super) fn quarantine(&self, db: &Connection, row: &UsageRow) -> rusqlite::Result<()> {
        let mut row = row.clone();
        row.counters.refused = known_reasons(&row.counters.refused);
        let hour = to_i64(row.hour);
        let sql = "SELECT row FROM quarantine
                   WHERE gateway = ?1 AND source = ?2 AND tenant = ?3 AND hour = ?4";
        let key = params![self.gateway, self.source, row.tenant.as_str(), hour];
        let before: Option<String> =
            db.prepare_cached(sql)?.query_row(key, |row| row.get(0)).optional()?;
        let before = before.and_then(|text| serde_json::from_str::<UsageRow>(&text).ok());
        if let Some(before) = before {
            merge(&mut row.counters, &before.counters);
        }
        let text = serde_json::to_string(&row).unwrap_or_default();
        self.put(db, row.tenant.as_str(), row.tier.as_str(), hour, &text)
    }

    /// Puts a text that is no row into the quarantine.
    pub(super) fn quarantine_text(&self, db: &Connection, text: &str) -> rusqlite::Result<()> {
        let row: serde_json::Value = serde_json::from_str(text).unwrap_or_default();
        let tenant = row.get("tenant").and_then(|name| name.as_str()).unwrap_or_default();
        let tenant: String = tenant.chars().take(NAME_MAX_CHARS).collect();
        let hour = row.get("hour").and_then(serde_json::Value::as_u64).unwrap_or(0);
        self.put(db, &tenant, "", to_i64(hour), text)
    }

    fn put(
        &self,
        db: &Connection,
        tenant: &str,
        tier: &str,
        hour: i64,
        row: &str,
    ) -> rusqlite::Result<()> {
        let sql = "INSERT INTO quarantine
                     (gateway, source, tenant, tier, hour, reason, first_s, last_s, reports, row)
                   VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?7, 1, ?8)
                   ON CONFLICT (gateway, source, tenant, hour) DO UPDATE SET
                     tier = excluded.tier, reason = excluded.reason, last_s = excluded.last_s,
                     reports = reports + 1, row = excluded.row";
        let Self { gateway, source, reason, now_s } = self;
        let reason = reason.as_str();
        let values = params![gateway, source, tenant, tier, hour, reason, to_i64(*now_s), row];
        db.prepare_cached(sql)?.execute(values)?;
        Ok(())
    }
}

impl Store {
    /// Returns rows of the quarantine, the newest first, at most `limit`.
    pub fn quarantined(
        &self,
        selection: &Selection,
        limit: u64,
    ) -> Result<Vec<QuarantinedRow>, StoreError> {
        Ok(select(&self.db, selection, limit)?)
    }

    /// Returns the number of rows in the quarantine, by reason.
    pub fn quarantine_size(&self) -> Result<Vec<(Suspicion, u64)>, StoreError> {
        let sql = "SELECT reason, count(*) FROM quarantine GROUP BY reason ORDER BY reason";
        let mut statement = self.db.prepare_cached(sql)?;
        let rows = statement.query_map([], |row| Ok((read_reason(row, 0)?, read_u64(row, 1)?)))?;
        Ok(rows.collect::<Result<_, _>>()?)
    }
}

/// Selects rows, the newest first.
pub(super) fn select(
    db: &Connection,
    selection: &Selection,
    limit: u64,
) -> rusqlite::Result<Vec<QuarantinedRow>> {
    let sql = "SELECT id, reason, gateway, source, tenant, hour, first_s, last_s, reports, row
               FROM quarantine
               WHERE (?1 IS NULL OR id = ?1) AND (?2 IS NULL OR tenant = ?2)
                 AND (?3 IS NULL OR source = ?3) AND (?4 IS NULL OR reason = ?4)
               ORDER BY last_s DESC, id DESC LIMIT ?5";
    let Selection { id, tenant, source, reason } = selection;
    let reason = reason.map(Suspicion::as_str);
    let values = params![id.map(to_i64), tenant, source, reason, to_i64(limit)];
    let mut statement = db.prepare_cached(sql)?;
    statement.query_map(values, read_row)?.collect()
}

/// Selects the rows that wait for this tenant or tier to exist, in the order of their arrival.
pub(super) fn waiting(
    db: &Connection,
    tenant: Option<&TenantId>,
    tier: Option<&TierName>,
) -> rusqlite::Result<Vec<QuarantinedRow>> {
    let sql = format!(
        "SELECT id, reason, gateway, source, tenant, hour, first_s, last_s, reports, row
         FROM quarantine WHERE reason IN {WAITING} AND (tenant = ?1 OR tier = ?2) ORDER BY id"
    );
    let values = params![tenant.map(TenantId::as_str), tier.map(TierName::as_str)];
    db.prepare_cached(&sql)?.query_map(values, read_row)?.collect()
}

/// Returns the tenants whose rows wait for them to exist.
pub(super) fn waiting_tenants(db: &Connection) -> rusqlite::Result<Vec<TenantId>> {
    let sql = format!("SELECT DISTINCT tenant FROM quarantine WHERE reason IN {WAITING}");
    let mut statement = db.prepare_cached(&sql)?;
    let names: Vec<String> =
        statement.query_map([], |row| row.get(0))?.collect::<Result<_, _>>()?;
    Ok(names.iter().filter_map(|name| TenantId::parse(name).ok()).collect())
}

/// Returns the waiting rows of a gateway.
pub(super) fn waiting_of_gateway(
    db: &Connection,
    gateway: &GatewayId,
) -> rusqlite::Result<Vec<QuarantinedRow>> {
    let sql = format!(
        "SELECT id, reason, gateway, source, tenant, hour, first_s, last_s, reports, row
         FROM quarantine WHERE reason IN {WAITING} AND gateway = ?1"
    );
    db.prepare_cached(&sql)?.query_map([gateway.as_str()], read_row)?.collect()
}

/// Deletes a jump that the ledger now contains: its source had time to count it after all.
pub(super) fn delete_contained_jump(
    db: &Connection,
    gateway: &GatewayId,
    source: &str,
    row: &UsageRow,
    stored: &Sums,
) -> rusqlite::Result<()> {
    let sql = "SELECT id, row FROM quarantine
               WHERE gateway = ?1 AND source = ?2 AND tenant = ?3 AND hour = ?4
                 AND reason = 'jump'";
    let key = params![gateway.as_str(), source, row.tenant.as_str(), to_i64(row.hour)];
    let jump = db
        .prepare_cached(sql)?
        .query_row(key, |row| Ok((read_u64(row, 0)?, row.get::<_, String>(1)?)));
    let Some((id, text)) = jump.optional()? else { return Ok(()) };
    let Ok(jump) = serde_json::from_str::<UsageRow>(&text) else { return Ok(()) };
    let mut both = stored.clone();
    both.merge(&Sums::from_counters(&jump.counters));
    if both == *stored { delete(db, &[id]) } else { Ok(()) }
}

/// Deletes rows by their numbers.
pub(super) fn delete(db: &Connection, ids: &[u64]) -> rusqlite::Result<()> {
    for part in ids.chunks(500) {
        let placeholders = vec!["?"; part.len()].join(",");
        let sql = format!("DELETE FROM quarantine WHERE id IN ({placeholders})");
        db.execute(&sql, params_from_iter(part.iter().map(|id| to_i64(*id))))?;
    }
    Ok(())
}

/// Deletes rows above the bound: the oldest of the sources with the most. Returns their number.
pub(super) fn trim(db: &Connection) -> rusqlite::Result<u64> {
    let count = db.query_row("SELECT count(*) FROM quarantine", [], |row| read_u64(row, 0))?;
    let excess = count.saturating_sub(QUARANTINE_MAX);
    if excess > 0 {
        let sql = "DELETE FROM quarantine WHERE id IN (
                     SELECT id FROM (
                       SELECT id, row_number() OVER (
                         PARTITION BY gateway, source ORDER BY id DESC) AS rank FROM quarantine)
                     ORDER BY rank DESC, id LIMIT ?1)";
        db.execute(sql, [to_i64(excess)])?;
    }
    Ok(excess)
}

fn read_row(row: &Row<'_>) -> rusqlite::Result<QuarantinedRow> {
    Ok(QuarantinedRow {
        id: read_u64(row, 0)?,
        reason: read_reason(row, 1)?,
        gateway: row.get(2)?,
        source: row.get(3)?,
        tenant: row.get(4)?,
        hour: read_u64(row, 5)?,
        first_s: read_u64(row, 6)?,
        last_s: read_u64(row, 7)?,
        reports: read_u64(row, 8)?,
        row: row.get(9)?,
    })
}

/// Reads a reason; one of a newer release counts as malformed, which nothing releases.
fn read_reason(row: &Row<'_>, index: usize) -> rusqlite::Result<Suspicion> {
    let name: String = row.get(index)?;
    Ok(Suspicion::parse(&name).unwrap_or(Suspicion::Malformed))
}

/// Takes the larger of each counter.
fn merge(counters: &mut Counters, earlier: &Counters) {
    counters.reads = counters.reads.max(earlier.reads);
    counters.writes = counters.writes.max(earlier.writes);
    counters.bytes_in = counters.bytes_in.max(earlier.bytes_in);
    counters.bytes_out = counters.bytes_out.max(earlier.bytes_out);
    counters.service_ms = counters.service_ms.max(earlier.service_ms);
    for (own, theirs) in counters.status.iter_mut().zip(earlier.status) {
        *own = (*own).max(theirs);
    }
    for (name, count) in &earlier.refused {
        let own = counters.refused.entry(name.clone()).or_default();
        *own = (*own).max(*count);
    }
    for (kind, count) in &earlier.wakes {
        let own = counters.wakes.entry(*kind).or_default();
        *own = (*own).max(*count);
    }
}
