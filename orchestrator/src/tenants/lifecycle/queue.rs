//! Queue for start permits: one entry per tenant, ordered by arrival time minus a head start.
//!
//! The head start grows with the priority and is the ageing at the same time: a tenant of priority
//! 0 goes ahead of each tenant of priority p that arrived more than `p × head_start` later, so none
//! starves. Within one priority the order is first come, first served.

use std::collections::BTreeSet;

use protocol::TenantId;

use super::state::Ms;

/// Head start of a tenant whose leases are live. It exceeds that of every priority, because clients
/// of this tenant were being served.
pub(super) const RESTART_HEAD_START_MS: i64 = 600_000;

/// Weight of the old estimate when a start has been measured: the new measurement counts one part
/// in this number.
const SMOOTHING: Ms = 8;

/// Tenants that wait for a start permit.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Queue {
    /// Key, number of arrival, tenant.
    entries: BTreeSet<(i64, u64, TenantId)>,
    arrivals: u64,
    /// Estimated duration of a start.
    start_ms: Ms,
}

impl Queue {
    /// Creates an empty queue. `start_ms` is the estimate until a start has been measured.
    pub(super) fn new(start_ms: Ms) -> Self {
        Self { entries: BTreeSet::new(), arrivals: 0, start_ms }
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Adds a tenant, which must not be in the queue.
    pub(super) fn push(&mut self, tenant: TenantId, now: Ms, head_start: i64) {
        self.arrivals += 1;
        self.entries.insert((key(now, head_start), self.arrivals, tenant));
    }

    /// Removes and returns the first tenant that `may_start` accepts.
    pub(super) fn pop(&mut self, may_start: impl Fn(&TenantId) -> bool) -> Option<TenantId> {
        let first = self.entries.iter().find(|(_, _, tenant)| may_start(tenant))?.clone();
        self.entries.remove(&first);
        Some(first.2)
    }

    /// Removes a tenant that need not start any more. Linear; the clients' patience keeps the queue
    /// short.
    pub(super) fn remove(&mut self, tenant: &TenantId) {
        self.entries.retain(|(_, _, t)| t != tenant);
    }

    /// Estimates the time until the start of a tenant that arrives now would be complete.
    pub(super) fn estimate(&self, now: Ms, head_start: i64, starting: usize, permits: usize) -> Ms {
        let own_key = key(now, head_start);
        let ahead = self.entries.iter().take_while(|(key, _, _)| *key <= own_key).count();
        let rounds = (ahead + starting) / permits.max(1) + 1;
        self.start_ms.saturating_mul(rounds as Ms)
    }

    /// Updates the estimate with the measured duration of a start.
    pub(super) fn observe_start(&mut self, took: Ms) {
        self.start_ms = (self.start_ms * (SMOOTHING - 1) + took).div_ceil(SMOOTHING).max(1);
    }

    #[cfg(test)]
    pub(super) fn start_ms(&self) -> Ms {
        self.start_ms
    }

    /// The tenants in the order in which they will start.
    #[cfg(test)]
    pub(super) fn tenants(&self) -> impl Iterator<Item = &TenantId> {
        self.entries.iter().map(|(_, _, tenant)| tenant)
    }
}

fn key(now: Ms, head_start: i64) -> i64 {
    i64::try_from(now).unwrap_or(i64::MAX).saturating_sub(head_start)
}
