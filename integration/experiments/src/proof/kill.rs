//! SQ dies again and again under writes; after each death the phext is read and compared.
//!
//! ```text
//!  writers write ─► a random moment ─► the blow ─► writers rest ─► SQ is back ─► read, compared ─┐
//!        ▲────────────────────────────────────────────────────────────────────────────────────────┘
//! ```

use harness::until;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tokio::sync::Mutex;
use tokio::task::JoinSet;

use super::model::{Found, Model};
use super::target::{Blow, Target};

/// As many as the free tier has inside SQ at the same time.
pub const WRITERS: usize = 4;
/// Scrolls that are written: so many that each rests longer than the window now and then.
const HOT: usize = 400;
/// Between writes of one writer that was refused: SQ is just being started.
const REFUSED: Duration = Duration::from_millis(20);
/// Longest wait until a writer's last request is answered.
const REST: Duration = Duration::from_secs(40);

/// What was done and found, summed over all blows.
#[derive(Debug, Clone, Default)]
pub struct Tally {
    /// Blows.
    pub blows: u64,
    /// Acknowledged writes.
    pub acked: u64,
    /// Writes that got another answer or none.
    pub failed: u64,
    /// Looks at which the phext did not open.
    pub unopened: u64,
    /// Looks at which scrolls were missing.
    pub cut: u64,
    /// Scrolls from before that were missing.
    pub missing: u64,
    /// Scrolls that held what nobody wrote.
    pub torn: u64,
    /// The window: five seconds and the longest copy.
    pub window: Duration,
    /// Acknowledged writes older than the window that were not there.
    pub lost: u64,
    /// Younger ones.
    pub lost_in_window: u64,
    /// The oldest acknowledged write that was not there.
    pub oldest: Duration,
    /// Cut files that the gateway put back.
    pub restored: u64,
    /// The longest from a blow to the answer with the whole phext.
    pub back: Duration,
}

impl Tally {
    /// Over the rows.
    pub const HEADING: &str = "                                    blows   acked  failed  put back  \
                               unopened  cut  missing  torn  window s  lost>window  lost in it  oldest s  back s";

    /// A row of the table.
    pub fn row(&self, title: &str) -> String {
        format!(
            "{title:<36}{:>5}{:>8}{:>8}{:>10}{:>10}{:>5}{:>9}{:>6}{:>10.1}{:>13}{:>12}{:>10.1}{:>8.1}",
            self.blows,
            self.acked,
            self.failed,
            self.restored,
            self.unopened,
            self.cut,
            self.missing,
            self.torn,
            self.window.as_secs_f64(),
            self.lost,
            self.lost_in_window,
            self.oldest.as_secs_f64(),
            self.back.as_secs_f64(),
        )
    }

    /// Whether nothing was lost that may not be.
    pub fn good(&self) -> bool {
        self.unopened + self.missing + self.torn + self.lost == 0
    }

    /// Adds what one look found; true when the file is not what it was.
    pub fn add(&mut self, found: &Found, window: Duration) -> bool {
        let count = |n: usize| u64::try_from(n).unwrap_or(u64::MAX);
        let late = found.lost.iter().filter(|age| **age > window).count();
        self.window = self.window.max(window);
        self.unopened += u64::from(found.unreadable);
        self.cut += u64::from(found.missing > 0);
        self.missing += count(found.missing);
        self.torn += count(found.torn);
        self.lost += count(late);
        self.lost_in_window += count(found.lost.len() - late);
        self.oldest = found.lost.first().copied().unwrap_or_default().max(self.oldest);
        found.unreadable || found.missing + found.torn > 0
    }
}

/// Writers that can be made to rest.
pub struct Writers {
    shared: Arc<Shared>,
    tasks: JoinSet<()>,
}

struct Shared {
    target: Arc<Target>,
    model: Mutex<Model>,
    rest: AtomicBool,
    stop: AtomicBool,
    writing: AtomicU64,
    acked: AtomicU64,
    failed: AtomicU64,
}

impl Writers {
    /// Lays a phext of about `bytes` and starts to write it.
    pub async fn start(target: Arc<Target>, bytes: usize, seed: u64) -> Result<Self> {
        let model = Model::new(bytes, HOT);
        target.lay(&model.file())?;
        until("the first answer", REST, || async { target.read().await.ok() }).await?;
        let shared = Arc::new(Shared {
            target,
            model: Mutex::new(model),
            rest: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            writing: AtomicU64::new(0),
            acked: AtomicU64::new(0),
            failed: AtomicU64::new(0),
        });
        let mut tasks = JoinSet::new();
        for writer in 0..WRITERS {
            tasks.spawn(shared.clone().work(writer, Random(seed ^ (writer as u64 + 1))));
        }
        Ok(Self { shared, tasks })
    }

    /// What is struck.
    pub fn target(&self) -> &Arc<Target> {
        &self.shared.target
    }

    /// Lets requests in flight end; no more are sent.
    pub async fn rest(&self) -> Result<()> {
        self.shared.rest.store(true, Ordering::SeqCst);
        let idle = || async { (self.shared.writing.load(Ordering::SeqCst) == 0).then_some(()) };
        until("writers to rest", REST, idle).await
    }

    /// Writes on.
    pub fn go_on(&self) {
        self.shared.rest.store(false, Ordering::SeqCst);
    }

    /// Compares what is there after a death at `died`. A phext that is not what it was is laid anew
    /// when SQ is alone, so that each blow is a trial of its own.
    pub async fn look(&self, tally: &mut Tally, died: Instant) -> Result<()> {
        let bytes = self.target().back().await?;
        tally.back = tally.back.max(died.elapsed());
        let window = self.target().window().await?;
        let mut model = self.shared.model.lock().await;
        let damaged = tally.add(&model.look(&bytes, died), window);
        tally.blows += 1;
        if damaged && !matches!(**self.target(), Target::Gateway(..)) {
            self.target().lay(&model.file())?;
            drop(model);
            self.target().back().await?;
        }
        Ok(())
    }

    /// Ends the writers and tells what they saw.
    pub async fn finish(mut self, mut tally: Tally) -> Result<Tally> {
        self.shared.stop.store(true, Ordering::SeqCst);
        while self.tasks.join_next().await.is_some() {}
        tally.acked = self.shared.acked.load(Ordering::SeqCst);
        tally.failed = self.shared.failed.load(Ordering::SeqCst);
        tally.restored = self.target().restored().await?;
        Ok(tally)
    }
}

impl Shared {
    async fn work(self: Arc<Self>, writer: usize, mut random: Random) {
        while !self.stop.load(Ordering::SeqCst) {
            self.writing.fetch_add(1, Ordering::SeqCst);
            if self.rest.load(Ordering::SeqCst) {
                self.writing.fetch_sub(1, Ordering::SeqCst);
                tokio::time::sleep(REFUSED).await;
                continue;
            }
            let pick = usize::try_from(random.draw() >> 33).unwrap_or(0);
            let (n, value) = self.model.lock().await.next(writer, WRITERS, pick);
            let answer = self.target.write(n, value).await;
            let good = matches!(answer, Ok(200));
            if good {
                self.acked.fetch_add(1, Ordering::SeqCst);
                self.model.lock().await.acked(n, value, Instant::now());
            } else {
                self.failed.fetch_add(1, Ordering::SeqCst);
            }
            self.writing.fetch_sub(1, Ordering::SeqCst);
            if !good {
                tokio::time::sleep(REFUSED).await;
            }
        }
    }
}

/// What a series of blows is made of.
#[derive(Debug, Clone, Copy)]
pub struct Series {
    /// How SQ dies.
    pub blow: Blow,
    /// How often.
    pub blows: u64,
    /// Size of the phext.
    pub bytes: usize,
    /// The longest from SQ being back to the next blow.
    pub pause: Duration,
    /// Decides about all moments.
    pub seed: u64,
}

/// Runs one series.
pub async fn series(target: Target, series: Series) -> Result<Tally> {
    let target = Arc::new(target);
    let writers = Writers::start(target.clone(), series.bytes, series.seed).await?;
    let (mut tally, mut random) = (Tally::default(), Random(series.seed));
    for number in 0..series.blows {
        let pause_us = u64::try_from(series.pause.as_micros())?.max(1);
        tokio::time::sleep(Duration::from_micros(random.draw() % pause_us)).await;
        let died = Instant::now();
        target.strike(series.blow).await?;
        writers.rest().await?;
        writers.look(&mut tally, died).await.with_context(|| format!("blow {number}"))?;
        writers.go_on();
    }
    writers.finish(tally).await
}

/// `SplitMix64`: moments that can be had again by their seed.
#[derive(Debug, Clone, Copy)]
pub struct Random(pub u64);

impl Random {
    /// The next number.
    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }
}
