//! The SQ instances: ends of runtime calls, deaths, and a restart of the orchestrator.

use super::*;
use crate::runtime::instance_key::InstanceKey;
use crate::runtime::{Endpoint, ExitKind, Found, FoundState};

impl Sq {
    /// Does what a call asks for.
    fn complete(&mut self, call: Call) {
        match call {
            Call::Start => {
                self.instances += 1;
                self.alive = Some(self.instances);
            }
            // A dead instance can't be frozen.
            Call::Pause => self.is_frozen = self.alive.is_some(),
            Call::Resume => self.is_frozen = false,
            Call::Stop { .. } => {
                self.alive = None;
                self.is_frozen = false;
                self.remains = false;
            }
        }
    }

    /// Updates the record after a call has succeeded.
    fn record(&mut self, call: Call) {
        match call {
            Call::Start => self.recorded = true,
            Call::Stop { restarts } => self.recorded &= restarts,
            Call::Pause | Call::Resume => (),
        }
    }

    fn found_state(&self) -> Option<FoundState> {
        match self.alive {
            Some(_) if self.is_frozen => Some(FoundState::Paused),
            Some(_) => Some(FoundState::Running),
            None if self.remains || self.recorded => Some(FoundState::Stopped(ExitKind::Gone)),
            None => None,
        }
    }
}

impl World {
    /// Excuses everything that clients see of a death until their leases have ended.
    pub(super) fn excuse(&mut self, t: usize) {
        let settings = &self.settings;
        self.sqs[t].excused_until =
            self.now + settings.lease_ms + settings.patience_ms + self.longest_ms;
    }

    pub(super) fn is_excused(&self, t: usize) -> bool {
        self.now < self.sqs[t].excused_until || !self.sqs[t].unreported.is_empty()
    }

    pub(super) fn die(&mut self, t: usize) {
        self.faults.deaths -= 1;
        self.excuse(t);
        let sq = &mut self.sqs[t];
        let dead = sq.alive.take().unwrap();
        sq.is_frozen = false;
        sq.remains = true;
        sq.unreported.push_back(dead);
    }

    pub(super) fn call_succeeds(&mut self, t: usize) -> Result<(), Violation> {
        let sq = &mut self.sqs[t];
        let call = sq.call.take().unwrap();
        sq.complete(call);
        if self.sabotage != Some(Sabotage::NoAwakeRecords) {
            sq.record(call);
        }
        let tenant = tenant(t);
        // A call on a dead instance fails.
        let result = if sq.alive.is_some() { Ok(()) } else { Err(timed_out()) };
        let event = match call {
            Call::Start => {
                let instance = instance(t, sq.instances);
                Event::Started { tenant, instance, kind: WakeKind::Start }
            }
            Call::Pause => Event::Paused { tenant, result },
            Call::Resume => Event::Resumed { tenant, result },
            Call::Stop { .. } => Event::Stopped { tenant, result: Ok(()) },
        };
        self.on(event)
    }

    pub(super) fn call_fails(&mut self, t: usize) -> Result<(), Violation> {
        self.faults.failures -= 1;
        self.excuse(t);
        let tenant = tenant(t);
        let result = Err(timed_out());
        let event = match self.sqs[t].call.take().unwrap() {
            Call::Start => {
                Event::StartFailed { tenant, error: StartError::Transient(String::new()) }
            }
            Call::Pause => Event::Paused { tenant, result },
            Call::Resume => Event::Resumed { tenant, result },
            Call::Stop { .. } => Event::Stopped { tenant, result },
        };
        self.on(event)
    }

    pub(super) fn data_damaged(&mut self, t: usize) -> Result<(), Violation> {
        self.faults.damages -= 1;
        self.excuse(t);
        self.sqs[t].call = None;
        let error = StartError::Damaged(String::new());
        self.on(Event::StartFailed { tenant: tenant(t), error })
    }

    pub(super) fn restart(&mut self, progress: Progress) -> Result<(), Violation> {
        self.faults.restarts -= 1;
        // 1. Calls under way have come this far; reports of deaths are lost.
        let mut found = Vec::new();
        for t in 0..self.sqs.len() {
            if !self.sqs[t].unreported.is_empty() {
                self.excuse(t);
            }
            let sq = &mut self.sqs[t];
            sq.unreported.clear();
            if let Some(call) = sq.call.take()
                && progress != Progress::Begun
            {
                sq.complete(call);
                if progress == Progress::Done && self.sabotage != Some(Sabotage::NoAwakeRecords) {
                    sq.record(call);
                }
            }
            found.extend(self.found(t));
        }
        // 2. Streams end, and so do waiting requests.
        for e in 0..self.envoys.len() {
            if self.envoys[e].stream.is_some() {
                self.drop_stream(e);
            }
            for filter in &mut self.envoys[e].filters {
                filter.requested = None;
                filter.decision = None;
            }
        }
        // 3. A new machine adopts the instances.
        self.published.fill(None);
        let settings = machine_settings(&self.settings, self.sabotage);
        let leases_ms = settings.lease_ms;
        let (machine, effects) = Lifecycle::adopt(settings, found, leases_ms, self.now);
        self.machine = machine;
        self.perform(&mut effects.into())?;
        // 4. Clients with a lease on a dead instance must be able to retry.
        for (t, sq) in self.sqs.iter().enumerate() {
            let is_leased = self.envoys.iter().any(|e| self.now < e.filters[t].lease_until);
            if is_leased && sq.alive.is_none() && self.published[t].is_none() {
                return Err(format!("{t} is dead and has no cluster despite its live leases"));
            }
        }
        Ok(())
    }

    fn found(&self, t: usize) -> Option<Found> {
        let sq = &self.sqs[t];
        let endpoint = sq.alive.map(|alive| Endpoint {
            instance: instance(t, alive),
            address: ([127, 0, 0, 1], 1).into(),
            key: InstanceKey::placeholder(),
        });
        Some(Found {
            limits: self.limits[t].clone(),
            endpoint,
            ..found(sq.found_state()?, tenant(t))
        })
    }
}

fn timed_out() -> CallError {
    CallError::TimedOut { limit_s: 30 }
}
