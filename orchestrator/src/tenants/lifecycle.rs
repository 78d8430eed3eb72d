//! The lifecycle of all tenants as one pure state machine: events and the time in, effects out.
//!
//! ```mermaid
//! stateDiagram-v2
//! asleep --> awake: adopted, running
//! asleep --> dozing: adopted, paused
//! asleep --> queued: a lease is requested, or is live after a failure
//! queued --> asleep: no request waits any more
//! queued --> starting: a start permit is free
//! starting --> awake: SQ responds, and its cluster is published
//! starting --> failing: the start fails
//! starting --> damaged: the data needs the operator
//! awake --> queued: it dies and is in use
//! awake --> failing: it crashes repeatedly
//! awake --> retiring: idle, put to sleep, or dead and not in use
//! retiring --> awake: a lease is requested
//! retiring --> pausing: all Envoys have acknowledged, and it will doze
//! retiring --> stopping: all Envoys have acknowledged, and it will sleep
//! retiring --> asleep: it is dead
//! pausing --> dozing: it is frozen
//! pausing --> stopping: freezing it fails
//! pausing --> asleep: it has died
//! dozing --> resuming: a lease is requested
//! dozing --> stopping: idle, put to sleep, or memory is short
//! dozing --> asleep: it dies
//! resuming --> awake: SQ responds, and its cluster is published
//! resuming --> stopping: unfreezing it fails
//! stopping --> asleep: it is stopped
//! failing --> asleep: the back-off has ended
//! damaged --> asleep: the operator has repaired the data
//! ```
//!
//! The model check in `tests/model.rs` explores the machine and asserts that it takes exactly these
//! arrows.
//!
//! # Safety
//!
//! Three rules keep requests from failing:
//!
//! 1. A lease is granted only when each stream of the requesting process has acknowledged the
//!    tenant's cluster. During a hot restart a gateway has two processes; and a process that claims
//!    a gateway's name and stays silent delays no request of the gateway's own. For a process
//!    without a stream, all of the gateway's streams count.
//! 2. A cluster is withdrawn only when the last lease and its grace have ended.
//! 3. A tenant is paused or stopped in order only when each connected Envoy has acknowledged the
//!    removal of its cluster.
//!
//! Changes of the set of clusters are numbered. An Envoy acknowledges all changes up to a number.
//!
//! A dead instance is taken out of routing at once, because its address may become another
//! tenant's. If the tenant will be started again, its cluster points at an address that refuses
//! connections until then, so that Envoy goes on retrying. Otherwise the cluster is withdrawn.
//!
//! # Structure
//!
//! An event handler only notes facts in a tenant or in the shared state. Then the rules bring the
//! tenant to the state that its facts call for. So an event may come late, twice or in an
//! unexpected state, and each path is written once.
//!
//! | file | content |
//! |---|---|
//! | `event.rs` | settings, events and effects |
//! | `state.rs` | states of a tenant |
//! | `tenant.rs` | facts about a tenant |
//! | `shared.rs` | state that the tenants share, and elementary operations |
//! | `adoption.rs` | the initial state |
//! | `inputs.rs` | handlers of leases, Envoys, the operator and the host |
//! | `rules.rs` | rules by state |
//! | `rules/outcomes.rs` | handlers of runtime results and deaths |
//! | `rules/waiters.rs` | decisions about waiting lease requests |
//! | `rules/deadlines.rs` | when a rule applies by time alone |
//! | `queue.rs` | the queue for start permits |
//! | `view.rs` | read access |

mod adoption;
mod event;
mod inputs;
mod queue;
mod rules;
mod shared;
mod state;
mod tenant;
#[cfg(test)]
mod tests;
mod view;

use std::collections::BTreeMap;

use protocol::TenantId;

pub use event::{CallError, Effect, Event, LeaseDecision, Settings, StartError};
pub use state::{Drain, Goal, Ms, State, WaiterId};
pub use view::TenantView;

use crate::runtime::Died;
use shared::Shared;
use tenant::{Cluster, Tenant};

/// The state machine of all tenants.
#[derive(Debug, Clone)]
pub struct Lifecycle {
    tenants: BTreeMap<TenantId, Tenant>,
    shared: Shared,
}

impl Lifecycle {
    /// Handles one event and returns the effects to perform, in order. `now` must not decrease.
    pub fn on(&mut self, event: Event, now: Ms) -> Vec<Effect> {
        match event {
            Event::LeaseRequested { waiter, peer, request } => {
                self.lease_requested(waiter, peer, *request, now);
            }
            Event::Connected { stream, gateway, peer } => {
                self.connected(stream, gateway, peer, now);
            }
            Event::Acked { stream, seq } => self.acked(stream, seq, now),
            Event::Nacked { stream, tenants, seq } => self.nacked(stream, &tenants, seq, now),
            Event::Disconnected(stream) => self.disconnected(stream, now),
            Event::ClusterChanged { tenant, seq: number } => {
                self.note_fact(&tenant, now, |t| match &mut t.cluster {
                    Cluster::Published { seq, .. } | Cluster::Withdrawn(seq) => *seq = number,
                    Cluster::Absent => (),
                });
            }
            Event::SleepRequested { tenant, drain } => self.sleep_requested(&tenant, drain, now),
            Event::RestoreLocked(tenant) => self.restore_locked(&tenant, now),
            Event::RestoreUnlocked(tenant) => {
                self.note_fact(&tenant, now, |t| t.restore_locked = false);
            }
            Event::Repaired(tenant) => self.repaired(&tenant, now),
            Event::MemoryShort { tenants } => self.memory_short(tenants, now),
            Event::Clock { utc_s } => self.clock_read(utc_s, now),
            Event::Tick => self.tick(now),
            Event::Started { tenant, instance, kind } => {
                self.update(&tenant, now, |s, t| s.started(&tenant, t, instance, kind, now));
            }
            Event::StartFailed { tenant, error } => {
                self.update(&tenant, now, |s, t| s.start_failed(&tenant, t, &error, now));
            }
            Event::Paused { tenant, result } => {
                self.update(&tenant, now, |s, t| s.paused(&tenant, t, &result, now));
            }
            Event::Resumed { tenant, result } => {
                self.update(&tenant, now, |s, t| s.resumed(&tenant, t, &result, now));
            }
            Event::Stopped { tenant, result } => {
                self.update(&tenant, now, |s, t| s.stopped(&tenant, t, &result, now));
            }
            Event::Died(Died { tenant, instance, exit }) => {
                self.update(&tenant, now, |s, t| s.died(&tenant, t, instance, exit, now));
            }
        }
        self.assign_permits(now);
        std::mem::take(&mut self.shared.effects)
    }

    /// Applies the rules to each tenant whose deadline has passed.
    fn tick(&mut self, now: Ms) {
        let due: Vec<TenantId> = self
            .shared
            .deadlines
            .iter()
            .take_while(|(at, _)| *at <= now)
            .map(|(_, tenant)| tenant.clone())
            .collect();
        for tenant in due {
            self.settle(&tenant, now);
        }
    }

    /// Starts queued tenants while start permits are free.
    fn assign_permits(&mut self, now: Ms) {
        let permits = self.shared.settings.max_starts;
        while self.shared.starting < permits {
            // A start that hangs keeps its permit until its time-out. Tenants whose last start
            // failed may hang again, so they get half of the permits at most.
            let suspects_may_start = self.shared.starting_suspects < permits.div_ceil(2);
            let tenants = &self.tenants;
            let may_start = |id: &TenantId| {
                let is_suspect = tenants.get(id).is_some_and(|t| t.starts.is_suspect());
                suspects_may_start || !is_suspect
            };
            let Some(tenant) = self.shared.queue.pop(may_start) else { break };
            self.update(&tenant, now, |shared, t| shared.start(&tenant, t, now));
        }
    }

    /// Applies the rules to a tenant.
    fn settle(&mut self, tenant: &TenantId, now: Ms) {
        self.update(tenant, now, |_, _| ());
    }

    /// Notes facts in a tenant and applies the rules.
    fn note_fact(&mut self, tenant: &TenantId, now: Ms, fact: impl FnOnce(&mut Tenant)) {
        self.update(tenant, now, |_, t| fact(t));
    }

    /// Notes facts in a tenant and in the shared state, and applies the rules. An unknown tenant is
    /// ignored.
    fn update(
        &mut self,
        tenant: &TenantId,
        now: Ms,
        handle: impl FnOnce(&mut Shared, &mut Tenant),
    ) {
        let Some(t) = self.tenants.get_mut(tenant) else { return };
        handle(&mut self.shared, t);
        self.shared.settle(tenant, t, now);
        self.shared.reindex(tenant, t, now);
    }
}
