//! What is known of keys: this VM's cache, the shared data behind it, and who waits for an answer.
//!
//! ```text
//!            ┌── known ──► served, while the feed is open or was within the grace
//!            ├── stale ──► asked; served for the grace while the relay does not answer that
//!  lookup ───┼── unknown (a few seconds, this VM only) ──► 401
//!            └── neither ──► asked (one question per key at a time) ──► known | unknown | down
//!                               ▲ a change that names the key meanwhile: asked again
//! ```
//!
//! A key that nobody in this process has heard of is a *stranger*: only those are asked about within
//! a budget, for only those can be made up (see `unknown_keys.rs`).
//!
//! A verdict in shared data carries the epoch and revision it was right at. A key that the feed
//! names becomes a *tombstone* there, with the revision of the news, so that an older answer that
//! is still on its way to some VM can't bring the old verdict back.

use std::collections::BTreeMap;
use std::rc::Rc;

use protocol::{Epoch, FilterConfig, KeyHash, Verdict, VerifyResponse};
use serde::{Deserialize, Serialize};

use crate::engine::StreamId;
use crate::identity::cache::Cache;
use crate::identity::changes_feed::{self, ChangesFeed};
use crate::shared::{Shared, update};

/// Pause after a question that failed: so often is a relay tried that can't be reached.
const BACK_OFF_NS: u64 = 500_000_000;
const SECOND_NS: u64 = 1_000_000_000;
const MS_NS: u64 = 1_000_000;

/// What stands in shared data under `v1/k/<digest>`. `v: null` is a tombstone.
#[derive(Debug, Serialize, Deserialize)]
struct Record {
    e: Epoch,
    r: u64,
    v: Option<Verdict>,
}

/// A verdict and when it was right.
#[derive(Debug)]
struct Known {
    verdict: Rc<Verdict>,
    epoch: Epoch,
    revision: u64,
    /// Since when it must be asked about before it is used: the feed can't tell whether it is right.
    stale_since_ns: Option<u64>,
}

/// A question on its way.
#[derive(Debug, Default)]
struct Asking {
    waiters: Vec<StreamId>,
    /// An answer as of before this can't be used.
    outdated: Option<(Epoch, u64)>,
    /// The call was lost with the stream that made it: somebody must ask again.
    orphaned: bool,
}

/// What is known of a key.
#[derive(Debug, Clone)]
pub(crate) enum Lookup {
    /// This.
    Known(Rc<Verdict>),
    /// That it does not exist.
    Unknown,
    /// Nothing for certain: somebody must ask, and say so with [`Verdicts::ask`].
    Ask,
    /// Nothing, nor ever was: as [`Lookup::Ask`], if the budget for those allows it.
    Stranger,
    /// Nothing yet: somebody has asked.
    Wait,
    /// Nothing, and the relay can't be reached.
    Down,
}

/// The keys of one VM.
#[derive(Debug)]
pub(crate) struct Verdicts {
    known: Cache<KeyHash, Known>,
    unknown: BTreeMap<KeyHash, u64>,
    asking: BTreeMap<KeyHash, Asking>,
    grace_ns: u64,
    negative_ttl_ns: u64,
    /// Most unknown keys remembered.
    unknown_max: usize,
    /// After a failed question: when the next may be asked.
    down_until_ns: u64,
}

impl Verdicts {
    /// Nothing known yet.
    pub(crate) fn new(config: &FilterConfig) -> Self {
        Self {
            known: Cache::new(config.cache_entries as usize),
            unknown: BTreeMap::new(),
            asking: BTreeMap::new(),
            grace_ns: u64::from(config.grace_s) * SECOND_NS,
            negative_ttl_ns: u64::from(config.negative_ttl_ms) * MS_NS,
            unknown_max: config.cache_entries as usize,
            down_until_ns: 0,
        }
    }

    /// What is known of `key` now.
    pub(crate) fn lookup(
        &mut self,
        key: &KeyHash,
        feed: &ChangesFeed,
        now_ns: u64,
        shared: &dyn Shared,
    ) -> Lookup {
        let in_touch = feed.in_touch(now_ns, self.grace_ns);
        let stale = match self.known.get_mut(key) {
            Some(Known { verdict, stale_since_ns: None, .. }) if in_touch => {
                return Lookup::Known(verdict.clone());
            }
            Some(known) => Some((known.verdict.clone(), known.stale_since_ns)),
            None => None,
        };
        if self.unknown.get(key).is_some_and(|until| now_ns < *until) {
            return Lookup::Unknown;
        }
        if let Some(asking) = self.asking.get(key)
            && !asking.orphaned
        {
            return Lookup::Wait;
        }
        let is_down = now_ns < self.down_until_ns;
        let Some((verdict, since_ns)) = stale else {
            return self.recall(key, feed, in_touch, is_down, shared);
        };
        let in_grace = since_ns.is_none_or(|since| now_ns < since.saturating_add(self.grace_ns));
        match is_down {
            false => Lookup::Ask,
            true if in_touch && in_grace => Lookup::Known(verdict),
            true => Lookup::Down,
        }
    }

    /// From shared data, if that is certain to be right.
    fn recall(
        &mut self,
        key: &KeyHash,
        feed: &ChangesFeed,
        in_touch: bool,
        is_down: bool,
        shared: &dyn Shared,
    ) -> Lookup {
        let bytes = shared.get(&record_key(key)).map(|(bytes, _)| bytes);
        let record = bytes.as_ref().and_then(|bytes| serde_json::from_slice::<Record>(bytes).ok());
        if let Some(Record { e, r, v: Some(verdict) }) = record
            && in_touch
            && feed.position().is_some_and(|position| position.covers(&e, r))
        {
            let verdict = Rc::new(verdict);
            self.learn(*key, verdict.clone(), e, r, None);
            return Lookup::Known(verdict);
        }
        match (is_down, bytes) {
            (true, _) => Lookup::Down,
            (false, Some(_)) => Lookup::Ask,
            (false, None) => Lookup::Stranger,
        }
    }

    fn learn(
        &mut self,
        key: KeyHash,
        verdict: Rc<Verdict>,
        epoch: Epoch,
        revision: u64,
        stale_since_ns: Option<u64>,
    ) {
        self.unknown.remove(&key);
        self.known.insert(key, Known { verdict, epoch, revision, stale_since_ns });
    }

    /// A question for `key` goes out; after a failure it is the only one for a while.
    pub(crate) fn ask(&mut self, key: KeyHash, now_ns: u64) {
        let asking = self.asking.entry(key).or_default();
        asking.orphaned = false;
        if self.down_until_ns > 0 {
            self.down_until_ns = now_ns + BACK_OFF_NS;
        }
    }

    /// `stream` waits for the answer.
    pub(crate) fn wait(&mut self, key: KeyHash, stream: StreamId) {
        self.asking.entry(key).or_default().waiters.push(stream);
    }

    /// The call was lost with its stream.
    pub(crate) fn orphan(&mut self, key: &KeyHash) {
        if let Some(asking) = self.asking.get_mut(key) {
            asking.orphaned = true;
        }
    }

    /// Keys whose call was lost and whose waiters are still there. `alive` tells which are.
    pub(crate) fn orphans(&mut self, alive: impl Fn(StreamId) -> bool) -> Vec<KeyHash> {
        self.asking.retain(|_, asking| {
            if asking.orphaned {
                asking.waiters.retain(|stream| alive(*stream));
            }
            !(asking.orphaned && asking.waiters.is_empty())
        });
        self.asking.iter().filter(|(_, a)| a.orphaned).map(|(key, _)| *key).collect()
    }

    /// The relay's answer, and who waited for it.
    pub(crate) fn answered(
        &mut self,
        key: KeyHash,
        answer: VerifyResponse,
        feed: &ChangesFeed,
        now_ns: u64,
        shared: &mut dyn Shared,
    ) -> (Lookup, Vec<StreamId>) {
        self.down_until_ns = 0;
        let asking = self.asking.remove(&key).unwrap_or_default();
        if let Some((epoch, revision)) = &asking.outdated
            && (answer.epoch != *epoch || answer.revision < *revision)
        {
            self.asking.insert(key, Asking { outdated: None, ..asking });
            return (Lookup::Ask, Vec::new());
        }
        let lookup = match answer.verdict {
            None => {
                self.known.remove(&key);
                self.remember_unknown(key, now_ns);
                Lookup::Unknown
            }
            Some(verdict) => {
                let (e, r) = (answer.epoch.clone(), answer.revision);
                write(&key, &Record { e, r, v: Some(verdict.clone()) }, shared);
                let verdict = Rc::new(verdict);
                // Of a life that the feed does not follow it tells no changes: right now, never later.
                let follows = feed.position().is_none_or(|p| p.epoch == answer.epoch);
                let stale_since_ns = (!follows).then_some(now_ns);
                self.learn(key, verdict.clone(), answer.epoch, r, stale_since_ns);
                Lookup::Known(verdict)
            }
        };
        (lookup, asking.waiters)
    }

    fn remember_unknown(&mut self, key: KeyHash, now_ns: u64) {
        if self.unknown.len() >= self.unknown_max {
            self.unknown.pop_first();
        }
        self.unknown.insert(key, now_ns + self.negative_ttl_ns);
    }

    /// The question failed. Returns who waited; they look again.
    pub(crate) fn failed(&mut self, key: &KeyHash, now_ns: u64) -> Vec<StreamId> {
        self.down_until_ns = now_ns + BACK_OFF_NS;
        self.asking.remove(key).map(|asking| asking.waiters).unwrap_or_default()
    }

    /// The feed names what has changed up to `revision`.
    pub(crate) fn changed(
        &mut self,
        epoch: &Epoch,
        revision: u64,
        changed: &[KeyHash],
        shared: &mut dyn Shared,
    ) {
        for key in changed {
            self.known.remove(key);
            self.unknown.remove(key);
            if let Some(asking) = self.asking.get_mut(key) {
                asking.outdated = Some((epoch.clone(), revision));
            }
            write(key, &Record { e: epoch.clone(), r: revision, v: None }, shared);
        }
    }

    /// Anything may have changed: what is not as of `revision` of `epoch` is asked about again.
    pub(crate) fn reset(&mut self, epoch: &Epoch, revision: u64, now_ns: u64) {
        self.unknown.clear();
        for known in self.known.values_mut() {
            let is_right = known.epoch == *epoch && known.revision >= revision;
            known.stale_since_ns =
                if is_right { None } else { known.stale_since_ns.or(Some(now_ns)) };
        }
        for asking in self.asking.values_mut() {
            asking.outdated = Some((epoch.clone(), revision));
        }
    }

    /// Forgets unknown keys whose time is over.
    pub(crate) fn sweep(&mut self, now_ns: u64) {
        self.unknown.retain(|_, until| now_ns < *until);
    }

    /// Entries: known, unknown, asked about.
    pub(crate) fn sizes(&self) -> (usize, usize, usize) {
        (self.known.len(), self.unknown.len(), self.asking.len())
    }
}

fn record_key(key: &KeyHash) -> String {
    format!("v1/k/{key}")
}

/// Writes what is newer than what stands there. Between epochs only the one that the feed follows
/// may overwrite: a VM that has not heard of the relay's new life must not bring back the old one.
fn write(key: &KeyHash, record: &Record, shared: &mut dyn Shared) {
    let epoch_now = changes_feed::read(shared).map(|position| position.epoch);
    update(shared, &record_key(key), |bytes| {
        let there: Option<Record> = bytes.and_then(|b| serde_json::from_slice(b).ok());
        let newer = match &there {
            None => true,
            Some(there) if there.e == record.e => {
                there.r < record.r || (there.r == record.r && there.v.is_none())
            }
            Some(_) => epoch_now.as_ref().is_none_or(|now| *now == record.e),
        };
        if newer { serde_json::to_vec(record).ok() } else { None }
    });
}
