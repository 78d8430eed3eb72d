//! Leases on tenants, of one VM: which tenants' clusters may be routed to, and until when.
//!
//! ```text
//!            admit                 answer                    half of it over, used
//!  (nothing) ─────► asking ─────────────────► held ─────────────────────────► renewing ──► held
//!                     │ ▲ again, while         │ not used: runs out
//!             refusal │ └ somebody waits       ▼
//!                     ▼                     (nothing)
//!                 waiters refused
//! ```
//!
//! A lease counts from before the question was sent, so it ends here before it ends at the
//! orchestrator. It is renewed as long as requests come or are in flight.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use protocol::deadlines::LEASE_MAX_MS;
use protocol::time::MS_NS;
use protocol::{LeaseResponse, Limits, SqVersion, TenantId, TenantNotice, TierName, Verdict};

use crate::effect::StreamId;

mod known;

pub(crate) use known::{InFlight, Known};

/// Pause after a question that failed; doubles up to [`BACK_OFF_MAX_NS`].
const BACK_OFF_NS: u64 = 100_000_000;
/// A new orchestrator is found within this.
const BACK_OFF_MAX_NS: u64 = 1_000_000_000;
/// An answer may not bind for longer, whatever it says.
const LEASE_MAX_NS: u64 = LEASE_MAX_MS * MS_NS;
/// Questions per tick: the rest waits for the next, so that ten thousand leases that fall due at
/// once don't become one burst.
const DUE_MAX: usize = 200;

/// The right to route to a tenant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Lease {
    /// Value for `x-sq-cluster`.
    pub(crate) cluster: String,
    /// The SQ that answers.
    pub(crate) sq_version: SqVersion,
    /// When it ends.
    pub(crate) until_ns: u64,
    /// From when on it is renewed if it is used.
    renew_at_ns: u64,
}

/// A question on its way.
#[derive(Debug)]
struct Asking {
    asked_ns: u64,
    limits: Limits,
    /// The call was lost, or failed: to be asked again from `retry_at_ns` on.
    lost: bool,
}

#[derive(Debug)]
struct Tenant {
    /// The verdict last seen, so that the same one is not compared again.
    verdict: Rc<Verdict>,
    tier: TierName,
    limits: Limits,
    /// The limits that the orchestrator was told last.
    told: Option<Limits>,
    lease: Option<Rc<Lease>>,
    asking: Option<Asking>,
    waiters: Vec<StreamId>,
    used: bool,
    known: Known,
    failures: u32,
    /// When the first of these `failures` was.
    failing_since_ns: u64,
    retry_at_ns: u64,
    /// Under which time it stands in [`Leases::due`].
    due_ns: Option<u64>,
}

/// Whether a request may go on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Admission {
    /// It may.
    Go(Rc<Lease>),
    /// Somebody must ask: say so with [`Leases::ask`].
    Ask,
    /// Somebody has asked.
    Wait,
    /// No room for another tenant.
    Full,
}

/// What to ask.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LeaseQuery {
    /// Whom to wake.
    pub(crate) tenant: TenantId,
    /// Its tier.
    pub(crate) tier: TierName,
    /// Its limits.
    pub(crate) limits: Limits,
    /// Don't wake it.
    pub(crate) renew_only: bool,
}

/// The leases of one VM.
#[derive(Debug)]
pub(crate) struct Leases {
    tenants: BTreeMap<TenantId, Tenant>,
    /// Who is looked at when: to renew, to ask again, to forget.
    due: BTreeSet<(u64, TenantId)>,
    bound: usize,
    /// Requests that have failed for so long are an outage.
    outage_ns: u64,
}

impl Leases {
    /// No leases; room for `bound` tenants. Clients are kept waiting while questions fail for less
    /// than `outage_ns`.
    pub(crate) fn new(bound: usize, outage_ns: u64) -> Self {
        Self { tenants: BTreeMap::new(), due: BTreeSet::new(), bound, outage_ns }
    }

    /// Whether a request of this tenant may go on now. The verdict's limits are the newest: the
    /// orchestrator is told if they differ from what it knows.
    pub(crate) fn admit(&mut self, verdict: &Rc<Verdict>, now_ns: u64) -> Admission {
        if !self.tenants.contains_key(&verdict.tenant) {
            if self.tenants.len() >= self.bound && !self.make_room() {
                return Admission::Full;
            }
            self.tenants.insert(verdict.tenant.clone(), Tenant::new(verdict));
        }
        let Some(tenant) = self.tenants.get_mut(&verdict.tenant) else { return Admission::Full };
        if !Rc::ptr_eq(&tenant.verdict, verdict) && tenant.learn(verdict) {
            schedule(&mut self.due, &verdict.tenant, tenant, now_ns);
        }
        if let Some(lease) = tenant.lease.clone().filter(|lease| now_ns < lease.until_ns) {
            tenant.used = true;
            if tenant.due_ns.is_none_or(|due| due > lease.until_ns.min(lease.renew_at_ns)) {
                schedule(&mut self.due, &verdict.tenant, tenant, lease.renew_at_ns);
            }
            return Admission::Go(lease);
        }
        match &tenant.asking {
            Some(asking) if !asking.lost || now_ns < tenant.retry_at_ns => Admission::Wait,
            _ => Admission::Ask,
        }
    }

    /// Drops one tenant that nobody uses.
    fn make_room(&mut self) -> bool {
        let idle = |t: &Tenant| !t.is_in_flight() && t.asking.is_none() && t.waiters.is_empty();
        let found = self.tenants.iter().find(|(_, t)| idle(t)).map(|(id, _)| id.clone());
        found.is_some_and(|id| self.forget(&id))
    }

    fn forget(&mut self, id: &TenantId) -> bool {
        let Some(tenant) = self.tenants.remove(id) else { return false };
        if let Some(due) = tenant.due_ns {
            self.due.remove(&(due, id.clone()));
        }
        true
    }

    /// A question goes out now.
    pub(crate) fn ask(&mut self, id: &TenantId, now_ns: u64) -> Option<LeaseQuery> {
        let tenant = self.tenants.get_mut(id)?;
        let limits = tenant.limits.clone();
        tenant.asking = Some(Asking { asked_ns: now_ns, limits: limits.clone(), lost: false });
        // A tenant put to sleep meanwhile is woken for those who wait, not for those who were here.
        let renew_only = tenant.waiters.is_empty();
        Some(LeaseQuery { tenant: id.clone(), tier: tenant.tier.clone(), limits, renew_only })
    }

    /// `stream` waits for the lease.
    pub(crate) fn wait(&mut self, id: &TenantId, stream: StreamId) {
        if let Some(tenant) = self.tenants.get_mut(id) {
            tenant.used = true;
            tenant.waiters.push(stream);
        }
    }

    /// The orchestrator's yes. Returns who waited.
    /// `in_doubt`: whether a usage report was on its way meanwhile, which its notice may contain.
    pub(crate) fn granted(
        &mut self,
        id: &TenantId,
        answer: &LeaseResponse,
        in_doubt: bool,
        now_ns: u64,
    ) -> Vec<StreamId> {
        let Some(tenant) = self.tenants.get_mut(id) else { return Vec::new() };
        let Some(asking) = tenant.asking.take() else { return Vec::new() };
        tenant.known.hear(answer.notice.clone(), asking.asked_ns, in_doubt);
        let length_ns = answer.lease_ms.saturating_mul(MS_NS).min(LEASE_MAX_NS);
        let lease = Rc::new(Lease {
            cluster: answer.cluster.clone(),
            sq_version: answer.sq_version,
            until_ns: asking.asked_ns.saturating_add(length_ns),
            renew_at_ns: asking.asked_ns.saturating_add(length_ns / 2),
        });
        tenant.told = Some(asking.limits);
        tenant.failures = 0;
        tenant.used = false;
        tenant.lease = Some(lease.clone());
        let waiters = std::mem::take(&mut tenant.waiters);
        let told = tenant.told.as_ref() == Some(&tenant.limits);
        let due_ns = if told { lease.renew_at_ns } else { now_ns };
        schedule(&mut self.due, id, tenant, due_ns);
        waiters
    }

    /// The orchestrator's no, and what it told of the tenant, which is kept for the pause. Returns
    /// who waited; a lease that is still held runs on.
    pub(crate) fn refused(
        &mut self,
        id: &TenantId,
        notice: Option<&TenantNotice>,
        retry_after_ns: u64,
        now_ns: u64,
    ) -> Vec<StreamId> {
        let Some(tenant) = self.tenants.get_mut(id) else { return Vec::new() };
        if let (Some(asking), Some(notice)) = (tenant.asking.take(), notice) {
            tenant.known.hear(notice.clone(), asking.asked_ns, true);
        }
        tenant.failures = 0;
        let pause = retry_after_ns.clamp(BACK_OFF_NS, BACK_OFF_MAX_NS);
        schedule(&mut self.due, id, tenant, now_ns + pause);
        std::mem::take(&mut tenant.waiters)
    }

    /// No answer at all. A short restart of the orchestrator is hidden: who waits, waits on while it
    /// is asked again. Once that has failed for `outage_ns`, those who wait are returned, to be told.
    pub(crate) fn failed(&mut self, id: &TenantId, now_ns: u64) -> Vec<StreamId> {
        let Some(tenant) = self.tenants.get_mut(id) else { return Vec::new() };
        if tenant.failures == 0 {
            tenant.failing_since_ns = now_ns;
        }
        tenant.failures = tenant.failures.saturating_add(1);
        let is_outage = now_ns.saturating_sub(tenant.failing_since_ns) >= self.outage_ns;
        let told = if is_outage { std::mem::take(&mut tenant.waiters) } else { Vec::new() };
        let pause = BACK_OFF_NS.saturating_mul(1 << (tenant.failures - 1).min(10));
        self.lost(id, now_ns + pause.min(BACK_OFF_MAX_NS));
        told
    }

    /// The call was lost with its stream: it is asked again from `retry_at_ns` on.
    pub(crate) fn lost(&mut self, id: &TenantId, retry_at_ns: u64) {
        let Some(tenant) = self.tenants.get_mut(id) else { return };
        tenant.retry_at_ns = retry_at_ns;
        if let Some(asking) = &mut tenant.asking {
            asking.lost = true;
        }
        schedule(&mut self.due, id, tenant, retry_at_ns);
    }

    /// News on the tenant, asked for with the report of `asked_ns`, which they contain.
    pub(crate) fn hear(&mut self, id: &TenantId, notice: TenantNotice, asked_ns: u64) {
        if let Some(tenant) = self.tenants.get_mut(id) {
            tenant.known.hear(notice, asked_ns, false);
        }
    }

    /// Whether the tenant may be routed to.
    #[cfg(test)]
    pub(crate) fn is_live(&self, id: &TenantId, now_ns: u64) -> bool {
        let lease = self.tenants.get(id).and_then(|tenant| tenant.lease.as_ref());
        lease.is_some_and(|lease| now_ns < lease.until_ns)
    }

    /// What is known of the tenant; nothing without a lease and some time after it.
    pub(crate) fn known(&self, id: &TenantId) -> Option<&Known> {
        self.tenants.get(id).map(|tenant| &tenant.known)
    }

    /// The verdict on a tenant that was seen last.
    pub(crate) fn verdict(&self, id: &TenantId) -> Option<&Rc<Verdict>> {
        self.tenants.get(id).map(|tenant| &tenant.verdict)
    }

    /// The SQ that answered last.
    pub(crate) fn sq_version(&self, id: &TenantId) -> Option<SqVersion> {
        self.tenants.get(id)?.lease.as_ref().map(|lease| lease.sq_version)
    }

    /// A request of the tenant has gone out.
    pub(crate) fn begin(&mut self, id: &TenantId, writes: bool) {
        if let Some(tenant) = self.tenants.get_mut(id) {
            tenant.known.begin(writes);
        }
    }

    /// A request of the tenant is over.
    pub(crate) fn end(&mut self, id: &TenantId, writes: bool) {
        if let Some(tenant) = self.tenants.get_mut(id) {
            tenant.known.end(writes);
        }
    }

    /// The clock went back: no lease can be trusted.
    pub(crate) fn distrust(&mut self, now_ns: u64) {
        let ids: Vec<TenantId> = self.tenants.keys().cloned().collect();
        for id in &ids {
            if let Some(tenant) = self.tenants.get_mut(id) {
                tenant.lease = None;
                schedule(&mut self.due, id, tenant, now_ns);
            }
        }
    }

    /// What must be asked now, at most [`DUE_MAX`] at once. `alive` tells which waiters are left.
    pub(crate) fn due(&mut self, now_ns: u64, alive: impl Fn(StreamId) -> bool) -> Vec<LeaseQuery> {
        let mut questions = Vec::new();
        while questions.len() < DUE_MAX {
            let Some((due, id)) = self.due.first().cloned() else { break };
            if due > now_ns {
                break;
            }
            self.due.pop_first();
            let Some(tenant) = self.tenants.get_mut(&id) else { continue };
            tenant.due_ns = None;
            tenant.waiters.retain(|stream| alive(*stream));
            match tenant.next_step(now_ns) {
                NextStep::Ask => questions.extend(self.ask(&id, now_ns)),
                NextStep::LookAgain(at) => schedule(&mut self.due, &id, tenant, at),
                NextStep::Wait => {}
                NextStep::Forget => {
                    self.forget(&id);
                }
            }
        }
        questions
    }

    /// Whether there is none.
    pub(crate) fn is_empty(&self) -> bool {
        self.tenants.is_empty()
    }
}

/// What a tenant that fell due needs.
enum NextStep {
    Ask,
    LookAgain(u64),
    Wait,
    Forget,
}

impl Tenant {
    fn new(verdict: &Rc<Verdict>) -> Self {
        Self {
            verdict: verdict.clone(),
            known: Known::default(),
            tier: verdict.tier.clone(),
            limits: verdict.limits.clone(),
            told: None,
            lease: None,
            asking: None,
            waiters: Vec::new(),
            used: false,
            failures: 0,
            failing_since_ns: 0,
            retry_at_ns: 0,
            due_ns: None,
        }
    }

    /// Whether the orchestrator must be told.
    fn learn(&mut self, verdict: &Rc<Verdict>) -> bool {
        self.verdict = verdict.clone();
        if self.limits == verdict.limits && self.tier == verdict.tier {
            return false;
        }
        self.limits = verdict.limits.clone();
        self.tier = verdict.tier.clone();
        self.lease.is_some()
    }

    fn is_in_flight(&self) -> bool {
        self.known.in_flight.requests > 0
    }

    fn next_step(&mut self, now_ns: u64) -> NextStep {
        if self.asking.as_ref().is_some_and(|asking| !asking.lost) {
            return NextStep::Wait;
        }
        let held = self.lease.as_ref().filter(|lease| now_ns < lease.until_ns);
        let in_use = self.used || self.is_in_flight();
        let news = self.told.as_ref().is_some_and(|told| *told != self.limits);
        if !self.waiters.is_empty() || (held.is_some() && news) {
            return NextStep::Ask;
        }
        match held {
            Some(lease) if in_use && now_ns >= lease.renew_at_ns => NextStep::Ask,
            Some(lease) if in_use => NextStep::LookAgain(lease.renew_at_ns),
            Some(lease) => {
                self.asking = None;
                NextStep::LookAgain(lease.until_ns)
            }
            // Requests longer than the lease: it was not renewed in time, perhaps it can be had back.
            None if self.is_in_flight() => NextStep::Ask,
            None => NextStep::Forget,
        }
    }
}

fn schedule(due: &mut BTreeSet<(u64, TenantId)>, id: &TenantId, tenant: &mut Tenant, at: u64) {
    if let Some(before) = tenant.due_ns.replace(at) {
        due.remove(&(before, id.clone()));
    }
    due.insert((at, id.clone()));
}
