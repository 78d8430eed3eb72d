//! Outbound calls to the relay and the orchestrator. [`completions`](super::completions) handles
//! their ends.
//!
//! A call is made in the context of the stream that caused it, and its response is lost when that
//! stream ends: the host reports it to no other. The call is then repeated for those who still
//! wait, by the next tick.

use std::collections::{BTreeMap, BTreeSet};

use protocol::usage::TenantUsageRequest;
use protocol::{KeyHash, LeaseRequest, TenantId, UsageReport, Verdict, VerifyRequest, headers};
use serde::Serialize;

use super::Gate;
use super::clock::Ctx;
use super::leases::LeaseQuery;
use super::metrics::Metric;
use crate::effect::{Call, CallId, Effect, StreamId};

/// The orchestrator ends a wake one fifth of the time-out early, so that its reason still arrives
/// here, even from a host that is starting as many tenants as it can.
const LEASE_SLACK: u32 = 5;

/// The subject of a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Topic {
    Verify(KeyHash),
    Changes,
    Lease(TenantId),
    Usage(StreamId),
    Report { asked_ns: u64 },
}

/// A call in flight.
#[derive(Debug)]
pub(super) struct Pending {
    pub(super) topic: Topic,
    /// The stream in whose context it was made; `None` for the root context.
    pub(super) caller: Option<StreamId>,
}

/// The calls in flight.
#[derive(Debug, Default)]
pub(super) struct Calls {
    pending: BTreeMap<CallId, Pending>,
    by_caller: BTreeSet<(StreamId, CallId)>,
    next: u64,
}

impl Calls {
    fn add(&mut self, topic: Topic, caller: Option<StreamId>) -> CallId {
        let id = CallId(self.next);
        self.next += 1;
        self.pending.insert(id, Pending { topic, caller });
        self.by_caller.extend(caller.map(|caller| (caller, id)));
        id
    }

    pub(super) fn remove(&mut self, id: CallId) -> Option<Pending> {
        let pending = self.pending.remove(&id)?;
        if let Some(caller) = pending.caller {
            self.by_caller.remove(&(caller, id));
        }
        Some(pending)
    }

    fn first_of(&self, caller: StreamId) -> Option<CallId> {
        let (stream, id) = self.by_caller.range((caller, CallId(0))..).next()?;
        (*stream == caller).then_some(*id)
    }
}

impl Gate {
    fn call(
        &mut self,
        topic: Topic,
        cluster: String,
        path: String,
        body: Option<String>,
        timeout_ms: u32,
        ctx: &Ctx<'_>,
    ) {
        let id = self.calls.add(topic, ctx.caller);
        let method = if body.is_some() { "POST" } else { "GET" };
        let call = Call { id, cluster, method, path, body, timeout_ms };
        self.effects.push_back(Effect::Call(call));
    }

    /// Asks the relay for the verdict on a key.
    pub(super) fn verify(&mut self, key: KeyHash, ctx: &Ctx<'_>) {
        self.counts.add(Metric::Verifies);
        self.verdicts.ask(key, ctx.now_ns);
        let cluster = self.config.relay_cluster.clone();
        let path = headers::VERIFY_PATH.to_owned();
        let body = json(&VerifyRequest { key_sha256: key });
        self.call(Topic::Verify(key), cluster, path, body, self.config.relay_timeout_ms, ctx);
    }

    /// Keeps one long poll for changes open.
    pub(super) fn poll_changes(&mut self, ctx: &Ctx<'_>) {
        let wait_ms = self.config.changes_wait_ms;
        let Some((path, wait_ms)) = self.changes_feed.poll(wait_ms, ctx.now_ns) else { return };
        let cluster = self.config.relay_cluster.clone();
        let timeout_ms = wait_ms.saturating_add(self.config.relay_timeout_ms);
        self.call(Topic::Changes, cluster, path, None, timeout_ms, ctx);
    }

    /// Asks the orchestrator for a lease, unless a request for it is in flight.
    pub(super) fn request_lease(&mut self, tenant: &TenantId, ctx: &Ctx<'_>) {
        if let Some(query) = self.leases.query(tenant, ctx.now_ns) {
            self.counts.add(Metric::Leases);
            self.send_lease_request(query, ctx);
        }
    }

    fn send_lease_request(&mut self, query: LeaseQuery, ctx: &Ctx<'_>) {
        let Some(cluster) = self.config.orchestrator_cluster.clone() else { return };
        let LeaseQuery { tenant, tier, limits, renew_only } = query;
        let topic = Topic::Lease(tenant.clone());
        let timeout_ms = self.config.lease_timeout_ms;
        let request = LeaseRequest {
            gateway: self.gateway.clone(),
            tenant,
            tier,
            limits,
            renew_only,
            // Requests in flight were within the quotas, and shadow mode refuses none for them.
            within_quotas: !renew_only && !self.config.shadow,
            patience_ms: Some(u64::from(timeout_ms - timeout_ms / LEASE_SLACK)),
        };
        let path = headers::LEASE_PATH.to_owned();
        self.call(topic, cluster, path, json(&request), timeout_ms, ctx);
    }

    /// Renews leases in use, and repeats failed requests for leases that streams wait for.
    pub(super) fn request_due_leases(&mut self, ctx: &Ctx<'_>) {
        let streams = &self.streams;
        let queries = self.leases.due_queries(ctx.now_ns, |id| streams.contains(id));
        for query in queries {
            self.counts.add(Metric::Renewals);
            self.send_lease_request(query, ctx);
        }
    }

    /// Asks the orchestrator for a tenant's own usage.
    pub(super) fn request_usage(&mut self, stream: StreamId, verdict: &Verdict, ctx: &Ctx<'_>) {
        let Verdict { tenant, tier, limits, .. } = verdict;
        let cluster = self.config.orchestrator_cluster.clone().unwrap_or_default();
        let path = format!("{}{tenant}", headers::TENANT_USAGE_PATH);
        let body = json(&TenantUsageRequest { tier: tier.clone(), limits: limits.clone() });
        let timeout_ms = self.config.relay_timeout_ms;
        self.call(Topic::Usage(stream), cluster, path, body, timeout_ms, ctx);
    }

    pub(super) fn send_report(&mut self, report: &UsageReport, ctx: &Ctx<'_>) {
        let cluster = self.config.orchestrator_cluster.clone().unwrap_or_default();
        let path = headers::USAGE_PATH.to_owned();
        let topic = Topic::Report { asked_ns: ctx.now_ns };
        self.call(topic, cluster, path, json(report), self.config.relay_timeout_ms, ctx);
    }

    /// Verifies again the keys whose call was lost with the stream that had made it.
    pub(super) fn repeat_lost_verifications(&mut self, ctx: &Ctx<'_>) {
        if self.verdicts.sizes().2 == 0 {
            return;
        }
        let streams = &self.streams;
        for key in self.verdicts.orphans(|id| streams.contains(id)) {
            self.verify(key, ctx);
        }
    }

    /// The stream has ended, and with it the responses to its calls.
    pub(super) fn abandon_calls_of(&mut self, stream: StreamId, ctx: &Ctx<'_>) {
        while let Some(id) = self.calls.first_of(stream) {
            match self.calls.remove(id).map(|call| call.topic) {
                Some(Topic::Verify(key)) => self.verdicts.orphan(&key),
                Some(Topic::Lease(tenant)) => self.leases.call_lost(&tenant, ctx.now_ns),
                Some(Topic::Changes | Topic::Usage(_) | Topic::Report { .. }) | None => {}
            }
            self.effects.push_back(Effect::Abandon(id));
        }
    }
}

fn json(document: &impl Serialize) -> Option<String> {
    serde_json::to_string(document).ok()
}
