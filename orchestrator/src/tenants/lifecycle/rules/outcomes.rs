//! Outcomes of runtime calls, and deaths.

use protocol::{TenantId, WakeKind};

use crate::runtime::{ExitKind, InstanceId};
use crate::tenants::lifecycle::event::{CallError, StartError};
use crate::tenants::lifecycle::shared::Shared;
use crate::tenants::lifecycle::state::{Goal, Ms, State};
use crate::tenants::lifecycle::tenant::Tenant;

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
        self.release_permit(t);
        self.queue.observe_start(now - t.since);
        t.starts.failed = 0;
        t.starts.last_at = now;
        t.instance = Some(instance);
        t.restart = false;
        self.woken(id, t, kind, now);
    }

    /// Returns the start permit. Must come before `t.starts.failed` changes.
    fn release_permit(&mut self, t: &Tenant) {
        self.starting -= 1;
        self.starting_suspects -= usize::from(t.starts.is_suspect());
    }

    pub(in crate::tenants::lifecycle) fn start_failed(
        &mut self,
        id: &TenantId,
        t: &mut Tenant,
        error: &StartError,
        now: Ms,
    ) {
        if t.state != State::Starting {
            return;
        }
        // 1. Count the failure.
        self.release_permit(t);
        t.starts.failed = t.starts.failed.saturating_add(1);
        t.starts.failures = t.starts.failures.saturating_add(1);
        t.history.last_death = Some(error.to_string());
        // 2. If the cluster was kept for a restart, the restart has failed.
        t.restart = false;
        self.withdraw_at_once(id, t);
        // 3. Back off, or wait for the operator.
        let next = match error {
            StartError::Damaged(_) => State::Damaged,
            StartError::Transient(_) => {
                let max = self.settings.backoff_max_ms;
                State::Failing(now + self.backoff(t.starts.failures, max))
            }
        };
        self.change_state(id, t, next, now);
    }

    pub(in crate::tenants::lifecycle) fn paused(
        &mut self,
        id: &TenantId,
        t: &mut Tenant,
        result: &Result<(), CallError>,
        now: Ms,
    ) {
        if t.state != State::Pausing {
            return;
        }
        if t.take_death().is_some() {
            self.change_state(id, t, State::Asleep, now);
        } else if result.is_ok() {
            self.change_state(id, t, State::Dozing, now);
        } else {
            // It may have died in the middle of a write: its files count as incomplete.
            self.stop(id, t, false, now);
        }
    }

    pub(in crate::tenants::lifecycle) fn resumed(
        &mut self,
        id: &TenantId,
        t: &mut Tenant,
        result: &Result<(), CallError>,
        now: Ms,
    ) {
        if t.state != State::Resuming {
            return;
        }
        if result.is_ok() {
            self.woken(id, t, WakeKind::Doze, now);
        } else {
            self.stop(id, t, false, now);
        }
    }

    pub(in crate::tenants::lifecycle) fn stopped(
        &mut self,
        id: &TenantId,
        t: &mut Tenant,
        result: &Result<(), CallError>,
        now: Ms,
    ) {
        let State::Stopping { orderly, .. } = t.state else { return };
        if result.is_ok() {
            t.instance = None;
            t.pending_death = None;
            self.change_state(id, t, State::Asleep, now);
        } else {
            let retry_at = Some(now + self.settings.backoff_ms);
            t.state = State::Stopping { orderly, retry_at };
        }
    }

    /// SQ responds again, after a start or a doze.
    fn woken(&mut self, id: &TenantId, t: &mut Tenant, kind: WakeKind, now: Ms) {
        // 1. Record the wake. It will be counted for one of the waiters.
        t.history.wakes += 1;
        t.history.last_wake = Some((kind, now - t.since));
        t.history.is_counted = false;
        t.used_at = now;
        for waiter in &mut t.waiters {
            waiter.wake = kind;
        }
        // 2. Publish. Waiters get their leases when their gateway has acknowledged.
        self.publish(id, t, now);
        self.change_state(id, t, State::Awake, now);
        // 3. The instance may have died between its first response and this event.
        if let Some(exit) = t.take_death() {
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
        let call_is_under_way = matches!(
            t.state,
            State::Starting | State::Pausing | State::Resuming | State::Stopping { .. }
        );
        // A report about an earlier instance changes nothing. During a start the new instance is
        // not known yet, so the report is kept until the call has ended.
        if !call_is_under_way && t.instance.as_ref() != Some(&instance) {
            return;
        }
        t.pending_death = Some((instance, exit));
        if call_is_under_way {
            return;
        }
        t.take_death();
        match t.state {
            State::Awake => self.crashed(id, t, exit, now),
            // The retirement goes on, so the state and its time-out stay; only the goal changes.
            State::Retiring(_) => t.state = State::Retiring(Goal::Gone),
            State::Dozing => self.change_state(id, t, State::Asleep, now),
            _ => (),
        }
    }

    /// Decides about an awake tenant that has died.
    ///
    /// The first time it is started again at once if its leases are live or in their grace: Envoy
    /// retries for those clients. From the second failure in a row on it backs off, and its cluster
    /// is withdrawn, so that a request that kills SQ is not retried forever.
    fn crashed(&mut self, id: &TenantId, t: &mut Tenant, exit: ExitKind, now: Ms) {
        // 1. Count failures in a row: an instance that ran for long enough starts a new row.
        let was_stable = now >= t.starts.last_at + self.settings.stable_ms;
        t.starts.failures = if was_stable { 1 } else { t.starts.failures.saturating_add(1) };
        if t.starts.failures > 1 {
            // 2. Back off. A panic is caused by a single request (in SQ 0.5 by a client that
            //    leaves) and not by the tenant's data, so the back-off does not grow.
            self.withdraw_at_once(id, t);
            let max_ms = match exit {
                ExitKind::Crashed(PANIC) => self.settings.backoff_ms,
                _ => self.settings.backoff_max_ms,
            };
            let until = now + self.backoff(t.starts.failures - 1, max_ms);
            self.change_state(id, t, State::Failing(until), now);
        } else if self.is_in_use(t, now) || !t.waiters.is_empty() {
            // 3. Start again, ahead of tenants that are not in use.
            t.restart = true;
            self.point_nowhere(id, t);
            self.queue.push(id.clone(), now, self.head_start(t));
            self.change_state(id, t, State::Queued, now);
        } else {
            // 4. No client needs it: withdraw the cluster.
            self.withdraw(id, t);
            self.change_state(id, t, State::Retiring(Goal::Gone), now);
        }
    }

    /// Returns the back-off after a number of failures in a row.
    fn backoff(&self, failures: u32, max_ms: Ms) -> Ms {
        let doublings = failures.saturating_sub(1).min(16);
        self.settings.backoff_ms.saturating_mul(1 << doublings).min(max_ms)
    }
}
