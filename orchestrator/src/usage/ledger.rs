//! The thread that owns the ledger's database, and its handle.
//!
//! ```text
//!  POST /v1/usage ─report─►┌────────┐─ one transaction for all that wait ─► SQLite
//!  …              ─report─►│ thread │─ replies after the commit
//!  first lease, repair ───►└────────┘─ tally (notices, metrics)
//!  queries ── a read-only connection each, on the blocking pool
//!
//!  Checking ──► Open
//!     │ ▲
//!     ▼ │ each second, unless the file is damaged or of a newer release
//!   Failed
//! ```
//!
//! The check reads the whole file, which takes seconds per million rows. No tenant waits for it:
//! until the ledger is open, notices say that usage is unknown, which the filter lets pass, and
//! reports are refused, so that gateways keep their counters and report them later.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use protocol::{TenantId, TenantNotice, TierName};
use tokio::sync::mpsc::error::TryRecvError;
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tracing::{error, info, warn};

use crate::host;
use crate::usage::names::KnownNames;
use crate::usage::received::ReceivedReport;
use crate::usage::store::repair::{LedgerRepair, Repaired};
use crate::usage::store::{Committed, Recorded, Store, StoreError};
use crate::usage::sums::Sums;
use crate::usage::suspicion::Suspicion;
use crate::usage::tally::Tally;

/// Bound on reports that wait for the thread; further senders wait in their connections.
const QUEUE_MAX: usize = 256;
/// Bound on reports per transaction: about 128,000 rows, well under a second.
const BATCH_MAX: usize = 256;
/// Bound on concurrent queries: each occupies a thread of the blocking pool and some memory.
const QUERIES_MAX: usize = 4;
/// Retry interval for a file that could not be opened and is not damaged.
const OPEN_RETRY: Duration = Duration::from_secs(1);
/// Interval of the search for hours that are old enough to be summed up, and for tenants of the
/// quarantine that have got a folder.
const PRUNE_INTERVAL: Duration = Duration::from_hours(1);

/// A handle to the ledger. Cheap to clone; the thread ends when the last clone is dropped.
#[derive(Debug, Clone)]
pub(crate) struct Ledger {
    queue: mpsc::Sender<Work>,
    shared: Arc<Shared>,
}

/// The ledger's condition, as status, metrics and the log show it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Condition {
    /// The file is being checked.
    Checking,
    /// Reports and queries are served.
    Open,
    /// The file can't be used, for the given reason. A damaged file, or one of a newer release,
    /// stays so until the next start.
    Failed(Arc<str>),
}

/// Reason why a report was refused. The gateway keeps its counters and tries again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ReportError {
    /// The database is being checked, or can't be used.
    #[error("the ledger is not open")]
    NotOpen,
    /// The transaction failed.
    #[error("the ledger can't be written")]
    NotWritten,
    /// The thread has ended because the process is about to.
    #[error("the ledger is closed")]
    Closed,
}

/// Reason why a query got no result.
#[derive(Debug, thiserror::Error)]
pub(crate) enum QueryError {
    /// The ledger is not open; the text is [`Condition::problem`].
    #[error("{0}")]
    NotOpen(String),
    /// The database failed.
    #[error("the ledger can't be read")]
    Failed(#[from] StoreError),
    /// The process is about to end.
    #[error("the ledger is closed")]
    Closed,
}

/// Counters since the start of the process.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Counted {
    /// Usage that was new in the ledger.
    pub sums: Sums,
    /// Reports accepted, with or without new usage.
    pub reports: u64,
    /// Transactions committed; each takes all reports that wait.
    pub commits: u64,
    /// Transactions that failed.
    pub failures: u64,
    /// Rows that went to the quarantine.
    pub quarantined: BTreeMap<Suspicion, u64>,
    /// Rows that left the quarantine for the ledger.
    pub released: u64,
    /// Rows that left the quarantine because it was full.
    pub dropped: u64,
}

/// A request to the thread.
#[derive(Debug)]
enum Work {
    Report(QueuedReport),
    /// The first lease of a tenant or tier since the start.
    Leased(TenantId, TierName),
    Repair(QueuedRepair),
}

#[derive(Debug)]
struct QueuedReport {
    report: ReceivedReport,
    reply: oneshot::Sender<Result<Recorded, ReportError>>,
}

#[derive(Debug)]
struct QueuedRepair {
    repair: LedgerRepair,
    apply: bool,
    reply: oneshot::Sender<Result<Repaired, QueryError>>,
}

#[derive(Debug)]
struct Shared {
    path: PathBuf,
    names: KnownNames,
    condition: watch::Sender<Condition>,
    state: Mutex<State>,
    queries: Semaphore,
}

/// Source of notices and metrics.
#[derive(Debug, Default)]
struct State {
    tally: Tally,
    counted: Counted,
}

impl Condition {
    /// All labels, one per variant.
    pub(crate) const LABELS: [&str; 3] = ["checking", "open", "failed"];

    /// Returns one of [`LABELS`](Self::LABELS).
    pub(crate) fn label(&self) -> &'static str {
        match self {
            Self::Checking => "checking",
            Self::Open => "open",
            Self::Failed(_) => "failed",
        }
    }

    /// Describes for the operator why the ledger is not open, and what that means.
    pub(crate) fn problem(&self) -> Option<String> {
        let effect = "quotas hold per worker only and gateways keep their reports";
        match self {
            Self::Open => None,
            Self::Checking => Some(format!("{effect}: the ledger is being checked")),
            Self::Failed(reason) => Some(format!("{effect}: {reason}")),
        }
    }
}

impl Ledger {
    /// Starts the thread, which checks and opens the ledger at `path`, of the tenants below
    /// `data_root`. Fails only if the system has no thread to give.
    pub(crate) fn open(path: &Path, data_root: &Path) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            path: path.to_owned(),
            names: KnownNames::new(data_root),
            condition: watch::Sender::new(Condition::Checking),
            state: Mutex::default(),
            queries: Semaphore::new(QUERIES_MAX),
        });
        let (queue, work) = mpsc::channel(QUEUE_MAX);
        let writer = Arc::clone(&shared);
        thread::Builder::new().name("ledger".to_owned()).spawn(move || run(work, &writer))?;
        Ok(Self { queue, shared })
    }

    /// Returns the present condition.
    pub(crate) fn condition(&self) -> Condition {
        self.shared.condition.borrow().clone()
    }

    /// Waits until the ledger is open or has failed.
    #[cfg(test)]
    pub(crate) async fn checked(&self) -> Condition {
        let mut condition = self.shared.condition.subscribe();
        // The sender is in `self.shared`, so the wait can't fail.
        let _ = condition.wait_for(|condition| *condition != Condition::Checking).await;
        self.condition()
    }

    fn is_open(&self) -> bool {
        *self.shared.condition.borrow() == Condition::Open
    }

    /// Puts a report into the ledger; returns once it is on disk.
    pub(crate) async fn report(
        &self,
        report: impl Into<ReceivedReport>,
    ) -> Result<Recorded, ReportError> {
        if !self.is_open() {
            return Err(ReportError::NotOpen);
        }
        let (reply, result) = oneshot::channel();
        let queued = QueuedReport { report: report.into(), reply };
        self.queue.send(Work::Report(queued)).await.map_err(|_| ReportError::Closed)?;
        result.await.map_err(|_| ReportError::Closed)?
    }

    /// Records a granted lease: its tenant and tier exist, and their rows leave the quarantine. Never
    /// waits: if the queue is full, the tenant's next report or the next search finds its folder.
    pub(crate) fn leased(&self, tenant: &TenantId, tier: &TierName) {
        if self.shared.names.leased(tenant, tier) {
            let _ = self.queue.try_send(Work::Leased(tenant.clone(), tier.clone()));
        }
    }

    /// Performs a repair, or reports what it would do; returns once it is on disk.
    pub(crate) async fn repair(
        &self,
        repair: LedgerRepair,
        apply: bool,
    ) -> Result<Repaired, QueryError> {
        if let Some(problem) = self.condition().problem() {
            return Err(QueryError::NotOpen(problem));
        }
        let (reply, result) = oneshot::channel();
        let queued = QueuedRepair { repair, apply, reply };
        self.queue.send(Work::Repair(queued)).await.map_err(|_| QueryError::Closed)?;
        result.await.map_err(|_| QueryError::Closed)?
    }

    /// Returns the usage half of a tenant's notice as of the last commit; unknown until the ledger
    /// is open. Takes a lock that is never held across I/O.
    pub(crate) fn notice(&self, tenant: &TenantId) -> TenantNotice {
        if !self.is_open() {
            return TenantNotice::default();
        }
        self.shared.state.lock().tally.notice(tenant, host::now_s())
    }

    /// Returns the counters since the start.
    pub(crate) fn counted(&self) -> Counted {
        self.shared.state.lock().counted.clone()
    }

    /// Runs a query on a separate connection, on the blocking pool: it does not delay reports.
    pub(crate) async fn query<T: Send + 'static>(
        &self,
        query: impl FnOnce(&Store) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, QueryError> {
        if let Some(problem) = self.condition().problem() {
            return Err(QueryError::NotOpen(problem));
        }
        let _permit = self.shared.queries.acquire().await.map_err(|_| QueryError::Closed)?;
        let path = self.shared.path.clone();
        let read = move || query(&Store::open_read_only(&path)?);
        Ok(tokio::task::spawn_blocking(read).await.map_err(|_| QueryError::Closed)??)
    }

    /// Returns when the thread has ended, which is a fault before the process ends.
    pub(crate) async fn closed(&self) {
        self.queue.closed().await;
    }

    /// Returns the path of the database file.
    pub(crate) fn path(&self) -> &Path {
        &self.shared.path
    }
}

/// Body of the ledger's thread.
fn run(queue: mpsc::Receiver<Work>, shared: &Shared) {
    let store = loop {
        match open(shared) {
            Ok(store) => break store,
            Err(fault) => {
                error!(error = %fault, "ledger can't be opened; gateways keep their reports");
                shared.condition.send_replace(Condition::Failed(fault.to_string().into()));
                if fault.is_permanent() {
                    refuse_all(queue);
                    return;
                }
            }
        }
        if queue.is_closed() {
            return;
        }
        thread::sleep(OPEN_RETRY);
    };
    shared.condition.send_replace(Condition::Open);
    serve(store, queue, shared);
}

/// Drops work until the process ends; a dropped report is refused as closed. Without an open ledger
/// only little arrives here, from senders that looked at the condition just before it changed.
fn refuse_all(mut queue: mpsc::Receiver<Work>) {
    while queue.blocking_recv().is_some() {}
}

/// Opens and checks the database and rebuilds the tally from it.
fn open(shared: &Shared) -> Result<Store, StoreError> {
    let started = Instant::now();
    let store = Store::open(&shared.path, Arc::new(shared.names.clone()))?;
    let tally = read_tally(&store)?;
    let path = shared.path.display();
    let tenants = tally.tenants();
    let ms = started.elapsed().as_millis();
    info!(%path, tenants, ms, "ledger checked and opened");
    let quarantined: u64 = store.quarantine_size()?.iter().map(|(_, rows)| rows).sum();
    if quarantined > 0 {
        warn!(rows = quarantined, "ledger has rows in quarantine; see `orchestrator usage repair`");
    }
    shared.state.lock().tally = tally;
    Ok(store)
}

fn read_tally(store: &Store) -> Result<Tally, StoreError> {
    let mut tally = Tally::default();
    for increase in store.recent_increases(host::now_s())? {
        tally.add(&increase);
    }
    Ok(tally)
}

/// Commits reports until the last handle is dropped; sums up old hours while none wait.
fn serve(mut store: Store, mut queue: mpsc::Receiver<Work>, shared: &Shared) {
    let mut prune_at = Instant::now();
    let mut next = None;
    loop {
        let work = match next.take() {
            Some(work) => Some(work),
            None => match queue.try_recv() {
                Err(TryRecvError::Empty) if Instant::now() >= prune_at => {
                    // One bounded step, then reports come first again.
                    prune_at = prune(&mut store, shared);
                    continue;
                }
                Err(TryRecvError::Empty) => queue.blocking_recv(),
                received => received.ok(),
            },
        };
        match work {
            None => return,
            Some(Work::Report(first)) => {
                next = serve_reports(&mut store, first, &mut queue, shared);
            }
            Some(Work::Leased(tenant, tier)) => {
                let released = store.release_known(Some(&tenant), Some(&tier), host::now_s());
                count_released(released, shared);
            }
            Some(Work::Repair(QueuedRepair { repair, apply, reply })) => {
                // An operator that has left sees the effect in the next list.
                let _ = reply.send(perform(&mut store, &repair, apply, shared));
            }
        }
    }
}

/// Commits a report with all others that wait: they share one transaction and thus one fsync. Returns
/// the first work of another kind.
fn serve_reports(
    store: &mut Store,
    first: QueuedReport,
    queue: &mut mpsc::Receiver<Work>,
    shared: &Shared,
) -> Option<Work> {
    let mut reports = vec![first.report];
    let mut replies = vec![first.reply];
    let mut next = None;
    while reports.len() < BATCH_MAX {
        match queue.try_recv() {
            Ok(Work::Report(queued)) => {
                reports.push(queued.report);
                replies.push(queued.reply);
            }
            Ok(other) => {
                next = Some(other);
                break;
            }
            Err(_) => break,
        }
    }
    // A client that has left learns from its next report that this one was accepted.
    match commit(store, &reports, shared) {
        Ok(recorded) => {
            for (reply, recorded) in replies.into_iter().zip(recorded) {
                let _ = reply.send(Ok(recorded));
            }
        }
        Err(error) => {
            for reply in replies {
                let _ = reply.send(Err(error));
            }
        }
    }
    next
}

/// Sums up some old rows; returns the time of the next step.
fn prune(store: &mut Store, shared: &Shared) -> Instant {
    match prune_step(store) {
        Ok(None) => return Instant::now(),
        Ok(Some(done_s)) => shared.state.lock().tally.remove_idle(done_s),
        Err(fault) => warn!(error = %fault, "old hours could not be summed up"),
    }
    count_released(store.release_all_known(host::now_s()), shared);
    Instant::now() + PRUNE_INTERVAL
}

/// Returns the store's clock once nothing is left to sum up.
fn prune_step(store: &mut Store) -> Result<Option<u64>, StoreError> {
    let now_s = host::now_s();
    let more = store.prune(now_s)?;
    let prune_s = store.prune_clock_s(now_s)?;
    Ok(if more { None } else { Some(prune_s) })
}

fn commit(
    store: &mut Store,
    reports: &[ReceivedReport],
    shared: &Shared,
) -> Result<Vec<Recorded>, ReportError> {
    match store.commit(reports, host::now_s()) {
        Ok(mut committed) => {
            let recorded = std::mem::take(&mut committed.reports);
            let mut state = shared.state.lock();
            state.count(committed);
            state.counted.reports += u64::try_from(reports.len()).unwrap_or(0);
            state.counted.commits += 1;
            Ok(recorded)
        }
        Err(fault) => {
            shared.state.lock().counted.failures += 1;
            error!(error = %fault, "reports could not be committed; gateways keep them");
            Err(ReportError::NotWritten)
        }
    }
}

/// Counts the rows that a lease or a folder has released; they stay in the quarantine if that fails.
fn count_released(released: Result<Committed, StoreError>, shared: &Shared) {
    match released {
        Ok(committed) => shared.state.lock().count(committed),
        Err(fault) => warn!(error = %fault, "rows could not be released from the quarantine"),
    }
}

/// Performs a repair and rebuilds the tally, because rows may be gone.
fn perform(
    store: &mut Store,
    repair: &LedgerRepair,
    apply: bool,
    shared: &Shared,
) -> Result<Repaired, QueryError> {
    let repaired = store.repair(repair, apply, host::now_s())?;
    if apply {
        let tally = read_tally(store)?;
        shared.state.lock().tally = tally;
        info!(?repair, rows = repaired.rows, "ledger repaired by the operator");
    }
    Ok(repaired)
}

impl State {
    fn count(&mut self, committed: Committed) {
        let Self { tally, counted } = self;
        for increase in &committed.increases {
            tally.add(increase);
        }
        counted.sums.add(&committed.sums);
        for (reason, rows) in committed.quarantined {
            *counted.quarantined.entry(reason).or_default() += rows;
        }
        counted.released += committed.released;
        counted.dropped += committed.dropped;
    }
}
