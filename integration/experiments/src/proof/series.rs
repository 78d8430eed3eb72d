//! A series of faults: SQ dies repeatedly during writes, and after each death the phext is compared
//! with the writes.
//!
//! ```text
//!  writers write ─► random moment ─► fault ─► writers pause ─► SQ responds ─► compare ─┐
//!        ▲──────────────────────────────────────────────────────────────────────────────┘
//! ```

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use fastrand::Rng;
use tokio::sync::Mutex;
use tokio::task::JoinSet;

use super::loss::LossReport;
use super::model::PhextModel;
use super::target::{Fault, Target};
use harness::until;

/// Concurrent writers: the number of requests that the free tier has inside SQ at the same time.
pub(super) const WRITERS: usize = 4;
/// Scrolls that are written: enough that each is sometimes unchanged for longer than the window.
const HOT_SCROLLS: usize = 400;
/// Pause of a writer after a refused write, while SQ is being started.
const REFUSED_PAUSE: Duration = Duration::from_millis(20);
/// Longest wait for the response to a writer's last request.
const PAUSE_PATIENCE: Duration = Duration::from_secs(40);

/// The parameters of a series.
#[derive(Debug, Clone, Copy)]
pub(super) struct FaultSeries {
    /// The fault that ends SQ.
    pub(super) fault: Fault,
    /// Number of faults.
    pub(super) faults: u64,
    /// Size of the phext in bytes.
    pub(super) bytes: usize,
    /// Longest time from SQ's recovery to the next fault.
    pub(super) pause: Duration,
    /// Seed of the moments at which faults are injected.
    pub(super) seed: u64,
}

impl FaultSeries {
    /// Runs the series on a target.
    pub(super) async fn run(self, target: Target) -> Result<LossReport> {
        let target = Arc::new(target);
        let writers = Writers::start(target.clone(), self.bytes, self.seed).await?;
        let mut report = LossReport::default();
        let mut random = Rng::with_seed(self.seed);
        let pause_us = u64::try_from(self.pause.as_micros())?.max(1);
        for number in 0..self.faults {
            tokio::time::sleep(Duration::from_micros(random.u64(..pause_us))).await;
            let died = Instant::now();
            target.inject(self.fault).await?;
            writers.pause().await?;
            writers.check(&mut report, died).await.with_context(|| format!("fault {number}"))?;
            writers.resume();
        }
        writers.finish(report).await
    }
}

/// Concurrent writers of one phext that can be paused.
pub(super) struct Writers {
    shared: Arc<Shared>,
    tasks: JoinSet<()>,
}

struct Shared {
    target: Arc<Target>,
    model: Mutex<PhextModel>,
    pause: AtomicBool,
    stop: AtomicBool,
    in_flight: AtomicU64,
    acked: AtomicU64,
    failed: AtomicU64,
}

impl Writers {
    /// Creates a phext of about `bytes` and starts the writers.
    pub(super) async fn start(target: Arc<Target>, bytes: usize, seed: u64) -> Result<Self> {
        let model = PhextModel::new(bytes, HOT_SCROLLS);
        target.write_file(&model.file())?;
        until("the first response", PAUSE_PATIENCE, || async { target.read().await.ok() }).await?;
        let shared = Arc::new(Shared {
            target,
            model: Mutex::new(model),
            pause: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            in_flight: AtomicU64::new(0),
            acked: AtomicU64::new(0),
            failed: AtomicU64::new(0),
        });
        let mut tasks = JoinSet::new();
        for writer in 0..WRITERS {
            let random = Rng::with_seed(seed ^ (writer as u64 + 1));
            tasks.spawn(shared.clone().write_until_stopped(writer, random));
        }
        Ok(Self { shared, tasks })
    }

    /// Returns the target of the writes.
    pub(super) fn target(&self) -> &Arc<Target> {
        &self.shared.target
    }

    /// Pauses the writers and waits for the responses to requests in flight.
    pub(super) async fn pause(&self) -> Result<()> {
        self.shared.pause.store(true, Ordering::SeqCst);
        until("all writers to pause", PAUSE_PATIENCE, || async {
            (self.shared.in_flight.load(Ordering::SeqCst) == 0).then_some(())
        })
        .await
    }

    /// Lets the writers continue.
    pub(super) fn resume(&self) {
        self.shared.pause.store(false, Ordering::SeqCst);
    }

    /// Compares the phext with the acknowledged writes after a death at `died`. SQ alone gets a new
    /// file if the old one is damaged, so that each fault is an independent trial.
    pub(super) async fn check(&self, report: &mut LossReport, died: Instant) -> Result<()> {
        let bytes = self.target().wait_for_recovery().await?;
        report.recovery = report.recovery.max(died.elapsed());
        let window = self.target().window().await?;
        let mut model = self.shared.model.lock().await;
        let is_damaged = report.add(&model.check(&bytes, died), window);
        report.faults += 1;
        if is_damaged && !matches!(**self.target(), Target::Gateway(..)) {
            self.target().write_file(&model.file())?;
            drop(model);
            self.target().wait_for_recovery().await?;
        }
        Ok(())
    }

    /// Stops the writers and completes the report with their counts.
    pub(super) async fn finish(mut self, mut report: LossReport) -> Result<LossReport> {
        self.shared.stop.store(true, Ordering::SeqCst);
        while self.tasks.join_next().await.is_some() {}
        report.acked = self.shared.acked.load(Ordering::SeqCst);
        report.failed = self.shared.failed.load(Ordering::SeqCst);
        report.restored = self.target().restored_files().await?;
        Ok(report)
    }
}

impl Shared {
    async fn write_until_stopped(self: Arc<Self>, writer: usize, mut random: Rng) {
        while !self.stop.load(Ordering::SeqCst) {
            // Counted before the flag is read: a pause that sees zero in flight can rely on it.
            self.in_flight.fetch_add(1, Ordering::SeqCst);
            if self.pause.load(Ordering::SeqCst) {
                self.in_flight.fetch_sub(1, Ordering::SeqCst);
                tokio::time::sleep(REFUSED_PAUSE).await;
                continue;
            }
            let was_acked = self.write_once(writer, random.usize(..)).await;
            self.in_flight.fetch_sub(1, Ordering::SeqCst);
            if !was_acked {
                tokio::time::sleep(REFUSED_PAUSE).await;
            }
        }
    }

    /// Writes one scroll. Returns whether SQ acknowledged the write.
    async fn write_once(&self, writer: usize, pick: usize) -> bool {
        let (scroll, value) = self.model.lock().await.next_write(writer, WRITERS, pick);
        let was_acked = matches!(self.target.write(scroll, value).await, Ok(200));
        if was_acked {
            self.acked.fetch_add(1, Ordering::SeqCst);
            self.model.lock().await.acknowledge(scroll, value, Instant::now());
        } else {
            self.failed.fetch_add(1, Ordering::SeqCst);
        }
        was_acked
    }
}
