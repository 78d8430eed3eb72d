//! Verdicts on keys: this VM's cache, the shared data behind it, and pending verifications.
//!
//! ```text
//!            ┌── cached ──► served, while the feed is open or was within the grace
//!            ├── stale ──► verified; served for the grace while the relay does not respond
//!  lookup ───┼── unknown (a few seconds, this VM only) ──► 401
//!            └── none ──► verified (one call per key at a time) ──► cached | unknown | relay down
//!                               ▲ a change that names the key in the meantime: verified again
//! ```
//!
//! Any client can invent a key that this Envoy has never seen. Only such keys are verified within a
//! budget (see `unknown_keys.rs`).
//!
//! A verdict in shared data carries the epoch and revision at which it was current. A key that the
//! changes feed names becomes a *tombstone* there, with the revision of the change, so that an older
//! response on its way to another VM cannot bring the old verdict back.

use std::collections::BTreeMap;
use std::rc::Rc;

use protocol::time::MS_NS;
use protocol::{Epoch, FilterConfig, KeyHash, Verdict, VerifyResponse};
use serde::{Deserialize, Serialize};

use crate::effect::StreamId;
use crate::identity::cache::Cache;
use crate::identity::changes_feed::{self, ChangesFeed};
use crate::shared::{Shared, update};

/// Interval between attempts while the relay cannot be reached.
const BACK_OFF_NS: u64 = 500_000_000;

/// A verdict in shared data, under `v1/k/<digest>`. Without a verdict it is a tombstone.
#[derive(Debug, Serialize, Deserialize)]
struct SharedVerdict {
    #[serde(rename = "e")]
    epoch: Epoch,
    #[serde(rename = "r")]
    revision: u64,
    #[serde(rename = "v")]
    verdict: Option<Verdict>,
}

/// A verdict and the revision at which it was current.
#[derive(Debug)]
struct CachedVerdict {
    verdict: Rc<Verdict>,
    epoch: Epoch,
    revision: u64,
    /// Time since which the feed cannot vouch for this verdict. It must be verified before use.
    stale_since_ns: Option<u64>,
}

/// A verification call on its way, and the streams that wait for it.
#[derive(Debug, Default)]
struct PendingVerification {
    waiters: Vec<StreamId>,
    /// A response from before this revision is outdated and cannot be used.
    outdated: Option<(Epoch, u64)>,
    /// The call was lost with the stream that made it; another stream must repeat it.
    orphaned: bool,
}

/// The state of a key in this VM.
#[derive(Debug, Clone)]
pub(crate) enum Lookup {
    /// The verdict may be used.
    Cached(Rc<Verdict>),
    /// The relay has recently said that the key does not exist.
    Unknown,
    /// The key must be verified. The caller reports the call with [`Verdicts::ask`].
    Ask,
    /// The key was never seen and must be verified, within the budget for unknown keys.
    AskWithinBudget,
    /// A verification is on its way.
    Wait,
    /// There is no usable verdict, and the relay cannot be reached.
    RelayDown,
}

/// The verdicts of one VM.
#[derive(Debug)]
pub(crate) struct Verdicts {
    cached: Cache<KeyHash, CachedVerdict>,
    /// Keys that do not exist, with the end of their entry.
    unknown: BTreeMap<KeyHash, u64>,
    pending: BTreeMap<KeyHash, PendingVerification>,
    grace_ns: u64,
    negative_ttl_ns: u64,
    /// Bound on `unknown`.
    unknown_max: usize,
    /// Earliest next attempt after a failed verification; 0 while the relay responds.
    down_until_ns: u64,
}

impl Verdicts {
    /// Creates an empty cache.
    pub(crate) fn new(config: &FilterConfig) -> Self {
        Self {
            cached: Cache::new(config.cache_entries as usize),
            unknown: BTreeMap::new(),
            pending: BTreeMap::new(),
            grace_ns: u64::from(config.verdict_grace_ms) * MS_NS,
            negative_ttl_ns: u64::from(config.negative_ttl_ms) * MS_NS,
            unknown_max: config.cache_entries as usize,
            down_until_ns: 0,
        }
    }

    /// Looks up `key`, in this VM's cache first.
    pub(crate) fn lookup(
        &mut self,
        key: &KeyHash,
        feed: &ChangesFeed,
        now_ns: u64,
        shared: &dyn Shared,
    ) -> Lookup {
        let in_touch = feed.in_touch(now_ns, self.grace_ns);
        // The warm path: a verdict that the feed vouches for.
        let stale = match self.cached.get_mut(key) {
            Some(CachedVerdict { verdict, stale_since_ns: None, .. }) if in_touch => {
                return Lookup::Cached(verdict.clone());
            }
            Some(cached) => Some((cached.verdict.clone(), cached.stale_since_ns)),
            None => None,
        };
        if self.unknown.get(key).is_some_and(|until| now_ns < *until) {
            return Lookup::Unknown;
        }
        if let Some(pending) = self.pending.get(key)
            && !pending.orphaned
        {
            return Lookup::Wait;
        }
        let is_down = now_ns < self.down_until_ns;
        let Some((verdict, since_ns)) = stale else {
            return self.lookup_shared(key, feed, in_touch, is_down, shared);
        };
        // A stale verdict is verified. While the relay is down it is served for the grace.
        if !is_down {
            return Lookup::Ask;
        }
        let in_grace = since_ns.is_none_or(|since| now_ns < since.saturating_add(self.grace_ns));
        if in_touch && in_grace { Lookup::Cached(verdict) } else { Lookup::RelayDown }
    }

    /// Looks up a key that this VM does not know in shared data, and caches a current verdict.
    fn lookup_shared(
        &mut self,
        key: &KeyHash,
        feed: &ChangesFeed,
        in_touch: bool,
        is_down: bool,
        shared: &dyn Shared,
    ) -> Lookup {
        let bytes = shared.get(&shared_key(key)).map(|(bytes, _)| bytes);
        let found =
            bytes.as_ref().and_then(|bytes| serde_json::from_slice::<SharedVerdict>(bytes).ok());
        if let Some(SharedVerdict { epoch, revision, verdict: Some(verdict) }) = found
            && in_touch
            && feed.position().is_some_and(|position| position.covers(&epoch, revision))
        {
            let verdict = Rc::new(verdict);
            self.insert(
                *key,
                CachedVerdict { verdict: verdict.clone(), epoch, revision, stale_since_ns: None },
            );
            return Lookup::Cached(verdict);
        }
        if is_down {
            return Lookup::RelayDown;
        }
        // Any entry, a tombstone included, shows that the key was valid here once.
        if bytes.is_some() { Lookup::Ask } else { Lookup::AskWithinBudget }
    }

    fn insert(&mut self, key: KeyHash, cached: CachedVerdict) {
        self.unknown.remove(&key);
        self.cached.insert(key, cached);
    }

    /// Records that a verification of `key` is sent. After a failure it is the only one for a while.
    pub(crate) fn ask(&mut self, key: KeyHash, now_ns: u64) {
        let pending = self.pending.entry(key).or_default();
        pending.orphaned = false;
        if self.down_until_ns > 0 {
            self.down_until_ns = now_ns + BACK_OFF_NS;
        }
    }

    /// Lets `stream` wait for the verification of `key`.
    pub(crate) fn wait(&mut self, key: KeyHash, stream: StreamId) {
        self.pending.entry(key).or_default().waiters.push(stream);
    }

    /// Records that a call was lost with its stream.
    pub(crate) fn orphan(&mut self, key: &KeyHash) {
        if let Some(pending) = self.pending.get_mut(key) {
            pending.orphaned = true;
        }
    }

    /// Returns the keys whose call was lost while other streams wait; `is_open` tells which streams
    /// still do.
    pub(crate) fn orphans(&mut self, is_open: impl Fn(StreamId) -> bool) -> Vec<KeyHash> {
        self.pending.retain(|_, pending| {
            if pending.orphaned {
                pending.waiters.retain(|stream| is_open(*stream));
            }
            !(pending.orphaned && pending.waiters.is_empty())
        });
        self.pending.iter().filter(|(_, p)| p.orphaned).map(|(key, _)| *key).collect()
    }

    /// Takes the relay's response. Returns its meaning and the streams that waited for it.
    pub(crate) fn answered(
        &mut self,
        key: KeyHash,
        response: VerifyResponse,
        feed: &ChangesFeed,
        now_ns: u64,
        shared: &mut dyn Shared,
    ) -> (Lookup, Vec<StreamId>) {
        self.down_until_ns = 0;
        let pending = self.pending.remove(&key).unwrap_or_default();
        // The key changed while the response was on its way: verify again, waiters stay.
        if let Some((epoch, revision)) = &pending.outdated
            && (response.epoch != *epoch || response.revision < *revision)
        {
            self.pending.insert(key, PendingVerification { outdated: None, ..pending });
            return (Lookup::Ask, Vec::new());
        }
        let Some(verdict) = response.verdict else {
            self.cached.remove(&key);
            self.remember_unknown(key, now_ns);
            return (Lookup::Unknown, pending.waiters);
        };
        let entry = SharedVerdict {
            epoch: response.epoch.clone(),
            revision: response.revision,
            verdict: Some(verdict.clone()),
        };
        store(&key, &entry, shared);
        let verdict = Rc::new(verdict);
        // The feed reports no changes of an epoch that it does not follow: such a verdict is right
        // for this request only.
        let follows = feed.position().is_none_or(|position| position.epoch == response.epoch);
        let cached = CachedVerdict {
            verdict: verdict.clone(),
            epoch: response.epoch,
            revision: response.revision,
            stale_since_ns: if follows { None } else { Some(now_ns) },
        };
        self.insert(key, cached);
        (Lookup::Cached(verdict), pending.waiters)
    }

    fn remember_unknown(&mut self, key: KeyHash, now_ns: u64) {
        if self.unknown.len() >= self.unknown_max {
            self.unknown.pop_first();
        }
        self.unknown.insert(key, now_ns + self.negative_ttl_ns);
    }

    /// Records that a verification failed. Returns the streams that waited; they look up again.
    pub(crate) fn failed(&mut self, key: &KeyHash, now_ns: u64) -> Vec<StreamId> {
        self.down_until_ns = now_ns + BACK_OFF_NS;
        self.pending.remove(key).map(|pending| pending.waiters).unwrap_or_default()
    }

    /// Drops the verdicts that the feed reports as changed up to `revision`.
    pub(crate) fn changed(
        &mut self,
        epoch: &Epoch,
        revision: u64,
        changed: &[KeyHash],
        shared: &mut dyn Shared,
    ) {
        for key in changed {
            self.cached.remove(key);
            self.unknown.remove(key);
            if let Some(pending) = self.pending.get_mut(key) {
                pending.outdated = Some((epoch.clone(), revision));
            }
            let tombstone = SharedVerdict { epoch: epoch.clone(), revision, verdict: None };
            store(key, &tombstone, shared);
        }
    }

    /// Marks everything stale that is older than `revision` of `epoch`: any verdict may have changed.
    pub(crate) fn reset(&mut self, epoch: &Epoch, revision: u64, now_ns: u64) {
        self.unknown.clear();
        for cached in self.cached.values_mut() {
            let is_current = cached.epoch == *epoch && cached.revision >= revision;
            cached.stale_since_ns =
                if is_current { None } else { cached.stale_since_ns.or(Some(now_ns)) };
        }
        for pending in self.pending.values_mut() {
            pending.outdated = Some((epoch.clone(), revision));
        }
    }

    /// Removes expired entries of unknown keys.
    pub(crate) fn sweep(&mut self, now_ns: u64) {
        self.unknown.retain(|_, until| now_ns < *until);
    }

    /// Number of cached verdicts, unknown keys and pending verifications.
    pub(crate) fn sizes(&self) -> (usize, usize, usize) {
        (self.cached.len(), self.unknown.len(), self.pending.len())
    }
}

fn shared_key(key: &KeyHash) -> String {
    format!("v1/k/{key}")
}

/// Writes `entry` to shared data unless a newer one is there. Of two epochs, only the one that the
/// feed follows may overwrite the other: a VM that has not noticed the relay's restart must not
/// bring back a verdict from before it.
fn store(key: &KeyHash, entry: &SharedVerdict, shared: &mut dyn Shared) {
    let followed = changes_feed::read(shared).map(|position| position.epoch);
    update(shared, &shared_key(key), |bytes| {
        let existing: Option<SharedVerdict> = bytes.and_then(|b| serde_json::from_slice(b).ok());
        let is_newer = match &existing {
            None => true,
            Some(existing) if existing.epoch == entry.epoch => {
                existing.revision < entry.revision
                    || (existing.revision == entry.revision && existing.verdict.is_none())
            }
            Some(_) => followed.as_ref().is_none_or(|epoch| *epoch == entry.epoch),
        };
        if is_newer { serde_json::to_vec(entry).ok() } else { None }
    });
}
