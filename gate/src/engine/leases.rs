//! Leases on tenants, of one VM: the tenants whose clusters may be routed to, and until when.
//!
//! ```text
//!            admit                    granted              used, half of it over
//!  (none) ────────► requested ─────────────────► leased ────────────────────────► requested again
//!                    │   ▲ repeated while         │
//!            refused │   │ streams wait           │ unused: expires
//!                    ▼   │                        ▼
//!               waiters refused                 (none)
//! ```
//!
//! A lease counts from before its request was sent, so it ends here before it ends at the
//! orchestrator. It is renewed while requests come or are in flight.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use protocol::deadlines::LEASE_MAX_MS;
use protocol::time::{MS_NS, SECOND_NS};
use protocol::{LeaseResponse, Limits, SqVersion, TenantId, TenantNotice, TierName, Verdict};

use crate::effect::StreamId;

mod notices;
mod tenant;

pub(crate) use notices::Notices;
use tenant::{NextStep, Tenant};

/// Pause after a failed request; it doubles up to [`BACK_OFF_MAX_NS`].
const BACK_OFF_NS: u64 = 100 * MS_NS;
/// The longest pause. A restarted orchestrator is found within it.
const BACK_OFF_MAX_NS: u64 = SECOND_NS;
/// The longest lease that is accepted from an orchestrator.
const LEASE_MAX_NS: u64 = LEASE_MAX_MS * MS_NS;
/// Age below which a lease is not doubted: Envoy may still be failing the requests of before it, and
/// a tenant that cannot be reached must not cost a request for a lease with each failure.
const TRUSTED_NS: u64 = 250 * MS_NS;
/// Requests per tick. The rest waits for the next tick, so that ten thousand leases that fall due at
/// the same time do not become one burst.
const DUE_MAX: usize = 200;

/// The right to route to a tenant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Lease {
    /// Value for `x-sq-cluster`.
    pub(crate) cluster: String,
    /// The SQ that the tenant runs.
    pub(crate) sq_version: SqVersion,
    /// Time of the request for the lease.
    asked_ns: u64,
    /// End of the lease.
    pub(crate) until_ns: u64,
    /// If the lease is in use by then, it is renewed.
    renew_at_ns: u64,
}

/// The decision about a request of a tenant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Admission {
    /// The tenant has a lease: the request may go on.
    Go(Rc<Lease>),
    /// The caller must request a lease, see [`Leases::query`].
    Ask,
    /// A request for the lease is in flight.
    Wait,
    /// There is no room for another tenant.
    Full,
}

/// The content of a request for a lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LeaseQuery {
    pub(crate) tenant: TenantId,
    pub(crate) tier: TierName,
    pub(crate) limits: Limits,
    /// The tenant must not be woken for this: only requests in flight need the lease.
    pub(crate) renew_only: bool,
}

/// The leases of one VM.
#[derive(Debug)]
pub(crate) struct Leases {
    tenants: BTreeMap<TenantId, Tenant>,
    /// Times at which tenants need a look: to renew, to repeat a request, to be dropped.
    due: BTreeSet<(u64, TenantId)>,
    capacity: usize,
    /// Requests that have failed for this time are an outage.
    outage_ns: u64,
}

impl Leases {
    /// No leases yet, and room for `capacity` tenants. While requests have failed for less than
    /// `outage_ns`, streams keep waiting.
    pub(crate) fn new(capacity: usize, outage_ns: u64) -> Self {
        Self { tenants: BTreeMap::new(), due: BTreeSet::new(), capacity, outage_ns }
    }

    /// Decides about a request of the verdict's tenant. The verdict has the newest limits; if they
    /// differ from those that the orchestrator knows, a renewal falls due at once.
    pub(crate) fn admit(&mut self, verdict: &Rc<Verdict>, now_ns: u64) -> Admission {
        // 1. Make room for a new tenant.
        if !self.tenants.contains_key(&verdict.tenant) {
            if self.tenants.len() >= self.capacity && !self.make_room() {
                return Admission::Full;
            }
            self.tenants.insert(verdict.tenant.clone(), Tenant::new(verdict));
        }
        let Some(tenant) = self.tenants.get_mut(&verdict.tenant) else { return Admission::Full };
        // 2. Take over new limits. The comparison of pointers keeps this off the warm path.
        if !Rc::ptr_eq(&tenant.verdict, verdict) && tenant.update(verdict) {
            schedule(&mut self.due, &verdict.tenant, tenant, now_ns);
        }
        // 3. With a live lease: mark it as used, so that it is renewed.
        if let Some(lease) = tenant.live_lease(now_ns).cloned() {
            tenant.used = true;
            if tenant.due_ns.is_none_or(|due| due > lease.until_ns.min(lease.renew_at_ns)) {
                schedule(&mut self.due, &verdict.tenant, tenant, lease.renew_at_ns);
            }
            return Admission::Go(lease);
        }
        // 4. Without one: at most one request is in flight, and a lost one has to be repeated.
        match &tenant.pending {
            Some(pending) if !pending.lost || now_ns < tenant.retry_at_ns => Admission::Wait,
            _ => Admission::Ask,
        }
    }

    /// Drops one tenant without requests or waiters.
    fn make_room(&mut self) -> bool {
        let idle = self.tenants.iter().find(|(_, tenant)| tenant.is_idle());
        let Some(id) = idle.map(|(id, _)| id.clone()) else { return false };
        self.remove(&id);
        true
    }

    fn remove(&mut self, id: &TenantId) {
        let due_ns = self.tenants.remove(id).and_then(|tenant| tenant.due_ns);
        if let Some(due_ns) = due_ns {
            self.due.remove(&(due_ns, id.clone()));
        }
    }

    /// A request for the tenant's lease goes out now.
    pub(crate) fn query(&mut self, id: &TenantId, now_ns: u64) -> Option<LeaseQuery> {
        self.tenants.get_mut(id).map(|tenant| tenant.query(now_ns))
    }

    /// Adds a stream that waits for the tenant's lease.
    pub(crate) fn add_waiter(&mut self, id: &TenantId, stream: StreamId) {
        if let Some(tenant) = self.tenants.get_mut(id) {
            tenant.used = true;
            tenant.waiters.push(stream);
        }
    }

    /// The orchestrator has granted the lease. Returns the streams that waited for it. `in_doubt`: a
    /// usage report was in flight, which the response's notice may or may not contain.
    pub(crate) fn granted(
        &mut self,
        id: &TenantId,
        response: &LeaseResponse,
        in_doubt: bool,
        now_ns: u64,
    ) -> Vec<StreamId> {
        let Some(tenant) = self.tenants.get_mut(id) else { return Vec::new() };
        let Some(pending) = tenant.pending.take() else { return Vec::new() };
        // 1. The notice is as old as the request.
        tenant.notices.update(response.notice.clone(), pending.asked_ns, in_doubt);
        // 2. The lease counts from the request, too.
        let length_ns = response.lease_ms.saturating_mul(MS_NS).min(LEASE_MAX_NS);
        let renew_at_ns = pending.asked_ns.saturating_add(length_ns / 2);
        tenant.lease = Some(Rc::new(Lease {
            cluster: response.cluster.clone(),
            sq_version: response.sq_version,
            asked_ns: pending.asked_ns,
            until_ns: pending.asked_ns.saturating_add(length_ns),
            renew_at_ns,
        }));
        tenant.failures = 0;
        tenant.used = false;
        tenant.doubted = false;
        // 3. Renew it at half its time, or at once if the limits have changed since the request.
        tenant.sent_limits = Some(pending.limits);
        let due_ns = if tenant.has_unsent_limits() { now_ns } else { renew_at_ns };
        schedule(&mut self.due, id, tenant, due_ns);
        std::mem::take(&mut tenant.waiters)
    }

    /// The orchestrator has refused the lease, possibly with a notice that explains it. Returns the
    /// streams that waited. A lease that is still live goes on, unless it was doubted.
    pub(crate) fn refused(
        &mut self,
        id: &TenantId,
        notice: Option<&TenantNotice>,
        retry_after_ns: u64,
        now_ns: u64,
    ) -> Vec<StreamId> {
        let Some(tenant) = self.tenants.get_mut(id) else { return Vec::new() };
        if let (Some(pending), Some(notice)) = (tenant.pending.take(), notice) {
            tenant.notices.update(notice.clone(), pending.asked_ns, true);
        }
        tenant.failures = 0;
        if std::mem::take(&mut tenant.doubted) {
            tenant.lease = None;
        }
        // The tenant, and with it the notice, is kept for the pause.
        let pause_ns = retry_after_ns.clamp(BACK_OFF_NS, BACK_OFF_MAX_NS);
        schedule(&mut self.due, id, tenant, now_ns + pause_ns);
        std::mem::take(&mut tenant.waiters)
    }

    /// The request has failed without a response. A short restart of the orchestrator is hidden from
    /// clients: streams keep waiting while the request is repeated. Returns them once it has failed
    /// for `outage_ns`.
    pub(crate) fn failed(&mut self, id: &TenantId, now_ns: u64) -> Vec<StreamId> {
        let Some(tenant) = self.tenants.get_mut(id) else { return Vec::new() };
        if tenant.failures == 0 {
            tenant.failing_since_ns = now_ns;
        }
        // While the orchestrator is away, a doubted lease is better than none.
        tenant.doubted = false;
        tenant.failures = tenant.failures.saturating_add(1);
        let is_outage = now_ns.saturating_sub(tenant.failing_since_ns) >= self.outage_ns;
        let waiters = if is_outage { std::mem::take(&mut tenant.waiters) } else { Vec::new() };
        let pause_ns = BACK_OFF_NS.saturating_mul(1 << (tenant.failures - 1).min(10));
        self.call_lost(id, now_ns + pause_ns.min(BACK_OFF_MAX_NS));
        waiters
    }

    /// The request was lost, with its stream or because it failed. It is repeated from `retry_at_ns`
    /// on.
    pub(crate) fn call_lost(&mut self, id: &TenantId, retry_at_ns: u64) {
        let Some(tenant) = self.tenants.get_mut(id) else { return };
        tenant.retry_at_ns = retry_at_ns;
        if let Some(pending) = &mut tenant.pending {
            pending.lost = true;
        }
        schedule(&mut self.due, id, tenant, retry_at_ns);
    }

    /// Takes over a notice that came with the response to a usage report, which it contains.
    /// `asked_ns` is the time of the report.
    pub(crate) fn update_notice(&mut self, id: &TenantId, notice: TenantNotice, asked_ns: u64) {
        if let Some(tenant) = self.tenants.get_mut(id) {
            tenant.notices.update(notice, asked_ns, false);
        }
    }

    #[cfg(test)]
    pub(crate) fn is_live(&self, id: &TenantId, now_ns: u64) -> bool {
        self.tenants.get(id).is_some_and(|tenant| tenant.live_lease(now_ns).is_some())
    }

    /// Notices about the tenant; `None` without a lease and some time after it.
    pub(crate) fn notices(&self, id: &TenantId) -> Option<&Notices> {
        self.tenants.get(id).map(|tenant| &tenant.notices)
    }

    /// The tenant's most recent verdict.
    pub(crate) fn verdict(&self, id: &TenantId) -> Option<&Rc<Verdict>> {
        self.tenants.get(id).map(|tenant| &tenant.verdict)
    }

    /// The SQ that the tenant runs, as of its last lease.
    pub(crate) fn sq_version(&self, id: &TenantId) -> Option<SqVersion> {
        self.tenants.get(id)?.lease.as_ref().map(|lease| lease.sq_version)
    }

    /// A request of the tenant was forwarded.
    pub(crate) fn begin_request(&mut self, id: &TenantId, writes: bool) {
        if let Some(tenant) = self.tenants.get_mut(id) {
            tenant.notices.in_flight.begin(writes);
        }
    }

    /// A forwarded request of the tenant has ended.
    pub(crate) fn end_request(&mut self, id: &TenantId, writes: bool) {
        if let Some(tenant) = self.tenants.get_mut(id) {
            tenant.notices.in_flight.end(writes);
        }
    }

    /// Gives up the lease under which a request was forwarded at `forwarded_ns`: Envoy has no cluster
    /// for it. The next request asks for another.
    pub(crate) fn give_up(&mut self, id: &TenantId, forwarded_ns: u64, now_ns: u64) {
        if let Some(tenant) = self.tenants.get_mut(id)
            && tenant.may_doubt(forwarded_ns, now_ns)
        {
            tenant.lease = None;
        }
    }

    /// Doubts the lease under which a request was forwarded at `forwarded_ns`: Envoy did not reach
    /// the tenant. The lease is requested again at once, and ends if the orchestrator refuses it.
    pub(crate) fn doubt(&mut self, id: &TenantId, forwarded_ns: u64, now_ns: u64) {
        if let Some(tenant) = self.tenants.get_mut(id)
            && tenant.may_doubt(forwarded_ns, now_ns)
        {
            tenant.doubted = true;
            schedule(&mut self.due, id, tenant, now_ns);
        }
    }

    /// Gives up all leases, and lets them be requested again.
    pub(crate) fn give_up_all(&mut self, now_ns: u64) {
        for (id, tenant) in &mut self.tenants {
            tenant.lease = None;
            schedule(&mut self.due, id, tenant, now_ns);
        }
    }

    /// Requests that are due, at most [`DUE_MAX`] at once. `is_alive` tells which waiters still
    /// exist.
    pub(crate) fn due_queries(
        &mut self,
        now_ns: u64,
        is_alive: impl Fn(StreamId) -> bool,
    ) -> Vec<LeaseQuery> {
        let mut queries = Vec::new();
        while queries.len() < DUE_MAX {
            match self.due.first() {
                Some((due_ns, _)) if *due_ns <= now_ns => {}
                _ => break,
            }
            let Some((_, id)) = self.due.pop_first() else { break };
            let Some(tenant) = self.tenants.get_mut(&id) else { continue };
            tenant.due_ns = None;
            tenant.waiters.retain(|stream| is_alive(*stream));
            match tenant.next_step(now_ns) {
                NextStep::Request => queries.push(tenant.query(now_ns)),
                NextStep::LookAgain { at_ns } => schedule(&mut self.due, &id, tenant, at_ns),
                NextStep::Wait => {}
                NextStep::Drop => self.remove(&id),
            }
        }
        queries
    }

    /// Returns whether no tenant has a lease or waits for one.
    pub(crate) fn is_empty(&self) -> bool {
        self.tenants.is_empty()
    }
}

/// Moves a tenant's next look to `at_ns`.
fn schedule(due: &mut BTreeSet<(u64, TenantId)>, id: &TenantId, tenant: &mut Tenant, at_ns: u64) {
    if let Some(before_ns) = tenant.due_ns.replace(at_ns) {
        due.remove(&(before_ns, id.clone()));
    }
    due.insert((at_ns, id.clone()));
}
