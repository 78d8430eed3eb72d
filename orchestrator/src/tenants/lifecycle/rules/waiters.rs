//! Decisions about waiting lease requests: granted, refused, or kept waiting.

use protocol::WakeKind;
use protocol::lease::LeaseRefusalKind;

use super::SOON_MS;
use crate::tenants::lifecycle::event::{Effect, LeaseDecision};
use crate::tenants::lifecycle::shared::{Shared, Stream};
use crate::tenants::lifecycle::state::{Drain, Ms, State};
use crate::tenants::lifecycle::tenant::{Cluster, History, Tenant, Waiter};
use crate::xds::StreamId;

/// An Envoy that has not acknowledged after this part of its time-out is cut when a client's patience
/// ends: one half. How patient the client was does not matter.
const OVERDUE_ACK_DIVISOR: Ms = 2;

/// Acknowledgement of a cluster for one request, over all streams that count for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ack {
    /// Every stream has acknowledged.
    Complete,
    /// A stream has not acknowledged, or the gateway is not connected.
    Pending,
    /// A stream has rejected the cluster.
    Rejected,
}

impl Shared {
    /// Grants a lease to each waiter whose gateway has acknowledged the cluster, and refuses each
    /// whose gateway has rejected it.
    pub(super) fn decide_waiters(&mut self, t: &mut Tenant, now: Ms) {
        if self.waiters_are_deferred(t) {
            return;
        }
        for waiter in std::mem::take(&mut t.waiters) {
            match self.ack(&t.cluster, &waiter) {
                Ack::Pending => t.waiters.push(waiter),
                Ack::Rejected => {
                    self.waiting -= 1;
                    let detail = "the gateway rejected the cluster";
                    self.refuse(waiter.id, LeaseRefusalKind::Gateway, SOON_MS, detail);
                }
                Ack::Complete => {
                    self.waiting -= 1;
                    t.lease_until = Some(now + self.settings.lease_ms);
                    t.used_at = now;
                    t.cancel_memory_request();
                    self.grant(&mut t.history, &waiter, now);
                }
            }
        }
    }

    fn grant(&mut self, history: &mut History, waiter: &Waiter, now: Ms) {
        let wake = waiter.wake;
        let mut wake_ms = 0;
        let mut waker = false;
        if wake != WakeKind::None {
            wake_ms = now - waiter.asked_at;
            // The wake is counted for the first waiter alone.
            waker = !history.is_counted;
            history.is_counted = true;
        }
        let decision = LeaseDecision::Granted { wake, wake_ms, waker };
        self.effects.push(Effect::Decide { waiter: waiter.id, decision });
    }

    /// True if the process that sent the request has opened a stream.
    fn has_own_stream(&self, waiter: &Waiter) -> bool {
        self.streams.values().any(|stream| is_of(stream, waiter) && stream.peer == waiter.peer)
    }

    fn ack(&self, cluster: &Cluster, waiter: &Waiter) -> Ack {
        let Cluster::Published { seq, rejected_by } = cluster else { return Ack::Pending };
        let own_only = self.has_own_stream(waiter);
        let mut is_connected = false;
        let mut is_acknowledged = true;
        for (id, stream) in &self.streams {
            if counts_for(stream, waiter, own_only) {
                if rejected_by.contains(id) {
                    return Ack::Rejected;
                }
                is_connected = true;
                is_acknowledged &= stream.acked >= *seq;
            }
        }
        if is_connected && is_acknowledged { Ack::Complete } else { Ack::Pending }
    }

    /// Refuses waiters whose patience has ended.
    pub(super) fn expire_waiters(&mut self, t: &mut Tenant, now: Ms) {
        // 1. Waiters are ordered by deadline.
        if t.waiters.first().is_none_or(|waiter| waiter.deadline > now) {
            return;
        }
        // 2. An Envoy is at fault only if the tenant has been awake for a while. A start may leave
        //    it no more than a moment of the patience, and that it did not use the moment is no
        //    fault.
        let slow_ms = self.settings.slow_ack_ms();
        let is_ready = t.state == State::Awake && !self.waiters_are_deferred(t);
        let retry_after = match t.state {
            State::Queued => {
                let permits = self.settings.max_starts;
                self.queue.estimate(now, self.head_start(t), self.starting, permits)
            }
            _ => SOON_MS,
        };
        // 3. Refuse, and cut streams that have had their time: Envoy then reconnects and gets the
        //    present set of clusters. Neither an impatient client nor a young stream shows that an
        //    Envoy is slow.
        let overdue_ms = self.settings.ack_timeout_ms / OVERDUE_ACK_DIVISOR;
        let published_at = t.published_at;
        for waiter in std::mem::take(&mut t.waiters) {
            if waiter.deadline > now {
                t.waiters.push(waiter);
                continue;
            }
            let gateway_is_slow = is_ready && now >= t.since.max(waiter.asked_at) + slow_ms;
            let (kind, detail) = if gateway_is_slow {
                (LeaseRefusalKind::Gateway, "the gateway has not acknowledged the cluster")
            } else {
                (LeaseRefusalKind::Queue, "the wake took longer than the client's patience")
            };
            self.waiting -= 1;
            self.refuse(waiter.id, kind, retry_after, detail);
            if gateway_is_slow && let Cluster::Published { seq, .. } = t.cluster {
                let own_only = self.has_own_stream(&waiter);
                self.cut_streams(|stream| {
                    let is_overdue = now >= published_at.max(stream.opened_at) + overdue_ms;
                    counts_for(stream, &waiter, own_only) && stream.acked < seq && is_overdue
                });
            }
        }
    }

    /// Refuses waiters whose patience is shorter than an estimated wait.
    pub(super) fn refuse_impatient(&mut self, t: &mut Tenant, estimate: Ms, now: Ms) {
        for waiter in std::mem::take(&mut t.waiters) {
            if now + estimate <= waiter.deadline {
                t.waiters.push(waiter);
            } else {
                self.waiting -= 1;
                let detail = "the queue for starts is longer than the client's patience";
                self.refuse(waiter.id, LeaseRefusalKind::Queue, estimate, detail);
            }
        }
    }

    pub(super) fn refuse_all(
        &mut self,
        t: &mut Tenant,
        kind: LeaseRefusalKind,
        retry_after: Ms,
        detail: &'static str,
    ) {
        for waiter in std::mem::take(&mut t.waiters) {
            self.waiting -= 1;
            self.refuse(waiter.id, kind, retry_after, detail);
        }
    }

    /// Cuts streams. An Envoy without a stream gets no further lease, and those that it had have
    /// ended where this is called.
    pub(super) fn cut_streams(&mut self, is_cut: impl Fn(&Stream) -> bool) {
        let cut: Vec<StreamId> =
            self.streams.iter().filter(|(_, stream)| is_cut(stream)).map(|(id, _)| *id).collect();
        for id in cut {
            self.streams.remove(&id);
            self.effects.push(Effect::Disconnect(id));
        }
    }

    /// Returns true if waiters are kept waiting until the tenant has slept: a restore or the
    /// operator wants that, and it can be over within the clients' patience.
    pub(super) fn waiters_are_deferred(&self, t: &Tenant) -> bool {
        if t.restore_locked {
            return true;
        }
        match t.drain() {
            Some(Drain::Forced) => true,
            Some(Drain::Gently) => self.settings.grace_ms < self.settings.patience_ms,
            None => false,
        }
    }
}

/// True if the stream is one of the waiter's gateway.
fn is_of(stream: &Stream, waiter: &Waiter) -> bool {
    stream.gateway == waiter.gateway
}

/// True if the waiter's lease depends on the stream: one of its process if that has opened any.
fn counts_for(stream: &Stream, waiter: &Waiter, own_only: bool) -> bool {
    is_of(stream, waiter) && (!own_only || stream.peer == waiter.peer)
}
