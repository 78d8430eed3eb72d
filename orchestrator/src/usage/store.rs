//! The ledger's database, in `SQLite`; no other module names it.
//!
//! ```text
//!  hours (hour, tenant, source) ──HOURS_KEPT_DAYS──► days (day, tenant) ──DAYS_KEPT──► months, kept
//! ```
//!
//! Each request is in exactly one of the three tables. Once an hour has become part of a day, the
//! maxima of its sources are gone: its late rows are refused, and counted as such. Two more tables
//! stand beside them: `terms` (tenant, month) has tier and price from a month on, and `source_sums`
//! has each source's total of the hours that were summed up into days.
//!
//! WAL with `synchronous=FULL`: a report that was acknowledged survives the loss of power, not only
//! a killed process. It costs one fsync per batch, and a batch takes all reports that wait. With
//! NORMAL the last counters of an hour, acknowledged just before a power loss, would be lost.
//!
//! Rows are keyed by hour first, so that reports append, a month is one range and pruning drops a
//! range.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use protocol::{GatewayId, TenantId, UsageReport};
use rusqlite::backup::Backup;
use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension, Row};

use crate::storage::private::create_private_file;
use crate::usage::sums::Sums;
use crate::usage::tally::Increase;
use plans::Plans;

mod plans;
mod prune;
mod query;
mod schema;
#[cfg(test)]
mod tests;
mod write;

pub use prune::{DAYS_KEPT, HOURS_KEPT_DAYS};
pub use query::TenantPlan;

/// Capacity of the prepared-statement cache: more than there are statements.
const STATEMENTS: usize = 32;
/// Time for which a connection waits for a lock of another one.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// Bound on source ids in memory; a source is one VM instance.
const SOURCES_MAX: usize = 4_096;

/// The counters' columns, in the order of [`Sums::columns`].
const COLUMNS: &str = "reads, writes, refused, s0, s1, s2, s3, s4, s5, bytes_in, bytes_out, \
                       service_ms, doze, start, \"create\"";

/// Reason why the ledger can't be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The file fails the integrity check.
    #[error(
        "the ledger {path} is damaged: {fault}. Move it away together with its -wal and -shm files; \
         put a backup in its place, or nothing, and start the orchestrator again. Gateways then send \
         what they have not reported yet."
    )]
    Damaged {
        /// The database file.
        path: PathBuf,
        /// The first fault that the check found.
        fault: String,
    },
    /// The file was written by a later release.
    #[error(
        "the ledger {path} has schema {found}, this release knows {known}: use the newer release."
    )]
    Newer {
        /// The database file.
        path: PathBuf,
        /// The file's schema version.
        found: u32,
        /// The newest schema version of this release.
        known: u32,
    },
    /// The database reported an error.
    #[error("ledger: {0}")]
    Sqlite(#[from] rusqlite::Error),
}

impl StoreError {
    /// Returns true if only another file can help; a full disk or a locked file may go away.
    pub fn is_permanent(&self) -> bool {
        !matches!(self, Self::Sqlite(_))
    }
}

/// An open ledger. Its methods block on the disk: call them on a dedicated or blocking thread.
#[derive(Debug)]
pub struct Store {
    db: Connection,
    /// Rows of tenants by name, so that a report needs no look-up. One entry per tenant.
    tenants: HashMap<TenantId, TenantRow>,
    plans: Plans,
    /// Ids of sources, at most [`SOURCES_MAX`].
    sources: HashMap<(GatewayId, String), i64>,
    /// Rows of hours before this one are refused.
    pruned_hour: u64,
}

#[derive(Debug, Clone, Copy)]
struct TenantRow {
    id: i64,
    /// Index into [`Plans`].
    plan: usize,
}

/// The effect of a batch of reports.
#[derive(Debug, Default)]
pub struct Committed {
    /// Forwarded requests that were new, by tenant and hour.
    pub increases: Vec<Increase>,
    /// All that was new, summed over the tenants.
    pub sums: Sums,
    /// Rows refused because their hour was too old or too far ahead.
    pub refused_rows: u64,
}

impl Store {
    /// Opens or creates the ledger: checks all of it and brings it to the newest schema.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        make_private(path);
        let db = Connection::open(path)?;
        db.busy_timeout(BUSY_TIMEOUT)?;
        db.set_prepared_statement_cache_capacity(STATEMENTS);
        check_integrity(&db, path)?;
        db.pragma_update(None, "journal_mode", "WAL")?;
        db.pragma_update(None, "synchronous", "FULL")?;
        schema::migrate(&db, path)?;
        let mut store = Self::new(db);
        store.pruned_hour = store.meta("pruned_hour")?;
        store.load_tenants()?;
        Ok(store)
    }

    /// Opens the ledger for queries, beside the connection that writes.
    pub fn open_read_only(path: &Path) -> Result<Self, StoreError> {
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let db = Connection::open_with_flags(path, flags)?;
        db.busy_timeout(BUSY_TIMEOUT)?;
        Ok(Self::new(db))
    }

    fn new(db: Connection) -> Self {
        Self {
            db,
            tenants: HashMap::new(),
            plans: Plans::default(),
            sources: HashMap::new(),
            pruned_hour: 0,
        }
    }

    /// Puts reports into the ledger, all or none. They are on disk when this returns.
    pub fn commit(&mut self, reports: &[UsageReport], now_s: u64) -> Result<Committed, StoreError> {
        let mut committed = Committed::default();
        if self.sources.len() > SOURCES_MAX {
            self.sources.clear();
        }
        let tx = self.db.unchecked_transaction()?;
        let mut writer = write::Writer {
            tx: &tx,
            tenants: &mut self.tenants,
            plans: &mut self.plans,
            sources: &mut self.sources,
            pruned_hour: self.pruned_hour,
            now_s,
        };
        let written = writer.write(reports, &mut committed);
        if let Err(fault) = written.and_then(|()| tx.commit()) {
            // Ids assigned in this transaction do not exist.
            self.tenants.clear();
            self.sources.clear();
            self.load_tenants()?;
            return Err(fault.into());
        }
        Ok(committed)
    }

    /// Copies the ledger into a new file. On a read-only connection it delays no writer and sees
    /// one moment: it takes a single step, because a copy in several steps restarts with each
    /// commit.
    pub fn backup(&self, to: &Path) -> Result<(), StoreError> {
        make_private(to);
        let mut copy = Connection::open(to)?;
        Backup::new(&self.db, &mut copy)?.step(-1)?;
        Ok(())
    }

    /// Checks all of a backup and makes it a single file that can be moved.
    pub fn finish_backup(path: &Path) -> Result<(), StoreError> {
        let db = Connection::open(path)?;
        check_integrity(&db, path)?;
        Ok(db.pragma_update(None, "journal_mode", "DELETE")?)
    }

    fn meta(&self, key: &str) -> Result<u64, StoreError> {
        let sql = "SELECT value FROM meta WHERE key = ?1";
        let value = self.db.query_row(sql, [key], |row| read_u64(row, 0)).optional()?;
        Ok(value.unwrap_or(0))
    }

    fn load_tenants(&mut self) -> Result<(), StoreError> {
        self.plans = Plans::load(&self.db)?;
        let plans_by_id = self.plans.indices_by_id();
        let mut statement = self.db.prepare("SELECT id, name, plan FROM tenants")?;
        let rows = statement.query_map([], |row| {
            // An index beyond the last plan makes the tenant's next report store its plan again.
            let plan = plans_by_id.get(&row.get(2)?).copied().unwrap_or(usize::MAX);
            Ok((read_name(row, 1)?, TenantRow { id: row.get(0)?, plan }))
        })?;
        self.tenants = rows.collect::<Result<_, _>>()?;
        Ok(())
    }
}

/// Lets only our user read the ledger. `SQLite` gives its `-wal` and `-shm` files the same mode.
fn make_private(path: &Path) {
    if let Err(error) = create_private_file(path) {
        tracing::warn!(path = %path.display(), %error, "ledger can't be closed to other users");
    }
}

/// Runs `PRAGMA integrity_check`: a damaged ledger is never written to.
fn check_integrity(db: &Connection, path: &Path) -> Result<(), StoreError> {
    let result = db.query_row("PRAGMA integrity_check(1)", [], |row| row.get::<_, String>(0));
    let fault = match result {
        Ok(result) if result == "ok" => return Ok(()),
        Ok(result) => result,
        Err(error) => match error.sqlite_error_code() {
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => error.to_string(),
            // A lock or a failing disk says nothing about the file's content.
            _ => return Err(error.into()),
        },
    };
    Err(StoreError::Damaged { path: path.to_owned(), fault })
}

/// Converts a counter to the database's signed integer.
fn to_i64(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

fn read_u64(row: &Row<'_>, index: usize) -> Result<u64, rusqlite::Error> {
    Ok(u64::try_from(row.get::<_, i64>(index)?).unwrap_or(0))
}

/// Reads the counters from the column `first` on.
fn read_sums(row: &Row<'_>, first: usize) -> Result<Sums, rusqlite::Error> {
    let mut columns = [0; Sums::COLUMNS];
    for (offset, column) in columns.iter_mut().enumerate() {
        *column = read_u64(row, first + offset)?;
    }
    Ok(Sums::from_columns(columns))
}

/// Reads the counters from the column `first` on, and the reasons behind them.
fn read_sums_with_reasons(row: &Row<'_>, first: usize) -> Result<Sums, rusqlite::Error> {
    let reasons: Option<String> = row.get(first + Sums::COLUMNS)?;
    let reasons = reasons.and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default();
    Ok(Sums { reasons, ..read_sums(row, first)? })
}

/// Reads the name of a tenant or tier.
fn read_name<T: std::str::FromStr>(row: &Row<'_>, index: usize) -> Result<T, rusqlite::Error> {
    let text: String = row.get(index)?;
    text.parse().map_err(|_| {
        let fault = format!("invalid name {text:?}");
        rusqlite::Error::FromSqlConversionFailure(index, rusqlite::types::Type::Text, fault.into())
    })
}
