//! One tenant among the leases: its lease, the request for it, and the streams that wait.

use std::rc::Rc;

use protocol::{Limits, Verdict};

use super::{Lease, LeaseQuery, Notices, TRUSTED_NS};
use crate::effect::StreamId;

/// One tenant with a lease, or with streams that wait for one.
#[derive(Debug)]
pub(super) struct Tenant {
    /// The most recent verdict. Its limits go with the next request.
    pub(super) verdict: Rc<Verdict>,
    /// The limits that the orchestrator knows.
    pub(super) sent_limits: Option<Limits>,
    pub(super) lease: Option<Rc<Lease>>,
    pub(super) pending: Option<Pending>,
    pub(super) waiters: Vec<StreamId>,
    /// A request has come since the lease was granted.
    pub(super) used: bool,
    /// Envoy did not reach the tenant under the lease, which is requested again.
    pub(super) doubted: bool,
    pub(super) notices: Notices,
    /// Requests that have failed in a row.
    pub(super) failures: u32,
    /// Time of the first of them.
    pub(super) failing_since_ns: u64,
    /// A lost request is not repeated before this.
    pub(super) retry_at_ns: u64,
    /// The tenant's entry in `Leases::due`.
    pub(super) due_ns: Option<u64>,
}

/// A request for the lease, in flight or to be repeated.
#[derive(Debug)]
pub(super) struct Pending {
    pub(super) asked_ns: u64,
    pub(super) limits: Limits,
    /// It has failed, or its stream has ended.
    pub(super) lost: bool,
}

/// The action for a tenant that is due.
pub(super) enum NextStep {
    Request,
    LookAgain { at_ns: u64 },
    Wait,
    Drop,
}

impl Tenant {
    pub(super) fn new(verdict: &Rc<Verdict>) -> Self {
        Self {
            verdict: verdict.clone(),
            sent_limits: None,
            lease: None,
            pending: None,
            waiters: Vec::new(),
            used: false,
            doubted: false,
            notices: Notices::default(),
            failures: 0,
            failing_since_ns: 0,
            retry_at_ns: 0,
            due_ns: None,
        }
    }

    /// Takes over a newer verdict; `true` if the orchestrator should hear of it now.
    pub(super) fn update(&mut self, verdict: &Rc<Verdict>) -> bool {
        let before = std::mem::replace(&mut self.verdict, verdict.clone());
        let has_changed = before.limits != verdict.limits || before.tier != verdict.tier;
        has_changed && self.lease.is_some()
    }

    /// A request for the lease goes out now.
    pub(super) fn query(&mut self, now_ns: u64) -> LeaseQuery {
        let Verdict { tenant, tier, limits, .. } = &*self.verdict;
        self.pending = Some(Pending { asked_ns: now_ns, limits: limits.clone(), lost: false });
        LeaseQuery {
            tenant: tenant.clone(),
            tier: tier.clone(),
            limits: limits.clone(),
            // A tenant that was put to sleep is woken for streams that wait, not for requests that
            // were forwarded to it before.
            renew_only: self.waiters.is_empty(),
        }
    }

    pub(super) fn live_lease(&self, now_ns: u64) -> Option<&Rc<Lease>> {
        self.lease.as_ref().filter(|lease| now_ns < lease.until_ns)
    }

    /// Returns whether the failure of a request that was forwarded at `forwarded_ns` puts the lease
    /// in doubt.
    pub(super) fn may_doubt(&self, forwarded_ns: u64, now_ns: u64) -> bool {
        self.lease.as_ref().is_some_and(|lease| {
            lease.asked_ns <= forwarded_ns && now_ns >= lease.asked_ns.saturating_add(TRUSTED_NS)
        })
    }

    pub(super) fn is_idle(&self) -> bool {
        !self.is_in_flight() && self.pending.is_none() && self.waiters.is_empty()
    }

    fn is_in_flight(&self) -> bool {
        self.notices.in_flight.requests > 0
    }

    /// Returns whether the orchestrator knows older limits.
    pub(super) fn has_unsent_limits(&self) -> bool {
        self.sent_limits.as_ref().is_some_and(|sent| *sent != self.verdict.limits)
    }

    pub(super) fn next_step(&mut self, now_ns: u64) -> NextStep {
        if self.pending.as_ref().is_some_and(|pending| !pending.lost) {
            return NextStep::Wait;
        }
        if !self.waiters.is_empty() {
            return NextStep::Request;
        }
        let Some(lease) = self.live_lease(now_ns).cloned() else {
            // Requests that outlast the lease: it was not renewed in time, but may be granted again.
            return if self.is_in_flight() { NextStep::Request } else { NextStep::Drop };
        };
        if self.has_unsent_limits() || self.doubted {
            return NextStep::Request;
        }
        if !self.used && !self.is_in_flight() {
            self.pending = None;
            return NextStep::LookAgain { at_ns: lease.until_ns };
        }
        if now_ns >= lease.renew_at_ns {
            return NextStep::Request;
        }
        NextStep::LookAgain { at_ns: lease.renew_at_ns }
    }
}
