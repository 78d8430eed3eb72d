//! Completions of outbound calls, and the streams that they let go on.

use protocol::lease::{LeaseRefusal, LeaseRefusalKind};
use protocol::time::SECOND_NS;
use protocol::{ChangesResponse, KeyHash, LeaseResponse, TenantId, VerifyResponse, WakeKind};

use super::Gate;
use super::calls::Topic;
use super::clock::Ctx;
use super::metrics::Metric;
use super::stream::{Reason, State, Wake};
use crate::effect::{CallId, CallResult, StreamId};
use crate::identity::changes_feed::News;
use crate::identity::verdicts::Lookup;
use crate::shared::Shared;
use crate::{Refusal, RefusalKind};

/// The longest `Retry-After` that the gate passes on from the orchestrator.
const RETRY_AFTER_MAX_S: u32 = 3_600;
/// `Retry-After` while the orchestrator does not respond at all.
const OUTAGE_RETRY_S: u32 = 2;
/// Time for which the orchestrator's refusal for a quota is passed on without asking again.
const QUOTA_PAUSE_NS: u64 = SECOND_NS;

impl Gate {
    /// A call has ended.
    pub fn on_call_done(
        &mut self,
        id: CallId,
        result: CallResult<'_>,
        wall_ns: u64,
        shared: &mut dyn Shared,
    ) {
        let mut ctx = self.enter(None, wall_ns, shared);
        let Some(call) = self.calls.remove(id) else { return };
        ctx.caller = call.caller;
        match call.topic {
            Topic::Verify(key) => self.verify_done(key, read(result), &mut ctx),
            Topic::Changes => self.changes_done(read(result), &mut ctx),
            Topic::Lease(tenant) => self.lease_done(&tenant, result, &mut ctx),
            Topic::Usage(stream) => self.usage_done(stream, result),
            Topic::Report { asked_ns } => self.report_done(read(result), asked_ns, &ctx),
        }
    }

    fn verify_done(&mut self, key: KeyHash, response: Option<VerifyResponse>, ctx: &mut Ctx<'_>) {
        let Some(response) = response else {
            self.counts.add(Metric::VerifyFailures);
            let waiters = self.verdicts.failed(&key, ctx.now_ns);
            return self.resume(waiters, None, ctx);
        };
        let feed = &self.changes_feed;
        match self.verdicts.answered(key, response, feed, ctx.now_ns, ctx.shared) {
            // A change of this key overtook the response: verify again.
            (Lookup::Ask, _) => self.verify(key, ctx),
            (lookup, waiters) => self.resume(waiters, Some(&lookup), ctx),
        }
    }

    fn changes_done(&mut self, response: Option<ChangesResponse>, ctx: &mut Ctx<'_>) {
        let Some(response) = response else {
            self.counts.add(Metric::FeedFailures);
            return self.changes_feed.failed(ctx.now_ns);
        };
        // Verdicts first: the published position promises that all changes up to it were applied.
        let ChangesResponse { epoch, revision, changed, .. } = &response;
        match self.changes_feed.answered(&response, ctx.now_ns) {
            News::Reset => self.verdicts.reset(epoch, *revision, ctx.now_ns),
            News::Changed => self.verdicts.changed(epoch, *revision, changed, ctx.shared),
        }
        self.changes_feed.publish(ctx.shared);
        self.poll_changes(ctx);
    }

    fn lease_done(&mut self, tenant: &TenantId, result: CallResult<'_>, ctx: &mut Ctx<'_>) {
        match read_lease(result) {
            LeaseReply::Granted(response) => self.lease_granted(tenant, &response, ctx),
            LeaseReply::Refused(refusal) => self.lease_refused(tenant, &refusal, ctx),
            LeaseReply::Failed => {
                self.counts.add(Metric::LeaseFailures);
                let waiters = self.leases.failed(tenant, ctx.now_ns);
                let kind = RefusalKind::OrchestratorUnavailable;
                self.refuse_waiters(waiters, kind, OUTAGE_RETRY_S);
            }
        }
    }

    fn lease_granted(&mut self, tenant: &TenantId, response: &LeaseResponse, ctx: &mut Ctx<'_>) {
        // 1. Store the lease and its notice. A usage report in flight may or may not be contained in
        //    the notice: the quotas are then judged by both possibilities.
        let in_doubt = self.usage.awaits_ack();
        let waiters = self.leases.granted(tenant, response, in_doubt, ctx.now_ns);
        // 2. Exactly one of all gateways and VMs that waited for this wake counts it.
        if response.waker {
            self.meter_wake(tenant, response.wake, ctx);
        }
        let wake = Wake { kind: response.wake, ms: response.wake_ms };
        // 3. Let the waiters go on. A lease shorter than its own wake is over by now: then they ask
        //    again, until their deadline ends that.
        self.for_each_waiter(waiters, |gate, stream| {
            // Keep the first real wake: a later lease of an awake tenant must not hide it.
            if stream.wake.is_none_or(|earlier| earlier.kind == WakeKind::None) {
                stream.wake = Some(wake);
            }
            stream.marks.quota_checked = false;
            gate.resume_one(stream, None, ctx);
        });
    }

    fn lease_refused(&mut self, tenant: &TenantId, refusal: &LeaseRefusal, ctx: &mut Ctx<'_>) {
        let retry_after_s = refusal.retry_after_s.clamp(1, RETRY_AFTER_MAX_S);
        let kind = match refusal.kind {
            LeaseRefusalKind::Queue => RefusalKind::WakeQueued,
            LeaseRefusalKind::Failing | LeaseRefusalKind::Damaged => RefusalKind::WakeFailed,
            LeaseRefusalKind::WakeBudget => RefusalKind::WakeBudget,
            LeaseRefusalKind::Gateway | LeaseRefusalKind::Unavailable => {
                RefusalKind::OrchestratorUnavailable
            }
            LeaseRefusalKind::Asleep => {
                // A renewal found the tenant asleep. Streams that came since request a lease that
                // wakes it.
                let waiters = self.leases.refused(tenant, None, 0, ctx.now_ns);
                return self.resume(waiters, None, ctx);
            }
            LeaseRefusalKind::Quota => return self.lease_over_quota(tenant, refusal, ctx),
        };
        let pause_ns = u64::from(retry_after_s) * SECOND_NS;
        let waiters = self.leases.refused(tenant, None, pause_ns, ctx.now_ns);
        self.refuse_waiters(waiters, kind, retry_after_s);
    }

    /// The orchestrator refused the lease for a quota. Each waiter is judged by the limits of its
    /// own verdict, which may be newer than those of the refusal. A waiter that is within them is
    /// nevertheless refused, for a second, to avoid a retry loop.
    fn lease_over_quota(&mut self, tenant: &TenantId, refusal: &LeaseRefusal, ctx: &mut Ctx<'_>) {
        let notice = refusal.notice.as_ref();
        let waiters = self.leases.refused(tenant, notice, QUOTA_PAUSE_NS, ctx.now_ns);
        self.for_each_waiter(waiters, |gate, stream| {
            let Some(request) = stream.awaiting_lease() else { return };
            let refusal = match gate.judge_quota(request, ctx) {
                Err(refusal) => refusal,
                Ok(_) => Refusal::quota_exceeded_elsewhere(),
            };
            gate.refuse(stream, &refusal);
        });
    }

    fn refuse_waiters(&mut self, waiters: Vec<StreamId>, kind: RefusalKind, retry_after_s: u32) {
        let refusal = Refusal::new(kind).retry_after_s(retry_after_s);
        self.for_each_waiter(waiters, |gate, stream| {
            if stream.awaiting_lease().is_some() {
                gate.refuse(stream, &refusal);
            }
        });
    }

    fn usage_done(&mut self, id: StreamId, result: CallResult<'_>) {
        let document = match result {
            Ok((200, body)) => String::from_utf8(body.to_vec()).ok(),
            _ => None,
        };
        let Some(mut stream) = self.streams.take(id) else { return };
        if matches!(stream.state, State::Waiting { reason: Reason::Usage, .. }) {
            if let Some(document) = document {
                let reply = self.reply_with(&stream, "application/json", document);
                self.answer(&mut stream, reply);
            } else {
                let refusal = Refusal::new(RefusalKind::OrchestratorUnavailable);
                self.refuse(&mut stream, &refusal);
            }
        }
        self.streams.put(stream);
    }
}

/// The orchestrator's response to a request for a lease.
enum LeaseReply {
    Granted(Box<LeaseResponse>),
    Refused(Box<LeaseRefusal>),
    Failed,
}

fn read_lease(result: CallResult<'_>) -> LeaseReply {
    let reply = match result {
        Ok((200, body)) => serde_json::from_slice(body).map(LeaseReply::Granted),
        Ok((_, body)) => serde_json::from_slice(body).map(LeaseReply::Refused),
        Err(_) => return LeaseReply::Failed,
    };
    reply.unwrap_or(LeaseReply::Failed)
}

/// The document of a response with status 200; any other response is a failure.
fn read<T: serde::de::DeserializeOwned>(result: CallResult<'_>) -> Option<T> {
    match result {
        Ok((200, body)) => serde_json::from_slice(body).ok(),
        _ => None,
    }
}
