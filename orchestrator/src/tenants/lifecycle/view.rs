//! What is asked of the machine and changes nothing.

use protocol::{Limits, TenantId, TierName, WakeKind};

use super::Lifecycle;
use super::state::{Ms, State, Tenant};

/// One tenant as status shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TenantView {
    /// Who.
    pub tenant: TenantId,
    /// Its tier as of its last lease.
    pub tier: TierName,
    /// Where it is.
    pub state: State,
    /// How long it has been there.
    pub for_ms: Ms,
    /// How long ago it was last used.
    pub idle_ms: Ms,
    /// Whether a lease is live.
    pub leased: bool,
    /// Askers that wait.
    pub waiting: usize,
    /// Wakes since the orchestrator's start.
    pub wakes: u64,
    /// What the last wake took.
    pub last_wake: Option<(WakeKind, Ms)>,
    /// Deaths since the orchestrator's start.
    pub deaths: u64,
    /// What the last death or failure was.
    pub last_death: Option<String>,
}

impl Lifecycle {
    /// When [`Event::Tick`](super::Event::Tick) is wanted.
    pub fn next_deadline(&self) -> Option<Ms> {
        self.shared.due.first().map(|(at, _)| *at)
    }

    /// Tenants in each state, in the order of [`State::LABELS`].
    pub fn counts(&self) -> [usize; State::COUNT] {
        self.shared.counts
    }

    /// Connected streams.
    pub fn streams(&self) -> usize {
        self.shared.streams.len()
    }

    /// Tenants that wait for a start slot.
    pub fn queued(&self) -> usize {
        self.shared.queue.len()
    }

    /// The limits of a tenant as of its last lease.
    pub fn limits(&self, tenant: &TenantId) -> Option<&Limits> {
        self.tenants.get(tenant).map(|t| &t.limits)
    }

    /// Where a tenant is.
    pub fn state(&self, tenant: &TenantId) -> Option<State> {
        self.tenants.get(tenant).map(|t| t.state)
    }

    /// Who may go to sleep when, if nothing happens: for the answer to the operator.
    pub fn earliest_sleep(&self, tenant: &TenantId, now: Ms) -> Option<Ms> {
        Some(self.quiet_at(tenant)?.saturating_sub(now))
    }

    /// When no request of the leases given so far can be under way any more; each lease moves it.
    pub fn quiet_at(&self, tenant: &TenantId) -> Option<Ms> {
        Some(self.shared.quiet_at(self.tenants.get(tenant)?))
    }

    /// All tenants, for status: as dear as there are tenants.
    pub fn view(&self, now: Ms) -> impl Iterator<Item = TenantView> + '_ {
        self.tenants.iter().map(move |(id, t)| view_of(id, t, now))
    }

    /// One tenant; `None`: it was never asked for.
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
        idle_ms: now.saturating_sub(t.used),
        leased: t.leased(now),
        waiting: t.waiters.len(),
        wakes: t.history.wakes,
        last_wake: t.history.last_wake,
        deaths: t.history.deaths,
        last_death: t.history.last_death.clone(),
    }
}
