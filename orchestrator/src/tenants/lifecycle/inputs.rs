//! Handlers of the events that come from filters, Envoys, the operator and the host.

use protocol::lease::LeaseRefusalKind;
use protocol::{GatewayId, KeepAwake, LeaseRequest, Limits, TenantId, TierName, WakeKind};

use super::Lifecycle;
use super::event::Effect;
use super::rules::is_renewable;
use super::shared::{Shared, Stream};
use super::state::{Drain, Ms, State, WaiterId};
use super::tenant::{Cluster, SleepRequest, Tenant, Waiter};
use crate::sockets::Peer;
use crate::xds::{Seq, StreamId};

/// Waiters per tenant. A browser opens six connections, a burst of clients some hundred.
const TENANT_WAITERS_MAX: usize = 4_096;

/// Waiters over all tenants. Each holds an HTTP connection of the gate API.
const WAITERS_MAX: usize = 20_000;

/// Tenants in memory; each takes about 1 kB.
const TENANTS_MAX: usize = 1_000_000;

/// Streams of Envoys; more would be a reconnect loop.
const STREAMS_MAX: usize = 256;

/// A reading of the wall clock that is off by more than this, in seconds, means that the clock was
/// set. Drift stays below.
const CLOCK_STEP_S: u64 = 2;

/// Retry-After of refusals that another attempt may avoid.
const RETRY_MS: Ms = 1_000;

impl Lifecycle {
    pub(super) fn lease_requested(
        &mut self,
        waiter: WaiterId,
        peer: Peer,
        request: LeaseRequest,
        now: Ms,
    ) {
        let shared = &mut self.shared;
        // 1. Stay within the bounds on waiters and tenants.
        let is_new = !self.tenants.contains_key(&request.tenant);
        let is_full = is_new && self.tenants.len() >= TENANTS_MAX;
        if is_full || shared.waiting >= WAITERS_MAX {
            let detail = "too many waiting requests or tenants";
            shared.refuse(waiter, LeaseRefusalKind::Unavailable, RETRY_MS, detail);
            return;
        }
        // 2. Add the tenant at its first request. A renewal does not wake, so it adds none.
        if is_new {
            if request.renew_only {
                shared.refuse(waiter, LeaseRefusalKind::Asleep, RETRY_MS, "");
                return;
            }
            shared.counts[State::Asleep.index()] += 1;
        }
        let LeaseRequest { gateway, tenant, tier, limits, renew_only, patience_ms, .. } = request;
        let t = self
            .tenants
            .entry(tenant.clone())
            .or_insert_with(|| Tenant::new(tier.clone(), limits.clone(), now));
        // 3. Take over its present tier and limits. A cluster contains the bound on concurrency.
        t.tier = tier;
        if t.limits != limits {
            let concurrency_changed = t.limits.concurrency != limits.concurrency;
            t.limits = limits;
            if concurrency_changed && t.state == State::Awake {
                shared.publish(&tenant, t, now);
            }
        }
        // 4. Let the request wait; the rules decide about it, often at once.
        if renew_only && !is_renewable(t.state) {
            shared.refuse(waiter, LeaseRefusalKind::Asleep, RETRY_MS, "");
        } else if t.waiters.len() >= TENANT_WAITERS_MAX {
            let detail = "too many requests wait for the tenant";
            shared.refuse(waiter, LeaseRefusalKind::Queue, RETRY_MS, detail);
        } else {
            shared.waiting += 1;
            let max_ms = shared.settings.patience_ms;
            let deadline = now + patience_ms.unwrap_or(max_ms).min(max_ms);
            let wake = WakeKind::None;
            let waiter = Waiter { id: waiter, gateway, peer, asked_at: now, deadline, wake };
            let place = t.waiters.partition_point(|other| other.deadline <= deadline);
            t.waiters.insert(place, waiter);
        }
        self.settle(&tenant, now);
    }

    pub(super) fn connected(&mut self, stream: StreamId, gateway: GatewayId, peer: Peer, now: Ms) {
        let shared = &mut self.shared;
        if shared.streams.len() >= STREAMS_MAX {
            shared.effects.push(Effect::Disconnect(stream));
        } else {
            let acked = Seq::default();
            shared.streams.insert(stream, Stream { gateway, peer, opened_at: now, acked });
        }
    }

    pub(super) fn acked(&mut self, stream: StreamId, seq: Seq, now: Ms) {
        let Some(open) = self.shared.streams.get_mut(&stream) else { return };
        open.acked = open.acked.max(seq);
        let reached: Vec<TenantId> = self
            .shared
            .acks
            .iter()
            .take_while(|(awaited, _)| *awaited <= seq)
            .map(|(_, tenant)| tenant.clone())
            .collect();
        for tenant in reached {
            self.settle(&tenant, now);
        }
    }

    pub(super) fn nacked(&mut self, stream: StreamId, tenants: &[TenantId], last: Seq, now: Ms) {
        if !self.shared.streams.contains_key(&stream) {
            return;
        }
        for tenant in tenants {
            self.note_fact(tenant, now, |t| {
                // A cluster that was changed after the rejected response has not been rejected.
                if let Cluster::Published { seq, rejected_by } = &mut t.cluster
                    && *seq <= last
                    && !rejected_by.contains(&stream)
                {
                    rejected_by.push(stream);
                }
            });
        }
    }

    pub(super) fn disconnected(&mut self, stream: StreamId, now: Ms) {
        if self.shared.streams.remove(&stream).is_none() {
            return;
        }
        // The stream's acknowledgement is no longer awaited.
        let awaiting: Vec<TenantId> = self.shared.acks.iter().map(|(_, id)| id.clone()).collect();
        for tenant in awaiting {
            self.note_fact(&tenant, now, |t| {
                if let Cluster::Published { rejected_by, .. } = &mut t.cluster {
                    rejected_by.retain(|other| *other != stream);
                }
            });
        }
    }

    pub(super) fn sleep_requested(&mut self, tenant: &TenantId, drain: Drain, now: Ms) {
        self.note_fact(tenant, now, |t| {
            if !matches!(t.state, State::Asleep | State::Failing(_) | State::Damaged) {
                t.request_sleep(SleepRequest::Operator(drain));
            }
        });
    }

    pub(super) fn restore_locked(&mut self, tenant: &TenantId, now: Ms) {
        if !self.tenants.contains_key(tenant) {
            // Not requested in this run. Its first lease request brings its tier and limits.
            let t = Tenant::new(TierName::default(), Limits::default(), now);
            self.shared.counts[State::Asleep.index()] += 1;
            self.tenants.insert(tenant.clone(), t);
        }
        self.note_fact(tenant, now, |t| {
            t.restore_locked = true;
            t.request_sleep(SleepRequest::Operator(Drain::Gently));
        });
    }

    pub(super) fn repaired(&mut self, tenant: &TenantId, now: Ms) {
        self.update(tenant, now, |shared, t| {
            if matches!(t.state, State::Damaged | State::Failing(_)) {
                t.starts.failures = 0;
                shared.change_state(tenant, t, State::Asleep, now);
            }
        });
    }

    /// Requests that tenants be stopped: dozing ones before those awake without a lease, and in
    /// each group the least recently used first. `tenants` includes those that are being stopped
    /// already.
    pub(super) fn memory_short(&mut self, tenants: usize, now: Ms) {
        let is_leaving = |t: &&Tenant| {
            let is_requested = t.sleep_request == Some(SleepRequest::MemoryShort);
            is_requested || matches!(t.state, State::Stopping { .. })
        };
        let leaving = self.tenants.values().filter(is_leaving).count();
        let mut candidates: Vec<_> = self
            .tenants
            .iter()
            .filter_map(|(id, t)| Some((self.shared.stop_rank(t, now)?, id.clone())))
            .collect();
        candidates.sort_unstable();
        for (_, tenant) in candidates.into_iter().take(tenants.saturating_sub(leaving)) {
            self.note_fact(&tenant, now, |t| t.request_sleep(SleepRequest::MemoryShort));
        }
    }

    /// Takes a reading of the wall clock. If the clock was set, the deadlines of all tenants with
    /// warm hours change.
    pub(super) fn clock_read(&mut self, utc_s: u64, now: Ms) {
        let clock = &mut self.shared.clock;
        let expected_s = clock.map(|(at, read_s)| read_s + now.saturating_sub(at) / 1_000);
        if expected_s.is_some_and(|expected_s| expected_s.abs_diff(utc_s) <= CLOCK_STEP_S) {
            return;
        }
        *clock = Some((now, utc_s));
        let has_warm_hours = |t: &Tenant| t.limits.warm_hours.is_some();
        let warm: Vec<TenantId> = self
            .tenants
            .iter()
            .filter(|(_, t)| has_warm_hours(t))
            .map(|(id, _)| id.clone())
            .collect();
        for tenant in warm {
            self.settle(&tenant, now);
        }
    }
}

impl Shared {
    /// Sort key of a tenant that can be stopped without failing a request; lower keys are stopped
    /// first. `None` if it can't.
    fn stop_rank(&self, t: &Tenant, now: Ms) -> Option<(u8, Ms)> {
        match t.state {
            State::Dozing => Some((0, t.used_at)),
            State::Awake
                if t.limits.keep != KeepAwake::Awake
                    && self.warm_until(t, now).is_none()
                    && t.waiters.is_empty()
                    && !self.is_in_use(t, now) =>
            {
                Some((1, t.used_at))
            }
            _ => None,
        }
    }
}
