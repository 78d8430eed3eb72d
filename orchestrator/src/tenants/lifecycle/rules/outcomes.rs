//! What the runtime has done, or what has happened to it: how a call ended, who died.

use protocol::{TenantId, WakeKind};

use crate::runtime::{ExitKind, InstanceId};
use crate::tenants::lifecycle::state::{Cluster, Goal, Ms, State, Tenant};
use crate::tenants::lifecycle::{Shared, describe};

/// Exit code of a Rust program that panicked.
const PANIC: i64 = 101;

impl Shared {
    pub(in crate::tenants::lifecycle) fn started(
        &mut self,
        id: &TenantId,
        t: &mut Tenant,
        instance: InstanceId,
        kind: WakeKind,
        now: Ms,
    ) {
        if t.state != State::Starting {
            return;
        }
        self.slot_is_free(t);
        t.failed_starts = 0;
        self.queue.measured(now - t.since);
        t.instance = Some(instance);
        t.started = now;
        t.restart = false;
        self.woken(id, t, kind, now);
    }

    fn slot_is_free(&mut self, t: &Tenant) {
        self.starting -= 1;
        self.suspects -= usize::from(t.is_suspect());
    }

    pub(in crate::tenants::lifecycle) fn start_failed(
        &mut self,
        id: &TenantId,
        t: &mut Tenant,
        damaged: bool,
        reason: String,
        now: Ms,
    ) {
        if t.state != State::Starting {
            return;
        }
        self.slot_is_free(t);
        t.failed_starts = t.failed_starts.saturating_add(1);
        t.restart = false;
        t.failures = t.failures.saturating_add(1);
        t.history.last_death = Some(reason);
        self.withdraw(id, t);
        t.cluster = Cluster::Absent;
        let until = now + self.backoff(t.failures, self.settings.backoff_max_ms);
        self.go(id, t, if damaged { State::Damaged } else { State::Failing(until) }, now);
    }

    pub(in crate::tenants::lifecycle) fn paused(
        &mut self,
        id: &TenantId,
        t: &mut Tenant,
        ok: bool,
        now: Ms,
    ) {
        if t.state != State::Pausing {
            return;
        }
        if Self::died_meanwhile(t).is_some() {
            self.go(id, t, State::Asleep, now);
        } else if ok {
            self.go(id, t, State::Dozing, now);
        } else {
            // It may be dead, and nobody knows of what.
            self.stop(id, t, false, now);
        }
    }

    pub(in crate::tenants::lifecycle) fn resumed(
        &mut self,
        id: &TenantId,
        t: &mut Tenant,
        ok: bool,
        now: Ms,
    ) {
        if t.state != State::Resuming {
            return;
        }
        if ok {
            self.woken(id, t, WakeKind::Doze, now);
        } else {
            self.stop(id, t, false, now);
        }
    }

    pub(in crate::tenants::lifecycle) fn stopped(
        &mut self,
        id: &TenantId,
        t: &mut Tenant,
        ok: bool,
        now: Ms,
    ) {
        if t.state != State::Stopping {
            return;
        }
        if ok {
            t.instance = None;
            t.death = None;
            self.go(id, t, State::Asleep, now);
        } else {
            t.stop.retry = Some(now + self.settings.backoff_ms);
        }
    }

    /// It runs again: from the queue or from a doze.
    fn woken(&mut self, id: &TenantId, t: &mut Tenant, kind: WakeKind, now: Ms) {
        t.history.wakes += 1;
        t.history.last_wake = Some((kind, now - t.since));
        t.history.is_counted = false;
        t.used = now;
        for waiter in &mut t.waiters {
            waiter.wake = kind;
        }
        self.publish(id, t);
        self.go(id, t, State::Awake, now);
        if let Some(exit) = Self::died_meanwhile(t) {
            self.crashed(id, t, exit, now);
        }
    }

    pub(in crate::tenants::lifecycle) fn died(
        &mut self,
        id: &TenantId,
        t: &mut Tenant,
        instance: InstanceId,
        exit: ExitKind,
        now: Ms,
    ) {
        match t.state {
            State::Starting | State::Pausing | State::Resuming | State::Stopping => {
                t.death = Some((instance, exit));
            }
            _ if t.instance.as_ref() != Some(&instance) => (),
            state => {
                t.death = Some((instance, exit));
                Self::died_meanwhile(t);
                match state {
                    State::Awake => self.crashed(id, t, exit, now),
                    State::Retiring(_) => t.state = State::Retiring(Goal::Gone),
                    State::Dozing => self.go(id, t, State::Asleep, now),
                    _ => (),
                }
            }
        }
    }

    /// How the present instance died, if it is known to be dead; notes what follows from it.
    fn died_meanwhile(t: &mut Tenant) -> Option<ExitKind> {
        let (instance, exit) = t.death.take()?;
        if t.instance.as_ref() != Some(&instance) {
            return None;
        }
        t.instance = None;
        t.history.deaths += 1;
        t.history.last_death = Some(describe(exit));
        Some(exit)
    }

    /// An awake tenant died: started again at once for those who hold leases or did a moment ago,
    /// once: Envoy goes on trying for them. A second time it backs off; its cluster goes, so that a
    /// read that Envoy repeats can't kill it for ever.
    fn crashed(&mut self, id: &TenantId, t: &mut Tenant, exit: ExitKind, now: Ms) {
        let stable = now >= t.started + self.settings.stable_ms;
        t.failures = if stable { 1 } else { t.failures.saturating_add(1) };
        if t.failures > 1 {
            self.withdraw(id, t);
            t.cluster = Cluster::Absent;
            // A panic is one request's doing, on SQ 0.5 a client's that left: it was well before.
            let most = match exit {
                ExitKind::Crashed(PANIC) => self.settings.backoff_ms,
                _ => self.settings.backoff_max_ms,
            };
            let until = now + self.backoff(t.failures - 1, most);
            self.go(id, t, State::Failing(until), now);
        } else if self.in_use(t, now) || !t.waiters.is_empty() {
            t.restart = true;
            self.point_nowhere(id, t);
            self.queue.push(id.clone(), now, self.head_start(t));
            self.go(id, t, State::Queued, now);
        } else {
            self.withdraw(id, t);
            self.go(id, t, State::Retiring(Goal::Gone), now);
        }
    }

    fn backoff(&self, failures: u32, most: Ms) -> Ms {
        let doubled =
            self.settings.backoff_ms.saturating_mul(1 << failures.saturating_sub(1).min(16));
        doubled.min(most)
    }
}
