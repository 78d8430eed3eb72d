//! The rate limit: one bucket of tokens per tenant, shared by all VMs of one Envoy.
//!
//! GCRA: the shared record holds the time at which the bucket would be full again. A VM does not
//! ask the record for each request; it *draws* a few tokens at once and spends them by itself:
//!
//! ```text
//!            draw k (compare-and-swap)                    spend one per request, no shared data
//!  record ───────────────────────────────► VM's tokens ───────────────────────────────► allowed
//!    ▲                                          │ LEASE_NS passed
//!    └──────────── put back (settle) ◄──────────┘ (later than RETURN_NS: forfeited)
//! ```
//!
//! What holds, whatever the interleaving (see `tests.rs`):
//! - From any instant with nothing drawn, all VMs together pass at most `burst + rate·t`.
//! - Over *any* window of t seconds: at most `burst + rate·(t + RETURN_NS)`.
//! - Unfairness: tokens may be parked in other VMs, at most [`Draw::most`] (an eighth of the burst)
//!   in each, for at most `LEASE_NS` while that VM is asked or settled. A VM refuses only when the
//!   record is empty, so a tenant is under-served by at most `(VMs - 1)·burst/8` tokens for that
//!   time. A bucket of less than 16 parks nothing.
//! - Changed limits bite with the next request: tokens drawn under other limits are void.
//!
//! Only registered tenants get here, so the number of shared keys is bounded by the registry.

use std::collections::BTreeMap;
use std::sync::Arc;

use protocol::{Limits, TenantId};

use crate::shared::Shared;

mod header;
mod record;
#[cfg(test)]
mod tests;

use record::{Pace, Record};

/// How long drawn tokens may be spent: long enough that a busy VM spends all it draws, short
/// enough that what it parks is hardly missed.
pub(crate) const LEASE_NS: u64 = 250_000_000;
/// Up to this age unspent tokens are put back; older ones are forfeited, for the bucket may have
/// filled up and been emptied meanwhile.
pub(crate) const RETURN_NS: u64 = 2 * LEASE_NS;
/// How long an empty bucket is believed to be empty without asking again: a flood that is refused
/// costs nothing, and tokens put back by others are found soon.
pub(crate) const DENIAL_NS: u64 = 50_000_000;
/// Tries of one compare-and-swap. Each failure is another VM's success, and VMs draw rarely.
pub(crate) const ATTEMPTS: u32 = 16;
/// Entries idle this long go first when the map is full.
const IDLE_NS: u64 = 10_000_000_000;

/// What a bucket says of one request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rate {
    /// Whether the request passes.
    pub(crate) allowed: bool,
    /// Size of the bucket.
    pub(crate) limit: u32,
    /// Tokens left, as of this VM's last look at the shared record.
    pub(crate) remaining: u32,
    /// Seconds until the bucket is full.
    pub(crate) reset_s: u32,
    /// Seconds until this request would pass; only when it does not.
    pub(crate) retry_after_s: Option<u32>,
    /// Value of `RateLimit-Policy`.
    pub(crate) policy: Arc<str>,
}

/// The buckets of one VM, for all tenants.
#[derive(Debug)]
pub struct Buckets {
    capacity: usize,
    tenants: BTreeMap<TenantId, Draw>,
    /// `RateLimit-Policy` by pace; tenants of one tier share the text.
    policies: BTreeMap<Pace, Arc<str>>,
    swept_ns: u64,
}

/// Policies remembered: tiers and exceptions are few; past this the map starts anew.
const POLICIES_MAX: usize = 1_024;

/// One tenant's tokens in this VM.
#[derive(Debug)]
struct Draw {
    pace: Pace,
    policy: Arc<str>,
    tokens: u32,
    drawn_ns: u64,
    /// Tokens of the next draw, before it is bounded: doubles while draws are spent in time.
    appetite: u32,
    /// When the shared bucket is full, as of the last look.
    full_ns: u64,
    /// Refused without a look until then, at this cost and above.
    denied_until_ns: u64,
    denied_cost: u32,
    used_ns: u64,
}

impl Draw {
    fn new(pace: Pace, policy: Arc<str>) -> Self {
        Self {
            pace,
            policy,
            tokens: 0,
            drawn_ns: 0,
            appetite: 1,
            full_ns: 0,
            denied_until_ns: 0,
            denied_cost: 0,
            used_ns: 0,
        }
    }

    /// The most that one VM parks.
    fn most(pace: Pace) -> u32 {
        (pace.burst / 8).max(1)
    }

    /// Whether the tokens may still be spent. A clock that went back ends the lease too.
    fn live(&self, now_ns: u64) -> bool {
        now_ns >= self.drawn_ns && now_ns - self.drawn_ns < LEASE_NS
    }

    fn rate(&self, allowed: bool, retry_ns: u64, now_ns: u64) -> Rate {
        let pace = self.pace;
        let held = u64::from(self.tokens) * pace.token_ns;
        let until_full_ns = self.full_ns.saturating_sub(now_ns).saturating_sub(held);
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
    /// Buckets for up to `capacity` tenants; more than that are served from the shared record
    /// with every request.
    pub fn new(capacity: usize) -> Self {
        Self { capacity, tenants: BTreeMap::new(), policies: BTreeMap::new(), swept_ns: 0 }
    }

    /// Takes `cost` tokens for a request of `tenant`. A cost above the burst counts as the burst:
    /// a full bucket always lets one request pass.
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
        if let Some(draw) = self.tenants.get_mut(tenant).filter(|d| d.pace == pace) {
            return draw.take(tenant, cost, now_ns, shared);
        }
        let policy = self.policy(pace);
        let mut fresh = Draw::new(pace, policy);
        if let Some(draw) = self.tenants.get_mut(tenant) {
            draw.put_back(tenant, now_ns, shared);
            *draw = fresh;
            return draw.take(tenant, cost, now_ns, shared);
        }
        let rate = fresh.take(tenant, cost, now_ns, shared);
        if self.has_room(now_ns) {
            self.tenants.insert(tenant.clone(), fresh);
        } else {
            fresh.put_back(tenant, now_ns, shared);
        }
        rate
    }

    /// Puts back what was not spent in time. Call it with each tick of the VM, at least every
    /// [`LEASE_NS`]; without it the tokens are only forfeited.
    pub(crate) fn settle(&mut self, now_ns: u64, shared: &mut dyn Shared) {
        for (tenant, draw) in &mut self.tenants {
            if draw.tokens > 0 && !draw.live(now_ns) {
                draw.put_back(tenant, now_ns, shared);
            }
        }
    }

    fn policy(&mut self, pace: Pace) -> Arc<str> {
        if self.policies.len() >= POLICIES_MAX {
            self.policies.clear();
        }
        Arc::clone(self.policies.entry(pace).or_insert_with(|| header::policy(pace).into()))
    }

    /// Whether one more tenant fits; looks for idle ones at most once in [`LEASE_NS`].
    fn has_room(&mut self, now_ns: u64) -> bool {
        if self.tenants.len() < self.capacity {
            return true;
        }
        if now_ns.abs_diff(self.swept_ns) >= LEASE_NS {
            self.swept_ns = now_ns;
            self.tenants.retain(|_, draw| now_ns.abs_diff(draw.used_ns) < IDLE_NS);
        }
        self.tenants.len() < self.capacity
    }
}

impl Draw {
    fn take(&mut self, tenant: &TenantId, cost: u32, now_ns: u64, shared: &mut dyn Shared) -> Rate {
        self.used_ns = now_ns;
        let live = self.live(now_ns);
        if live && self.tokens >= cost {
            self.tokens -= cost;
            return self.rate(true, 0, now_ns);
        }
        let denied = now_ns < self.denied_until_ns && self.denied_until_ns - now_ns <= DENIAL_NS;
        if denied && cost >= self.denied_cost {
            let retry_ns = (self.full_ns + u64::from(cost) * self.pace.token_ns)
                .saturating_sub(now_ns + self.pace.depth_ns());
            return self.rate(false, retry_ns, now_ns);
        }
        // Spent in time: draw more next time. Ran out of time: draw less.
        self.appetite = if live { self.appetite.saturating_mul(2) } else { self.appetite / 2 };
        self.appetite = self.appetite.clamp(1, Self::most(self.pace));
        self.draw(tenant, cost, now_ns, shared)
    }

    /// Draws `cost` and, where the bucket has plenty, some more to spend later.
    fn draw(&mut self, tenant: &TenantId, cost: u32, now_ns: u64, shared: &mut dyn Shared) -> Rate {
        let key = Record::key(tenant);
        let held = if self.live(now_ns) { self.tokens } else { 0 };
        let returned = if held == 0 { self.returnable(now_ns) } else { 0 };
        for _ in 0..ATTEMPTS {
            let (mut record, version) = Record::read(shared, &key);
            let returned = if record.knows(self.pace) { returned } else { 0 };
            let repaired = record.select(self.pace, now_ns);
            record.put_back(returned, now_ns);
            let available = record.available(now_ns);
            self.full_ns = record.full_ns();
            if available + held < cost {
                // Lost to another VM's write, it is made up for by that one.
                if repaired && shared.set(&key, &record.encode(), version).is_ok() && returned > 0 {
                    // What was put back with it is not put back again.
                    self.tokens = 0;
                }
                (self.denied_until_ns, self.denied_cost) = (now_ns + DENIAL_NS, cost);
                let short_ns = record.wait_ns(cost - held, now_ns);
                self.denied_until_ns = self.denied_until_ns.min(now_ns + short_ns);
                return self.rate(false, short_ns, now_ns);
            }
            // Never more than a quarter of what is left: others want to draw as well.
            let extra = self.appetite.saturating_sub(1).min((available + held - cost) / 4);
            let drawn = cost - held.min(cost) + extra;
            record.draw(drawn, now_ns);
            if shared.set(&key, &record.encode(), version).is_ok() {
                self.tokens = held + drawn - cost;
                self.drawn_ns = if held > 0 { self.drawn_ns } else { now_ns };
                self.full_ns = record.full_ns();
                self.denied_until_ns = 0;
                return self.rate(true, 0, now_ns);
            }
        }
        // Exactness wins: what could not be charged does not pass.
        self.rate(false, self.pace.token_ns, now_ns)
    }

    /// Tokens that are unspent and young enough to be put back.
    fn returnable(&self, now_ns: u64) -> u32 {
        let age_ns = now_ns.checked_sub(self.drawn_ns);
        if age_ns.is_some_and(|age| age < RETURN_NS) { self.tokens } else { 0 }
    }

    fn put_back(&mut self, tenant: &TenantId, now_ns: u64, shared: &mut dyn Shared) {
        let returned = self.returnable(now_ns);
        self.tokens = 0;
        if returned == 0 {
            return;
        }
        let key = Record::key(tenant);
        for _ in 0..ATTEMPTS {
            let (mut record, version) = Record::read(shared, &key);
            if !record.knows(self.pace) {
                return;
            }
            record.select(self.pace, now_ns);
            record.put_back(returned, now_ns);
            self.full_ns = record.full_ns();
            if shared.set(&key, &record.encode(), version).is_ok() {
                return;
            }
        }
    }
}

fn seconds_up(ns: u64) -> u32 {
    u32::try_from(ns.div_ceil(1_000_000_000)).unwrap_or(u32::MAX)
}
