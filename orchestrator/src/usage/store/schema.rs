//! The ledger's tables, and the steps that bring an older file to them.
//!
//! A step is never changed once released.

use std::path::Path;

use rusqlite::Connection;

use super::StoreError;

/// Step `n` brings schema `n` to `n + 1`. `PRAGMA user_version` has the file's schema.
const STEPS: &[&str] = &[V1, V2];

const V1: &str = "
CREATE TABLE meta (key TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE sources (
  id INTEGER PRIMARY KEY, gateway TEXT NOT NULL, source TEXT NOT NULL,
  first_s INTEGER NOT NULL, last_s INTEGER NOT NULL, UNIQUE (gateway, source));
CREATE TABLE plans (
  id INTEGER PRIMARY KEY, tier TEXT NOT NULL, price_cents INTEGER NOT NULL,
  limits TEXT NOT NULL, UNIQUE (tier, limits));
CREATE TABLE tenants (
  id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, plan INTEGER NOT NULL);
CREATE TABLE hours (
  hour INTEGER NOT NULL, tenant INTEGER NOT NULL, source INTEGER NOT NULL,
  reads INTEGER NOT NULL, writes INTEGER NOT NULL, refused INTEGER NOT NULL,
  s0 INTEGER NOT NULL, s1 INTEGER NOT NULL, s2 INTEGER NOT NULL,
  s3 INTEGER NOT NULL, s4 INTEGER NOT NULL, s5 INTEGER NOT NULL,
  bytes_in INTEGER NOT NULL, bytes_out INTEGER NOT NULL, service_ms INTEGER NOT NULL,
  doze INTEGER NOT NULL, start INTEGER NOT NULL, \"create\" INTEGER NOT NULL, reasons TEXT,
  PRIMARY KEY (hour, tenant, source)) WITHOUT ROWID;
CREATE TABLE days (
  day INTEGER NOT NULL, tenant INTEGER NOT NULL,
  reads INTEGER NOT NULL, writes INTEGER NOT NULL, refused INTEGER NOT NULL,
  s0 INTEGER NOT NULL, s1 INTEGER NOT NULL, s2 INTEGER NOT NULL,
  s3 INTEGER NOT NULL, s4 INTEGER NOT NULL, s5 INTEGER NOT NULL,
  bytes_in INTEGER NOT NULL, bytes_out INTEGER NOT NULL, service_ms INTEGER NOT NULL,
  doze INTEGER NOT NULL, start INTEGER NOT NULL, \"create\" INTEGER NOT NULL, reasons TEXT,
  PRIMARY KEY (day, tenant)) WITHOUT ROWID;
CREATE TABLE months (
  month INTEGER NOT NULL, tenant INTEGER NOT NULL,
  reads INTEGER NOT NULL, writes INTEGER NOT NULL, refused INTEGER NOT NULL,
  s0 INTEGER NOT NULL, s1 INTEGER NOT NULL, s2 INTEGER NOT NULL,
  s3 INTEGER NOT NULL, s4 INTEGER NOT NULL, s5 INTEGER NOT NULL,
  bytes_in INTEGER NOT NULL, bytes_out INTEGER NOT NULL, service_ms INTEGER NOT NULL,
  doze INTEGER NOT NULL, start INTEGER NOT NULL, \"create\" INTEGER NOT NULL, reasons TEXT,
  PRIMARY KEY (month, tenant)) WITHOUT ROWID;
";

/// Adds two tables. `terms` has tier and price of a tenant from a month on, so that a past month
/// keeps its own; months before this step get the tier and price of the time of the step.
/// `source_sums` has each source's sums of pruned hours, so that an Envoy of any age can be
/// reconciled.
const V2: &str = "
CREATE TABLE terms (
  tenant INTEGER NOT NULL, month INTEGER NOT NULL, tier TEXT NOT NULL, price_cents INTEGER NOT NULL,
  PRIMARY KEY (tenant, month)) WITHOUT ROWID;
INSERT INTO terms SELECT tenants.id, 0, tier, price_cents FROM tenants JOIN plans ON plans.id = plan;
CREATE TABLE source_sums (
  source INTEGER PRIMARY KEY,
  reads INTEGER NOT NULL, writes INTEGER NOT NULL, refused INTEGER NOT NULL,
  s0 INTEGER NOT NULL, s1 INTEGER NOT NULL, s2 INTEGER NOT NULL,
  s3 INTEGER NOT NULL, s4 INTEGER NOT NULL, s5 INTEGER NOT NULL,
  bytes_in INTEGER NOT NULL, bytes_out INTEGER NOT NULL, service_ms INTEGER NOT NULL,
  doze INTEGER NOT NULL, start INTEGER NOT NULL, \"create\" INTEGER NOT NULL, reasons TEXT);
";

/// Brings the database to the newest schema; each step is one transaction.
pub(super) fn migrate(db: &Connection, path: &Path) -> Result<(), StoreError> {
    let found: u32 = db.query_row("PRAGMA user_version", [], |r| r.get(0))?;
    let known = u32::try_from(STEPS.len()).unwrap_or(u32::MAX);
    if found > known {
        return Err(StoreError::Newer { path: path.to_owned(), found, known });
    }
    for (version, step) in (1_u32..).zip(STEPS).skip(found as usize) {
        let tx = db.unchecked_transaction()?;
        tx.execute_batch(step)?;
        tx.pragma_update(None, "user_version", version)?;
        tx.commit()?;
    }
    Ok(())
}
