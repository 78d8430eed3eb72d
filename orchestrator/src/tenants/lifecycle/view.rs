//! Read access to the machine.

use protocol::{Limits, TenantId, TierName, WakeKind};

use super::Lifecycle;
use super::state::{Ms, State};
use super::tenant::Tenant;

/// One tenant, as the status shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TenantView {
    /// The tenant's id.
    pub tenant: TenantId,
    /// Tier as of its last lease request.
    pub tier: TierName,
    /// State at the time of the query.
    pub state: State,
    /// Time since the last change of state.
    pub for_ms: Ms,
    /// Time since the last lease or wake.
    pub idle_ms: Ms,
    /// True while a lease is live.
    pub leased: bool,
    /// Number of lease requests that wait.
    pub waiting: usize,
    /// Wakes since the orchestrator started.
    pub wakes: u64,
    /// Kind and duration of the last wake.
    pub last_wake: Option<(WakeKind, Ms)>,
    /// Deaths since the orchestrator started.
    pub deaths: u64,
    /// Description of the last death or failed start.
    pub last_death: Option<String>,
}

impl Lifecycle {
    /// Returns when the next [`Event::Tick`](super::Event::Tick) is due.
    pub fn next_deadline(&self) -> Option<Ms> {
        self.shared.deadlines.first().map(|(at, _)| *at)
    }

    /// Counts the tenants in each state, in the order of [`State::LABELS`].
    pub fn counts(&self) -> [usize; State::COUNT] {
        self.shared.counts
    }

    /// Counts the connected streams.
    pub fn streams(&self) -> usize {
        self.shared.streams.len()
    }

    /// Counts the tenants that wait for a start permit.
    pub fn queued(&self) -> usize {
        self.shared.queue.len()
    }

    /// Returns a tenant's limits as of its last lease request.
    pub fn limits(&self, tenant: &TenantId) -> Option<&Limits> {
        self.tenants.get(tenant).map(|t| &t.limits)
    }

    /// Returns the present state of a tenant.
    pub fn state(&self, tenant: &TenantId) -> Option<State> {
        self.tenants.get(tenant).map(|t| t.state)
    }

    /// Returns how long a tenant cannot be stopped in order, provided that no further lease is
    /// granted.
    pub fn earliest_sleep(&self, tenant: &TenantId, now: Ms) -> Option<Ms> {
        Some(self.quiet_at(tenant)?.saturating_sub(now))
    }

    /// Returns the end of the grace of the last lease. No request is in flight after it; each lease
    /// moves it.
    pub fn quiet_at(&self, tenant: &TenantId) -> Option<Ms> {
        Some(self.shared.quiet_at(self.tenants.get(tenant)?))
    }

    /// Lists all tenants. O(tenants).
    pub fn view(&self, now: Ms) -> impl Iterator<Item = TenantView> + '_ {
        self.tenants.iter().map(move |(id, t)| view_of(id, t, now))
    }

    /// Returns one tenant; `None` if it has never been requested.
    pub fn view_one(&self, id: &TenantId, now: Ms) -> Option<TenantView> {
        self.tenants.get(id).map(|t| view_of(id, t, now))
    }
}

fn view_of(id: &TenantId, t: &Tenant, now: Ms) -> TenantView {
    TenantView {
        tenant: id.clone(),
        tier: t.tier.clone(),
        state: t.state,
        for_ms: now.saturating_sub(t.since),
        idle_ms: now.saturating_sub(t.used_at),
        leased: t.is_leased(now),
        waiting: t.waiters.len(),
        wakes: t.history.wakes,
        last_wake: t.history.last_wake,
        deaths: t.history.deaths,
        last_death: t.history.last_death.clone(),
    }
}
