//! The ledger's database, in `SQLite`; no other module names it.
//!
//! ```text
//!  hours (hour, tenant, source) ──HOURS_KEPT_DAYS──► days (day, tenant) ──DAYS_KEPT──► months, kept
//! ```
//!
//! Each request is in exactly one of the three tables. Once an hour has become part of a day, the
//! maxima of its sources are gone: its late rows go to the `quarantine`, as all other rejected rows
//! do. Two more tables stand beside them: `terms` (tenant, month) has tier and price from a month
//! on, and `source_sums` has each source's total of the hours that were summed up into days.
//!
//! Whatever a source reports, the file stays bounded: rows by the tenants that exist, the hours that
//! are taken and [`SOURCES_STORED_MAX`], plans by the tenants, the quarantine by
//! [`QUARANTINE_MAX`](quarantine::QUARANTINE_MAX). Sums stop at 2^63 - 1 and never fail.
//!
//! WAL with `synchronous=FULL`: a report that was acknowledged survives the loss of power, not only
//! a killed process. It costs one fsync per batch, and a batch takes all reports that wait. With
//! NORMAL the last counters of an hour, acknowledged just before a power loss, would be lost.
//!
//! Rows are keyed by hour first, so that reports append, a month is one range and pruning drops a
//! range.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use protocol::time::{DAY_S, HOUR_S};
use protocol::usage::bounds::AHEAD_HOURS_MAX;
use protocol::{GatewayId, TenantId, TierName};
use rusqlite::backup::Backup;
use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension, Row};

use crate::storage::private::create_private_file;
use crate::usage::names::Names;
use crate::usage::received::ReceivedReport;
use crate::usage::sums::Sums;
use crate::usage::suspicion::{HourWindow, Suspicion};
use crate::usage::tally::Increase;
use plans::Plans;

mod plans;
mod prune;
pub mod quarantine;
mod query;
pub mod repair;
mod saturating_sum;
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
/// Bound on sources in the file: 250 new ones a day, for as long as they are kept. Rows of further
/// ones go to the quarantine until the operator has removed invented ones.
const SOURCES_STORED_MAX: u64 = 100_000;

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
    /// Tenants and tiers that exist, apart from those of the file.
    names: Arc<dyn Names>,
    /// Rows of tenants by name, so that a report needs no look-up. One entry per tenant.
    tenants: HashMap<TenantId, TenantRow>,
    plans: Plans,
    /// Sources, at most [`SOURCES_MAX`].
    sources: HashMap<(GatewayId, String), SourceRow>,
    /// Number of sources in the file.
    source_count: u64,
    /// Rows of hours before this one are not taken.
    pruned_hour: u64,
    /// The newest hour in the file; 0 if it is empty.
    newest_hour: u64,
    /// Number of rows in the quarantine.
    quarantine_count: u64,
}

#[derive(Debug, Clone, Copy)]
struct TenantRow {
    id: i64,
    /// Index into [`Plans`].
    plan: usize,
}

#[derive(Debug, Clone, Copy)]
struct SourceRow {
    id: i64,
    /// Time of its last report, in seconds since 1970.
    last_s: u64,
}

/// The effect of a batch of reports.
#[derive(Debug, Default)]
pub struct Committed {
    /// Forwarded requests that were new, by tenant and hour.
    pub increases: Vec<Increase>,
    /// All that was new, summed over the tenants.
    pub sums: Sums,
    /// The effect of each report.
    pub reports: Vec<Recorded>,
    /// Rows that went to the quarantine.
    pub quarantined: BTreeMap<Suspicion, u64>,
    /// Rows that left the quarantine for the ledger.
    pub released: u64,
    /// Rows that left the quarantine because it was full.
    pub dropped: u64,
    /// The newest hour of the rows that were taken.
    pub newest_hour: u64,
}

/// The effect of one report.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Recorded {
    /// Its rows that went to the quarantine.
    pub quarantined: u64,
    /// The tenants in it that do not exist.
    pub unknown: BTreeSet<TenantId>,
}

impl Committed {
    fn count(&mut self, reason: Suspicion) {
        *self.quarantined.entry(reason).or_default() += 1;
    }
}

impl Store {
    /// Opens or creates the ledger: checks all of it and brings it to the newest schema. Rows are
    /// taken of tenants that it has or that exist by `names`.
    pub fn open(path: &Path, names: Arc<dyn Names>) -> Result<Self, StoreError> {
        make_private(path);
        let db = Connection::open(path)?;
        db.busy_timeout(BUSY_TIMEOUT)?;
        db.set_prepared_statement_cache_capacity(STATEMENTS);
        check_integrity(&db, path)?;
        db.pragma_update(None, "journal_mode", "WAL")?;
        db.pragma_update(None, "synchronous", "FULL")?;
        schema::migrate(&db, path)?;
        let mut store = Self::new(db, names)?;
        store.pruned_hour = store.meta("pruned_hour")?;
        store.load()?;
        Ok(store)
    }

    /// Opens an empty ledger in memory.
    #[cfg(fuzzing)]
    pub(crate) fn in_memory(names: Arc<dyn Names>) -> Result<Self, StoreError> {
        let db = Connection::open_in_memory()?;
        schema::migrate(&db, Path::new("memory"))?;
        Self::new(db, names)
    }

    /// Opens the ledger for queries, beside the connection that writes.
    pub fn open_read_only(path: &Path) -> Result<Self, StoreError> {
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let db = Connection::open_with_flags(path, flags)?;
        db.busy_timeout(BUSY_TIMEOUT)?;
        Self::new(db, Arc::new(NoNames))
    }

    fn new(db: Connection, names: Arc<dyn Names>) -> Result<Self, StoreError> {
        saturating_sum::register(&db)?;
        Ok(Self {
            db,
            names,
            tenants: HashMap::new(),
            plans: Plans::default(),
            sources: HashMap::new(),
            source_count: 0,
            pruned_hour: 0,
            newest_hour: 0,
            quarantine_count: 0,
        })
    }

    /// Puts reports into the ledger, all or none. They are on disk when this returns: the rows that
    /// are believed in the sums, the others in the quarantine.
    pub fn commit(
        &mut self,
        reports: &[ReceivedReport],
        now_s: u64,
    ) -> Result<Committed, StoreError> {
        self.transact(now_s, |writer| writer.write(reports))
    }

    /// Moves the rows of a tenant or tier that now exists from the quarantine into the ledger.
    pub fn release_known(
        &mut self,
        tenant: Option<&TenantId>,
        tier: Option<&TierName>,
        now_s: u64,
    ) -> Result<Committed, StoreError> {
        if self.quarantine_count == 0 {
            return Ok(Committed::default());
        }
        self.transact(now_s, |mut writer| {
            writer.release_waiting(tenant, tier)?;
            writer.finish()
        })
    }

    /// Does the same for every tenant that has got a folder.
    pub fn release_all_known(&mut self, now_s: u64) -> Result<Committed, StoreError> {
        let mut all = Committed::default();
        if self.quarantine_count == 0 {
            return Ok(all);
        }
        for tenant in quarantine::waiting_tenants(&self.db)? {
            if self.tenants.contains_key(&tenant) || self.names.is_tenant(&tenant) {
                let released = self.release_known(Some(&tenant), None, now_s)?;
                all.increases.extend(released.increases);
                all.sums.add(&released.sums);
                all.released += released.released;
            }
        }
        Ok(all)
    }

    fn transact(
        &mut self,
        now_s: u64,
        work: impl FnOnce(write::Writer<'_>) -> rusqlite::Result<Committed>,
    ) -> Result<Committed, StoreError> {
        self.transact_if(true, now_s, work)
    }

    /// Runs one transaction, and rolls it back without `apply`. If the transaction fails, the ids
    /// assigned in it are forgotten.
    fn transact_if(
        &mut self,
        apply: bool,
        now_s: u64,
        work: impl FnOnce(write::Writer<'_>) -> rusqlite::Result<Committed>,
    ) -> Result<Committed, StoreError> {
        if self.sources.len() > SOURCES_MAX {
            self.sources.clear();
        }
        let window = self.window(now_s);
        let tx = self.db.unchecked_transaction()?;
        let writer = write::Writer {
            tx: &tx,
            names: self.names.as_ref(),
            tenants: &mut self.tenants,
            plans: &mut self.plans,
            sources: &mut self.sources,
            source_count: &mut self.source_count,
            has_quarantine: self.quarantine_count > 0,
            window,
            now_s,
            committed: Committed::default(),
        };
        let written = work(writer).and_then(|committed| {
            if apply { tx.commit() } else { tx.rollback() }?;
            Ok(committed)
        });
        match written {
            Ok(committed) => {
                self.newest_hour = self.newest_hour.max(committed.newest_hour);
                if !committed.quarantined.is_empty() || committed.released > 0 {
                    self.quarantine_count = self.count("quarantine")?;
                }
                Ok(committed)
            }
            Err(fault) => {
                // Ids assigned in this transaction do not exist.
                self.sources.clear();
                self.load()?;
                Err(fault.into())
            }
        }
    }

    /// Returns the hours whose rows are taken. Age is judged as for summing up: a clock that is far
    /// ahead must not make hours old.
    fn window(&self, now_s: u64) -> HourWindow {
        let now_hour = now_s / HOUR_S;
        let clock_s = match self.newest_hour {
            0 => now_s,
            newest => now_s.min((newest + 1).saturating_mul(HOUR_S)),
        };
        let oldest = (clock_s / DAY_S).saturating_sub(HOURS_KEPT_DAYS) * 24;
        HourWindow { first: oldest.max(self.pruned_hour), last: now_hour + AHEAD_HOURS_MAX }
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

    /// Reads names, counts and the newest hour from the file.
    fn load(&mut self) -> Result<(), StoreError> {
        self.load_tenants()?;
        self.source_count = self.count_sources()?;
        self.quarantine_count = self.count("quarantine")?;
        let sql = "SELECT coalesce((SELECT max(hour) FROM hours),
                                   (SELECT max(day) * 24 + 23 FROM days), 0)";
        self.newest_hour = self.db.query_row(sql, [], |row| read_u64(row, 0))?;
        Ok(())
    }

    fn load_tenants(&mut self) -> Result<(), StoreError> {
        (self.plans, self.tenants) = load_tenants(&self.db)?;
        Ok(())
    }

    fn count_sources(&self) -> Result<u64, StoreError> {
        self.count("sources")
    }

    fn count(&self, table: &str) -> Result<u64, StoreError> {
        let sql = format!("SELECT count(*) FROM {table}");
        Ok(self.db.prepare_cached(&sql)?.query_row([], |row| read_u64(row, 0))?)
    }
}

/// Of a connection that only reads.
#[derive(Debug)]
struct NoNames;

impl Names for NoNames {
    fn is_tenant(&self, _: &TenantId) -> bool {
        false
    }

    fn is_tier(&self, _: &TierName) -> bool {
        false
    }
}

/// Reads all tenants with their plans.
fn load_tenants(db: &Connection) -> Result<(Plans, HashMap<TenantId, TenantRow>), rusqlite::Error> {
    let plans = Plans::load(db)?;
    let plans_by_id = plans.indices_by_id();
    let mut statement = db.prepare("SELECT id, name, plan FROM tenants")?;
    let rows = statement.query_map([], |row| {
        // An index beyond the last plan makes the tenant's next report store its plan again.
        let plan = plans_by_id.get(&row.get(2)?).copied().unwrap_or(usize::MAX);
        Ok((read_name(row, 1)?, TenantRow { id: row.get(0)?, plan }))
    })?;
    let tenants = rows.collect::<Result<_, _>>()?;
    Ok((plans, tenants))
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
