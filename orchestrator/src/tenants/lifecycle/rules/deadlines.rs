//! Deadlines: when a tenant is retired or stopped, and when it must be looked at next.

use protocol::KeepAwake;

use crate::tenants::lifecycle::queue::RESTART_HEAD_START_MS;
use crate::tenants::lifecycle::shared::Shared;
use crate::tenants::lifecycle::state::{Drain, Goal, Ms, State};
use crate::tenants::lifecycle::tenant::{Cluster, Tenant};
use crate::xds::Seq;

impl Shared {
    /// Head start of the tenant in the queue for start permits.
    pub(super) fn head_start(&self, t: &Tenant) -> i64 {
        if t.restart {
            return RESTART_HEAD_START_MS;
        }
        let per_level = i64::try_from(self.settings.head_start_ms).unwrap_or(i64::MAX);
        per_level.saturating_mul(i64::from(t.limits.priority))
    }

    /// Returns when an awake tenant is retired, unless something changes before; `None` for never.
    pub(super) fn retire_at(&self, t: &Tenant, now: Ms) -> Option<Ms> {
        // 1. A forced drain waits for nothing.
        if t.drain() == Some(Drain::Forced) {
            return Some(0);
        }
        // 2. A request that waits will get a lease.
        if !t.waiters.is_empty() && !self.waiters_are_deferred(t) {
            return None;
        }
        // 3. Without force, the last lease and its grace must have ended.
        let quiet_at = self.quiet_at(t);
        if t.sleep_request.is_some() {
            return Some(quiet_at);
        }
        // 4. The tenant must have been idle, and its warm hours must be over.
        let idle_ms = match t.limits.keep {
            KeepAwake::Awake => return None,
            KeepAwake::Doze => self.doze_after(t),
            KeepAwake::Sleep => self.doze_after(t).min(self.sleep_after(t)),
        };
        let warm_until = self.warm_until(t, now).unwrap_or(0);
        Some(quiet_at.max(t.used_at + idle_ms).max(warm_until))
    }

    /// Returns when no request under a lease can be in flight any more.
    pub(in crate::tenants::lifecycle) fn quiet_at(&self, t: &Tenant) -> Ms {
        t.lease_until.map_or(0, |until| until + self.settings.grace_ms)
    }

    /// Returns true while requests under a lease may arrive or be in flight.
    pub(in crate::tenants::lifecycle) fn is_in_use(&self, t: &Tenant, now: Ms) -> bool {
        now < self.quiet_at(t)
    }

    /// Goal of a retirement that begins now.
    pub(super) fn goal(&self, t: &Tenant, now: Ms) -> Goal {
        let must_sleep = t.sleep_request.is_some();
        if must_sleep || self.sleep_at(t, now).is_some_and(|at| at <= now) {
            Goal::Sleep
        } else {
            Goal::Doze
        }
    }

    /// Returns when a dozing tenant is stopped; `None` for never.
    pub(super) fn sleep_at(&self, t: &Tenant, now: Ms) -> Option<Ms> {
        if t.limits.keep != KeepAwake::Sleep {
            return None;
        }
        let warm_until = self.warm_until(t, now).unwrap_or(0);
        Some(warm_until.max(t.used_at + self.sleep_after(t)))
    }

    /// Returns the end of the present warm hours, in which the tenant is kept awake; `None` outside
    /// of them.
    pub(in crate::tenants::lifecycle) fn warm_until(&self, t: &Tenant, now: Ms) -> Option<Ms> {
        let hours = t.limits.warm_hours?;
        let (read_at, read_s) = self.clock?;
        let utc_s = read_s + now.saturating_sub(read_at) / 1_000;
        Some(now + hours.left_s(utc_s)? * 1_000)
    }

    fn doze_after(&self, t: &Tenant) -> Ms {
        t.limits.doze_after_s.map_or(self.settings.doze_after_ms, |s| Ms::from(s) * 1_000)
    }

    fn sleep_after(&self, t: &Tenant) -> Ms {
        t.limits.sleep_after_s.map_or(self.settings.sleep_after_ms, |s| Ms::from(s) * 1_000)
    }

    /// Returns when a rule may apply to the tenant without any further event but the time.
    pub(in crate::tenants::lifecycle) fn next_deadline(&self, t: &Tenant, now: Ms) -> Option<Ms> {
        let of_state = match t.state {
            State::Awake => self.retire_at(t, now),
            State::Retiring(_) => Some(t.since + self.settings.ack_timeout_ms),
            State::Dozing => self.sleep_at(t, now),
            State::Failing(until) => Some(until),
            State::Stopping { retry_at, .. } => retry_at,
            State::Asleep | State::Queued if t.restart => Some(self.quiet_at(t)),
            _ => None,
        };
        let patience = t.waiters.first().map(|waiter| waiter.deadline);
        [of_state, patience].into_iter().flatten().min()
    }

    /// Returns the change whose acknowledgement may let a rule apply.
    pub(in crate::tenants::lifecycle) fn awaited_ack(t: &Tenant) -> Option<Seq> {
        match (t.state, &t.cluster) {
            (State::Awake, Cluster::Published { seq, .. }) if !t.waiters.is_empty() => Some(*seq),
            (State::Retiring(_), cluster) => cluster.seq(),
            _ => None,
        }
    }
}
