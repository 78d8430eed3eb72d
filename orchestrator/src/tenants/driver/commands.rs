//! Execution of the commands that arrive through a [`Handle`](super::Handle).

use protocol::TenantId;

use super::handle::{Command, Running, SleepOutcome};
use super::{Driver, PendingLease};
use crate::tenants::lifecycle::{Drain, Event, Ms, State, WaiterId};

impl Driver {
    pub(super) fn command(&mut self, command: Command) {
        match command {
            Command::Lease { peer, request, reply } => {
                self.last_waiter += 1;
                let waiter = WaiterId(self.last_waiter);
                let pending = PendingLease { tenant: request.tenant.clone(), reply };
                self.pending_leases.insert(waiter, pending);
                self.on(Event::LeaseRequested { waiter, peer, request });
            }
            Command::Sleep { tenant, drain, reply } => {
                let _ = reply.send(self.sleep(&tenant, drain));
            }
            Command::LockForRestore { tenant, reply } => {
                self.on(Event::RestoreLocked(tenant));
                let _ = reply.send(());
            }
            Command::UnlockAfterRestore { tenant, reply } => {
                self.on(Event::RestoreUnlocked(tenant));
                let _ = reply.send(());
            }
            Command::Repaired { tenant, reply } => {
                self.on(Event::Repaired(tenant.clone()));
                let _ = reply.send(self.lifecycle.state(&tenant));
            }
            Command::Tenants { reply } => {
                let _ = reply.send(self.lifecycle.view(self.now()).collect());
            }
            Command::Tenant { tenant, reply } => {
                let _ = reply.send(self.lifecycle.view_one(&tenant, self.now()));
            }
            Command::State { tenant, reply } => {
                let _ = reply.send(self.lifecycle.state(&tenant));
            }
            Command::Running { reply } => {
                let _ = reply.send(self.running());
            }
            Command::Sample { max, reply } => {
                let _ = reply.send(self.sample(max));
            }
            Command::RelievePressure { tenants } => self.on(Event::MemoryShort { tenants }),
        }
    }

    fn sleep(&mut self, tenant: &TenantId, drain: Drain) -> Option<SleepOutcome> {
        let earliest_ms = self.lifecycle.earliest_sleep(tenant, self.now())?;
        self.on(Event::SleepRequested { tenant: tenant.clone(), drain });
        let state = self.lifecycle.state(tenant)?;
        // A tenant that is no longer awake is being stopped already.
        let earliest_ms = if state == State::Awake { earliest_ms } else { 0 };
        Some(SleepOutcome { state, earliest_ms })
    }

    fn running(&self) -> Vec<Running> {
        let now = self.now();
        let mut running = Vec::new();
        for (tenant, endpoint) in &self.endpoints {
            let state = self.lifecycle.state(tenant);
            if !matches!(state, Some(State::Awake | State::Retiring(_))) {
                continue;
            }
            let quiet_at_ms = self.lifecycle.quiet_at(tenant).unwrap_or(Ms::MAX);
            running.push(Running {
                tenant: tenant.clone(),
                address: endpoint.address,
                limits: self.lifecycle.limits(tenant).cloned().unwrap_or_default(),
                quiet_at_ms,
                quiet: quiet_at_ms <= now,
            });
        }
        running
    }

    /// Returns up to `max` tenants that use memory. O(live instances): sleeping tenants are not
    /// visited.
    fn sample(&self, max: usize) -> Vec<TenantId> {
        let uses_memory = |tenant: &&TenantId| {
            let state = self.lifecycle.state(tenant);
            matches!(state, Some(State::Awake | State::Dozing))
        };
        self.endpoints.keys().filter(uses_memory).take(max).cloned().collect()
    }
}
