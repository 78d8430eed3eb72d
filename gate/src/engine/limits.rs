//! What a tenant may use, applied: rate, quotas, storage; and the counting of what it used.

use protocol::time::SECOND_NS;
use protocol::{TenantId, TenantNotice, UsageResponse, Verdict, WakeKind};

use super::admit::{Next, Way, internal};
use super::{Gate, MS_NS, Metric, StreamId};
use crate::engine::stream::{State, Stream, Waiting};
use crate::http::request::{Class, Endpoint, Request};
use crate::limits::quota;
use crate::limits::storage::{self, Asked, Change, Known, Written};
use crate::limits::usage::{self, Fate, Served, Since};
use crate::shared::Shared;
use crate::{Refusal, RefusalKind};

/// How soon a report goes out after a request near the end of a quota. With the second in which
/// another VM asks for news, a used-up quota holds everywhere well within two seconds.
const HURRY_NS: u64 = 250 * MS_NS;
/// Nothing is limited or counted: what the benchmark compares with.
const UNLIMITED: bool = cfg!(feature = "unlimited");

impl Gate {
    /// Takes the request's tokens, once: what a write costs, one for all else. What is refused later
    /// has cost them too, garbage included.
    pub(super) fn take_token(
        &mut self,
        id: StreamId,
        verdict: &Verdict,
        shared: &mut dyn Shared,
    ) -> Way<()> {
        let Some(stream) = self.streams.get_mut(&id) else { return Err(internal()) };
        if stream.rate.is_some() || UNLIMITED {
            return Ok(());
        }
        let cost = if stream.writes() { verdict.limits.write_cost } else { 1 };
        let rate = self.buckets.take(&verdict.tenant, &verdict.limits, cost, self.wall_ns, shared);
        let (allowed, burst, retry_s) = (rate.allowed, rate.limit, rate.retry_after_s);
        stream.rate = Some(rate);
        if allowed {
            return Ok(());
        }
        self.shadow(id, rate_limited(burst, retry_s.unwrap_or(1)))
    }

    /// Looks at the quotas, once it is known what was used: for a tenant without a lease that is
    /// when the lease has brought it, or has been refused for it.
    pub(super) fn check_quota(&mut self, id: StreamId) -> Way<()> {
        let Some(stream) = self.streams.get(&id) else { return Err(internal()) };
        if stream.within_quota || self.config.orchestrator_cluster.is_none() || UNLIMITED {
            return Ok(());
        }
        let checked = self.judge_quota(stream);
        let Some(stream) = self.streams.get_mut(&id) else { return Err(internal()) };
        stream.within_quota = true;
        if !matches!(checked, Ok(None)) {
            // Near the end of a quota what is counted here matters elsewhere.
            let soon_ns = self.wall_ns.saturating_add(self.behind_ns + HURRY_NS);
            self.flush_ns = self.flush_ns.min(soon_ns);
        }
        match checked {
            Ok(warning) => {
                stream.warning = warning.map(|warning| warning.to_string());
                Ok(())
            }
            Err(refusal) => self.shadow(id, refusal),
        }
    }

    /// Whether the request is within the quotas, as far as it is known what was used.
    pub(super) fn judge_quota(&self, stream: &Stream) -> Result<Option<quota::Warning>, Refusal> {
        let Some(verdict) = &stream.verdict else { return Err(internal()) };
        let (tenant, limits) = (&verdict.tenant, &verdict.limits);
        let now_s = self.wall_ns / SECOND_NS;
        let known = self.leases.known(tenant);
        // What is on its way will have been of this day: it is counted at its end.
        let in_flight = known.map(|known| known.in_flight).unwrap_or_default();
        let check = |notice: &TenantNotice, since| {
            let delta = self.usage.delta(tenant, since, now_s).with(in_flight);
            quota::check(notice, limits, &delta, class(stream), now_s)
        };
        let Some(known) = known else { return check(&TenantNotice::default(), Since::Answered) };
        let Some(before) = &known.before else {
            return check(&known.notice.notice, Since::Answered);
        };
        // Both are sure to be used at least, and neither counts anything twice.
        let warning = check(&before.notice, Since::Answered)?;
        Ok(check(&known.notice.notice, Since::Sent)?.or(warning))
    }

    /// In shadow mode a limit is only marked.
    fn shadow(&mut self, id: StreamId, refusal: Refusal) -> Way<()> {
        if !self.config.shadow {
            return Err(refusal);
        }
        if let Some(stream) = self.streams.get_mut(&id)
            && stream.shadowed.is_none()
        {
            stream.shadowed = Some(refusal.kind);
            self.count(Metric::Shadowed);
        }
        Ok(())
    }

    /// Looks at the storage. A request without a body is let through here and counted; one with a body
    /// is counted at its end, when it may be on the disk soon.
    pub(super) fn check_storage(&mut self, id: StreamId, shared: &mut dyn Shared) -> Way<()> {
        let Some(stream) = self.streams.get(&id) else { return Err(internal()) };
        if stream.body.is_none() {
            return self.count_storage(id, shared);
        }
        let expected = stream.head.content_length.unwrap_or(0);
        let checked = self.judge_storage(stream, expected, |asked, known, now_ms| {
            storage::check(asked, known, now_ms, shared).map(|()| None)
        });
        checked.map(drop).or_else(|refusal| self.shadow(id, refusal))
    }

    /// All of the request has come: from here on it may be on the disk at any time.
    pub(super) fn count_storage(&mut self, id: StreamId, shared: &mut dyn Shared) -> Way<()> {
        let Some(stream) = self.streams.get(&id) else { return Err(internal()) };
        let counted = self.judge_storage(stream, stream.body_bytes, |asked, known, now_ms| {
            storage::let_through(asked, known, now_ms, shared)
        });
        match counted {
            Ok(written) => {
                if let Some(stream) = self.streams.get_mut(&id) {
                    stream.written = written;
                }
                Ok(())
            }
            Err(refusal) => self.shadow(id, refusal),
        }
    }

    fn judge_storage(
        &self,
        stream: &Stream,
        body_bytes: u64,
        judge: impl FnOnce(&Asked<'_>, Known<'_>, u64) -> Way<Option<Written>>,
    ) -> Way<Option<Written>> {
        // Without an orchestrator nobody measures.
        if self.config.orchestrator_cluster.is_none() || UNLIMITED {
            return Ok(None);
        }
        let (Some(request), Some(verdict)) = (&stream.request, &stream.verdict) else {
            return Err(internal());
        };
        let Verdict { tenant, limits, .. } = &**verdict;
        let told = self.leases.known(tenant).map(|known| known.notice.clone()).unwrap_or_default();
        let known = Known::new(&told.notice, told.asked_ns.saturating_sub(self.behind_ns) / MS_NS);
        let phext = request.phext.as_deref().unwrap_or_default();
        let asked = Asked { tenant, limits, phext, change: change(request, body_bytes) };
        judge(&asked, known, self.wall_ns / MS_NS)
    }

    /// The request is over. With SQ's answer its text is on the disk, without it may still come.
    pub(super) fn settle_storage(&self, stream: &Stream, shared: &mut dyn Shared) {
        let (Some(written), 200) = (&stream.written, stream.status) else { return };
        let (Some(request), Some(tenant)) = (&stream.request, stream.tenant()) else { return };
        let phext = request.phext.as_deref().unwrap_or_default();
        storage::answered(tenant, phext, written, self.wall_ns / MS_NS, shared);
    }

    /// What the gateway answers by itself, without waking anyone: `version` and `usage`.
    pub(super) fn answer_here(&mut self, id: StreamId, verdict: &Verdict) -> Way<Option<Next>> {
        let Some(stream) = self.streams.get(&id) else { return Err(internal()) };
        let Some(request) = &stream.request else { return Err(internal()) };
        if !request.is_answered_here() {
            return Ok(None);
        }
        let (endpoint, content_type) = (request.endpoint, request.answer().content_type());
        if endpoint == Endpoint::Usage {
            return self.ask_usage(id, verdict).map(Some);
        }
        let version = self.leases.sq_version(&verdict.tenant).unwrap_or(self.config.sq_version);
        Ok(Some(Next::Answer(self.answer(id, content_type, version.to_string()))))
    }

    fn ask_usage(&mut self, id: StreamId, verdict: &Verdict) -> Way<Next> {
        if self.config.orchestrator_cluster.is_none() {
            let detail = "This gateway counts nothing: it runs without an orchestrator.";
            return Err(Refusal::new(RefusalKind::NotImplemented, detail));
        }
        let call = self.call_usage(id, verdict);
        Ok(Next::Wait(Waiting::Usage(call)))
    }

    /// Sends what was counted, every `usage_interval_ms`, one report at a time. With nothing
    /// counted it asks for news: a quota may be used up at another VM or Envoy.
    pub(super) fn flush_usage(&mut self, now_ns: u64) {
        if self.config.orchestrator_cluster.is_none() || self.report_out || now_ns < self.flush_ns {
            return;
        }
        self.flush_ns = now_ns + u64::from(self.config.usage_interval_ms) * MS_NS;
        let report = self.usage.flush(self.wall_ns / SECOND_NS);
        let report =
            report.or_else(|| (!self.leases.is_empty()).then(|| self.usage.ask_for_news()));
        if let Some(report) = report {
            self.report_out = true;
            self.send_report(&report, now_ns);
        }
    }

    /// The ledger has it, and tells what it knows.
    pub(super) fn report_done(
        &mut self,
        answer: Option<UsageResponse>,
        asked_ns: u64,
        now_ns: u64,
    ) {
        self.report_out = false;
        let Some(answer) = answer else {
            self.count(Metric::ReportFailures);
            return;
        };
        let more = self.usage.acked(answer.sequence);
        for (tenant, notice) in answer.notices {
            let notice: TenantNotice = notice;
            self.leases.hear(&tenant, notice, asked_ns);
        }
        if more {
            self.flush_ns = now_ns;
            self.flush_usage(now_ns);
        }
    }

    /// Counts a request at its end.
    pub(super) fn record(&mut self, stream: &Stream, now_ns: u64) {
        let Some(verdict) = &stream.verdict else { return };
        if stream.request.as_ref().is_some_and(Request::is_answered_here) || UNLIMITED {
            return;
        }
        let fate = match (stream.state, stream.refused) {
            // SQ gets nothing before the body's end.
            (State::Forwarded, None) if stream.body.is_none() => Fate::Forwarded(class(stream)),
            (_, Some(kind)) => Fate::Refused(kind),
            (_, None) => Fate::Gone,
        };
        let forwarded = matches!(fate, Fate::Forwarded(_));
        let service_ns = now_ns.saturating_sub(stream.forwarded_ns);
        let served = Served {
            fate,
            status: stream.status,
            bytes_in: stream.bytes_in,
            bytes_out: stream.bytes_out,
            service_us: if forwarded { service_ns / 1_000 } else { 0 },
        };
        let is_counted = self.usage.record(verdict, &served, self.wall_ns / SECOND_NS);
        self.counts.add(if is_counted { Metric::Metered } else { Metric::Uncounted });
    }

    /// Counts a wake that is put down to this VM's question.
    pub(super) fn record_wake(&mut self, tenant: &TenantId, kind: WakeKind) {
        if let (Some(verdict), false) = (self.leases.verdict(tenant), UNLIMITED) {
            self.usage.woke(verdict, kind, self.wall_ns / SECOND_NS);
        }
    }
}

fn class(stream: &Stream) -> usage::Class {
    if stream.writes() { usage::Class::Write } else { usage::Class::Read }
}

fn change(request: &Request, body_bytes: u64) -> Change {
    let growth = request.growth_bytes() + body_bytes;
    match (request.class, request.scroll()) {
        (Class::Read, _) => Change::Read,
        (Class::Delete, _) => Change::Delete,
        (Class::Write, Some(at)) if request.endpoint == Endpoint::Update => {
            Change::Replace { at, growth }
        }
        (Class::Write, _) => Change::Append { growth },
    }
}

fn rate_limited(burst: u32, retry_after_s: u32) -> Refusal {
    let detail = format!(
        "More than {burst} requests came at once, or more than your tier's rate allows. \
         The RateLimit header tells how many are left."
    );
    Refusal::new(RefusalKind::RateLimited, detail).retry_after_s(retry_after_s)
}
