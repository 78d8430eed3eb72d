//! The thread that owns the ledger's database, and its handle.
//!
//! ```text
//!  POST /v1/usage ─report─►┌────────┐─ one transaction for all that wait ─► SQLite
//!  …              ─report─►│ thread │─ replies after the commit
//!                          └────────┘─ tally (notices, metrics)
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

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use protocol::{TenantId, TenantNotice, UsageReport};
use tokio::sync::mpsc::error::TryRecvError;
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tracing::{error, info, warn};

use crate::host;
use crate::usage::store::{Store, StoreError};
use crate::usage::sums::Sums;
use crate::usage::tally::Tally;

/// Bound on reports that wait for the thread; further senders wait in their connections.
const QUEUE_MAX: usize = 256;
/// Bound on reports per transaction: about 128,000 rows, well under a second.
const BATCH_MAX: usize = 256;
/// Bound on concurrent queries: each occupies a thread of the blocking pool and some memory.
const QUERIES_MAX: usize = 4;
/// Retry interval for a file that could not be opened and is not damaged.
const OPEN_RETRY: Duration = Duration::from_secs(1);
/// Interval of the search for hours that are old enough to be summed up.
const PRUNE_INTERVAL: Duration = Duration::from_hours(1);

/// A handle to the ledger. Cheap to clone; the thread ends when the last clone is dropped.
#[derive(Debug, Clone)]
pub(crate) struct Ledger {
    reports: mpsc::Sender<QueuedReport>,
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
    /// Rows refused because their hour was too old or too far ahead.
    pub refused_rows: u64,
}

#[derive(Debug)]
struct QueuedReport {
    report: UsageReport,
    reply: oneshot::Sender<Result<(), ReportError>>,
}

#[derive(Debug)]
struct Shared {
    path: PathBuf,
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
    /// Starts the thread, which checks and opens the ledger at `path`. Fails only if the system
    /// has no thread to give.
    pub(crate) fn open(path: &Path) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            path: path.to_owned(),
            condition: watch::Sender::new(Condition::Checking),
            state: Mutex::default(),
            queries: Semaphore::new(QUERIES_MAX),
        });
        let (reports, queue) = mpsc::channel(QUEUE_MAX);
        let writer = Arc::clone(&shared);
        thread::Builder::new().name("ledger".to_owned()).spawn(move || run(queue, &writer))?;
        Ok(Self { reports, shared })
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
    pub(crate) async fn report(&self, report: UsageReport) -> Result<(), ReportError> {
        if !self.is_open() {
            return Err(ReportError::NotOpen);
        }
        let (reply, result) = oneshot::channel();
        let queued = QueuedReport { report, reply };
        self.reports.send(queued).await.map_err(|_| ReportError::Closed)?;
        result.await.map_err(|_| ReportError::Closed)?
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
        self.reports.closed().await;
    }

    /// Returns the path of the database file.
    pub(crate) fn path(&self) -> &Path {
        &self.shared.path
    }
}

/// Body of the ledger's thread.
fn run(queue: mpsc::Receiver<QueuedReport>, shared: &Shared) {
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

/// Drops reports until the process ends; a dropped report is refused as closed. Without an open
/// ledger only few arrive here, from senders that looked at the condition just before it changed.
fn refuse_all(mut queue: mpsc::Receiver<QueuedReport>) {
    while queue.blocking_recv().is_some() {}
}

/// Opens and checks the database and rebuilds the tally from it.
fn open(shared: &Shared) -> Result<Store, StoreError> {
    let started = Instant::now();
    let store = Store::open(&shared.path)?;
    let mut tally = Tally::default();
    for increase in store.recent_increases(host::now_s())? {
        tally.add(&increase);
    }
    let path = shared.path.display();
    let tenants = tally.tenants();
    let ms = started.elapsed().as_millis();
    info!(%path, tenants, ms, "ledger checked and opened");
    shared.state.lock().tally = tally;
    Ok(store)
}

/// Commits reports until the last handle is dropped; sums up old hours while none wait.
fn serve(mut store: Store, mut queue: mpsc::Receiver<QueuedReport>, shared: &Shared) {
    let mut prune_at = Instant::now();
    loop {
        let next = match queue.try_recv() {
            Err(TryRecvError::Empty) if Instant::now() >= prune_at => {
                // One bounded step, then reports come first again.
                prune_at = prune(&mut store, shared);
                continue;
            }
            Err(TryRecvError::Empty) => queue.blocking_recv(),
            next => next.ok(),
        };
        let Some(first) = next else { return };
        // All reports that wait share one transaction and thus one fsync.
        let mut reports = vec![first.report];
        let mut replies = vec![first.reply];
        while reports.len() < BATCH_MAX
            && let Ok(queued) = queue.try_recv()
        {
            reports.push(queued.report);
            replies.push(queued.reply);
        }
        let result = commit(&mut store, &reports, shared);
        for reply in replies {
            // A client that has left learns from its next report that this one was accepted.
            let _ = reply.send(result);
        }
    }
}

/// Sums up some old rows; returns the time of the next step.
fn prune(store: &mut Store, shared: &Shared) -> Instant {
    match prune_step(store) {
        Ok(None) => return Instant::now(),
        Ok(Some(done_s)) => shared.state.lock().tally.remove_idle(done_s),
        Err(fault) => warn!(error = %fault, "old hours could not be summed up"),
    }
    Instant::now() + PRUNE_INTERVAL
}

/// Returns the store's clock once nothing is left to sum up.
fn prune_step(store: &mut Store) -> Result<Option<u64>, StoreError> {
    let now_s = host::now_s();
    let more = store.prune(now_s)?;
    let prune_s = store.prune_clock_s(now_s)?;
    Ok(if more { None } else { Some(prune_s) })
}

fn commit(store: &mut Store, reports: &[UsageReport], shared: &Shared) -> Result<(), ReportError> {
    let committed = store.commit(reports, host::now_s());
    let mut state = shared.state.lock();
    let State { tally, counted } = &mut *state;
    match committed {
        Ok(committed) => {
            for increase in &committed.increases {
                tally.add(increase);
            }
            counted.sums.add(&committed.sums);
            counted.reports += u64::try_from(reports.len()).unwrap_or(0);
            counted.commits += 1;
            counted.refused_rows += committed.refused_rows;
            Ok(())
        }
        Err(fault) => {
            counted.failures += 1;
            error!(error = %fault, "reports could not be committed; gateways keep them");
            Err(ReportError::NotWritten)
        }
    }
}
