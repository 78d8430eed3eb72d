//! The one task that turns what the source says into views: look, read, judge, publish.
//!
//! A text that is not valid or looks cut, or a source that is gone, changes the view's
//! [`SourceStatus`] and nothing else: the last good registry goes on being answered.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use protocol::Epoch;
use tokio::sync::watch;
use tokio::task::{JoinError, spawn_blocking};
use tokio::time::{sleep, timeout};
use tracing::{error, info, warn};

use crate::registry::truncation::{Guard, Suspicion, Text};
use crate::registry::{Faults, Registry};
use crate::serve::metrics::{Metrics, Outcome, count};
use crate::serve::state::{Book, SourceStatus, View};
use crate::source::last_good::{self, Kept};
use crate::source::{Reading, Source};

/// Seconds since 1970 UTC.
pub fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

/// How often keys are looked at whose time has come, however slow the source is; and once before
/// each look, however fast it is. A key ends at most this late, and the time it takes to read a
/// registry that has just changed.
const TICK: Duration = Duration::from_millis(50);

/// Time to read what was kept.
const KEPT_PATIENCE: Duration = Duration::from_secs(5);

/// The driver of one source.
#[derive(Debug)]
pub struct Feed {
    source: Source,
    last_good: PathBuf,
    desk: Desk,
}

/// What the driver writes to.
#[derive(Debug)]
struct Desk {
    book: Book,
    guard: Guard,
    publish: watch::Sender<Arc<View>>,
    keep: watch::Sender<Kept>,
    metrics: Arc<Metrics>,
}

impl Feed {
    /// A feed that has not looked yet, and where its views appear. A text that looks cut is held for
    /// `hold`. What is taken over goes to `keep`, and what was kept in `last_good` is answered until
    /// then.
    pub fn new(
        source: Source,
        hold: Duration,
        (last_good, keep): (PathBuf, watch::Sender<Kept>),
        epoch: Epoch,
        metrics: Arc<Metrics>,
    ) -> (Self, watch::Receiver<Arc<View>>) {
        let book = Book::new(epoch);
        let (publish, views) = watch::channel(Arc::new(book.view().clone()));
        let desk = Desk { book, guard: Guard::new(hold), publish, keep, metrics };
        (Self { source, last_good, desk }, views)
    }

    /// Looks, and looks again, until dropped. Returns when a look could not be finished.
    pub async fn run(self) -> Result<(), JoinError> {
        let Self { mut source, last_good, mut desk } = self;
        desk.restore(last_good).await?;
        let mut pause = Duration::ZERO;
        loop {
            // Not only during a look: one that is over before each tick would win every time.
            desk.tick();
            let look = async {
                sleep(pause).await;
                let reading = source.poll().await?;
                pause = source.interval();
                Ok(reading)
            };
            tokio::pin!(look);
            let reading = loop {
                tokio::select! {
                    reading = &mut look => break reading,
                    () = sleep(TICK) => desk.tick(),
                }
            };
            desk.take(reading?).await?;
        }
    }
}

impl Desk {
    fn tick(&mut self) {
        let ended = self.book.tick(now_s());
        if ended > 0 {
            info!(changed = ended, revision = self.book.view().revision, "keys have ended");
            self.publish();
        }
    }

    /// Answers what was kept. It may be on a network folder that does not answer.
    async fn restore(&mut self, path: PathBuf) -> Result<(), JoinError> {
        let kept = spawn_blocking(move || last_good::load(&path));
        match timeout(KEPT_PATIENCE, kept).await.map_or(Ok(Ok(None)), |kept| kept)? {
            Ok(Some(registry)) => {
                self.book.restore(registry, now_s());
                let tenants = self.book.view().tenants;
                info!(tenants, "the last good registry is answered until the source is read");
                self.publish();
            }
            Ok(None) => {}
            Err(why) => warn!(why, "the last good registry can't be used"),
        }
        Ok(())
    }

    async fn take(&mut self, reading: Reading) -> Result<(), JoinError> {
        let now = Instant::now();
        let news = match reading {
            Reading::Same => match self.guard.unchanged(now) {
                Some(text) => {
                    warn!("the registry that looks cut has not changed: it is believed");
                    self.loaded(text);
                    true
                }
                None => false,
            },
            Reading::Unsettled => {
                self.guard.unsettled(now);
                false
            }
            Reading::New(bytes) => {
                self.judged(bytes, now).await?;
                true
            }
            Reading::Gone(why) => self.gone(&why),
        };
        if news {
            self.publish();
        }
        Ok(())
    }

    async fn judged(&mut self, bytes: Vec<u8>, now: Instant) -> Result<(), JoinError> {
        // A large registry takes long enough to read that answers would wait for it.
        let read = spawn_blocking(move || match Registry::read(&bytes) {
            Ok(registry) => Ok(Text { bytes, registry }),
            Err(faults) => Err(faults),
        });
        match read.await? {
            Ok(text) => match self.guard.judge(self.book.registry(), text, now_s(), now) {
                Ok(text) => self.loaded(text),
                Err(suspicion) => self.held(suspicion),
            },
            Err(faults) => self.refused(&faults),
        }
        Ok(())
    }

    fn loaded(&mut self, text: Text) {
        for warning in text.registry.warnings() {
            warn!("registry: {warning}");
        }
        let changed = self.book.load(text.registry, now_s());
        self.keep.send_replace(Some(Arc::new(text.bytes)));
        let view = self.book.view();
        count(&self.metrics.loads, Outcome::good);
        self.metrics.loaded_s.set(now_s());
        info!(tenants = view.tenants, changed, revision = view.revision, "the registry was read");
    }

    fn held(&mut self, suspicion: Suspicion) {
        count(&self.metrics.loads, Outcome::held);
        let revision = self.book.view().revision;
        warn!(%suspicion, revision, "the registry looks cut: the last good one stays for now");
        self.book.trouble(SourceStatus::Suspicious(suspicion.to_string()));
    }

    fn refused(&mut self, faults: &Faults) {
        self.guard.forget();
        count(&self.metrics.loads, Outcome::refused);
        for fault in faults.iter() {
            error!("registry: {fault}");
        }
        let revision = self.book.view().revision;
        error!(
            faults = faults.len(),
            revision, "the registry is not valid: the last good one stays"
        );
        self.book.trouble(SourceStatus::Refused(faults.to_string()));
    }

    fn gone(&mut self, why: &str) -> bool {
        self.guard.forget();
        let news = self.book.trouble(SourceStatus::Gone(why.to_owned()));
        if news {
            count(&self.metrics.loads, Outcome::gone);
            error!(why, "the registry can't be read: the last good one stays");
        }
        news
    }

    fn publish(&self) {
        let view = self.book.view();
        let m = &self.metrics;
        m.source_good.set(i64::from(view.source == SourceStatus::Good));
        m.revision.set(view.revision.cast_signed());
        m.tenants.set(i64::try_from(view.tenants).unwrap_or(i64::MAX));
        m.keys.set(i64::try_from(view.verdicts.len()).unwrap_or(i64::MAX));
        self.publish.send_replace(Arc::new(view.clone()));
    }
}
