//! What each state does with the facts: the rules that move a tenant.

mod deadlines;
mod outcomes;
mod waiters;

use protocol::TenantId;
use protocol::lease::LeaseRefusalKind;

use super::state::{Cluster, Drain, Goal, Ms, State, Tenant};
use super::{Effect, Rule, Shared};

/// Rules applied in a row to one tenant: the longest chain is four, the rest is a safety net.
const CHAIN: usize = 16;
/// Retry-After of a damaged tenant: the operator needs minutes.
const DAMAGED_RETRY_MS: Ms = 60_000;
/// Retry-After where the next try is likely to work.
const SOON_MS: Ms = 1_000;

/// Whether a renewal can be given: the tenant runs, or is being started anyway.
pub(super) fn renewable(state: State) -> bool {
    matches!(state, State::Awake | State::Retiring(_) | State::Queued | State::Starting)
}

impl Shared {
    /// Brings the tenant to the state that the facts call for.
    pub(super) fn settle(&mut self, id: &TenantId, t: &mut Tenant, now: Ms) {
        self.expire(t, now);
        // Whom a restart was for has been refused by its Envoy meanwhile.
        t.restart &= self.in_use(t, now);
        for _ in 0..CHAIN {
            if !self.step(id, t, now) {
                return;
            }
        }
        debug_assert!(false, "{id} does not settle: {t:?}");
    }

    /// Applies one rule; says whether another may apply now.
    fn step(&mut self, id: &TenantId, t: &mut Tenant, now: Ms) -> bool {
        match t.state {
            State::Asleep => self.step_asleep(id, t, now),
            State::Queued => {
                let unwanted = t.held || (t.waiters.is_empty() && !t.restart);
                if unwanted {
                    self.queue.remove(id);
                    self.go(id, t, State::Asleep, now);
                }
                unwanted
            }
            State::Awake => self.step_awake(id, t, now),
            State::Retiring(goal) => self.step_retiring(id, t, goal, now),
            State::Dozing => self.step_dozing(id, t, now),
            State::Stopping => {
                if t.stop.retry.is_some_and(|at| at <= now) {
                    t.stop.retry = None;
                    self.effects.push(Effect::Stop { tenant: id.clone(), orderly: t.stop.orderly });
                }
                false
            }
            State::Failing(until) if now >= until => {
                t.restart = self.in_use(t, now);
                self.go(id, t, State::Asleep, now);
                true
            }
            State::Failing(until) => {
                self.refuse_all(t, LeaseRefusalKind::Failing, until - now, "it backs off");
                false
            }
            State::Damaged => {
                let text = "its data need the operator";
                self.refuse_all(t, LeaseRefusalKind::Damaged, DAMAGED_RETRY_MS, text);
                false
            }
            State::Starting | State::Pausing | State::Resuming => false,
        }
    }

    fn step_asleep(&mut self, id: &TenantId, t: &mut Tenant, now: Ms) -> bool {
        t.drain = None;
        t.squeezed = false;
        if !t.restart {
            // It pointed nowhere for the sake of those who held leases.
            self.withdraw(id, t);
            t.cluster = Cluster::Absent;
        }
        if t.held || (t.waiters.is_empty() && !t.restart) {
            return false;
        }
        let head_start = self.head_start(t);
        if !t.restart {
            if let Some(wait) = t.budget.wait(t.limits.wakes_per_hour, now) {
                let text = "its starts of this hour are used up";
                self.refuse_all(t, LeaseRefusalKind::WakeBudget, wait, text);
                return false;
            }
            let slots = self.settings.max_starts;
            if self.starting + self.queue.len() >= slots {
                let estimate = self.queue.estimate(now, head_start, self.starting, slots);
                self.refuse_impatient(t, estimate, now);
                if t.waiters.is_empty() {
                    return false;
                }
            }
        }
        self.queue.push(id.clone(), now, head_start);
        self.go(id, t, State::Queued, now);
        false
    }

    fn step_awake(&mut self, id: &TenantId, t: &mut Tenant, now: Ms) -> bool {
        self.answer(t, now);
        if t.memory_bytes != t.limits.memory_bytes {
            t.memory_bytes = t.limits.memory_bytes;
            let memory_bytes = t.memory_bytes;
            self.effects.push(Effect::Resize { tenant: id.clone(), memory_bytes });
        }
        let due = self.retire_at(t, now).is_some_and(|at| at <= now);
        if due {
            let goal = self.goal(t, now);
            if now >= t.started + self.settings.stable_ms {
                t.failures = 0;
            }
            if self.in_use(t, now) {
                // Sent to sleep by force: those who hold leases wait until it is back.
                self.point_nowhere(id, t);
            } else {
                self.withdraw(id, t);
            }
            self.go(id, t, State::Retiring(goal), now);
        }
        // The change has no number yet: nobody can have acknowledged it.
        false
    }

    fn step_retiring(&mut self, id: &TenantId, t: &mut Tenant, goal: Goal, now: Ms) -> bool {
        let asked = !t.waiters.is_empty() && !self.holds(t);
        if asked && goal != Goal::Gone {
            t.squeezed = false;
            self.publish(id, t);
            self.go(id, t, State::Awake, now);
            return true;
        }
        let (Cluster::Withdrawn(seq) | Cluster::Published(seq)) = t.cluster else { return false };
        let acknowledged = self.streams.values().all(|s| s.acked >= seq);
        if acknowledged || !self.keeps(Rule::RemovalAck) || (asked && goal == Goal::Gone) {
            t.restart = self.in_use(t, now);
            if !t.restart {
                self.withdraw(id, t);
                t.cluster = Cluster::Absent;
            }
            match goal {
                Goal::Doze if t.drain.is_none() => {
                    self.effects.push(Effect::Pause(id.clone()));
                    self.go(id, t, State::Pausing, now);
                }
                Goal::Doze | Goal::Sleep => self.stop(id, t, t.drain != Some(Drain::Forced), now),
                Goal::Gone => self.go(id, t, State::Asleep, now),
            }
            return true;
        }
        if now >= t.since + self.settings.ack_timeout_ms {
            self.cut(|s| s.acked < seq);
            return true;
        }
        false
    }

    fn step_dozing(&mut self, id: &TenantId, t: &mut Tenant, now: Ms) -> bool {
        let sleeps = t.drain.is_some() || t.squeezed;
        if !t.waiters.is_empty() && !sleeps {
            self.effects.push(Effect::Resume(id.clone()));
            self.go(id, t, State::Resuming, now);
            return true;
        }
        if sleeps || self.sleep_at(t, now).is_some_and(|at| at <= now) {
            self.stop(id, t, true, now);
            return true;
        }
        false
    }

    pub(super) fn start(&mut self, id: &TenantId, t: &mut Tenant, now: Ms) {
        if t.state != State::Queued {
            return;
        }
        self.starting += 1;
        self.suspects += usize::from(t.is_suspect());
        if !t.restart {
            t.budget.count(now);
        }
        t.death = None;
        t.memory_bytes = t.limits.memory_bytes;
        self.effects.push(Effect::Start {
            tenant: id.clone(),
            tier: t.tier.clone(),
            limits: Box::new(t.limits.clone()),
        });
        self.go(id, t, State::Starting, now);
    }

    fn stop(&mut self, id: &TenantId, t: &mut Tenant, orderly: bool, now: Ms) {
        t.stop.orderly = orderly;
        t.stop.retry = None;
        self.effects.push(Effect::Stop { tenant: id.clone(), orderly });
        self.go(id, t, State::Stopping, now);
    }
}
