//! Rules: the next state of a tenant, by its present state and its facts.
//!
//! Event handlers only note facts. [`Shared::settle`] then applies one rule after another until
//! none applies, so each path through the diagram is written once, whatever event leads to it.

mod deadlines;
mod outcomes;
mod waiters;

use protocol::TenantId;
use protocol::lease::LeaseRefusalKind;

use super::event::Effect;
use super::shared::Shared;
use super::state::{Drain, Goal, Ms, State};
use super::tenant::Tenant;

/// Bound on the rules that one event applies to one tenant. The longest chain has four; more would
/// be an endless loop.
const RULES_MAX: usize = 16;

/// Retry-After of a damaged tenant: the operator needs minutes.
const DAMAGED_RETRY_MS: Ms = 60_000;

/// Retry-After where the next attempt will probably succeed.
const SOON_MS: Ms = 1_000;

/// Outcome of applying one rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    /// The state has changed: another rule may apply.
    Again,
    /// No rule applies until the next event.
    Settled,
}

/// Returns true if a lease may be renewed in this state: the tenant runs, or is being started
/// anyway.
pub(super) fn is_renewable(state: State) -> bool {
    matches!(state, State::Awake | State::Retiring(_) | State::Queued | State::Starting)
}

impl Shared {
    /// Brings a tenant to the state that its facts call for.
    pub(super) fn settle(&mut self, id: &TenantId, t: &mut Tenant, now: Ms) {
        // 1. Refuse waiters whose patience has ended, before a rule starts anything for them.
        self.expire_waiters(t, now);
        // 2. A restart serves live leases. Once they have ended, it is pointless.
        t.restart &= self.is_in_use(t, now);
        // 3. Apply rules.
        for _ in 0..RULES_MAX {
            if self.apply_rule(id, t, now) == Next::Settled {
                return;
            }
        }
        debug_assert!(false, "{id} does not settle: {t:?}");
    }

    fn apply_rule(&mut self, id: &TenantId, t: &mut Tenant, now: Ms) -> Next {
        match t.state {
            State::Asleep => self.step_asleep(id, t, now),
            State::Queued => self.step_queued(id, t, now),
            State::Awake => self.step_awake(id, t, now),
            State::Retiring(goal) => self.step_retiring(id, t, goal, now),
            State::Dozing => self.step_dozing(id, t, now),
            State::Stopping { orderly, retry_at } => {
                if retry_at.is_some_and(|at| at <= now) {
                    t.state = State::Stopping { orderly, retry_at: None };
                    let restarts = self.is_in_use(t, now);
                    self.effects.push(Effect::Stop { tenant: id.clone(), orderly, restarts });
                }
                Next::Settled
            }
            State::Failing(until) if now >= until => {
                t.restart = self.is_in_use(t, now);
                self.change_state(id, t, State::Asleep, now);
                Next::Again
            }
            State::Failing(until) => {
                let detail = "the tenant is in its back-off after a failure";
                self.refuse_all(t, LeaseRefusalKind::Failing, until - now, detail);
                Next::Settled
            }
            State::Damaged => {
                let detail = "the tenant's data needs the operator";
                self.refuse_all(t, LeaseRefusalKind::Damaged, DAMAGED_RETRY_MS, detail);
                Next::Settled
            }
            State::Starting | State::Pausing | State::Resuming => Next::Settled,
        }
    }

    fn step_asleep(&mut self, id: &TenantId, t: &mut Tenant, now: Ms) -> Next {
        // 1. The tenant is asleep, as requested. A cluster that pointed nowhere during the stop
        //    stays published only if the tenant will start again.
        t.sleep_request = None;
        if !t.restart {
            self.withdraw_at_once(id, t);
        }
        // 2. Stay asleep, unless the tenant is needed.
        if !t.may_start() {
            return Next::Settled;
        }
        // 3. A wake must be within the hourly budget, and its waiters must be ready to wait for it.
        //    A restart is exempt: its clients were being served already.
        let head_start = self.head_start(t);
        if !t.restart && !self.may_wake(t, head_start, now) {
            return Next::Settled;
        }
        // 4. Queue for a start permit.
        self.queue.push(id.clone(), now, head_start);
        self.change_state(id, t, State::Queued, now);
        Next::Settled
    }

    /// Refuses waiters for whom the tenant may not or would not be started in time. Returns true if
    /// any are left.
    fn may_wake(&mut self, t: &mut Tenant, head_start: i64, now: Ms) -> bool {
        if let Some(wait) = t.starts.budget.wait(t.limits.wakes_per_hour, now) {
            let detail = "the tenant's starts of this hour are used up";
            self.refuse_all(t, LeaseRefusalKind::WakeBudget, wait, detail);
            return false;
        }
        let permits = self.settings.max_starts;
        if self.starting + self.queue.len() >= permits {
            let estimate = self.queue.estimate(now, head_start, self.starting, permits);
            self.refuse_impatient(t, estimate, now);
        }
        !t.waiters.is_empty()
    }

    fn step_queued(&mut self, id: &TenantId, t: &mut Tenant, now: Ms) -> Next {
        if t.may_start() {
            return Next::Settled;
        }
        self.queue.remove(id);
        self.change_state(id, t, State::Asleep, now);
        Next::Again
    }

    fn step_awake(&mut self, id: &TenantId, t: &mut Tenant, now: Ms) -> Next {
        // 1. Grant leases.
        self.decide_waiters(t, now);
        // 2. Apply a new memory limit.
        if t.memory_bytes != t.limits.memory_bytes {
            t.memory_bytes = t.limits.memory_bytes;
            let memory_bytes = t.memory_bytes;
            self.effects.push(Effect::SetMemory { tenant: id.clone(), memory_bytes });
        }
        // 3. Retire once idle, or sooner on request.
        if self.retire_at(t, now).is_none_or(|at| at > now) {
            return Next::Settled;
        }
        let goal = self.goal(t, now);
        if now >= t.starts.last_at + self.settings.stable_ms {
            t.starts.failures = 0;
        }
        if self.is_in_use(t, now) {
            // A forced sleep: requests under live leases are retried until the tenant runs again.
            self.point_nowhere(id, t);
        } else {
            self.withdraw(id, t);
        }
        self.change_state(id, t, State::Retiring(goal), now);
        // The change is not numbered yet, so the next rule could not find it acknowledged.
        Next::Settled
    }

    /// Waits until no Envoy routes to the tenant, then pauses or stops it.
    fn step_retiring(&mut self, id: &TenantId, t: &mut Tenant, goal: Goal, now: Ms) -> Next {
        let is_requested = !t.waiters.is_empty() && !self.waiters_are_deferred(t);
        // 1. A new request turns a living tenant back: it is published again.
        if is_requested && goal != Goal::Gone {
            t.cancel_memory_request();
            self.publish(id, t, now);
            self.change_state(id, t, State::Awake, now);
            return Next::Again;
        }
        // 2. Wait until every Envoy has acknowledged. A dead instance serves no request, so a new
        //    request for it does not wait.
        let Some(seq) = t.cluster.seq() else { return Next::Settled };
        let is_acknowledged = self.streams.values().all(|stream| stream.acked >= seq);
        if !is_acknowledged && !is_requested {
            if now < t.since + self.settings.ack_timeout_ms {
                return Next::Settled;
            }
            // An Envoy that never acknowledges must not keep tenants awake. After its stream is
            // cut, it reconnects and gets the present set of clusters.
            self.cut_streams(|stream| stream.acked < seq);
            return Next::Again;
        }
        // 3. Leases can only be live here after a death or a forced sleep: start again for them.
        t.restart = self.is_in_use(t, now);
        if !t.restart {
            self.withdraw_at_once(id, t);
        }
        // 4. Pause or stop.
        match goal {
            Goal::Doze if t.drain().is_none() => {
                self.effects.push(Effect::Pause(id.clone()));
                self.change_state(id, t, State::Pausing, now);
            }
            Goal::Doze | Goal::Sleep => {
                let orderly = t.drain() != Some(Drain::Forced);
                self.stop(id, t, orderly, now);
            }
            Goal::Gone => self.change_state(id, t, State::Asleep, now),
        }
        Next::Again
    }

    fn step_dozing(&mut self, id: &TenantId, t: &mut Tenant, now: Ms) -> Next {
        let must_sleep = t.sleep_request.is_some();
        if !t.waiters.is_empty() && !must_sleep {
            self.effects.push(Effect::Resume(id.clone()));
            self.change_state(id, t, State::Resuming, now);
            return Next::Again;
        }
        if must_sleep || self.sleep_at(t, now).is_some_and(|at| at <= now) {
            self.stop(id, t, true, now);
            return Next::Again;
        }
        Next::Settled
    }

    /// Starts a queued tenant, which has just been given a start permit.
    pub(super) fn start(&mut self, id: &TenantId, t: &mut Tenant, now: Ms) {
        if t.state != State::Queued {
            return;
        }
        self.starting += 1;
        self.starting_suspects += usize::from(t.starts.is_suspect());
        if !t.restart {
            t.starts.budget.count(now);
        }
        t.pending_death = None;
        t.memory_bytes = t.limits.memory_bytes;
        self.effects.push(Effect::Start {
            tenant: id.clone(),
            tier: t.tier.clone(),
            limits: Box::new(t.limits.clone()),
        });
        self.change_state(id, t, State::Starting, now);
    }

    fn stop(&mut self, id: &TenantId, t: &mut Tenant, orderly: bool, now: Ms) {
        let restarts = self.is_in_use(t, now);
        self.effects.push(Effect::Stop { tenant: id.clone(), orderly, restarts });
        self.change_state(id, t, State::Stopping { orderly, retry_at: None }, now);
    }
}
