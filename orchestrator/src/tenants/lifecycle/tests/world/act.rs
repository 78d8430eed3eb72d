//! Performs one action and reports it to the machine.

use std::collections::VecDeque;

use protocol::LeaseRequest;

use super::*;
use crate::runtime::{Died, ExitKind};

impl World {
    pub(in crate::tenants::lifecycle) fn take(&mut self, action: Action) -> Result<(), Violation> {
        match action {
            Action::Request(e, t) => self.request(e, t, false)?,
            Action::Renew(e, t) => self.request(e, t, true)?,
            Action::DecisionArrives(e, t) => self.decision_arrives(e, t),
            Action::DecisionLost(e, t) => {
                self.faults.lost_decisions -= 1;
                self.envoys[e].filters[t].requested = None;
                self.envoys[e].filters[t].decision = None;
            }
            Action::Deliver(e) => {
                self.deliver(e);
                if self.acks_at_once {
                    return self.take(Action::AckArrives(e));
                }
            }
            Action::Reject(e) => self.reject(e)?,
            Action::AckArrives(e) => {
                let seq = self.envoys[e].acks.pop_front().unwrap();
                let stream = self.envoys[e].stream.unwrap();
                self.on(Event::Acked { stream, seq })?;
            }
            Action::Disconnect(e) => {
                self.faults.disconnects -= 1;
                let stream = self.drop_stream(e);
                self.on(Event::Disconnected(stream))?;
            }
            Action::Connect(e) => self.connect(e)?,
            Action::CallSucceeds(t) => self.call_succeeds(t)?,
            Action::CallFails(t) => self.call_fails(t)?,
            Action::DataDamaged(t) => self.data_damaged(t)?,
            Action::Repair(t) => self.on(Event::Repaired(tenant(t)))?,
            Action::Die(t) => self.die(t),
            Action::DeathReported(t) => self.death_reported(t)?,
            Action::Restart(progress) => self.restart(progress)?,
            Action::Sleep(t, drain) => {
                match drain {
                    Drain::Gently => self.faults.sleeps -= 1,
                    Drain::Forced => {
                        self.faults.forced_sleeps -= 1;
                        self.excuse(t);
                    }
                }
                self.on(Event::SleepRequested { tenant: tenant(t), drain })?;
            }
            Action::LockForRestore(t) => {
                self.faults.restores -= 1;
                self.on(Event::RestoreLocked(tenant(t)))?;
            }
            Action::UnlockAfterRestore(t) => self.on(Event::RestoreUnlocked(tenant(t)))?,
            Action::MemoryShort => {
                self.faults.memory_shortages -= 1;
                self.on(Event::MemoryShort { tenants: 4 })?;
            }
            Action::Time(ms) => {
                self.now += ms;
                self.on(Event::Tick)?;
            }
        }
        self.check()
    }

    pub(super) fn on(&mut self, event: Event) -> Result<(), Violation> {
        let mut effects = VecDeque::from(self.machine.on(event, self.now));
        self.perform(&mut effects)
    }

    fn request(&mut self, e: usize, t: usize, renew_only: bool) -> Result<(), Violation> {
        if self.faults.requests < Faults::ENDLESS {
            self.faults.requests -= 1;
        }
        self.last_id += 1;
        let waiter = WaiterId(self.last_id);
        self.envoys[e].filters[t].requested = Some((waiter, self.now));
        self.envoys[e].filters[t].decision = None;
        let request = Box::new(LeaseRequest {
            gateway: gateway(e),
            limits: self.limits[t].clone(),
            renew_only,
            ..lease_request(tenant(t).as_str())
        });
        self.on(Event::LeaseRequested { waiter, peer: peer(e), request })
    }

    fn decision_arrives(&mut self, e: usize, t: usize) {
        let filter = &mut self.envoys[e].filters[t];
        let (_, requested_at) = filter.requested.take().unwrap();
        if filter.decision.take() == Some(true) {
            // The filter counts from before its request.
            let until = requested_at + self.settings.lease_ms;
            filter.lease_until = filter.lease_until.max(until);
            if self.now < filter.lease_until {
                filter.busy_until = filter.lease_until + self.longest_ms;
            }
        }
    }

    fn deliver(&mut self, e: usize) {
        let envoy = &mut self.envoys[e];
        let (seq, message) = envoy.inbox.pop_front().unwrap();
        match message {
            Message::Change(t, cluster) => envoy.clusters[t] = cluster,
            Message::Everything(clusters) => envoy.clusters = clusters,
        }
        envoy.acks.push_back(seq);
    }

    fn reject(&mut self, e: usize) -> Result<(), Violation> {
        self.faults.rejections -= 1;
        let (seq, message) = self.envoys[e].inbox.pop_front().unwrap();
        let Message::Change(t, _) = message else { unreachable!() };
        let stream = self.envoys[e].stream.unwrap();
        self.on(Event::Nacked { stream, tenants: vec![tenant(t)], seq })?;
        self.envoys[e].acks.push_back(seq);
        Ok(())
    }

    pub(super) fn drop_stream(&mut self, e: usize) -> StreamId {
        self.envoys[e].inbox.clear();
        self.envoys[e].acks.clear();
        self.envoys[e].stream.take().unwrap()
    }

    pub(super) fn connect(&mut self, e: usize) -> Result<(), Violation> {
        self.last_id += 1;
        let stream = StreamId(self.last_id);
        self.envoys[e].stream = Some(stream);
        let everything = Message::Everything(self.published.clone());
        self.envoys[e].inbox.push_back((self.seq, everything));
        self.on(Event::Connected { stream, gateway: gateway(e), peer: peer(e) })
    }

    fn death_reported(&mut self, t: usize) -> Result<(), Violation> {
        let dead = self.sqs[t].unreported.pop_front().unwrap();
        self.excuse(t);
        let exit = ExitKind::Crashed(137);
        self.on(Event::Died(Died { tenant: tenant(t), instance: instance(t, dead), exit }))
    }
}
