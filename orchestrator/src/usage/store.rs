//! The ledger in `SQLite`; the only file that names it.
//!
//! ```text
//!  hours (hour, tenant, source) ──HOURS_KEPT_DAYS──► days (day, tenant) ──DAYS_KEPT──► months, kept
//! ```
//! A request is in exactly one of the three tables. Rows of hours that became days are not taken any
//! more, for their sources' maxima are gone: a gap, told by the count of late rows. Beside them,
//! `terms` (tenant, month) has tier and price from a month on, and `source_sums` what of a source's
//! hours has become days.
//!
//! WAL with `synchronous=FULL`: an answered report survives the loss of power, not only a killed
//! process. It costs one fsync per batch, and a batch takes all reports that wait; with NORMAL the
//! counters of an hour that is over, acknowledged just before the power went, would be lost.
//!
//! Keyed by hour first, so that reports append, a month is one range and pruning drops a range.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use protocol::{GatewayId, TenantId, UsageReport};
use rusqlite::backup::Backup;
use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension, Row};

use crate::usage::sums::{Added, Sums};
use plans::Plans;

mod plans;
mod prune;
mod query;
mod schema;
#[cfg(test)]
mod tests;
mod write;

pub use prune::{DAYS_KEPT, HOURS_KEPT_DAYS, PRUNE_ROWS};
pub use query::TenantRecord;

/// Statements kept prepared: more than there are.
const STATEMENTS: usize = 32;

/// The counters' columns, in the order of [`Sums::columns`].
const COLUMNS: &str = "reads, writes, refused, s0, s1, s2, s3, s4, s5, bytes_in, bytes_out, \
                       service_ms, doze, start, \"create\"";

/// Why the ledger can't be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The file is not a good database.
    #[error(
        "the ledger {path} is damaged: {fault}. Move it away together with its -wal and -shm files; \
         put a backup in its place or none, and start the orchestrator again. What gateways have not \
         reported yet comes by itself."
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What was found first.
        fault: String,
    },
    /// Written by a later release.
    #[error(
        "the ledger {path} has schema {found}, this release knows {known}: use the newer release."
    )]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its schema.
        found: u32,
        /// Ours.
        known: u32,
    },
    /// The database failed.
    #[error("ledger: {0}")]
    Sqlite(#[from] rusqlite::Error),
}

impl StoreError {
    /// Whether it is so until the file is another one: not for a disk that is full or a file that
    /// is locked.
    pub fn stays(&self) -> bool {
        !matches!(self, Self::Sqlite(_))
    }
}

/// An open ledger. Blocking: use it on its own thread.
#[derive(Debug)]
pub struct Store {
    db: Connection,
    /// Ids of names, so that a row costs no look-up. One entry per tenant and per source seen.
    tenants: HashMap<TenantId, Known>,
    plans: Plans,
    sources: HashMap<(GatewayId, String), i64>,
    /// Rows of hours before this one are not taken.
    pruned_hour: u64,
}

#[derive(Debug, Clone, Copy)]
struct Known {
    id: i64,
    /// Its place in [`Plans`].
    plan: usize,
}

/// Sources remembered; each is one life of one VM.
const SOURCES_MAX: usize = 4_096;

/// What a batch of reports did.
#[derive(Debug, Default)]
pub struct Committed {
    /// What was new in them.
    pub added: Vec<Added>,
    /// The same, over all tenants.
    pub sums: Sums,
    /// Rows that came too late or from a clock too far ahead.
    pub refused_rows: u64,
}

impl Store {
    /// Opens or makes the ledger: checks it whole, brings it to the newest schema.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let db = Connection::open(path)?;
        db.busy_timeout(Duration::from_secs(5))?;
        db.set_prepared_statement_cache_capacity(STATEMENTS);
        check(&db, path)?;
        db.pragma_update(None, "journal_mode", "WAL")?;
        db.pragma_update(None, "synchronous", "FULL")?;
        schema::migrate(&db, path)?;
        let mut store = Self::over(db);
        store.pruned_hour = store.meta("pruned_hour")?;
        store.load_tenants()?;
        Ok(store)
    }

    /// Opens it to read, beside the one that writes.
    pub fn open_to_read(path: &Path) -> Result<Self, StoreError> {
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let db = Connection::open_with_flags(path, flags)?;
        db.busy_timeout(Duration::from_secs(5))?;
        Ok(Self::over(db))
    }

    fn over(db: Connection) -> Self {
        let (tenants, plans, sources) = Default::default();
        Self { db, tenants, plans, sources, pruned_hour: 0 }
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
            // Ids given in this transaction do not exist.
            self.tenants.clear();
            self.sources.clear();
            self.load_tenants()?;
            return Err(fault.into());
        }
        Ok(committed)
    }

    /// Copies the ledger into a new file. On a connection of its own it disturbs no writer and
    /// sees one moment: all in one step, for a copy in several starts anew with each commit.
    pub fn backup(&self, to: &Path) -> Result<(), StoreError> {
        let mut copy = Connection::open(to)?;
        Backup::new(&self.db, &mut copy)?.step(-1)?;
        Ok(())
    }

    /// Checks a backup whole, and makes it one file that can be copied about.
    pub fn check_copy(path: &Path) -> Result<(), StoreError> {
        let db = Connection::open(path)?;
        check(&db, path)?;
        Ok(db.pragma_update(None, "journal_mode", "DELETE")?)
    }

    fn meta(&self, key: &str) -> Result<u64, StoreError> {
        let sql = "SELECT value FROM meta WHERE key = ?1";
        Ok(self.db.query_row(sql, [key], |r| counter(r, 0)).optional()?.unwrap_or(0))
    }

    fn load_tenants(&mut self) -> Result<(), StoreError> {
        self.plans = Plans::load(&self.db)?;
        let places = self.plans.by_id();
        let mut statement = self.db.prepare("SELECT id, name, plan FROM tenants")?;
        let rows = statement.query_map([], |row| {
            // No plan is at the place that does not exist: such a tenant gets its plan anew.
            let plan = places.get(&row.get(2)?).copied().unwrap_or(usize::MAX);
            Ok((name(row, 1)?, Known { id: row.get(0)?, plan }))
        })?;
        self.tenants = rows.collect::<Result<_, _>>()?;
        Ok(())
    }
}

/// `PRAGMA integrity_check`: a damaged ledger is never written to.
fn check(db: &Connection, path: &Path) -> Result<(), StoreError> {
    let found = db.query_row("PRAGMA integrity_check(1)", [], |r| r.get::<_, String>(0));
    let fault = match found {
        Ok(found) if found == "ok" => return Ok(()),
        Ok(found) => found,
        Err(fault) => match fault.sqlite_error_code() {
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => fault.to_string(),
            // Locked, or the disk does not answer: that says nothing of the file.
            _ => return Err(fault.into()),
        },
    };
    Err(StoreError::Damaged { path: path.to_owned(), fault })
}

fn whole(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

fn counter(row: &Row<'_>, index: usize) -> Result<u64, rusqlite::Error> {
    Ok(u64::try_from(row.get::<_, i64>(index)?).unwrap_or(0))
}

fn sums(row: &Row<'_>, first: usize) -> Result<Sums, rusqlite::Error> {
    let mut columns = [0; Sums::COLUMNS];
    for (offset, column) in columns.iter_mut().enumerate() {
        *column = counter(row, first + offset)?;
    }
    Ok(Sums::from_columns(columns))
}

fn with_reasons(row: &Row<'_>, first: usize) -> Result<Sums, rusqlite::Error> {
    let reasons: Option<String> = row.get(first + Sums::COLUMNS)?;
    let reasons = reasons.and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default();
    Ok(Sums { reasons, ..sums(row, first)? })
}

fn name<T: std::str::FromStr>(row: &Row<'_>, index: usize) -> Result<T, rusqlite::Error> {
    let text: String = row.get(index)?;
    let fault = format!("{text:?} is no name");
    text.parse().map_err(|_| {
        rusqlite::Error::FromSqlConversionFailure(index, rusqlite::types::Type::Text, fault.into())
    })
}
