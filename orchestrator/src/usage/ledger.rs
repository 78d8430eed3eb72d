//! The thread that owns the database, and what others ask of it.
//!
//! ```text
//!  POST /v1/usage ─Report─►┌────────┐─ one transaction for all that wait ─► SQLite
//!  …              ─Report─►│ thread │─ answers after the commit
//!                          └────────┘─ tally (notices, metrics)
//!  readers ── a read-only connection each, on the blocking pool
//!
//!  Checking ──► Open            Checking ──► Failed ──► Open (not where the file is damaged)
//! ```
//! The check reads the file whole: seconds per million rows. No tenant waits for it. Until the
//! ledger is open, and for as long as it can't be, what is used of a quota is told as unknown, which
//! passes, and reports are refused, so that gateways keep what they count: served now, billed later.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use protocol::{TenantId, TenantNotice, UsageReport};
use tokio::sync::mpsc::error::TryRecvError;
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tracing::{error, info, warn};

use crate::host;
use crate::usage::store::{Store, StoreError};
use crate::usage::sums::{Sums, Tally};

/// Reports that wait for the thread; then their senders wait in their connections.
const WAITING: usize = 256;
/// Reports of one transaction: about 128,000 rows, well under a second.
const BATCH: usize = 256;
/// Questions answered at once: each holds a thread of the pool and some memory.
const READERS: usize = 4;
/// How soon a file is tried again that could not be opened and is not damaged.
const OPEN_AGAIN: Duration = Duration::from_secs(1);
/// How often old hours are looked for.
const PRUNE_EVERY: Duration = Duration::from_hours(1);

type Reply = oneshot::Sender<Result<(), Refused>>;

/// Why a report was not taken. The sender keeps its counters and tries again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// The database is being checked, or can't be used.
    #[error("the ledger is not open")]
    NotOpen,
    /// The database did not take it.
    #[error("the ledger can't be written")]
    NotWritten,
    /// The thread is gone: the process is about to end.
    #[error("the ledger is closed")]
    Closed,
}

/// Asks the ledger. Cheap to clone; the thread ends when the last one is gone.
#[derive(Debug, Clone)]
pub struct Ledger {
    reports: mpsc::Sender<(UsageReport, Reply)>,
    shared: Arc<Shared>,
}

/// Whether the ledger can be asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Condition {
    /// Not yet: it is being checked.
    Checking,
    /// Yes.
    Open,
    /// No, and why. A damaged file, or one of a newer release, stays so until the next start.
    Failed(Arc<str>),
}

impl Condition {
    /// Labels, in the order of [`label`](Self::label).
    pub const LABELS: [&str; 3] = ["checking", "open", "failed"];

    /// One of [`LABELS`](Self::LABELS).
    pub fn label(&self) -> &'static str {
        match self {
            Self::Checking => "checking",
            Self::Open => "open",
            Self::Failed(_) => "failed",
        }
    }

    /// What the operator is told of a ledger that is not open.
    pub fn trouble(&self) -> Option<String> {
        let meanwhile = "quotas hold per worker only and gateways keep their reports";
        match self {
            Self::Open => None,
            Self::Checking => Some(format!("{meanwhile}: the ledger is being checked")),
            Self::Failed(why) => Some(format!("{meanwhile}: {why}")),
        }
    }
}

/// Why a question was not answered.
#[derive(Debug, thiserror::Error)]
pub enum Unread {
    /// [`Condition::trouble`].
    #[error("{0}")]
    NotOpen(String),
    /// The database did not answer.
    #[error("the ledger can't be read")]
    Failed(#[from] StoreError),
    /// The process is about to end.
    #[error("the ledger is closed")]
    Closed,
}

#[derive(Debug)]
struct Shared {
    path: PathBuf,
    condition: watch::Sender<Condition>,
    state: Mutex<State>,
    readers: Semaphore,
}

/// What notices and metrics are made of.
#[derive(Debug, Default)]
struct State {
    tally: Tally,
    /// Since the start of the process.
    counted: Counted,
}

/// What was counted since the start of the process.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counted {
    /// New in the ledger.
    pub sums: Sums,
    /// Reports taken.
    pub reports: u64,
    /// Transactions.
    pub commits: u64,
    /// Transactions that failed.
    pub failures: u64,
    /// Rows too late or too early.
    pub refused_rows: u64,
}

impl Ledger {
    /// Starts the thread, which checks and opens the ledger at `path`. An error: there is no thread
    /// to be had.
    pub fn open(path: &Path) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            path: path.to_owned(),
            condition: watch::Sender::new(Condition::Checking),
            state: Mutex::default(),
            readers: Semaphore::new(READERS),
        });
        let (reports, waiting) = mpsc::channel(WAITING);
        let writer = Arc::clone(&shared);
        thread::Builder::new().name("ledger".to_owned()).spawn(move || run(waiting, &writer))?;
        Ok(Self { reports, shared })
    }

    /// Whether it can be asked now.
    pub fn condition(&self) -> Condition {
        self.shared.condition.borrow().clone()
    }

    /// Waits until it is open or has failed.
    pub async fn checked(&self) -> Condition {
        let mut condition = self.shared.condition.subscribe();
        // The sender lives as long as this.
        let _ = condition.wait_for(|condition| *condition != Condition::Checking).await;
        self.condition()
    }

    fn is_open(&self) -> bool {
        *self.shared.condition.borrow() == Condition::Open
    }

    /// Puts a report into the ledger; returns when it is on disk.
    pub async fn report(&self, report: UsageReport) -> Result<(), Refused> {
        if !self.is_open() {
            return Err(Refused::NotOpen);
        }
        let (reply, answer) = oneshot::channel();
        self.reports.send((report, reply)).await.map_err(|_| Refused::Closed)?;
        answer.await.map_err(|_| Refused::Closed)?
    }

    /// The counting half of a tenant's notice, as of the last commit; unknown until the ledger is
    /// open. Never blocks for long.
    pub fn notice(&self, tenant: &TenantId) -> TenantNotice {
        if !self.is_open() {
            return TenantNotice::default();
        }
        self.shared.state().tally.notice(tenant, host::now_s())
    }

    /// The tenants with the most requests of this day.
    pub fn top(&self, n: usize) -> Vec<(TenantId, u64)> {
        self.shared.state().tally.top(host::now_s(), n)
    }

    /// What was counted since the start.
    pub fn counted(&self) -> Counted {
        self.shared.state().counted.clone()
    }

    /// Asks the database itself, on the blocking pool, beside the thread that writes.
    pub async fn read<T: Send + 'static>(
        &self,
        question: impl FnOnce(&Store) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, Unread> {
        if let Some(trouble) = self.condition().trouble() {
            return Err(Unread::NotOpen(trouble));
        }
        let _permit = self.shared.readers.acquire().await.map_err(|_| Unread::Closed)?;
        let path = self.shared.path.clone();
        let read = move || question(&Store::open_to_read(&path)?);
        Ok(tokio::task::spawn_blocking(read).await.map_err(|_| Unread::Closed)??)
    }

    /// Returns when the thread is gone, which it should not be before the process.
    pub async fn closed(&self) {
        self.reports.closed().await;
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.shared.path
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The thread.
fn run(mut waiting: mpsc::Receiver<(UsageReport, Reply)>, shared: &Shared) {
    let store = loop {
        match check(shared) {
            Ok(store) => break store,
            Err(fault) => {
                error!(%fault, "the ledger can't be used: tenants are served, gateways keep reports");
                shared.condition.send_replace(Condition::Failed(fault.to_string().into()));
                if fault.stays() {
                    // Whoever saw it open just before is refused.
                    while waiting.blocking_recv().is_some() {}
                    return;
                }
            }
        }
        if waiting.is_closed() {
            return;
        }
        thread::sleep(OPEN_AGAIN);
    };
    shared.condition.send_replace(Condition::Open);
    write(store, waiting, shared);
}

/// Opens the database and sums up what notices are made of.
fn check(shared: &Shared) -> Result<Store, StoreError> {
    let started = Instant::now();
    let store = Store::open(&shared.path)?;
    let mut tally = Tally::default();
    store.recent(host::now_s())?.iter().for_each(|added| tally.count(added));
    let (path, tenants, ms) = (shared.path.display(), tally.len(), started.elapsed().as_millis());
    info!(%path, tenants, ms, "ledger checked and open");
    shared.state().tally = tally;
    Ok(store)
}

/// Commits what waits, answers, prunes now and then.
fn write(mut store: Store, mut waiting: mpsc::Receiver<(UsageReport, Reply)>, shared: &Shared) {
    let mut prune_at = Instant::now();
    loop {
        let next = match waiting.try_recv() {
            // A moment's work, then a look for reports again.
            Err(TryRecvError::Empty) if Instant::now() >= prune_at => {
                prune_at = prune(&mut store, shared);
                continue;
            }
            Err(TryRecvError::Empty) => waiting.blocking_recv(),
            next => next.ok(),
        };
        let Some((report, reply)) = next else { return };
        let (mut reports, mut replies) = (vec![report], vec![reply]);
        while reports.len() < BATCH
            && let Ok((report, reply)) = waiting.try_recv()
        {
            reports.push(report);
            replies.push(reply);
        }
        let taken = commit(&mut store, &reports, shared);
        for reply in replies {
            // A sender that went away has its answer with the next report.
            let _ = reply.send(taken);
        }
    }
}

/// Turns some old rows into sums; says when to go on.
fn prune(store: &mut Store, shared: &Shared) -> Instant {
    match store.prune(host::now_s()).and_then(|more| Ok((more, store.pruning_s(host::now_s())?))) {
        Ok((true, _)) => return Instant::now(),
        Ok((false, pruning_s)) => shared.state().tally.prune(pruning_s),
        Err(fault) => warn!(%fault, "old hours were not summed up"),
    }
    Instant::now() + PRUNE_EVERY
}

fn commit(store: &mut Store, reports: &[UsageReport], shared: &Shared) -> Result<(), Refused> {
    let committed = store.commit(reports, host::now_s());
    let mut state = shared.state();
    let State { tally, counted } = &mut *state;
    match committed {
        Ok(committed) => {
            committed.added.iter().for_each(|added| tally.count(added));
            counted.sums.add(&committed.sums);
            counted.reports += u64::try_from(reports.len()).unwrap_or(0);
            counted.commits += 1;
            counted.refused_rows += committed.refused_rows;
            Ok(())
        }
        Err(fault) => {
            counted.failures += 1;
            error!(%fault, "reports were not taken; gateways keep them");
            Err(Refused::NotWritten)
        }
    }
}
