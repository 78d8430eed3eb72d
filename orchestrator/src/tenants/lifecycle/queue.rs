//! Who starts next: one entry per tenant, ordered by arrival less a head start per priority.
//!
//! The head start is the ageing: a tenant of priority 0 goes ahead of every tenant of priority p
//! that came `p × head_start` later, so nobody starves; within a priority it is first come, first
//! served.

use std::collections::BTreeSet;

use protocol::TenantId;

use super::state::Ms;

/// Head start of a tenant whose leases are live: its clients were being served.
pub(super) const RESTART_HEAD_START_MS: i64 = 600_000;
/// How strongly a new measurement of a start moves the estimate, 1 in so many.
const SMOOTHING: Ms = 8;

/// Tenants that wait for a start slot.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Queue {
    entries: BTreeSet<(i64, u64, TenantId)>,
    arrivals: u64,
    start_ms: Ms,
}

impl Queue {
    /// `start_ms`: estimate of a start before the first was measured.
    pub(super) fn new(start_ms: Ms) -> Self {
        Self { entries: BTreeSet::new(), arrivals: 0, start_ms }
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Puts a tenant in; the caller knows that it is not in yet.
    pub(super) fn push(&mut self, tenant: TenantId, now: Ms, head_start: i64) {
        self.arrivals += 1;
        self.entries.insert((key(now, head_start), self.arrivals, tenant));
    }

    /// Takes out the first one that may start now.
    pub(super) fn pop(&mut self, may: impl Fn(&TenantId) -> bool) -> Option<TenantId> {
        let first = self.entries.iter().find(|(_, _, tenant)| may(tenant))?.clone();
        self.entries.remove(&first);
        Some(first.2)
    }

    /// Takes a tenant out that no longer wants to start. Linear: the queue is as short as the
    /// clients' patience.
    pub(super) fn remove(&mut self, tenant: &TenantId) {
        self.entries.retain(|(_, _, t)| t != tenant);
    }

    /// How long someone who came now would wait until its start is done.
    pub(super) fn estimate(&self, now: Ms, head_start: i64, running: usize, slots: usize) -> Ms {
        let mine = key(now, head_start);
        let ahead = self.entries.iter().take_while(|(k, _, _)| *k <= mine).count();
        let rounds = (ahead + running) / slots.max(1) + 1;
        self.start_ms.saturating_mul(rounds as Ms)
    }

    /// A start took so long.
    pub(super) fn measured(&mut self, took: Ms) {
        self.start_ms = (self.start_ms * (SMOOTHING - 1) + took).div_ceil(SMOOTHING).max(1);
    }

    /// The present estimate of a start.
    #[cfg(test)]
    pub(super) fn start_ms(&self) -> Ms {
        self.start_ms
    }

    /// Who waits, first in line first.
    #[cfg(test)]
    pub(super) fn names(&self) -> impl Iterator<Item = &TenantId> {
        self.entries.iter().map(|(_, _, tenant)| tenant)
    }
}

fn key(now: Ms, head_start: i64) -> i64 {
    i64::try_from(now).unwrap_or(i64::MAX).saturating_sub(head_start)
}
