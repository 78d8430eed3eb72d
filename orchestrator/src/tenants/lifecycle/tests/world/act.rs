//! What happens in the world, and what the machine is told of it.

use std::collections::VecDeque;

use super::*;

impl World {
    /// Lets it happen.
    pub(in crate::tenants::lifecycle) fn take(&mut self, step: Step) -> Result<(), Broken> {
        match step {
            Step::Ask(e, t) => self.ask(e, t, false)?,
            Step::Renew(e, t) => self.ask(e, t, true)?,
            Step::AnswerArrives(e, t) => self.answer_arrives(e, t),
            Step::AnswerLost(e, t) => {
                self.faults.lost_answers -= 1;
                self.envoys[e].filters[t].asked = None;
                self.envoys[e].filters[t].answer = None;
            }
            Step::Deliver(e) => {
                self.deliver(e);
                if self.prompt {
                    return self.take(Step::AckArrives(e));
                }
            }
            Step::Refuse(e) => {
                self.faults.refusals -= 1;
                let (seq, message) = self.envoys[e].inbox.pop_front().unwrap();
                let Message::Change(t, _) = message else { unreachable!() };
                let stream = self.envoys[e].stream.unwrap();
                self.on(Event::Nacked(stream, vec![tenant(t)], seq))?;
                self.envoys[e].acks.push_back(seq);
            }
            Step::AckArrives(e) => {
                let seq = self.envoys[e].acks.pop_front().unwrap();
                let stream = self.envoys[e].stream.unwrap();
                self.on(Event::Acked(stream, seq))?;
            }
            Step::Disconnect(e) => {
                self.faults.disconnects -= 1;
                let stream = self.drop_stream(e);
                self.on(Event::Disconnected(stream))?;
            }
            Step::Connect(e) => self.connect(e)?,
            Step::Done(t) => self.done(t)?,
            Step::Fails(t) => self.fails(t)?,
            Step::Damaged(t) => {
                self.faults.damages -= 1;
                self.excuse(t);
                self.sqs[t].call = None;
                let (tenant, reason) = (tenant(t), String::new());
                self.on(Event::StartFailed { tenant, damaged: true, reason })?;
            }
            Step::Repaired(t) => self.on(Event::Repaired(tenant(t)))?,
            Step::Die(t) => self.die(t),
            Step::DeathNews(t) => {
                let life = self.sqs[t].news.pop_front().unwrap();
                self.excuse(t);
                let exit = ExitKind::Crashed(137);
                self.on(Event::Died(Died {
                    tenant: tenant(t),
                    instance: instance(t, life),
                    exit,
                }))?;
            }
            Step::Restart { calls_done } => self.restart(calls_done)?,
            Step::Sleep(t, drain) => {
                match drain {
                    Drain::Gently => self.faults.sleeps -= 1,
                    Drain::Forced => {
                        self.faults.forced -= 1;
                        self.excuse(t);
                    }
                }
                self.on(Event::Sleep(tenant(t), drain))?;
            }
            Step::Hold(t, held) => {
                self.faults.holds -= u8::from(held);
                self.on(Event::Hold(tenant(t), held))?;
            }
            Step::Pressure => {
                self.faults.pressures -= 1;
                self.on(Event::Pressure(4))?;
            }
            Step::Time(ms) => {
                self.now += ms;
                self.on(Event::Tick)?;
            }
        }
        self.check()
    }

    fn on(&mut self, event: Event) -> Result<(), Broken> {
        let mut effects = VecDeque::from(self.machine.on(event, self.now));
        self.perform(&mut effects)
    }

    fn perform(&mut self, effects: &mut VecDeque<Effect>) -> Result<(), Broken> {
        while let Some(effect) = effects.pop_front() {
            match effect {
                Effect::Start { tenant, .. } => {
                    if self.held(number(&tenant)) {
                        return Err(format!("{tenant} would be started while it is held"));
                    }
                    let sq = &self.sqs[number(&tenant)];
                    if sq.call.is_some() || sq.alive.is_some() {
                        return Err(format!("{tenant} would run twice on one data folder"));
                    }
                    self.sqs[number(&tenant)].call = Some(Call::Start);
                }
                Effect::Pause(tenant) => self.take_away(&tenant, Call::Pause)?,
                Effect::Stop { tenant, orderly } => {
                    if orderly {
                        self.take_away(&tenant, Call::Stop)?;
                    } else {
                        self.call(&tenant, Call::Stop)?;
                    }
                }
                Effect::Resume(tenant) => self.call(&tenant, Call::Resume)?,
                Effect::Publish(id) => {
                    let life = self.sqs[number(&id)].alive;
                    self.change(number(&id), life.or(Some(self.sqs[number(&id)].lives)));
                    effects.extend(self.machine.on(Event::Numbered(id, self.seq), self.now));
                }
                Effect::PointNowhere(id) => {
                    self.change(number(&id), Some(NOWHERE));
                    effects.extend(self.machine.on(Event::Numbered(id, self.seq), self.now));
                }
                Effect::Withdraw(id) => {
                    self.change(number(&id), None);
                    effects.extend(self.machine.on(Event::Numbered(id, self.seq), self.now));
                }
                Effect::Disconnect(stream) => {
                    if let Some(e) = self.envoys.iter().position(|e| e.stream == Some(stream)) {
                        self.drop_stream(e);
                    }
                }
                Effect::Answer(waiter, answer) => self.answer(waiter, &answer)?,
                // Of no promise.
                Effect::Resize { .. } => {}
                Effect::Moved { from, to, .. } => self.moved.push((from.label(), to.label())),
            }
        }
        Ok(())
    }

    fn call(&mut self, id: &TenantId, call: Call) -> Result<(), Broken> {
        let sq = &mut self.sqs[number(id)];
        if let Some(other) = sq.call {
            return Err(format!("{id} is asked to {call:?} during {other:?}"));
        }
        sq.call = Some(call);
        Ok(())
    }

    /// A pause or an orderly stop: nobody may need the tenant any more.
    fn take_away(&mut self, id: &TenantId, call: Call) -> Result<(), Broken> {
        let t = number(id);
        for (e, envoy) in self.envoys.iter().enumerate() {
            let filter = &envoy.filters[t];
            if self.now < filter.lease_until && !self.excused(t) {
                return Err(format!("{call:?} of {id} with a live lease of Envoy {e}"));
            }
            if self.now < filter.busy_until && !self.excused(t) {
                return Err(format!("{call:?} of {id} with a request of Envoy {e} under way"));
            }
            // One that has just come back may still have an old cluster, and no lease to use it.
            let told = envoy.inbox.iter().all(|(_, m)| matches!(m, Message::Change(..)));
            if envoy.stream.is_some() && told && envoy.clusters[t].is_some() {
                return Err(format!("{call:?} of {id} while Envoy {e} still routes to it"));
            }
        }
        self.call(id, call)
    }

    fn change(&mut self, t: usize, life: Option<u32>) {
        self.seq += 1;
        self.published[t] = life;
        let seq = self.seq;
        for envoy in self.envoys.iter_mut().filter(|e| e.stream.is_some()) {
            envoy.inbox.push_back((seq, Message::Change(t, life)));
        }
    }

    fn ask(&mut self, e: usize, t: usize, renew_only: bool) -> Result<(), Broken> {
        if self.faults.asks < Faults::ENDLESS {
            self.faults.asks -= 1;
        }
        self.next_id += 1;
        let waiter = self.next_id;
        self.envoys[e].filters[t].asked = Some((waiter, self.now));
        self.envoys[e].filters[t].answer = None;
        let request = Box::new(LeaseRequest {
            gateway: gateway(e),
            tenant: tenant(t),
            tier: TierName::parse("free").unwrap(),
            limits: self.limits[t].clone(),
            renew_only,
            within_quotas: false,
            patience_ms: None,
        });
        self.on(Event::Lease { waiter, request })
    }

    fn answer(&mut self, waiter: u64, answer: &Answer) -> Result<(), Broken> {
        let granted = matches!(answer, Answer::Granted { .. });
        let excused: Vec<bool> = (0..self.sqs.len()).map(|t| self.excused(t)).collect();
        for (e, envoy) in self.envoys.iter_mut().enumerate() {
            for (t, filter) in envoy.filters.iter_mut().enumerate() {
                if filter.asked.is_none_or(|(id, _)| id != waiter) {
                    continue;
                }
                if filter.answer.is_some() {
                    return Err(format!("asker {waiter} is answered twice"));
                }
                filter.answer = Some(granted);
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

    fn answer_arrives(&mut self, e: usize, t: usize) {
        let filter = &mut self.envoys[e].filters[t];
        let (_, asked) = filter.asked.take().unwrap();
        if filter.answer.take() == Some(true) {
            let until = asked + self.settings.lease_ms;
            filter.lease_until = filter.lease_until.max(until);
            if self.now < filter.lease_until {
                filter.busy_until = filter.lease_until + self.longest;
            }
        }
    }

    fn deliver(&mut self, e: usize) {
        let envoy = &mut self.envoys[e];
        let (seq, message) = envoy.inbox.pop_front().unwrap();
        match message {
            Message::Change(t, life) => envoy.clusters[t] = life,
            Message::Everything(all) => envoy.clusters = all,
        }
        envoy.acks.push_back(seq);
    }

    fn drop_stream(&mut self, e: usize) -> u64 {
        self.envoys[e].inbox.clear();
        self.envoys[e].acks.clear();
        self.envoys[e].stream.take().unwrap()
    }

    pub(super) fn connect(&mut self, e: usize) -> Result<(), Broken> {
        self.next_id += 1;
        let stream = self.next_id;
        self.envoys[e].stream = Some(stream);
        let everything = Message::Everything(self.published.clone());
        self.envoys[e].inbox.push_back((self.seq, everything));
        self.on(Event::Connected(stream, gateway(e)))
    }

    /// Everything that clients see of a death is excused until their leases have ended.
    fn excuse(&mut self, t: usize) {
        let s = &self.settings;
        self.sqs[t].excused_until = self.now + s.lease_ms + s.patience_ms + self.longest;
    }

    pub(super) fn excused(&self, t: usize) -> bool {
        self.now < self.sqs[t].excused_until || !self.sqs[t].news.is_empty()
    }

    fn die(&mut self, t: usize) {
        self.faults.deaths -= 1;
        self.excuse(t);
        let sq = &mut self.sqs[t];
        let life = sq.alive.take().unwrap();
        sq.frozen = false;
        sq.remains = true;
        sq.news.push_back(life);
    }

    fn done(&mut self, t: usize) -> Result<(), Broken> {
        let sq = &mut self.sqs[t];
        let id = tenant(t);
        let event = match sq.call.take().unwrap() {
            Call::Start => {
                sq.lives += 1;
                sq.alive = Some(sq.lives);
                sq.remains = false;
                Event::Started(id, instance(t, sq.lives), WakeKind::Start)
            }
            // What is dead can't be frozen or thawed.
            Call::Pause => {
                sq.frozen = sq.alive.is_some();
                Event::Paused(id, sq.frozen)
            }
            Call::Resume => {
                sq.frozen = false;
                Event::Resumed(id, sq.alive.is_some())
            }
            Call::Stop => {
                sq.alive = None;
                sq.frozen = false;
                sq.remains = false;
                Event::Stopped(id, true)
            }
        };
        self.on(event)
    }

    fn fails(&mut self, t: usize) -> Result<(), Broken> {
        self.faults.failures -= 1;
        self.excuse(t);
        let id = tenant(t);
        let event = match self.sqs[t].call.take().unwrap() {
            Call::Start => {
                // The runtime leaves nothing.
                self.sqs[t].remains = false;
                Event::StartFailed { tenant: id, damaged: false, reason: String::new() }
            }
            Call::Pause => Event::Paused(id, false),
            Call::Resume => Event::Resumed(id, false),
            Call::Stop => Event::Stopped(id, false),
        };
        self.on(event)
    }

    fn restart(&mut self, calls_done: bool) -> Result<(), Broken> {
        self.faults.restarts -= 1;
        let mut found = Vec::new();
        for t in 0..self.sqs.len() {
            if !self.sqs[t].news.is_empty() {
                self.excuse(t);
            }
            let sq = &mut self.sqs[t];
            sq.news.clear();
            match sq.call.take().filter(|_| calls_done) {
                Some(Call::Start) => {
                    sq.lives += 1;
                    sq.alive = Some(sq.lives);
                    sq.remains = false;
                }
                Some(Call::Pause) => sq.frozen = sq.alive.is_some(),
                Some(Call::Resume) => sq.frozen = false,
                Some(Call::Stop) => {
                    sq.alive = None;
                    sq.frozen = false;
                    sq.remains = false;
                }
                None => (),
            }
            let state = match sq.alive {
                Some(_) if sq.frozen => FoundState::Paused,
                Some(_) => FoundState::Running,
                None if sq.remains => FoundState::Stopped(ExitKind::Gone),
                None => continue,
            };
            found.push(Found {
                tenant: tenant(t),
                tier: TierName::parse("free").unwrap(),
                limits: self.limits[t].clone(),
                sq_version: protocol::SqVersion::V0_6_0,
                state,
                endpoint: sq.alive.map(|life| Endpoint {
                    instance: instance(t, life),
                    address: ([127, 0, 0, 1], 1).into(),
                    key: InstanceKey::placeholder(),
                }),
            });
        }
        for e in 0..self.envoys.len() {
            if self.envoys[e].stream.is_some() {
                self.drop_stream(e);
            }
            for filter in &mut self.envoys[e].filters {
                filter.asked = None;
                filter.answer = None;
            }
        }
        self.published.fill(None);
        let broken = self.machine.shared.broken;
        let settings = self.settings.clone();
        let leases_ms = settings.lease_ms;
        let (machine, effects) = Lifecycle::adopt(settings, found, leases_ms, self.now);
        self.machine = machine;
        self.machine.shared.broken = broken;
        self.perform(&mut effects.into())?;
        for (t, sq) in self.sqs.iter().enumerate() {
            let leased = self.envoys.iter().any(|e| self.now < e.filters[t].lease_until);
            if leased && sq.remains && self.published[t].is_none() {
                return Err(format!("{t}, found dead, is taken from those who hold leases"));
            }
        }
        Ok(())
    }
}
