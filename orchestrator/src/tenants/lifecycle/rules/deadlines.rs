//! When: to doze, to sleep, to be looked at again.

use protocol::KeepAwake;

use crate::tenants::lifecycle::queue::RESTART_HEAD_START_MS;
use crate::tenants::lifecycle::state::{Cluster, Drain, Goal, Ms, Seq, State, Tenant};
use crate::tenants::lifecycle::{Rule, Shared};

impl Shared {
    pub(super) fn head_start(&self, t: &Tenant) -> i64 {
        if t.restart {
            return RESTART_HEAD_START_MS;
        }
        let each = i64::try_from(self.settings.head_start_ms).unwrap_or(i64::MAX);
        each.saturating_mul(i64::from(t.limits.priority))
    }

    /// When an awake tenant may be retired, as things are.
    pub(super) fn retire_at(&self, t: &Tenant, now: Ms) -> Option<Ms> {
        if t.drain == Some(Drain::Forced) {
            return Some(0);
        }
        if !t.waiters.is_empty() && !self.holds(t) {
            return None;
        }
        let quiet = self.quiet_at(t);
        if t.drain.is_some() || t.squeezed {
            return Some(quiet);
        }
        let idle = match t.limits.keep {
            KeepAwake::Awake => return None,
            KeepAwake::Doze => self.doze_after(t),
            KeepAwake::Sleep => self.doze_after(t).min(self.sleep_after(t)),
        };
        let warm = self.warm_until(t, now).unwrap_or(0);
        Some(quiet.max(t.used + idle).max(warm))
    }

    /// When no request under a lease can be under way any more.
    pub(in crate::tenants::lifecycle) fn quiet_at(&self, t: &Tenant) -> Ms {
        let grace = if self.keeps(Rule::Grace) { self.settings.grace_ms } else { 0 };
        t.lease_until.map_or(0, |until| until + grace)
    }

    /// Whether requests may come or be under way by the leases given so far.
    pub(in crate::tenants::lifecycle) fn in_use(&self, t: &Tenant, now: Ms) -> bool {
        now < self.quiet_at(t)
    }

    pub(super) fn goal(&self, t: &Tenant, now: Ms) -> Goal {
        if t.drain.is_some() || t.squeezed {
            return Goal::Sleep;
        }
        if self.sleep_at(t, now).is_some_and(|at| at <= now) { Goal::Sleep } else { Goal::Doze }
    }

    /// When a dozing tenant is stopped.
    pub(super) fn sleep_at(&self, t: &Tenant, now: Ms) -> Option<Ms> {
        let warm = self.warm_until(t, now).unwrap_or(0);
        (t.limits.keep == KeepAwake::Sleep).then(|| warm.max(t.used + self.sleep_after(t)))
    }

    /// When the hours end in which the tenant is kept warm; `None`: now is not among them.
    pub(in crate::tenants::lifecycle) fn warm_until(&self, t: &Tenant, now: Ms) -> Option<Ms> {
        let hours = t.limits.warm_hours?;
        let (at, utc_s) = self.clock?;
        // The clock was read at `at`, which is never after `now`.
        let utc_s = utc_s + now.saturating_sub(at) / 1_000;
        Some(now + hours.left_s(utc_s)? * 1_000)
    }

    fn doze_after(&self, t: &Tenant) -> Ms {
        t.limits.doze_after_s.map_or(self.settings.doze_after_ms, |s| Ms::from(s) * 1_000)
    }

    fn sleep_after(&self, t: &Tenant) -> Ms {
        t.limits.sleep_after_s.map_or(self.settings.sleep_after_ms, |s| Ms::from(s) * 1_000)
    }

    /// When the tenant wants to be looked at though nothing happens.
    pub(in crate::tenants::lifecycle) fn due(&self, t: &Tenant, now: Ms) -> Option<Ms> {
        let state = match t.state {
            State::Awake => self.retire_at(t, now),
            State::Retiring(_) => Some(t.since + self.settings.ack_timeout_ms),
            State::Dozing => self.sleep_at(t, now),
            State::Failing(until) => Some(until),
            State::Stopping => t.stop.retry,
            State::Asleep | State::Queued if t.restart => Some(self.quiet_at(t)),
            _ => None,
        };
        let patience = t.waiters.first().map(|w| w.until);
        [state, patience].into_iter().flatten().min()
    }

    /// Which change the tenant wants acknowledged.
    pub(in crate::tenants::lifecycle) fn wanted_ack(t: &Tenant) -> Option<Seq> {
        match (t.state, t.cluster) {
            (State::Awake, Cluster::Published(seq)) if !t.waiters.is_empty() => Some(seq),
            (State::Retiring(_), Cluster::Withdrawn(seq) | Cluster::Published(seq)) => Some(seq),
            _ => None,
        }
    }
}
