//! Applies the tenant's limits to a request: rate, quotas, storage.

use std::rc::Rc;

use protocol::time::MS_NS;
use protocol::{TenantNotice, Verdict};

use super::Gate;
use super::clock::Ctx;
use super::metrics::Metric;
use super::stream::{Body, Marks, TenantRequest};
use crate::Refusal;
use crate::http::request::Request;
use crate::limits::rate::{Buckets, Rate};
use crate::limits::storage::{self, AdmittedWrite, Change, Measurement, StorageRequest};
use crate::limits::usage::Since;
use crate::limits::{cost, quota};

/// Deadline of the next usage report after a request near the end of a quota. Together with the
/// second after which other VMs ask for news, a used-up quota holds everywhere within two seconds.
const URGENT_REPORT_NS: u64 = 250 * MS_NS;
/// The benchmark's baseline: no limits, no metering.
pub(super) const UNLIMITED: bool = cfg!(feature = "unlimited");

impl Gate {
    /// Takes the request's tokens, once per request. A request that is refused later, malformed
    /// ones included, has used them up too.
    pub(super) fn take_tokens(
        &mut self,
        marks: &mut Marks,
        verdict: &Rc<Verdict>,
        writes: bool,
        ctx: &mut Ctx<'_>,
    ) -> Result<(), Refusal> {
        if marks.rate.is_some() || UNLIMITED {
            return Ok(());
        }
        let Verdict { tenant, limits, .. } = &**verdict;
        let cost = if writes { limits.write_cost } else { 1 };
        let rate = self.buckets.take(tenant, limits, cost, ctx.wall_ns, ctx.shared);
        let paid_bytes = limits.token_bytes().map(|bytes| bytes.saturating_mul(cost.into()));
        marks.paid_bytes = paid_bytes.unwrap_or(u64::MAX);
        let refusal = (!rate.allowed)
            .then(|| Refusal::rate_limited(rate.limit, rate.retry_after_s.unwrap_or(1)));
        marks.rate = Some(rate);
        match refusal {
            Some(refusal) => self.enforce(marks, refusal),
            None => Ok(()),
        }
    }

    /// Charges for the work that the request makes for SQ, before it gets there.
    pub(super) fn charge_work(
        &mut self,
        marks: &mut Marks,
        request: &TenantRequest,
        body_bytes: u64,
    ) {
        let Request { endpoint, access, .. } = request.request;
        let notices = self.leases.notices(request.tenant());
        let phexts = notices.map(|notices| &notices.last.notice.phexts);
        let phext_bytes = phexts.and_then(|phexts| phexts.get(request.phext())).copied();
        let sent_bytes = request.request.growth_bytes().saturating_add(body_bytes);
        let work = cost::work(endpoint, access, phext_bytes.unwrap_or(0), sent_bytes);
        if work > marks.paid_bytes {
            let now_ns = self.clock.wall_ns();
            marks.rate = charge(&mut self.buckets, marks, &request.verdict, work, now_ns);
        }
    }

    /// Checks the quotas, once the use of them is known. For a tenant without a lease that is when
    /// the lease has come, or was refused because of a quota.
    pub(super) fn check_quota(
        &mut self,
        marks: &mut Marks,
        request: &TenantRequest,
        ctx: &Ctx<'_>,
    ) -> Result<(), Refusal> {
        if marks.quota_checked || !self.has_orchestrator() || UNLIMITED {
            return Ok(());
        }
        marks.quota_checked = true;
        let warning = match self.judge_quota(request, ctx) {
            Ok(None) => {
                marks.warning = None;
                return Ok(());
            }
            other => other,
        };
        // Near the end of a quota, what this VM has counted matters to the others: report it soon.
        self.next_report_ns = self.next_report_ns.min(ctx.now_ns + URGENT_REPORT_NS);
        match warning {
            Ok(warning) => {
                marks.warning = warning.map(|warning| warning.to_string());
                Ok(())
            }
            Err(refusal) => self.enforce(marks, refusal),
        }
    }

    /// Judges the request by the quotas, as far as their use is known.
    pub(super) fn judge_quota(
        &self,
        request: &TenantRequest,
        ctx: &Ctx<'_>,
    ) -> Result<Option<quota::Warning>, Refusal> {
        let tenant = request.tenant();
        let Some(notices) = self.leases.notices(tenant) else {
            return self.judge_quota_by(&TenantNotice::default(), Since::Acked, request, ctx);
        };
        // 1. Without doubt about the last notice: it contains every report that was answered, and
        //    this VM adds what it has counted since.
        let Some(before) = &notices.before else {
            return self.judge_quota_by(&notices.last.notice, Since::Acked, request, ctx);
        };
        // 2. The last notice came while a report was in flight, and may or may not contain it. Two
        //    sums are certainly used, because neither counts a request twice: the notice before
        //    with all that was not answered, and the last notice with all that was not sent. The
        //    request must be within the quotas by both.
        let warning = self.judge_quota_by(&before.notice, Since::Acked, request, ctx)?;
        let by_last = self.judge_quota_by(&notices.last.notice, Since::Sent, request, ctx)?;
        Ok(by_last.or(warning))
    }

    /// Judges the request by the use in `notice` plus what this VM has counted `since`.
    fn judge_quota_by(
        &self,
        notice: &TenantNotice,
        since: Since,
        request: &TenantRequest,
        ctx: &Ctx<'_>,
    ) -> Result<Option<quota::Warning>, Refusal> {
        let tenant = request.tenant();
        let now_s = ctx.wall_s();
        // Requests in flight are counted at their end only, but they will have been of this day.
        let in_flight =
            self.leases.notices(tenant).map(|notices| notices.in_flight).unwrap_or_default();
        let counted = self.usage.delta(tenant, since, now_s).plus(in_flight);
        quota::check(notice, &request.verdict.limits, &counted, request.class(), now_s)
    }

    /// Checks the storage before the request is forwarded. A request without a body is counted as
    /// written here; one with a body at its end, when it may soon be on disk.
    pub(super) fn check_storage(
        &mut self,
        marks: &mut Marks,
        request: &TenantRequest,
        body: &Body,
        content_length: Option<u64>,
        ctx: &mut Ctx<'_>,
    ) -> Result<Option<AdmittedWrite>, Refusal> {
        match body {
            Body::Complete { bytes } => self.count_storage(marks, request, *bytes, ctx),
            Body::Incoming(_) => {
                let expected = content_length.unwrap_or(0);
                let checked = self.judge_storage(request, expected, ctx, |asked, known, ctx| {
                    storage::check(asked, known, ctx.fresh_wall_ms(), ctx.shared).map(|()| None)
                });
                checked.or_else(|refusal| self.enforce(marks, refusal).map(|()| None))
            }
        }
    }

    /// All of the request has come: from now on its write may be on disk at any time.
    pub(super) fn count_storage(
        &mut self,
        marks: &mut Marks,
        request: &TenantRequest,
        body_bytes: u64,
        ctx: &mut Ctx<'_>,
    ) -> Result<Option<AdmittedWrite>, Refusal> {
        let counted = self.judge_storage(request, body_bytes, ctx, |asked, known, ctx| {
            let now_ms = match asked.change {
                Change::Read => ctx.wall_ms(),
                _ => ctx.fresh_wall_ms(),
            };
            storage::admit(asked, known, now_ms, ctx.shared)
        });
        counted.or_else(|refusal| self.enforce(marks, refusal).map(|()| None))
    }

    fn judge_storage(
        &self,
        request: &TenantRequest,
        body_bytes: u64,
        ctx: &mut Ctx<'_>,
        judge: impl FnOnce(
            &StorageRequest<'_>,
            Measurement<'_>,
            &mut Ctx<'_>,
        ) -> Result<Option<AdmittedWrite>, Refusal>,
    ) -> Result<Option<AdmittedWrite>, Refusal> {
        if !self.has_orchestrator() || UNLIMITED {
            // Without an orchestrator nothing measures the storage.
            return Ok(None);
        }
        let Verdict { tenant, limits, .. } = &*request.verdict;
        let notices = self.leases.notices(tenant);
        let last = notices.map(|notices| notices.last.clone()).unwrap_or_default();
        let known = Measurement::new(&last.notice, ctx.wall_ms_of(last.asked_ns));
        let phext = request.phext();
        let asked = StorageRequest { tenant, limits, phext, change: request.change(body_bytes) };
        judge(&asked, known, ctx)
    }

    /// Enforces a limit, or in shadow mode only marks the request with it.
    fn enforce(&mut self, marks: &mut Marks, refusal: Refusal) -> Result<(), Refusal> {
        if !self.config.shadow {
            return Err(refusal);
        }
        if marks.shadowed.is_none() {
            marks.shadowed = Some(refusal.kind);
            self.counts.add(Metric::Shadowed);
        }
        Ok(())
    }
}

/// Charges for the bytes of a request that it has not paid for. Returns the state of the bucket.
pub(super) fn charge(
    buckets: &mut Buckets,
    marks: &mut Marks,
    verdict: &Verdict,
    bytes: u64,
    now_ns: u64,
) -> Option<Rate> {
    // Nothing is charged where no tokens are taken.
    marks.rate.as_ref()?;
    let token_bytes = verdict.limits.token_bytes()?;
    let tokens = bytes.saturating_sub(marks.paid_bytes).div_ceil(token_bytes);
    marks.paid_bytes = marks.paid_bytes.saturating_add(tokens.saturating_mul(token_bytes));
    let tokens = u32::try_from(tokens).unwrap_or(u32::MAX);
    Some(buckets.owe(&verdict.tenant, &verdict.limits, tokens, now_ns))
}
