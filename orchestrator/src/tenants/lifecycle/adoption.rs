//! Adoption: the machine's initial state, from the instances that an earlier orchestrator process
//! left and the leases that it may have granted.

use std::collections::BTreeMap;

use super::Lifecycle;
use super::event::{Effect, Settings};
use super::shared::Shared;
use super::state::{Ms, State};
use super::tenant::{Cluster, Tenant, describe_exit};
use crate::runtime::{ExitKind, Found, FoundState};

impl Lifecycle {
    /// Creates the machine with the instances that the runtime has found, and returns effects that
    /// publish those that run.
    ///
    /// Leases of the previous process are not recorded, but none of them outlives `leases_ms` from
    /// now. Until then each running tenant counts as leased. So does each tenant that died while no
    /// orchestrator ran: it is started again. A paused tenant has no lease, because it was paused
    /// after its leases and their grace had ended.
    pub fn adopt(
        settings: Settings,
        found: Vec<Found>,
        leases_ms: Ms,
        now: Ms,
    ) -> (Self, Vec<Effect>) {
        let mut machine = Self { tenants: BTreeMap::new(), shared: Shared::new(settings) };
        let lease_until = if leases_ms > 0 { Some(now + leases_ms) } else { None };
        for found in found {
            machine.adopt_one(found, lease_until, now);
        }
        machine.assign_permits(now);
        let effects = std::mem::take(&mut machine.shared.effects);
        (machine, effects)
    }

    fn adopt_one(&mut self, found: Found, lease_until: Option<Ms>, now: Ms) {
        let mut t = Tenant::new(found.tier, found.limits, now);
        t.instance = found.endpoint.map(|endpoint| endpoint.instance);
        let shared = &mut self.shared;
        shared.counts[t.state.index()] += 1;
        match found.state {
            FoundState::Running => {
                t.lease_until = lease_until;
                t.starts.last_at = now;
                shared.publish(&found.tenant, &mut t, now);
                shared.change_state(&found.tenant, &mut t, State::Awake, now);
            }
            FoundState::Paused => {
                shared.change_state(&found.tenant, &mut t, State::Dozing, now);
            }
            FoundState::FromEarlierBoot => {
                t.history.last_death = Some(describe_exit(ExitKind::Gone));
            }
            FoundState::Stopped(exit) => {
                t.history.last_death = Some(describe_exit(exit));
                if lease_until.is_some() {
                    t.lease_until = lease_until;
                    t.restart = true;
                    // Envoys may still have the cluster, with an address that may be another
                    // tenant's by now.
                    t.cluster = Cluster::publishing();
                    shared.point_nowhere(&found.tenant, &mut t);
                }
            }
        }
        self.tenants.insert(found.tenant.clone(), t);
        self.settle(&found.tenant, now);
    }
}
