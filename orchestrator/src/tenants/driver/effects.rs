//! Execution of the machine's effects: publications and replies at once, runtime calls as jobs.

use std::collections::VecDeque;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};

use protocol::{SqVersion, TenantId};
use tracing::{info, warn};

use super::handle::LeaseOutcome;
use super::jobs::{self, Ending};
use super::{Driver, PendingLease};
use crate::runtime::Spec;
use crate::runtime::instance_key::InstanceKey;
use crate::tenants::lifecycle::{Effect, Event, LeaseDecision, WaiterId};
use crate::xds::Seq;
use crate::xds::cluster::{BearerToken, ClusterSpec};

/// An address that refuses every connection at once. Listening on port 1 needs root, and the kernel
/// never picks it as a source port, so no connection can end at itself.
const NOWHERE: SocketAddr = SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 1));

impl Driver {
    /// Performs effects in order. The publisher numbers each change of a cluster. The number goes
    /// back to the machine before the next effect, and may cause further effects.
    pub(super) fn perform(&mut self, effects: Vec<Effect>) {
        let mut effects = VecDeque::from(effects);
        while let Some(effect) = effects.pop_front() {
            let changed = match effect {
                Effect::Publish(tenant) => self.publish(&tenant, None).map(|seq| (tenant, seq)),
                Effect::PointNowhere(tenant) => {
                    self.publish(&tenant, Some(NOWHERE)).map(|seq| (tenant, seq))
                }
                Effect::Withdraw(tenant) => {
                    let seq = self.parts.publisher.withdraw(&tenant);
                    Some((tenant, seq))
                }
                other => {
                    self.perform_one(other);
                    None
                }
            };
            if let Some((tenant, seq)) = changed {
                let event = Event::ClusterChanged { tenant, seq };
                effects.extend(self.lifecycle.on(event, self.now()));
            }
        }
    }

    /// Publishes a tenant's cluster, at `address` or at its instance. Returns the number of the
    /// change; `None` if the tenant has neither.
    fn publish(&self, tenant: &TenantId, address: Option<SocketAddr>) -> Option<Seq> {
        let (address, key) = match self.endpoints.get(tenant) {
            Some(endpoint) => (address.unwrap_or(endpoint.address), endpoint.key.clone()),
            // A tenant that was found dead has no key either.
            None => (address?, InstanceKey::placeholder()),
        };
        let token = BearerToken::new(key.expose());
        let limits = self.lifecycle.limits(tenant).cloned().unwrap_or_default();
        let spec = ClusterSpec::new(address, token, &limits, self.version(tenant));
        Some(self.parts.publisher.publish(tenant, &spec))
    }

    fn version(&self, tenant: &TenantId) -> SqVersion {
        self.adopted_versions.get(tenant).copied().unwrap_or(self.parts.sq_version)
    }

    fn perform_one(&mut self, effect: Effect) {
        match effect {
            Effect::Start { tenant, tier, limits } => {
                let sq_version = self.parts.sq_version;
                let spec = Spec { tenant, tier, limits: *limits, sq_version };
                self.jobs.spawn(jobs::start(self.parts.clone(), spec));
            }
            Effect::Pause(tenant) => {
                self.jobs.spawn(jobs::pause(self.parts.clone(), tenant));
            }
            Effect::Resume(tenant) => {
                self.jobs.spawn(jobs::resume(self.parts.clone(), tenant));
            }
            Effect::Stop { tenant, orderly, restarts } => {
                self.endpoints.remove(&tenant);
                let limits = self.lifecycle.limits(&tenant).cloned().unwrap_or_default();
                let ending = Ending { orderly, restarts };
                self.jobs.spawn(jobs::stop(self.parts.clone(), tenant, limits, ending));
            }
            Effect::SetMemory { tenant, memory_bytes } => {
                self.jobs.spawn(jobs::set_memory(self.parts.clone(), tenant, memory_bytes));
            }
            Effect::Disconnect(stream) => {
                warn!(stream = stream.0, "Envoy does not acknowledge; its stream is cut");
                self.parts.publisher.disconnect(stream);
            }
            Effect::Decide { waiter, decision } => self.reply(waiter, decision),
            Effect::StateChanged { tenant, from, to } => {
                info!(%tenant, from = from.label(), to = to.label(), "tenant changed state");
            }
            // Performed by `perform`, because the machine awaits their numbers.
            Effect::Publish(_) | Effect::PointNowhere(_) | Effect::Withdraw(_) => (),
        }
    }

    fn reply(&mut self, waiter: WaiterId, decision: LeaseDecision) {
        let refusal = match &decision {
            LeaseDecision::Granted { .. } => None,
            LeaseDecision::Refused { kind, .. } => Some(*kind),
        };
        self.parts.metrics.count_lease_request(refusal);
        let Some(PendingLease { tenant, reply }) = self.pending_leases.remove(&waiter) else {
            return;
        };
        let sq_version = self.version(&tenant);
        // The client may have left.
        let _ = reply.send(LeaseOutcome { decision, sq_version });
    }
}
