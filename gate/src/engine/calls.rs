//! Questions to the relay and the orchestrator, and what their ends mean.

use protocol::lease::{LeaseRefusal, LeaseRefusalKind};
use protocol::usage::TenantUsageRequest;
use protocol::{
    ChangesResponse, KeyHash, LeaseRequest, LeaseResponse, TenantId, UsageReport, Verdict,
    VerifyRequest, VerifyResponse, WakeKind, headers,
};
use serde::Serialize;

use super::replies::try_again;
use super::{Call, CallFailed, CallId, Effect, Gate, Metric, Pending, Step, StreamId, Topic};
use crate::RefusalKind;
use crate::engine::leases::Question;
use crate::engine::stream::Stream;
use crate::identity::changes_feed::News;
use crate::identity::verdicts::Lookup;
use crate::shared::Shared;

/// Most that a client is told to wait.
const RETRY_AFTER_MAX_S: u32 = 3_600;
/// The orchestrator gives up a part of the time before the filter, so that its reason arrives: also
/// from a host that is starting all that it can.
const LEASE_SLACK: u32 = 5;
/// What clients are told while the orchestrator does not answer at all.
const OUTAGE_RETRY_S: u32 = 2;
/// How long the orchestrator's word that a quota is used up is passed on without asking again.
const PAUSE_NS: u64 = 1_000_000_000;
/// A lost question is asked again by the next tick.
const NOW_NS: u64 = 0;

impl Gate {
    fn call(
        &mut self,
        topic: Topic,
        cluster: String,
        path: String,
        body: Option<String>,
        timeout_ms: u32,
    ) -> CallId {
        let id = self.next_call;
        self.next_call += 1;
        let leader = self.context;
        if let Some(stream) = leader.and_then(|stream| self.streams.get_mut(&stream)) {
            stream.leads = true;
        }
        self.calls.insert(id, Pending { topic, leader });
        let method = if body.is_some() { "POST" } else { "GET" };
        self.effects.push(Effect::Call(Call { id, cluster, method, path, body, timeout_ms }));
        id
    }

    pub(super) fn ask_verdict(&mut self, key: KeyHash, now_ns: u64) {
        self.count(Metric::Verifies);
        self.verdicts.ask(key, now_ns);
        let body = json(&VerifyRequest { key_sha256: key });
        let (cluster, timeout) = (self.config.relay_cluster.clone(), self.config.relay_timeout_ms);
        self.call(Topic::Verify(key), cluster, headers::VERIFY_PATH.to_owned(), body, timeout);
    }

    pub(super) fn ask_lease(&mut self, tenant: &TenantId, now_ns: u64) {
        if let Some(question) = self.leases.ask(tenant, now_ns) {
            self.count(Metric::Leases);
            self.send_lease(question);
        }
    }

    fn send_lease(&mut self, question: Question) {
        let Some(cluster) = self.config.orchestrator_cluster.clone() else { return };
        let Question { tenant, tier, limits, renew_only } = question;
        let topic = Topic::Lease(tenant.clone());
        let gateway = self.gateway.clone();
        let timeout = self.config.lease_timeout_ms;
        let patience_ms = Some(u64::from(timeout - timeout / LEASE_SLACK));
        // What is in flight was within the quotas, and in shadow mode nobody is refused for them.
        let within_quotas = !renew_only && !self.config.shadow;
        let request =
            LeaseRequest { gateway, tenant, tier, limits, renew_only, within_quotas, patience_ms };
        let body = json(&request);
        self.call(topic, cluster, headers::LEASE_PATH.to_owned(), body, timeout);
    }

    /// Keeps one long poll open.
    pub(super) fn poll_changes(&mut self, now_ns: u64) {
        let wait_ms = self.config.changes_wait_ms;
        if let Some((path, wait_ms)) = self.feed.poll(wait_ms, now_ns) {
            let timeout = wait_ms.saturating_add(self.config.relay_timeout_ms);
            self.call(Topic::Changes, self.config.relay_cluster.clone(), path, None, timeout);
        }
    }

    /// Asks again what was lost with the stream that had asked.
    pub(super) fn adopt_orphans(&mut self, now_ns: u64) {
        if self.verdicts.sizes().2 == 0 {
            return;
        }
        let streams = &self.streams;
        let orphans = self.verdicts.orphans(|id| streams.contains_key(&id));
        for key in orphans {
            self.ask_verdict(key, now_ns);
        }
    }

    /// Renews what is in use, and asks again what failed while somebody waits.
    pub(super) fn ask_due_leases(&mut self, now_ns: u64) {
        let streams = &self.streams;
        let questions = self.leases.due(now_ns, |id| streams.contains_key(&id));
        for question in questions {
            self.count(Metric::Renewals);
            self.send_lease(question);
        }
    }

    /// The stream is gone, and with it the answers to the calls that it has made.
    pub(super) fn drop_calls_of(&mut self, stream: StreamId, now_ns: u64) -> Vec<CallId> {
        let lost: Vec<CallId> = self
            .calls
            .iter()
            .filter(|(_, call)| call.leader == Some(stream))
            .map(|(id, _)| *id)
            .collect();
        for id in &lost {
            match self.calls.remove(id).map(|call| call.topic) {
                Some(Topic::Verify(key)) => self.verdicts.orphan(&key),
                Some(Topic::Lease(tenant)) => self.leases.lost(&tenant, now_ns + NOW_NS),
                Some(Topic::Changes | Topic::Usage(_) | Topic::Report { .. }) | None => {}
            }
        }
        lost
    }

    pub(super) fn call_done(
        &mut self,
        call: Pending,
        result: Result<(u16, &[u8]), CallFailed>,
        now_ns: u64,
        shared: &mut dyn Shared,
    ) {
        match call.topic {
            Topic::Verify(key) => self.verify_done(key, read(result), now_ns, shared),
            Topic::Changes => self.changes_done(read(result), now_ns, shared),
            Topic::Lease(tenant) => self.lease_done(&tenant, result, now_ns, shared),
            Topic::Usage(stream) => self.usage_done(stream, result),
            Topic::Report { asked_ns } => self.report_done(read(result), asked_ns, now_ns),
        }
    }

    fn verify_done(
        &mut self,
        key: KeyHash,
        answer: Option<VerifyResponse>,
        now_ns: u64,
        shared: &mut dyn Shared,
    ) {
        let Some(answer) = answer else {
            self.count(Metric::VerifyFailures);
            let waiters = self.verdicts.failed(&key, now_ns);
            return self.resume(waiters, None, now_ns, shared);
        };
        match self.verdicts.answered(key, answer, &self.feed, now_ns, shared) {
            (Lookup::Ask, _) => self.ask_verdict(key, now_ns),
            (lookup, waiters) => self.resume(waiters, Some(&lookup), now_ns, shared),
        }
    }

    fn changes_done(
        &mut self,
        answer: Option<ChangesResponse>,
        now_ns: u64,
        shared: &mut dyn Shared,
    ) {
        let Some(answer) = answer else {
            self.count(Metric::FeedFailures);
            return self.feed.failed(now_ns);
        };
        match self.feed.answered(&answer, now_ns) {
            News::Reset => self.verdicts.reset(&answer.epoch, answer.revision, now_ns),
            News::Changed => {
                self.verdicts.changed(&answer.epoch, answer.revision, &answer.changed, shared);
            }
        }
        self.feed.publish(shared);
        self.poll_changes(now_ns);
    }

    fn lease_done(
        &mut self,
        tenant: &TenantId,
        result: Result<(u16, &[u8]), CallFailed>,
        now_ns: u64,
        shared: &mut dyn Shared,
    ) {
        if let Ok((200, body)) = result
            && let Ok(answer) = serde_json::from_slice::<LeaseResponse>(body)
        {
            return self.lease_granted(tenant, &answer, now_ns, shared);
        }
        if let Ok((status, body)) = result
            && status != 200
            && let Ok(refusal) = serde_json::from_slice::<LeaseRefusal>(body)
        {
            return self.lease_refused(tenant, &refusal, now_ns, shared);
        }
        self.count(Metric::LeaseFailures);
        let waiters = self.leases.failed(tenant, now_ns);
        self.refuse_waiters(waiters, RefusalKind::OrchestratorUnavailable, OUTAGE_RETRY_S);
    }

    fn lease_granted(
        &mut self,
        tenant: &TenantId,
        answer: &LeaseResponse,
        now_ns: u64,
        shared: &mut dyn Shared,
    ) {
        let in_doubt = self.usage.awaits_answer();
        let waiters = self.leases.granted(tenant, answer, in_doubt, now_ns);
        if answer.waker {
            self.record_wake(tenant, answer.wake);
        }
        for id in &waiters {
            // Of two answers that a stream waited for, the first may be the one that woke.
            if let Some(stream) = self.streams.get_mut(id)
                && stream.wake.is_none_or(|(kind, _)| kind == WakeKind::None)
            {
                stream.wake = Some((answer.wake, answer.wake_ms));
            }
            // What the lease tells of the quotas is news to those who waited for it.
            if let Some(stream) = self.streams.get_mut(id) {
                stream.within_quota = false;
            }
        }
        // One that took longer than it holds is asked for again; the deadline ends that.
        self.resume(waiters, None, now_ns, shared);
    }

    fn lease_refused(
        &mut self,
        tenant: &TenantId,
        refusal: &LeaseRefusal,
        now_ns: u64,
        shared: &mut dyn Shared,
    ) {
        let retry_after_s = refusal.retry_after_s.clamp(1, RETRY_AFTER_MAX_S);
        let kind = match refusal.kind {
            LeaseRefusalKind::Queue => RefusalKind::WakeQueued,
            LeaseRefusalKind::Failing | LeaseRefusalKind::Damaged => RefusalKind::WakeFailed,
            LeaseRefusalKind::WakeBudget => RefusalKind::WakeBudget,
            LeaseRefusalKind::Gateway | LeaseRefusalKind::Unavailable => {
                RefusalKind::OrchestratorUnavailable
            }
            // A renewal found it asleep. Who came meanwhile asks to have it woken.
            LeaseRefusalKind::Asleep => {
                let waiters = self.leases.refused(tenant, None, 0, now_ns);
                return self.resume(waiters, None, now_ns, shared);
            }
            LeaseRefusalKind::Quota => return self.over_quota(tenant, refusal, now_ns),
        };
        let pause_ns = u64::from(retry_after_s) * 1_000_000_000;
        let waiters = self.leases.refused(tenant, None, pause_ns, now_ns);
        self.refuse_waiters(waiters, kind, retry_after_s);
    }

    /// The day or month is used up. Who waits is told by its own limits, which may be newer than those
    /// that the orchestrator judged by, and then may ask again; nobody is made to go round in a circle.
    fn over_quota(&mut self, tenant: &TenantId, refusal: &LeaseRefusal, now_ns: u64) {
        let waiters = self.leases.refused(tenant, refusal.notice.as_ref(), PAUSE_NS, now_ns);
        for id in waiters {
            let Some(stream) = self.streams.get(&id).filter(|s| s.awaits_lease()) else { continue };
            let judged = self.judge_quota(stream);
            let again = try_again(RefusalKind::QuotaExceeded, 1);
            let reply = self.refuse(id, &judged.err().unwrap_or(again));
            self.settle(id, Step::Answer(reply));
        }
    }

    fn refuse_waiters(&mut self, waiters: Vec<StreamId>, kind: RefusalKind, retry_after_s: u32) {
        for id in waiters {
            if self.streams.get(&id).is_some_and(Stream::awaits_lease) {
                let reply = self.refuse(id, &try_again(kind, retry_after_s));
                self.settle(id, Step::Answer(reply));
            }
        }
    }

    /// Asks for a tenant's own numbers.
    pub(super) fn call_usage(&mut self, stream: StreamId, verdict: &Verdict) -> CallId {
        let Verdict { tenant, tier, limits, .. } = verdict;
        let cluster = self.config.orchestrator_cluster.clone().unwrap_or_default();
        let path = format!("{}{tenant}", headers::TENANT_USAGE_PATH);
        let body = json(&TenantUsageRequest { tier: tier.clone(), limits: limits.clone() });
        self.call(Topic::Usage(stream), cluster, path, body, self.config.relay_timeout_ms)
    }

    fn usage_done(&mut self, id: StreamId, result: Result<(u16, &[u8]), CallFailed>) {
        if !self.streams.get(&id).is_some_and(Stream::is_waiting) {
            return;
        }
        let numbers = match result {
            Ok((200, body)) => String::from_utf8(body.to_vec()).ok(),
            _ => None,
        };
        let reply = match numbers {
            Some(numbers) => {
                self.count(Metric::Answered);
                self.answer(id, "application/json", numbers)
            }
            None => self.refuse(id, &try_again(RefusalKind::OrchestratorUnavailable, 1)),
        };
        self.settle(id, Step::Answer(reply));
    }

    pub(super) fn send_report(&mut self, report: &UsageReport, now_ns: u64) {
        let cluster = self.config.orchestrator_cluster.clone().unwrap_or_default();
        let path = headers::USAGE_PATH.to_owned();
        let topic = Topic::Report { asked_ns: now_ns };
        self.call(topic, cluster, path, json(report), self.config.relay_timeout_ms);
    }
}

fn json(question: &impl Serialize) -> Option<String> {
    serde_json::to_string(question).ok()
}

/// The document of a 200; anything else is no answer.
fn read<T: serde::de::DeserializeOwned>(result: Result<(u16, &[u8]), CallFailed>) -> Option<T> {
    match result {
        Ok((200, body)) => serde_json::from_slice(body).ok(),
        _ => None,
    }
}
