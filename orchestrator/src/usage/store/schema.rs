//! The ledger's tables, and the steps that bring an older file to them.
//!
//! A step is never changed once released.

use std::path::Path;

use rusqlite::Connection;

use super::StoreError;

/// Step `n` brings schema `n` to `n + 1`. `PRAGMA user_version` has the file's schema.
const STEPS: &[&str] = &[V1, V2, V3];

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

/// Adds the quarantine, and moves what no gateway can have counted from the ledger to it: hours above
/// 10^9 requests, 45 TB or 14 days of 512 connections, or before 2020; longer periods above 10^15
/// requests or 10^18 bytes. Two rows near 2^63 made the sums of all tenants fail. Of prices above a
/// million dollars the month's earlier one remains, else none.
const V3: &str = "
CREATE TABLE quarantine (
  id INTEGER PRIMARY KEY, gateway TEXT NOT NULL, source TEXT NOT NULL,
  tenant TEXT NOT NULL, tier TEXT NOT NULL, hour INTEGER NOT NULL, reason TEXT NOT NULL,
  first_s INTEGER NOT NULL, last_s INTEGER NOT NULL, reports INTEGER NOT NULL,
  row TEXT NOT NULL, UNIQUE (gateway, source, tenant, hour));

CREATE TEMP TABLE impossible (
  period TEXT NOT NULL, number INTEGER NOT NULL, tenant INTEGER, source INTEGER,
  reads INTEGER, writes INTEGER, refused INTEGER, s0 INTEGER, s1 INTEGER, s2 INTEGER,
  s3 INTEGER, s4 INTEGER, s5 INTEGER, bytes_in INTEGER, bytes_out INTEGER,
  service_ms INTEGER, doze INTEGER, start INTEGER, \"create\" INTEGER, reasons TEXT);
INSERT INTO impossible SELECT 'hour', * FROM hours
  WHERE max(reads, writes, refused, s0, s1, s2, s3, s4, s5, doze, start, \"create\") > 1000000000
     OR max(bytes_in, bytes_out) > 45000000000000 OR service_ms > 619315200000 OR hour < 438288;
INSERT INTO impossible SELECT 'day', day, tenant, NULL, reads, writes, refused, s0, s1, s2, s3, s4,
    s5, bytes_in, bytes_out, service_ms, doze, start, \"create\", reasons FROM days
  WHERE max(reads, writes, refused, s0, s1, s2, s3, s4, s5, doze, start, \"create\") > 1000000000000000
     OR max(bytes_in, bytes_out, service_ms) > 1000000000000000000 OR day < 18262;
INSERT INTO impossible SELECT 'month', month, tenant, NULL, reads, writes, refused, s0, s1, s2, s3,
    s4, s5, bytes_in, bytes_out, service_ms, doze, start, \"create\", reasons FROM months
  WHERE max(reads, writes, refused, s0, s1, s2, s3, s4, s5, doze, start, \"create\") > 1000000000000000
     OR max(bytes_in, bytes_out, service_ms) > 1000000000000000000 OR month < 24240;
INSERT INTO quarantine (gateway, source, tenant, tier, hour, reason, first_s, last_s, reports, row)
  SELECT coalesce(sources.gateway, period), coalesce(sources.source, period), tenants.name,
    coalesce(plans.tier, ''), number, 'stored', unixepoch(), unixepoch(), 1,
    json_object('tenant', tenants.name, 'tier', coalesce(plans.tier, 'free'),
      'limits', json(coalesce(plans.limits, '{}')), 'hour', number,
      'counters', json_object('reads', reads, 'writes', writes,
        'refused', json(coalesce(reasons, json_object('other', refused))),
        'status', json_array(s0, s1, s2, s3, s4, s5), 'bytes_in', bytes_in,
        'bytes_out', bytes_out, 'service_ms', service_ms,
        'wakes', json_object('doze', doze, 'start', start, 'create', \"create\")))
  FROM impossible JOIN tenants ON tenants.id = impossible.tenant
  LEFT JOIN plans ON plans.id = tenants.plan LEFT JOIN sources ON sources.id = impossible.source
  WHERE true ORDER BY number DESC LIMIT 10000;
DELETE FROM hours WHERE (hour, tenant, source) IN
  (SELECT number, tenant, source FROM impossible WHERE period = 'hour');
DELETE FROM days WHERE (day, tenant) IN
  (SELECT number, tenant FROM impossible WHERE period = 'day');
DELETE FROM months WHERE (month, tenant) IN
  (SELECT number, tenant FROM impossible WHERE period = 'month');
DROP TABLE impossible;
DELETE FROM source_sums
  WHERE max(reads, writes, refused, s0, s1, s2, s3, s4, s5, doze, start, \"create\") > 1000000000000000
     OR max(bytes_in, bytes_out, service_ms) > 1000000000000000000;
DELETE FROM terms WHERE price_cents > 100000000 AND EXISTS (
  SELECT 1 FROM terms AS other WHERE other.tenant = terms.tenant AND other.price_cents <= 100000000);
UPDATE terms SET price_cents = 0 WHERE price_cents > 100000000;
DELETE FROM plans WHERE price_cents > 100000000;
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
