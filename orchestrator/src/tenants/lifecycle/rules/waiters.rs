//! Who asked for a lease: answered, refused, or left waiting.

use protocol::lease::LeaseRefusalKind;
use protocol::{GatewayId, WakeKind};

use super::SOON_MS;
use crate::tenants::lifecycle::state::{Answer, Cluster, Drain, Ms, Seq, State, Tenant, Waiter};
use crate::tenants::lifecycle::{Effect, Rule, Shared, Stream};

/// An Envoy that has not acknowledged in a tenth of the time it is given is a slow one.
const SLOW_ACK: Ms = 10;

/// What an Envoy knows of a cluster.
enum Known {
    Yes,
    NotYet,
    Refused,
}

impl Shared {
    /// Answers whom the published cluster can be promised to.
    pub(super) fn answer(&mut self, t: &mut Tenant, now: Ms) {
        let Cluster::Published(seq) = t.cluster else { return };
        if self.holds(t) {
            return;
        }
        for waiter in std::mem::take(&mut t.waiters) {
            match self.known(&waiter.gateway, seq, &t.refused_by) {
                Known::NotYet => t.waiters.push(waiter),
                Known::Refused => {
                    self.waiting -= 1;
                    let text = "the gateway refused the cluster";
                    self.refuse(waiter.id, LeaseRefusalKind::Gateway, SOON_MS, text);
                }
                Known::Yes => {
                    self.waiting -= 1;
                    t.lease_until = Some(now + self.settings.lease_ms);
                    t.used = now;
                    t.squeezed = false;
                    self.grant(t, &waiter, now);
                }
            }
        }
    }

    fn grant(&mut self, t: &mut Tenant, waiter: &Waiter, now: Ms) {
        let wake = waiter.wake;
        let waker = wake != WakeKind::None && !std::mem::replace(&mut t.history.is_counted, true);
        let wake_ms = if wake == WakeKind::None { 0 } else { now - waiter.asked };
        self.effects.push(Effect::Answer(waiter.id, Answer::Granted { wake, wake_ms, waker }));
    }

    fn known(&self, gateway: &GatewayId, seq: Seq, refused_by: &[u64]) -> Known {
        if !self.keeps(Rule::LeaseAck) {
            return Known::Yes;
        }
        let mut connected = false;
        let mut acknowledged = true;
        for (id, stream) in &self.streams {
            if stream.gateway == *gateway {
                if refused_by.contains(id) {
                    return Known::Refused;
                }
                connected = true;
                acknowledged &= stream.acked >= seq;
            }
        }
        if connected && acknowledged { Known::Yes } else { Known::NotYet }
    }

    /// Refuses whoever has waited as long as it would.
    pub(super) fn expire(&mut self, t: &mut Tenant, now: Ms) {
        if t.waiters.first().is_none_or(|w| w.until > now) {
            return;
        }
        // A start may use up all of the patience but a moment: that Envoy did not use it is no fault.
        let had_time = now >= t.since + self.settings.ack_timeout_ms / SLOW_ACK;
        let (kind, text) = match t.state {
            State::Awake if !self.holds(t) && had_time => {
                (LeaseRefusalKind::Gateway, "the gateway has not acknowledged the cluster")
            }
            _ => (LeaseRefusalKind::Queue, "it took longer than the asker would wait"),
        };
        let after = match t.state {
            State::Queued => {
                let slots = self.settings.max_starts;
                self.queue.estimate(now, self.head_start(t), self.starting, slots)
            }
            _ => SOON_MS,
        };
        for waiter in std::mem::take(&mut t.waiters) {
            if waiter.until > now {
                t.waiters.push(waiter);
                continue;
            }
            self.waiting -= 1;
            self.refuse(waiter.id, kind, after, text);
            if let (LeaseRefusalKind::Gateway, Cluster::Published(seq)) = (kind, t.cluster) {
                self.cut(|s| s.gateway == waiter.gateway && s.acked < seq);
            }
        }
    }

    /// Refuses whoever would not wait so long.
    pub(super) fn refuse_impatient(&mut self, t: &mut Tenant, estimate: Ms, now: Ms) {
        for waiter in std::mem::take(&mut t.waiters) {
            if now + estimate <= waiter.until {
                t.waiters.push(waiter);
            } else {
                self.waiting -= 1;
                self.refuse(waiter.id, LeaseRefusalKind::Queue, estimate, "the queue is long");
            }
        }
    }

    pub(super) fn refuse_all(
        &mut self,
        t: &mut Tenant,
        kind: LeaseRefusalKind,
        after: Ms,
        text: &'static str,
    ) {
        for waiter in std::mem::take(&mut t.waiters) {
            self.waiting -= 1;
            self.refuse(waiter.id, kind, after, text);
        }
    }

    /// Cuts streams; an Envoy without one has no lease live where this matters.
    pub(super) fn cut(&mut self, which: impl Fn(&Stream) -> bool) {
        let effects = &mut self.effects;
        self.streams.retain(|id, stream| {
            let cut = which(stream);
            if cut {
                effects.push(Effect::Disconnect(*id));
            }
            !cut
        });
    }

    /// Whether askers are kept waiting until the tenant has slept: the operator wants it, and it
    /// can be over within their patience.
    pub(super) fn holds(&self, t: &Tenant) -> bool {
        match t.drain {
            _ if t.held => true,
            Some(Drain::Forced) => true,
            Some(Drain::Gently) => self.settings.grace_ms < self.settings.patience_ms,
            None => false,
        }
    }
}
