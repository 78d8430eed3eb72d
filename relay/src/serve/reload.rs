//! Hot reload: the task that turns the source's text into published views.
//!
//! ```text
//! poll ──► parse ──► check for truncation ──► load into the state ──► publish, write last good copy
//! tick ──► end keys whose time has come ──► publish
//! ```
//!
//! A text that a command wrote is never held for truncated.
//!
//! A text that is invalid or looks truncated, or a source that can't be read, changes the view's
//! [`SourceHealth`] only: the last good registry is still served.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use protocol::Epoch;
use tokio::sync::watch;
use tokio::task::{JoinError, spawn_blocking};
use tokio::time::{sleep, timeout};
use tracing::{error, info, warn};

use super::metrics::{Metrics, Outcome, count};
use super::state::{RelayState, SourceHealth, View};
use crate::clock::now_s;
use crate::registry::truncation::{Candidate, Suspicion, TruncationGuard};
use crate::registry::{Faults, Registry};
use crate::source::last_good::{self, GoodText};
use crate::source::{Reading, Source, Text};

/// Interval at which ended keys are looked for, during slow polls and between fast ones. A key ends at
/// most this late, plus the time to parse a registry that has just changed.
const TICK: Duration = Duration::from_millis(50);

/// Time to read the last good copy.
const RESTORE_TIMEOUT: Duration = Duration::from_secs(5);

/// Drives one source.
#[derive(Debug)]
pub(super) struct Reloader {
    source: Source,
    last_good_path: PathBuf,
    publisher: Publisher,
}

/// Judges what the source delivers and publishes the result.
#[derive(Debug)]
struct Publisher {
    state: RelayState,
    guard: TruncationGuard,
    views: watch::Sender<Arc<View>>,
    good_texts: watch::Sender<GoodText>,
    metrics: Arc<Metrics>,
}

impl Reloader {
    /// Creates a reloader and the channel of its views. Nothing is read yet.
    ///
    /// A text that looks truncated is pending for the time `hold`. Accepted texts go to `good_texts`,
    /// and the copy in `last_good_path` is served until there is one.
    pub(super) fn new(
        source: Source,
        hold: Duration,
        last_good_path: PathBuf,
        good_texts: watch::Sender<GoodText>,
        epoch: Epoch,
        metrics: Arc<Metrics>,
    ) -> (Self, watch::Receiver<Arc<View>>) {
        let state = RelayState::new(epoch);
        let (views, receiver) = watch::channel(Arc::new(state.view().clone()));
        let guard = TruncationGuard::new(hold);
        let publisher = Publisher { state, guard, views, good_texts, metrics };
        (Self { source, last_good_path, publisher }, receiver)
    }

    /// Polls until dropped. Fails if a blocking task panicked.
    pub(super) async fn run(self) -> Result<(), JoinError> {
        let Self { mut source, last_good_path, mut publisher } = self;
        publisher.restore(last_good_path).await?;
        let mut pause = Duration::ZERO;
        loop {
            // Once per poll, because polls that are shorter than a tick never let one come.
            publisher.tick();
            let poll = async {
                sleep(pause).await;
                let reading = source.poll().await?;
                pause = source.interval();
                Ok(reading)
            };
            tokio::pin!(poll);
            let reading = loop {
                tokio::select! {
                    reading = &mut poll => break reading,
                    () = sleep(TICK) => publisher.tick(),
                }
            };
            publisher.on_reading(reading?).await?;
        }
    }
}

impl Publisher {
    fn tick(&mut self) {
        let changed = self.state.tick(now_s());
        if changed > 0 {
            info!(changed, revision = self.state.view().revision, "keys have ended");
            self.publish();
        }
    }

    /// Serves the last good copy. It may be on a network folder that does not respond.
    async fn restore(&mut self, path: PathBuf) -> Result<(), JoinError> {
        let load = spawn_blocking(move || last_good::load(&path));
        let Ok(loaded) = timeout(RESTORE_TIMEOUT, load).await else {
            warn!(timeout = ?RESTORE_TIMEOUT, "last good copy can't be read in time");
            return Ok(());
        };
        match loaded? {
            Ok(Some(registry)) => {
                self.state.restore(registry, now_s());
                let tenants = self.state.view().tenants;
                info!(tenants, "serving the last good copy until the source is read");
                self.publish();
            }
            Ok(None) => {}
            Err(error) => warn!(%error, "last good copy can't be used"),
        }
        Ok(())
    }

    async fn on_reading(&mut self, reading: Reading) -> Result<(), JoinError> {
        let now = Instant::now();
        match reading {
            Reading::Unchanged => {
                if let Some(candidate) = self.guard.on_unchanged(now) {
                    warn!("registry that looks truncated was unchanged for its hold time");
                    self.accept(candidate);
                    self.publish();
                }
            }
            Reading::Changing => self.guard.on_changing(now),
            Reading::New(text) => {
                self.on_text(text, now).await?;
                self.publish();
            }
            Reading::Unreadable(reason) => {
                if self.set_gone(&reason) {
                    self.publish();
                }
            }
        }
        Ok(())
    }

    async fn on_text(&mut self, text: Text, now: Instant) -> Result<(), JoinError> {
        let Text { bytes, by_command } = text;
        // Parsing a large registry would delay responses on this thread.
        let parsed = spawn_blocking(move || {
            let registry = Registry::parse(&bytes)?;
            Ok(Candidate { bytes, registry })
        });
        match parsed.await? {
            Ok(candidate) if by_command => {
                self.guard.discard();
                self.accept(candidate);
            }
            Ok(candidate) => {
                let current = self.state.registry();
                match self.guard.check(current, candidate, now_s(), now) {
                    Ok(candidate) => self.accept(candidate),
                    Err(suspicion) => self.set_suspicious(suspicion),
                }
            }
            Err(faults) => self.refuse(&faults),
        }
        Ok(())
    }

    fn accept(&mut self, candidate: Candidate) {
        for warning in candidate.registry.warnings() {
            warn!(%warning, "registry should be corrected");
        }
        let changed = self.state.load(candidate.registry, now_s());
        self.good_texts.send_replace(Some(Arc::new(candidate.bytes)));
        count(&self.metrics.loads, Outcome::good);
        self.metrics.loaded_s.set(now_s());
        let view = self.state.view();
        info!(tenants = view.tenants, changed, revision = view.revision, "registry was loaded");
    }

    fn set_suspicious(&mut self, suspicion: Suspicion) {
        count(&self.metrics.loads, Outcome::suspicious);
        let revision = self.state.view().revision;
        warn!(%suspicion, revision, "registry looks truncated: the last good one stays for now");
        self.state.set_source_health(SourceHealth::Suspicious(suspicion.to_string()));
    }

    fn refuse(&mut self, faults: &Faults) {
        self.guard.discard();
        count(&self.metrics.loads, Outcome::refused);
        for fault in faults.iter() {
            error!(error = %fault, "registry has a fault");
        }
        let revision = self.state.view().revision;
        error!(faults = faults.len(), revision, "registry is invalid: the last good one stays");
        self.state.set_source_health(SourceHealth::Refused(faults.to_string()));
    }

    /// Records that the source can't be read. Returns true if that has not been recorded before.
    fn set_gone(&mut self, reason: &str) -> bool {
        self.guard.discard();
        let is_news = self.state.set_source_health(SourceHealth::Gone(reason.to_owned()));
        if is_news {
            count(&self.metrics.loads, Outcome::gone);
            error!(error = reason, "registry can't be read: the last good one stays");
        }
        is_news
    }

    fn publish(&self) {
        let view = self.state.view();
        let metrics = &self.metrics;
        metrics.source_good.set(i64::from(view.source == SourceHealth::Good));
        metrics.revision.set(view.revision.cast_signed());
        metrics.tenants.set(i64::try_from(view.tenants).unwrap_or(i64::MAX));
        metrics.keys.set(i64::try_from(view.verdicts.len()).unwrap_or(i64::MAX));
        self.views.send_replace(Arc::new(view.clone()));
    }
}
