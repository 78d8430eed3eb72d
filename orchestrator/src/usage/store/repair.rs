//! Repairs of wrong rows by the operator: release or drop those in the quarantine, remove or
//! correct those in the ledger.
//!
//! Each repair is one transaction, which a dry run rolls back, so that a dry run reports exactly the
//! effect of the repair. A removed or corrected row goes to the quarantine unchanged, and its release
//! restores the larger counters.

use std::collections::BTreeSet;

use protocol::limits::PRICE_CENTS_MAX;
use protocol::usage::UsageRow;
use protocol::{GatewayId, Limits, TenantId, TierName};
use rusqlite::{Connection, Row, params};
use serde::{Deserialize, Serialize};

use super::quarantine::{self, QUARANTINE_MAX, QuarantinedRow, Selection, Suspect};
use super::write::{Writer, put};
use super::{COLUMNS, Store, StoreError, read_sums_with_reasons, read_u64, to_i64};
use crate::usage::sums::Sums;
use crate::usage::suspicion::{Suspicion, is_storable};

/// A selection of rows of the last weeks: those to which every given field applies.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HourSelection {
    /// Rows of this gateway.
    pub gateway: Option<GatewayId>,
    /// Rows of this source.
    pub source: Option<String>,
    /// Rows of this tenant.
    pub tenant: Option<TenantId>,
    /// The first hour, counted from 1970.
    pub from_hour: u64,
    /// The hour after the last one.
    pub to_hour: u64,
}

/// A row of the last weeks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HourRow {
    /// The reporting gateway.
    pub gateway: GatewayId,
    /// The reporting source.
    pub source: String,
    /// The tenant.
    pub tenant: TenantId,
    /// The hour, counted from 1970.
    pub hour: u64,
    /// Counters of the source.
    pub sums: Sums,
}

/// New values of counters; `None` leaves a counter as it is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Correction {
    /// Requests forwarded that read.
    pub reads: Option<u64>,
    /// Requests forwarded that write.
    pub writes: Option<u64>,
    /// Requests refused, of which the reasons are then unknown.
    pub refused: Option<u64>,
    /// Bytes of request bodies and query strings.
    pub bytes_in: Option<u64>,
    /// Bytes of response bodies.
    pub bytes_out: Option<u64>,
}

/// A repair of the ledger.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LedgerRepair {
    /// Moves rows from the quarantine into the ledger.
    Release(Selection),
    /// Deletes rows from the quarantine.
    Drop(Selection),
    /// Moves rows from the ledger into the quarantine.
    Remove(HourSelection),
    /// Corrects rows of the ledger.
    Set(HourSelection, Correction),
}

/// The effect of a repair.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Repaired {
    /// False for a dry run, which changes nothing.
    pub applied: bool,
    /// Number of rows that are changed.
    pub rows: u64,
    /// Their counters before, summed up.
    pub before: Sums,
    /// Their counters afterwards, as the ledger has them.
    pub after: Sums,
    /// Rows of the quarantine that can't be released.
    pub skipped: Vec<Skipped>,
}

/// A row of the quarantine that can't be released.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Skipped {
    /// Its number.
    pub id: u64,
    /// The reason, for the operator.
    pub reason: String,
}

impl Correction {
    fn apply(self, sums: &mut Sums) {
        let Self { reads, writes, refused, bytes_in, bytes_out } = self;
        sums.reads = reads.unwrap_or(sums.reads);
        sums.writes = writes.unwrap_or(sums.writes);
        sums.bytes_in = bytes_in.unwrap_or(sums.bytes_in);
        sums.bytes_out = bytes_out.unwrap_or(sums.bytes_out);
        if let Some(refused) = refused {
            sums.refused = refused;
            sums.reasons.clear();
        }
    }
}

impl Store {
    /// Performs a repair; without `apply` it only reports what it would do.
    pub fn repair(
        &mut self,
        repair: &LedgerRepair,
        apply: bool,
        now_s: u64,
    ) -> Result<Repaired, StoreError> {
        let mut repaired = Repaired { applied: apply, ..Repaired::default() };
        self.transact_if(apply, now_s, |writer| match repair {
            LedgerRepair::Release(selection) => release(writer, selection, &mut repaired),
            LedgerRepair::Drop(selection) => drop_rows(writer, selection, &mut repaired),
            LedgerRepair::Remove(selection) => remove(writer, selection, &mut repaired),
            LedgerRepair::Set(selection, correction) => {
                set(writer, selection, *correction, &mut repaired)
            }
        })?;
        // Tenants, sources and counts may be gone.
        self.sources.clear();
        self.load()?;
        Ok(repaired)
    }

    /// Returns rows of the last weeks, the newest first, at most `limit`.
    pub fn hour_rows_of(
        &self,
        selection: &HourSelection,
        limit: u64,
    ) -> Result<Vec<HourRow>, StoreError> {
        let stored = stored_rows(&self.db, selection, limit)?;
        Ok(stored.into_iter().map(|stored| stored.row).collect())
    }
}

fn release(
    mut writer: Writer<'_>,
    selection: &Selection,
    repaired: &mut Repaired,
) -> rusqlite::Result<super::Committed> {
    let mut released = Vec::new();
    for quarantined in quarantine::select(writer.tx, selection, QUARANTINE_MAX)? {
        let id = quarantined.id;
        let row = match releasable(&quarantined, writer.window.last) {
            Ok(row) => row,
            Err(reason) => {
                repaired.skipped.push(Skipped { id, reason: reason.to_owned() });
                continue;
            }
        };
        if let Some(reason) = writer.release(&quarantined, &row)? {
            repaired.skipped.push(Skipped { id, reason: reason.as_str().to_owned() });
            continue;
        }
        let sums = Sums::from_counters(&row.counters);
        repaired.before.add(&sums);
        repaired.after.add(&sums);
        released.push(id);
    }
    repaired.rows = released.len() as u64;
    writer.committed.released = repaired.rows;
    quarantine::delete(writer.tx, &released)?;
    writer.finish()
}

/// Returns the row, or the reason why it can't be released.
fn releasable(quarantined: &QuarantinedRow, last_hour: u64) -> Result<UsageRow, &'static str> {
    let Some(row) = quarantined.usage() else {
        return Err("it can't be read: drop it");
    };
    if matches!(quarantined.source.as_str(), "day" | "month") {
        return Err("it is the sum of a day or month, whose sources are gone: drop it");
    }
    if !is_storable(&Sums::from_counters(&row.counters)) {
        return Err("its counters would make every sum useless: drop it");
    }
    if row.limits.price_cents_month > PRICE_CENTS_MAX {
        return Err("its price is above a million US dollars: drop it");
    }
    if row.hour > last_hour {
        return Err("its hour is still ahead: release it later, or drop it");
    }
    Ok(row)
}

fn drop_rows(
    writer: Writer<'_>,
    selection: &Selection,
    repaired: &mut Repaired,
) -> rusqlite::Result<super::Committed> {
    let rows = quarantine::select(writer.tx, selection, QUARANTINE_MAX)?;
    for row in &rows {
        if let Some(row) = row.usage() {
            repaired.before.add(&Sums::from_counters(&row.counters));
        }
    }
    let ids: Vec<u64> = rows.iter().map(|row| row.id).collect();
    repaired.rows = ids.len() as u64;
    quarantine::delete(writer.tx, &ids)?;
    writer.finish()
}

fn remove(
    mut writer: Writer<'_>,
    selection: &HourSelection,
    repaired: &mut Repaired,
) -> rusqlite::Result<super::Committed> {
    let mut tenants = BTreeSet::new();
    let mut sources = BTreeSet::new();
    for stored in stored_rows(writer.tx, selection, u64::MAX)? {
        keep_as_it_was(&mut writer, &stored, Suspicion::Removed)?;
        let key = params![to_i64(stored.row.hour), stored.tenant_id, stored.source_id];
        let sql = "DELETE FROM hours WHERE hour = ?1 AND tenant = ?2 AND source = ?3";
        writer.tx.prepare_cached(sql)?.execute(key)?;
        repaired.rows += 1;
        repaired.before.add(&stored.row.sums);
        tenants.insert(stored.tenant_id);
        sources.insert(stored.source_id);
    }
    // A name of which nothing is left is as unknown as before its first row.
    for tenant in tenants {
        let sql = "DELETE FROM tenants WHERE id = ?1
                     AND NOT EXISTS (SELECT 1 FROM hours WHERE tenant = ?1)
                     AND NOT EXISTS (SELECT 1 FROM days WHERE tenant = ?1)
                     AND NOT EXISTS (SELECT 1 FROM months WHERE tenant = ?1)";
        if writer.tx.prepare_cached(sql)?.execute([tenant])? > 0 {
            writer.tx.execute("DELETE FROM terms WHERE tenant = ?1", [tenant])?;
        }
    }
    for source in sources {
        let sql = "DELETE FROM sources WHERE id = ?1
                     AND NOT EXISTS (SELECT 1 FROM hours WHERE source = ?1)
                     AND NOT EXISTS (SELECT 1 FROM source_sums WHERE source = ?1)";
        writer.tx.prepare_cached(sql)?.execute([source])?;
    }
    writer.finish()
}

fn set(
    mut writer: Writer<'_>,
    selection: &HourSelection,
    correction: Correction,
    repaired: &mut Repaired,
) -> rusqlite::Result<super::Committed> {
    for stored in stored_rows(writer.tx, selection, u64::MAX)? {
        keep_as_it_was(&mut writer, &stored, Suspicion::Replaced)?;
        let mut sums = stored.row.sums.clone();
        correction.apply(&mut sums);
        let key = [to_i64(stored.row.hour), stored.tenant_id, stored.source_id];
        put(writer.tx, "hours", &key, &sums)?;
        repaired.rows += 1;
        repaired.before.add(&stored.row.sums);
        repaired.after.add(&sums);
    }
    writer.finish()
}

/// Puts a row of the ledger into the quarantine before it is changed.
fn keep_as_it_was(
    writer: &mut Writer<'_>,
    stored: &StoredRow,
    reason: Suspicion,
) -> rusqlite::Result<()> {
    let HourRow { gateway, source, tenant, hour, sums } = &stored.row;
    let row = UsageRow {
        tenant: tenant.clone(),
        tier: stored.tier.clone(),
        limits: stored.limits.clone(),
        hour: *hour,
        counters: sums.to_counters(),
    };
    let suspect = Suspect { gateway: gateway.as_str(), source, reason, now_s: writer.now_s };
    suspect.quarantine(writer.tx, &row)?;
    *writer.committed.quarantined.entry(reason).or_default() += 1;
    Ok(())
}

/// A row of `hours` with what it refers to.
struct StoredRow {
    row: HourRow,
    tenant_id: i64,
    source_id: i64,
    tier: TierName,
    limits: Limits,
}

fn stored_rows(
    db: &Connection,
    selection: &HourSelection,
    limit: u64,
) -> rusqlite::Result<Vec<StoredRow>> {
    let sql = format!(
        "SELECT hour, hours.tenant, hours.source, sources.gateway, sources.source, tenants.name,
           plans.tier, plans.limits, {COLUMNS}, reasons
         FROM hours JOIN tenants ON tenants.id = hours.tenant
         JOIN sources ON sources.id = hours.source LEFT JOIN plans ON plans.id = tenants.plan
         WHERE hour >= ?1 AND hour < ?2 AND (?3 IS NULL OR sources.gateway = ?3)
           AND (?4 IS NULL OR sources.source = ?4) AND (?5 IS NULL OR tenants.name = ?5)
         ORDER BY hour DESC, tenants.name, sources.id LIMIT ?6"
    );
    let HourSelection { gateway, source, tenant, from_hour, to_hour } = selection;
    let values = params![
        to_i64(*from_hour),
        to_i64(*to_hour),
        gateway.as_ref().map(GatewayId::as_str),
        source,
        tenant.as_ref().map(TenantId::as_str),
        to_i64(limit),
    ];
    db.prepare_cached(&sql)?.query_map(values, read_stored)?.collect()
}

fn read_stored(row: &Row<'_>) -> rusqlite::Result<StoredRow> {
    let tier: Option<String> = row.get(6)?;
    let limits: Option<String> = row.get(7)?;
    Ok(StoredRow {
        tenant_id: row.get(1)?,
        source_id: row.get(2)?,
        tier: tier.and_then(|tier| tier.parse().ok()).unwrap_or_default(),
        limits: limits.and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default(),
        row: HourRow {
            hour: read_u64(row, 0)?,
            gateway: super::read_name(row, 3)?,
            source: row.get(4)?,
            tenant: super::read_name(row, 5)?,
            sums: read_sums_with_reasons(row, 8)?,
        },
    })
}
