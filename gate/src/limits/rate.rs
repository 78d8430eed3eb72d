//! The rate limit: one token bucket per tenant, shared by all VMs of one Envoy.
//!
//! GCRA: the shared record holds the time at which the bucket would be full again. A VM does not
//! read the record for each request. It draws a *batch* of tokens and spends them locally:
//!
//! ```text
//!            draw k (compare-and-swap)                    spend one per request, no shared data
//!  record ───────────────────────────────► VM's batch ────────────────────────────────► allowed
//!    ▲                                          │ BATCH_NS passed
//!    └──────────── refund (settle) ◄────────────┘ (later than REFUND_NS: forfeited)
//! ```
//!
//! For every interleaving (see `tests.rs` of this folder):
//! - From any instant without drawn tokens, all VMs together pass at most `burst + rate·t`.
//! - In *any* window of t seconds they pass at most `burst + rate·(t + REFUND_NS)`.
//! - Unfairness: other VMs may hold tokens, at most [`Batch::max`] (an eighth of the burst) each, for
//!   at most `BATCH_NS` while such a VM serves requests or settles. A VM refuses only when the
//!   record is empty, so a tenant misses at most `(VMs - 1)·burst/8` tokens for that time. No VM
//!   holds tokens of a bucket smaller than 16.
//! - Changed limits apply to the next request: tokens drawn under other limits are void.
//!
//! A response or rewrite that is larger than its request has paid for makes the tenant *owe* tokens
//! ([`Buckets::owe`]): its cost is known only when the request has passed, so the bucket may go below
//! zero, and the next requests are refused until that is paid off. A VM remembers what is owed until
//! the record contains it: before its next request of the tenant, or at the next settling. Nothing is
//! forgiven because a compare-and-swap was lost.
//!
//! A draw is judged by the host's clock as of now. The time of an event may be older, by a tick of
//! its VM, or by all the time for which Envoy stood still: by such a time one VM would refuse what
//! the bucket allows, because another VM's record is ahead of it, or allow a burst twice.
//!
//! Only registered tenants get here, so the registry bounds the number of shared keys.

use std::collections::BTreeMap;
use std::sync::Arc;

use protocol::time::SECOND_NS;
use protocol::{Limits, TenantId};

use crate::shared::Shared;

mod header;
mod record;
#[cfg(test)]
mod tests;

use record::{Pace, Record};

/// Lifetime of a batch: long enough that a busy VM spends all of it, short enough that an idle VM
/// does not withhold tokens for a noticeable time.
pub(crate) const BATCH_NS: u64 = 250_000_000;
/// Oldest age at which unspent tokens are refunded. Older ones are forfeited, because the bucket
/// may have filled up and been emptied since.
pub(crate) const REFUND_NS: u64 = 2 * BATCH_NS;
/// Time for which an empty bucket is assumed to stay empty. A flood that is refused then costs no
/// hostcall, and tokens that other VMs refund are still found soon.
pub(crate) const DENIAL_NS: u64 = 50_000_000;
/// Attempts at one compare-and-swap. Each failure is another VM's success, and VMs draw rarely.
pub(crate) const ATTEMPTS: u32 = 16;
/// Entries that were idle for this long are evicted first when the map is full.
const IDLE_NS: u64 = 10_000_000_000;

/// The outcome of one request at its bucket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rate {
    /// The request may pass.
    pub(crate) allowed: bool,
    /// Size of the bucket in tokens.
    pub(crate) limit: u32,
    /// Tokens left, as of this VM's last read of the shared record.
    pub(crate) remaining: u32,
    /// Seconds until the bucket is full.
    pub(crate) reset_s: u32,
    /// Seconds until this request would pass, if it does not.
    pub(crate) retry_after_s: Option<u32>,
    /// Value of the header `RateLimit-Policy`.
    pub(crate) policy: Arc<str>,
}

/// The token buckets of all tenants, as one VM sees them.
#[derive(Debug)]
pub struct Buckets {
    capacity: usize,
    tenants: BTreeMap<TenantId, Batch>,
    /// `RateLimit-Policy` by pace; tenants of one tier share the text.
    policies: BTreeMap<Pace, Arc<str>>,
    swept_ns: u64,
}

/// Bound on cached policies. Tiers and exceptions are few; beyond this the map is cleared.
const POLICIES_MAX: usize = 1_024;

/// One tenant's tokens in this VM.
#[derive(Debug)]
struct Batch {
    pace: Pace,
    policy: Arc<str>,
    tokens: u32,
    drawn_ns: u64,
    /// Tokens that the tenant owes and that the record does not contain yet.
    owed: u32,
    /// Size of the next batch, before it is bounded. Doubles while batches are spent in time.
    appetite: u32,
    /// Time at which the shared bucket is full, as of the last read.
    full_ns: u64,
    /// Until then, requests that cost at least `denied_cost` are refused without a read.
    denied_until_ns: u64,
    denied_cost: u32,
    used_ns: u64,
}

impl Batch {
    fn new(pace: Pace, policy: Arc<str>) -> Self {
        Self {
            pace,
            policy,
            tokens: 0,
            drawn_ns: 0,
            owed: 0,
            appetite: 1,
            full_ns: 0,
            denied_until_ns: 0,
            denied_cost: 0,
            used_ns: 0,
        }
    }

    /// Largest batch that one VM draws.
    fn max(pace: Pace) -> u32 {
        (pace.burst / 8).max(1)
    }

    /// Returns whether the tokens may still be spent. A backward clock step voids them too.
    fn is_live(&self, now_ns: u64) -> bool {
        now_ns >= self.drawn_ns && now_ns - self.drawn_ns < BATCH_NS
    }

    fn rate(&self, allowed: bool, retry_ns: u64, now_ns: u64) -> Rate {
        let pace = self.pace;
        let unspent_ns = u64::from(self.tokens) * pace.token_ns;
        let owed_ns = u64::from(self.owed).saturating_mul(pace.token_ns);
        let until_full_ns = self.full_ns.saturating_sub(now_ns).saturating_sub(unspent_ns);
        let until_full_ns = until_full_ns.saturating_add(owed_ns);
        Rate {
            allowed,
            limit: pace.burst,
            remaining: pace.tokens_within(pace.depth_ns().saturating_sub(until_full_ns)),
            reset_s: seconds_up(until_full_ns),
            retry_after_s: (!allowed).then(|| seconds_up(retry_ns).max(1)),
            policy: Arc::clone(&self.policy),
        }
    }
}

impl Buckets {
    /// Caches batches of up to `capacity` tenants. Further ones read the shared record with every
    /// request.
    pub fn new(capacity: usize) -> Self {
        Self { capacity, tenants: BTreeMap::new(), policies: BTreeMap::new(), swept_ns: 0 }
    }

    /// Takes `cost` tokens for a request of `tenant`. A cost above the burst counts as the burst, so
    /// that a full bucket always passes one request.
    pub fn take(
        &mut self,
        tenant: &TenantId,
        limits: &Limits,
        cost: u32,
        now_ns: u64,
        shared: &mut dyn Shared,
    ) -> Rate {
        let pace = Pace::of(limits);
        let cost = cost.clamp(1, pace.burst);
        // The warm path: the tenant is cached under these limits.
        if let Some(batch) = self.tenants.get_mut(tenant).filter(|batch| batch.pace == pace) {
            return batch.take(tenant, cost, now_ns, shared);
        }
        let policy = self.policy(pace);
        let mut fresh = Batch::new(pace, policy);
        // Changed limits: the old batch is refunded, and counts no more. Its debt does.
        if let Some(batch) = self.tenants.get_mut(tenant) {
            batch.refund(tenant, now_ns, shared);
            fresh.owed = batch.owed;
            *batch = fresh;
            return batch.take(tenant, cost, now_ns, shared);
        }
        let rate = fresh.take(tenant, cost, now_ns, shared);
        if self.has_room(now_ns) {
            self.tenants.insert(tenant.clone(), fresh);
        } else {
            fresh.refund(tenant, now_ns, shared);
        }
        rate
    }

    /// Charges the tenant for what a request costs beyond the tokens that it took. Touches no shared
    /// data. A tenant that owes is cached even if there is no room: the registry bounds their number.
    pub(crate) fn owe(
        &mut self,
        tenant: &TenantId,
        limits: &Limits,
        tokens: u32,
        now_ns: u64,
    ) -> Rate {
        let pace = Pace::of(limits);
        let batch = if let Some(batch) = self.tenants.get_mut(tenant) {
            batch
        } else {
            let fresh = Batch::new(pace, self.policy(pace));
            self.tenants.entry(tenant.clone()).or_insert(fresh)
        };
        batch.owed = batch.owed.saturating_add(tokens);
        batch.used_ns = now_ns;
        batch.rate(true, 0, now_ns)
    }

    /// Charges what tenants owe, and refunds tokens that were not spent in time. Call it at least every [`BATCH_NS`]; otherwise
    /// they are forfeited.
    pub(crate) fn settle(&mut self, now_ns: u64, shared: &mut dyn Shared) {
        for (tenant, batch) in &mut self.tenants {
            if batch.owed > 0 {
                batch.pay(tenant, now_ns, shared);
            }
            if batch.tokens > 0 && !batch.is_live(now_ns) {
                batch.refund(tenant, now_ns, shared);
            }
        }
    }

    fn policy(&mut self, pace: Pace) -> Arc<str> {
        if self.policies.len() >= POLICIES_MAX {
            self.policies.clear();
        }
        Arc::clone(self.policies.entry(pace).or_insert_with(|| header::policy(pace).into()))
    }

    /// Returns whether one more tenant fits. Evicts idle ones, at most once per [`BATCH_NS`].
    fn has_room(&mut self, now_ns: u64) -> bool {
        if self.tenants.len() < self.capacity {
            return true;
        }
        if now_ns.abs_diff(self.swept_ns) >= BATCH_NS {
            self.swept_ns = now_ns;
            let is_in_use = |batch: &Batch| now_ns.abs_diff(batch.used_ns) < IDLE_NS;
            self.tenants.retain(|_, batch| batch.owed > 0 || is_in_use(batch));
        }
        self.tenants.len() < self.capacity
    }
}

impl Batch {
    fn take(&mut self, tenant: &TenantId, cost: u32, now_ns: u64, shared: &mut dyn Shared) -> Rate {
        self.used_ns = now_ns;
        // Debts come first. Without a place for it in the record nothing passes.
        if self.owed > 0 && !self.pay(tenant, now_ns, shared) {
            return self.rate(false, self.pace.token_ns, now_ns);
        }
        let is_live = self.is_live(now_ns);
        // Spend locally.
        if is_live && self.tokens >= cost {
            self.tokens -= cost;
            return self.rate(true, 0, now_ns);
        }
        // Refuse locally: the bucket was empty a moment ago.
        let is_denied = now_ns < self.denied_until_ns && self.denied_until_ns - now_ns <= DENIAL_NS;
        if is_denied && cost >= self.denied_cost {
            let retry_ns = (self.full_ns + u64::from(cost) * self.pace.token_ns)
                .saturating_sub(now_ns + self.pace.depth_ns());
            return self.rate(false, retry_ns, now_ns);
        }
        // A batch that was spent in time doubles the next one; one that expired halves it.
        self.appetite = if is_live { self.appetite.saturating_mul(2) } else { self.appetite / 2 };
        self.appetite = self.appetite.clamp(1, Self::max(self.pace));
        self.draw(tenant, cost, now_ns, shared)
    }

    /// Draws `cost` tokens from the shared record, and a batch on top if the bucket has plenty.
    fn draw(&mut self, tenant: &TenantId, cost: u32, now_ns: u64, shared: &mut dyn Shared) -> Rate {
        let now_ns = fresh(now_ns, shared);
        let key = Record::key(tenant);
        // Live tokens pay for a part of the cost; expired ones are refunded with this write.
        let usable = if self.is_live(now_ns) { self.tokens } else { 0 };
        let expired = if usable == 0 { self.refundable(now_ns) } else { 0 };
        for _ in 0..ATTEMPTS {
            let (mut record, version) = Record::read(shared, &key);
            let refund = if record.has(self.pace) { expired } else { 0 };
            let is_repaired = record.select(self.pace, now_ns);
            record.refund(refund, now_ns);
            let available = record.available(now_ns);
            self.full_ns = record.full_ns();
            if available + usable < cost {
                // A repair must be written even though nothing is drawn. If another VM's write wins,
                // that one has repaired the record.
                let is_written = is_repaired && shared.set(&key, &record.encode(), version).is_ok();
                if is_written && refund > 0 {
                    self.tokens = 0;
                }
                let short_ns = record.wait_ns(cost - usable, now_ns);
                self.denied_until_ns = now_ns + DENIAL_NS.min(short_ns);
                self.denied_cost = cost;
                return self.rate(false, short_ns, now_ns);
            }
            // At most a quarter of the rest: other VMs want to draw as well.
            let extra = self.appetite.saturating_sub(1).min((available + usable - cost) / 4);
            let drawn = cost - usable.min(cost) + extra;
            record.draw(drawn, now_ns);
            if shared.set(&key, &record.encode(), version).is_ok() {
                self.tokens = usable + drawn - cost;
                self.drawn_ns = if usable > 0 { self.drawn_ns } else { now_ns };
                self.full_ns = record.full_ns();
                self.denied_until_ns = 0;
                return self.rate(true, 0, now_ns);
            }
        }
        // The limit stays exact: a request that could not be charged does not pass.
        self.rate(false, self.pace.token_ns, now_ns)
    }

    /// Writes what the tenant owes into the shared record. Live tokens of this VM pay first. Returns
    /// whether nothing is owed any more.
    fn pay(&mut self, tenant: &TenantId, now_ns: u64, shared: &mut dyn Shared) -> bool {
        let paid = if self.is_live(now_ns) { self.tokens.min(self.owed) } else { 0 };
        self.tokens -= paid;
        self.owed -= paid;
        if self.owed == 0 {
            return true;
        }
        let key = Record::key(tenant);
        for _ in 0..ATTEMPTS {
            let (mut record, version) = Record::read(shared, &key);
            record.select(self.pace, now_ns);
            record.owe(self.owed, now_ns);
            if shared.set(&key, &record.encode(), version).is_ok() {
                self.owed = 0;
                self.full_ns = record.full_ns();
                // A time until which requests were refused may be too early now.
                self.denied_until_ns = 0;
                return true;
            }
        }
        false
    }

    /// Unspent tokens that are young enough for a refund.
    fn refundable(&self, now_ns: u64) -> u32 {
        let age_ns = now_ns.checked_sub(self.drawn_ns);
        if age_ns.is_some_and(|age| age < REFUND_NS) { self.tokens } else { 0 }
    }

    fn refund(&mut self, tenant: &TenantId, now_ns: u64, shared: &mut dyn Shared) {
        let now_ns = fresh(now_ns, shared);
        let refund = self.refundable(now_ns);
        self.tokens = 0;
        if refund == 0 {
            return;
        }
        let key = Record::key(tenant);
        for _ in 0..ATTEMPTS {
            let (mut record, version) = Record::read(shared, &key);
            if !record.has(self.pace) {
                return;
            }
            record.select(self.pace, now_ns);
            record.refund(refund, now_ns);
            self.full_ns = record.full_ns();
            if shared.set(&key, &record.encode(), version).is_ok() {
                return;
            }
        }
    }
}

/// The host's time as of now, never before that of the event.
fn fresh(event_ns: u64, shared: &dyn Shared) -> u64 {
    shared.now_ns().max(event_ns)
}

fn seconds_up(ns: u64) -> u32 {
    u32::try_from(ns.div_ceil(SECOND_NS)).unwrap_or(u32::MAX)
}
