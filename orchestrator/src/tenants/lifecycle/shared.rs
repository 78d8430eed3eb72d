//! State that all tenants share, and the elementary operations of the rules.

use std::collections::{BTreeMap, BTreeSet};

use protocol::lease::LeaseRefusalKind;
use protocol::{GatewayId, TenantId};

use super::event::{Effect, LeaseDecision, Settings};
use super::queue::Queue;
use super::state::{Ms, State, WaiterId};
use super::tenant::{Cluster, IndexKeys, Tenant, UNNUMBERED};
use crate::sockets::Peer;
use crate::xds::{Seq, StreamId};

/// A stream of a connected Envoy.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Stream {
    pub(super) gateway: GatewayId,
    pub(super) peer: Peer,
    /// Time at which it was opened.
    pub(super) opened_at: Ms,
    /// The last change that the Envoy has acknowledged.
    pub(super) acked: Seq,
}

/// State that does not belong to a single tenant.
#[derive(Debug, Clone)]
pub(super) struct Shared {
    pub(super) settings: Settings,
    pub(super) streams: BTreeMap<StreamId, Stream>,
    pub(super) queue: Queue,
    /// Start permits in use.
    pub(super) starting: usize,
    /// Start permits used by tenants whose last start failed.
    pub(super) starting_suspects: usize,
    /// Lease requests that wait, over all tenants.
    pub(super) waiting: usize,
    /// Tenants by [`State::index`].
    pub(super) counts: [usize; State::COUNT],
    /// Index of the tenants by their next deadline.
    pub(super) deadlines: BTreeSet<(Ms, TenantId)>,
    /// Index of the tenants by the change whose acknowledgement they await.
    pub(super) acks: BTreeSet<(Seq, TenantId)>,
    /// Effects of the present event.
    pub(super) effects: Vec<Effect>,
    /// The last reading of the wall clock, in seconds since 1970 UTC, and its time.
    pub(super) clock: Option<(Ms, u64)>,
}

impl Shared {
    pub(super) fn new(settings: Settings) -> Self {
        Self {
            queue: Queue::new(settings.start_ms),
            settings,
            streams: BTreeMap::new(),
            starting: 0,
            starting_suspects: 0,
            waiting: 0,
            counts: [0; State::COUNT],
            deadlines: BTreeSet::new(),
            acks: BTreeSet::new(),
            effects: Vec::new(),
            clock: None,
        }
    }

    /// Changes the state of a tenant.
    pub(super) fn change_state(&mut self, tenant: &TenantId, t: &mut Tenant, to: State, now: Ms) {
        let from = t.state;
        self.counts[from.index()] -= 1;
        self.counts[to.index()] += 1;
        t.state = to;
        t.since = now;
        self.effects.push(Effect::StateChanged { tenant: tenant.clone(), from, to });
    }

    pub(super) fn publish(&mut self, tenant: &TenantId, t: &mut Tenant, now: Ms) {
        t.cluster = Cluster::publishing();
        t.published_at = now;
        self.effects.push(Effect::Publish(tenant.clone()));
    }

    /// Keeps the published cluster of an instance that will be started again, but takes its address
    /// out: that may soon be another tenant's.
    pub(super) fn point_nowhere(&mut self, tenant: &TenantId, t: &mut Tenant) {
        if matches!(t.cluster, Cluster::Published { .. }) {
            t.cluster = Cluster::publishing();
            self.effects.push(Effect::PointNowhere(tenant.clone()));
        }
    }

    /// Withdraws the cluster if it is published.
    pub(super) fn withdraw(&mut self, tenant: &TenantId, t: &mut Tenant) {
        if matches!(t.cluster, Cluster::Published { .. }) {
            t.cluster = Cluster::Withdrawn(UNNUMBERED);
            self.effects.push(Effect::Withdraw(tenant.clone()));
        }
    }

    /// Withdraws the cluster without waiting for acknowledgements.
    pub(super) fn withdraw_at_once(&mut self, tenant: &TenantId, t: &mut Tenant) {
        self.withdraw(tenant, t);
        t.cluster = Cluster::Absent;
    }

    pub(super) fn refuse(
        &mut self,
        waiter: WaiterId,
        kind: LeaseRefusalKind,
        retry_after: Ms,
        detail: &'static str,
    ) {
        let retry_after_s = u32::try_from(retry_after.div_ceil(1_000)).unwrap_or(u32::MAX).max(1);
        let decision = LeaseDecision::Refused { kind, retry_after_s, detail };
        self.effects.push(Effect::Decide { waiter, decision });
    }

    /// Updates the tenant's entries in the indexes after its facts have changed.
    pub(super) fn reindex(&mut self, tenant: &TenantId, t: &mut Tenant, now: Ms) {
        let old = t.index;
        let new = IndexKeys { deadline: self.next_deadline(t, now), ack: Self::awaited_ack(t) };
        t.index = new;
        move_entry(&mut self.deadlines, tenant, old.deadline, new.deadline);
        move_entry(&mut self.acks, tenant, old.ack, new.ack);
    }
}

fn move_entry<Key: Ord + Copy>(
    index: &mut BTreeSet<(Key, TenantId)>,
    tenant: &TenantId,
    old: Option<Key>,
    new: Option<Key>,
) {
    if old == new {
        return;
    }
    if let Some(old) = old {
        index.remove(&(old, tenant.clone()));
    }
    if let Some(new) = new {
        index.insert((new, tenant.clone()));
    }
}
