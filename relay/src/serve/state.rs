//! The verdicts of the registry, their revision, and the digests that changed at each revision.
//!
//! ```text
//! empty ──load──► revision 1 ──load or tick that changes verdicts──► revision n + 1 ──► …
//!                      └── load or tick that changes none: the same revision
//! ```
//!
//! [`RelayState`] is the only writer, without clock or lock. It publishes a [`View`], which is
//! immutable and swapped as a whole, so that no reader sees one half of a registry.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use protocol::{ChangesResponse, Epoch, KeyHash, Verdict, VerifyResponse};

use crate::registry::Registry;

/// Bound on the remembered changes. A gateway that has missed more is asked to drop all its verdicts,
/// which costs it one verify per key in use. 4096 changes take 160 kB here and 280 kB in a response.
const HISTORY_MAX: usize = 4096;

/// The registry as it is served. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct View {
    pub(super) epoch: Epoch,
    /// Number of the verdicts within the epoch; 0 before the first registry.
    pub(super) revision: u64,
    /// Verdicts by digest. A plain map is enough: timings may help to guess a digest piece by piece,
    /// but the digest of 128 random bits leads to no key.
    pub(super) verdicts: Arc<HashMap<KeyHash, Verdict>>,
    /// Number of tenants in the registry.
    pub(super) tenants: usize,
    pub(super) source: SourceHealth,
    history: Arc<History>,
}

/// Health of the registry's source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum SourceHealth {
    /// The source has not been read yet.
    Starting,
    /// Verdicts come from the source's current text.
    Good,
    /// The source can't be read, with the reason; the last good registry is served.
    Gone(String),
    /// The source's text is invalid, with the faults; the last good registry is served.
    Refused(String),
    /// The source's text looks truncated, with the sign of it; the last good registry is served
    /// until the text is accepted.
    Suspicious(String),
}

/// Digests whose verdict changed, oldest first.
#[derive(Debug, Clone, Default)]
struct History {
    /// Changes up to this revision are forgotten.
    floor: u64,
    changes: VecDeque<(u64, KeyHash)>,
}

/// The writer of views.
#[derive(Debug)]
pub(super) struct RelayState {
    view: View,
    registry: Registry,
    /// Time for which the verdicts were computed, in seconds since 1970 UTC.
    computed_at_s: u64,
    /// The next end of a key after that time.
    next_expiry_s: Option<u64>,
}

impl View {
    /// The response about a key; `None` before the first registry.
    pub(super) fn verify(&self, hash: &KeyHash) -> Option<VerifyResponse> {
        if self.revision == 0 {
            return None;
        }
        Some(VerifyResponse {
            epoch: self.epoch.clone(),
            revision: self.revision,
            verdict: self.verdicts.get(hash).cloned(),
        })
    }

    /// The changes since a revision that a gateway has seen; `None` if it is up to date.
    pub(super) fn changes(&self, epoch: Option<&Epoch>, since: u64) -> Option<ChangesResponse> {
        let same_epoch = epoch == Some(&self.epoch);
        if same_epoch && since == self.revision {
            return None;
        }
        // Another epoch, or a revision from the future, can't be compared with ours.
        let comparable = same_epoch && since < self.revision;
        let changed = if comparable { self.history.since(since) } else { None };
        Some(ChangesResponse {
            epoch: self.epoch.clone(),
            revision: self.revision,
            reset: changed.is_none(),
            changed: changed.unwrap_or_default(),
        })
    }
}

impl History {
    fn push(&mut self, revision: u64, changed: Vec<KeyHash>) {
        self.changes.extend(changed.into_iter().map(|hash| (revision, hash)));
        while self.changes.len() > HISTORY_MAX {
            let oldest = self.changes.pop_front();
            self.floor = oldest.map_or(revision, |(forgotten, _)| forgotten);
        }
    }

    /// The digests that changed after `revision`; `None` if some are forgotten.
    fn since(&self, revision: u64) -> Option<Vec<KeyHash>> {
        if revision < self.floor {
            return None;
        }
        let later = self.changes.iter().filter(|(at, _)| *at > revision);
        let mut changed: Vec<_> = later.map(|(_, hash)| *hash).collect();
        changed.sort_unstable();
        changed.dedup();
        Some(changed)
    }
}

impl RelayState {
    pub(super) fn new(epoch: Epoch) -> Self {
        let view = View {
            epoch,
            revision: 0,
            verdicts: Arc::default(),
            tenants: 0,
            source: SourceHealth::Starting,
            history: Arc::default(),
        };
        Self { view, registry: Registry::default(), computed_at_s: 0, next_expiry_s: None }
    }

    /// The view to publish.
    pub(super) fn view(&self) -> &View {
        &self.view
    }

    /// The registry that is served; empty before the first one.
    pub(super) fn registry(&self) -> &Registry {
        &self.registry
    }

    /// Replaces the registry. Returns the number of digests whose verdict has changed.
    pub(super) fn load(&mut self, registry: Registry, now_s: u64) -> usize {
        self.registry = registry;
        self.view.tenants = self.registry.tenants.len();
        self.view.source = SourceHealth::Good;
        self.recompute(now_s)
    }

    /// Serves the last good registry of an earlier run. It says nothing about the source's health.
    pub(super) fn restore(&mut self, registry: Registry, now_s: u64) {
        let source = self.view.source.clone();
        self.load(registry, now_s);
        self.view.source = source;
    }

    /// Ends keys whose time has come, or revives them if the clock was set back. Returns the number
    /// of digests whose verdict has changed.
    pub(super) fn tick(&mut self, now_s: u64) -> usize {
        let key_has_ended = self.next_expiry_s.is_some_and(|end_s| end_s <= now_s);
        let clock_set_back = now_s < self.computed_at_s;
        if self.view.revision == 0 || !(key_has_ended || clock_set_back) {
            return 0;
        }
        self.recompute(now_s)
    }

    /// Records a source that is not good. Returns true if its health has changed.
    pub(super) fn set_source_health(&mut self, health: SourceHealth) -> bool {
        let has_changed = self.view.source != health;
        self.view.source = health;
        has_changed
    }

    /// Computes the verdicts at `now_s` and raises the revision if any differ.
    fn recompute(&mut self, now_s: u64) -> usize {
        self.computed_at_s = now_s;
        self.next_expiry_s = self.registry.next_expiry_s(now_s);
        let new = self.registry.verdicts(now_s);
        let changed = changed_digests(&self.view.verdicts, &new);
        let count = changed.len();
        self.view.verdicts = Arc::new(new);
        if self.view.revision == 0 {
            // No gateway can have followed before the first registry: there is no history.
            self.view.revision = 1;
            self.view.history = Arc::new(History { floor: 1, changes: VecDeque::new() });
        } else if count > 0 {
            self.view.revision += 1;
            Arc::make_mut(&mut self.view.history).push(self.view.revision, changed);
        }
        count
    }
}

/// The digests whose verdict is new, different or gone.
fn changed_digests(
    old: &HashMap<KeyHash, Verdict>,
    new: &HashMap<KeyHash, Verdict>,
) -> Vec<KeyHash> {
    let altered = new.iter().filter(|(hash, verdict)| old.get(hash) != Some(verdict));
    let gone = old.iter().filter(|(hash, _)| !new.contains_key(hash));
    altered.chain(gone).map(|(hash, _)| *hash).collect()
}

#[cfg(test)]
mod tests;
