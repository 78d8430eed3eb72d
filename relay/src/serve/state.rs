//! What the relay knows: the registry's verdicts, their revision, and which digests changed when.
//!
//! ```text
//! empty ──load──► revision 1 ──load or tick that changes verdicts──► revision n + 1 ──► …
//!                      └── load or tick that changes none: the same revision
//! ```
//!
//! [`Book`] is the one writer, without clock or lock. What it publishes is a [`View`]: whole,
//! immutable, swapped at once, so that no reader sees half of a registry.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use protocol::{ChangesResponse, Epoch, KeyHash, Verdict, VerifyResponse};

use crate::registry::Registry;

/// Changed digests remembered. A gateway that missed more is told to ask everything anew, which
/// costs it one question per key in use; 4096 are 160 kB here and 280 kB as an answer.
pub const HISTORY_MAX: usize = 4096;

/// The registry as it is answered from. Cheap to clone.
#[derive(Debug, Clone)]
pub struct View {
    /// This life of the relay.
    pub epoch: Epoch,
    /// 0 until the first registry has been read.
    pub revision: u64,
    /// Digest → verdict.
    pub verdicts: Arc<HashMap<KeyHash, Verdict>>,
    /// Tenants in the registry.
    pub tenants: usize,
    /// How the source does.
    pub source: SourceStatus,
    history: Arc<History>,
}

/// How the registry's source does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SourceStatus {
    /// It has not been read yet.
    Starting,
    /// What it says is what is answered.
    Good,
    /// It can't be read: the last good registry is answered.
    Gone(String),
    /// What it says is not valid: the last good registry is answered.
    Refused(String),
    /// What it says looks cut: the last good registry is answered until it is believed.
    Suspicious(String),
}

/// Which digests changed, oldest first.
#[derive(Debug, Clone, Default)]
struct History {
    /// Changes up to this revision have been forgotten.
    floor: u64,
    changes: VecDeque<(u64, KeyHash)>,
}

/// The writer of views.
#[derive(Debug)]
pub struct Book {
    view: View,
    registry: Registry,
    /// When the verdicts were judged, and when the next key ends.
    judged_s: u64,
    next_expiry_s: Option<u64>,
}

impl View {
    /// The answer to "is this key good"; `None`: no registry yet.
    pub fn verify(&self, hash: &KeyHash) -> Option<VerifyResponse> {
        (self.revision > 0).then(|| VerifyResponse {
            epoch: self.epoch.clone(),
            revision: self.revision,
            verdict: self.verdicts.get(hash).cloned(),
        })
    }

    /// The answer to "what has changed since", if there is anything to say yet.
    pub fn changes(&self, epoch: Option<&Epoch>, since: u64) -> Option<ChangesResponse> {
        if epoch == Some(&self.epoch) && since == self.revision {
            return None;
        }
        let known = epoch == Some(&self.epoch) && since < self.revision;
        let changed = known.then(|| self.history.since(since)).flatten();
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
            self.floor = self.changes.pop_front().map_or(revision, |(forgotten, _)| forgotten);
        }
    }

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

impl Book {
    /// An empty book of a new life.
    pub fn new(epoch: Epoch) -> Self {
        let view = View {
            epoch,
            revision: 0,
            verdicts: Arc::default(),
            tenants: 0,
            source: SourceStatus::Starting,
            history: Arc::default(),
        };
        Self { view, registry: Registry::default(), judged_s: 0, next_expiry_s: None }
    }

    /// What is to be published.
    pub fn view(&self) -> &View {
        &self.view
    }

    /// The registry that is answered; without tenants before the first.
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// Takes a registry over. Returns how many digests have another verdict than before.
    pub fn load(&mut self, registry: Registry, now_s: u64) -> usize {
        self.registry = registry;
        self.view.tenants = self.registry.tenants.len();
        self.view.source = SourceStatus::Good;
        self.judge(now_s)
    }

    /// Takes over a registry that was good in another life; how the source does is not known by it.
    pub fn restore(&mut self, registry: Registry, now_s: u64) {
        let source = self.view.source.clone();
        self.load(registry, now_s);
        self.view.source = source;
    }

    /// Lets keys end whose time has come, or live again when the clock was put back. Returns how
    /// many digests have another verdict than before.
    pub fn tick(&mut self, now_s: u64) -> usize {
        let due = self.next_expiry_s.is_some_and(|end| end <= now_s) || now_s < self.judged_s;
        if due && self.view.revision > 0 { self.judge(now_s) } else { 0 }
    }

    /// Notes that the source can't be read or is not valid. Returns whether that is news.
    pub fn trouble(&mut self, status: SourceStatus) -> bool {
        let news = self.view.source != status;
        self.view.source = status;
        news
    }

    fn judge(&mut self, now_s: u64) -> usize {
        self.judged_s = now_s;
        self.next_expiry_s = self.registry.next_expiry_s(now_s);
        let new = self.registry.verdicts(now_s);
        let old = std::mem::replace(&mut self.view.verdicts, Arc::new(new));
        let new = &self.view.verdicts;
        let altered = new.iter().filter(|(hash, verdict)| old.get(hash) != Some(verdict));
        let gone = old.iter().filter(|(hash, _)| new.get(hash).is_none());
        let changed: Vec<_> = altered.chain(gone).map(|(hash, _)| *hash).collect();
        let count = changed.len();
        if self.view.revision == 0 {
            // Nobody can have followed before there was anything.
            self.view.revision = 1;
            self.view.history = Arc::new(History { floor: 1, changes: VecDeque::new() });
        } else if count > 0 {
            self.view.revision += 1;
            Arc::make_mut(&mut self.view.history).push(self.view.revision, changed);
        }
        count
    }
}

#[cfg(test)]
mod tests;
