//! What must hold after each action.

use super::*;

impl World {
    pub(super) fn check(&self) -> Result<(), Violation> {
        self.check_clients()?;
        self.check_published()?;
        let ack_timeout_ms = self.settings.ack_timeout_ms;
        for (id, t) in &self.machine.tenants {
            if matches!(t.state, State::Retiring(_)) && self.now > t.since + ack_timeout_ms + 1 {
                return Err(format!("{id} stays in Retiring"));
            }
        }
        self.check_counts()
    }

    /// A client with a lease reaches a live instance, and each request is decided in time.
    fn check_clients(&self) -> Result<(), Violation> {
        for (e, envoy) in self.envoys.iter().enumerate() {
            for (t, filter) in envoy.filters.iter().enumerate() {
                let sq = &self.sqs[t];
                if self.now < filter.lease_until && !self.is_excused(t) {
                    match envoy.clusters[t] {
                        None => return Err(format!("Envoy {e} has a lease and no cluster of {t}")),
                        Some(target) if sq.alive != Some(target) || sq.is_frozen => {
                            return Err(format!("Envoy {e} routes to a stopped instance of {t}"));
                        }
                        Some(_) => (),
                    }
                }
                let undecided = filter.requested.filter(|_| filter.decision.is_none());
                let patience_ms = self.settings.patience_ms;
                if undecided.is_some_and(|(_, at)| self.now > at + patience_ms + 1) {
                    return Err(format!("a request for {t} at Envoy {e} is never decided"));
                }
            }
        }
        Ok(())
    }

    /// Once its death has been reported, an instance's address is not published.
    fn check_published(&self) -> Result<(), Violation> {
        for (t, sq) in self.sqs.iter().enumerate() {
            let target = self.published[t].filter(|target| *target != NOWHERE);
            if sq.unreported.is_empty() && target.is_some() && target != sq.alive {
                return Err(format!("the address of a dead instance of {t} stays published"));
            }
        }
        Ok(())
    }

    /// The machine's counters are right, and no start permit stays unused without a reason.
    fn check_counts(&self) -> Result<(), Violation> {
        let tenants = &self.machine.tenants;
        let shared = &self.machine.shared;
        let max_starts = self.settings.max_starts;
        let starts = self.sqs.iter().filter(|sq| sq.call == Some(Call::Start)).count();
        if starts != shared.starting || starts > max_starts {
            return Err(format!("{starts} starts, {} counted", shared.starting));
        }
        let waiting: usize = tenants.values().map(|t| t.waiters.len()).sum();
        let queued = tenants.values().filter(|t| t.state == State::Queued).count();
        if waiting != shared.waiting || queued != shared.queue.len() {
            return Err("waiters or queued tenants are miscounted".to_owned());
        }
        let suspects =
            |state| tenants.values().filter(|t| t.state == state && t.starts.is_suspect()).count();
        let suspects_may_start = suspects(State::Starting) < max_starts.div_ceil(2);
        let able = if suspects_may_start { queued } else { queued - suspects(State::Queued) };
        if able > 0 && starts < max_starts {
            return Err("a start permit is free while a tenant waits".to_owned());
        }
        Ok(())
    }
}
