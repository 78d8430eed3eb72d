//! Performs the machine's effects, and checks that each is allowed.

use std::collections::VecDeque;

use super::*;

impl World {
    pub(super) fn perform(&mut self, effects: &mut VecDeque<Effect>) -> Result<(), Violation> {
        while let Some(effect) = effects.pop_front() {
            match effect {
                Effect::Start { tenant, .. } => self.start(&tenant)?,
                Effect::Pause(tenant) => self.take_away(&tenant, Call::Pause)?,
                Effect::Stop { tenant, orderly: true, restarts } => {
                    self.take_away(&tenant, Call::Stop { restarts })?;
                }
                Effect::Stop { tenant, orderly: false, restarts } => {
                    self.call(&tenant, Call::Stop { restarts })?;
                }
                Effect::Resume(tenant) => self.call(&tenant, Call::Resume)?,
                Effect::Publish(tenant) => {
                    let sq = &self.sqs[number(&tenant)];
                    let cluster = sq.alive.unwrap_or(sq.instances);
                    effects.extend(self.change_cluster(tenant, Some(cluster)));
                }
                Effect::PointNowhere(tenant)
                    if self.sabotage == Some(Sabotage::DeadAddressKept) =>
                {
                    let event = Event::ClusterChanged { tenant, seq: self.seq };
                    effects.extend(self.machine.on(event, self.now));
                }
                Effect::PointNowhere(tenant) => {
                    effects.extend(self.change_cluster(tenant, Some(NOWHERE)));
                }
                Effect::Withdraw(tenant) => effects.extend(self.change_cluster(tenant, None)),
                Effect::Disconnect(stream) => {
                    if let Some(e) = self.envoys.iter().position(|e| e.stream == Some(stream)) {
                        self.drop_stream(e);
                    }
                }
                Effect::Decide { waiter, decision } => self.decide(waiter, &decision)?,
                // No promise depends on it.
                Effect::SetMemory { .. } => {}
                Effect::StateChanged { from, to, .. } => {
                    self.state_changes.push((from.label(), to.label()));
                }
            }
        }
        Ok(())
    }

    fn start(&mut self, id: &TenantId) -> Result<(), Violation> {
        if self.is_restore_locked(number(id)) {
            return Err(format!("{id} would be started during a restore"));
        }
        let sq = &mut self.sqs[number(id)];
        if sq.call.is_some() || sq.alive.is_some() {
            return Err(format!("{id} would run twice on one data folder"));
        }
        // The runtime removes the dead instance first.
        sq.remains = false;
        sq.call = Some(Call::Start);
        Ok(())
    }

    fn call(&mut self, id: &TenantId, call: Call) -> Result<(), Violation> {
        let sq = &mut self.sqs[number(id)];
        if let Some(other) = sq.call {
            return Err(format!("{call:?} of {id} during {other:?}"));
        }
        sq.call = Some(call);
        Ok(())
    }

    /// A pause or an orderly stop: no client may need the tenant any more.
    fn take_away(&mut self, id: &TenantId, call: Call) -> Result<(), Violation> {
        let t = number(id);
        for (e, envoy) in self.envoys.iter().enumerate() {
            let filter = &envoy.filters[t];
            if self.now < filter.lease_until && !self.is_excused(t) {
                return Err(format!("{call:?} of {id} with a live lease of Envoy {e}"));
            }
            if self.now < filter.busy_until && !self.is_excused(t) {
                return Err(format!("{call:?} of {id} with a request of Envoy {e} in flight"));
            }
            // An Envoy that has just reconnected may still have an old cluster, but no lease.
            let is_current = envoy.inbox.iter().all(|(_, m)| matches!(m, Message::Change(..)));
            if envoy.stream.is_some() && is_current && envoy.clusters[t].is_some() {
                return Err(format!("{call:?} of {id} while Envoy {e} still routes to it"));
            }
        }
        self.call(id, call)
    }

    /// Sends a change to all connected Envoys and its number to the machine.
    fn change_cluster(&mut self, tenant: TenantId, cluster: Option<u32>) -> Vec<Effect> {
        let t = number(&tenant);
        self.seq = self.seq.following();
        let seq = self.seq;
        self.published[t] = cluster;
        for envoy in self.envoys.iter_mut().filter(|e| e.stream.is_some()) {
            envoy.inbox.push_back((seq, Message::Change(t, cluster)));
        }
        let mut effects = self.machine.on(Event::ClusterChanged { tenant, seq }, self.now);
        let seems_acknowledged = match self.sabotage {
            Some(Sabotage::EarlyRemovalAck) => cluster.is_none(),
            Some(Sabotage::EarlyPublicationAck) => cluster.is_some(),
            _ => false,
        };
        if seems_acknowledged {
            for stream in self.envoys.iter().filter_map(|envoy| envoy.stream) {
                effects.extend(self.machine.on(Event::Acked { stream, seq }, self.now));
            }
        }
        effects
    }

    fn decide(&mut self, waiter: WaiterId, decision: &LeaseDecision) -> Result<(), Violation> {
        let granted = matches!(decision, LeaseDecision::Granted { .. });
        let excused: Vec<bool> = (0..self.sqs.len()).map(|t| self.is_excused(t)).collect();
        for (e, envoy) in self.envoys.iter_mut().enumerate() {
            for (t, filter) in envoy.filters.iter_mut().enumerate() {
                if filter.requested.is_none_or(|(id, _)| id != waiter) {
                    continue;
                }
                if filter.decision.is_some() {
                    return Err(format!("two decisions about {waiter:?}"));
                }
                filter.decision = Some(granted);
                if granted {
                    self.granted += 1;
                    if envoy.clusters[t].is_none() && !excused[t] {
                        return Err(format!("a lease while Envoy {e} has no cluster of {t}"));
                    }
                }
            }
        }
        Ok(())
    }
}
