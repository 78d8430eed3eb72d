//! What must hold at every moment, and when two worlds count as one.

use std::hash::{DefaultHasher, Hash, Hasher};

use super::*;
use crate::tenants::lifecycle::state::Cluster;

/// Further apart than any two changes under way.
const FAR: Seq = 5;

impl World {
    /// What must hold at every moment.
    pub(super) fn check(&self) -> Result<(), Broken> {
        let s = &self.settings;
        for (e, envoy) in self.envoys.iter().enumerate() {
            for (t, filter) in envoy.filters.iter().enumerate() {
                let sq = &self.sqs[t];
                let excused = self.excused(t);
                if self.now < filter.lease_until && !excused {
                    match envoy.clusters[t] {
                        None => return Err(format!("Envoy {e} has a lease and no cluster of {t}")),
                        Some(life) if sq.alive != Some(life) || sq.frozen => {
                            return Err(format!("Envoy {e} routes to a stopped instance of {t}"));
                        }
                        Some(_) => (),
                    }
                }
                let waits = filter.asked.filter(|_| filter.answer.is_none());
                if waits.is_some_and(|(_, asked)| self.now > asked + s.patience_ms + 1) {
                    return Err(format!("an asker of {t} at Envoy {e} is never answered"));
                }
            }
        }
        for (t, sq) in self.sqs.iter().enumerate() {
            let known_dead = sq.news.is_empty();
            let published = self.published[t].filter(|life| *life != NOWHERE);
            if known_dead && published.is_some() && published != sq.alive {
                return Err(format!("the address of a dead instance of {t} stays published"));
            }
        }
        for (id, t) in &self.machine.tenants {
            if matches!(t.state, State::Retiring(_)) && self.now > t.since + s.ack_timeout_ms + 1 {
                return Err(format!("{id} stays in Retiring"));
            }
        }
        self.check_counts()
    }

    fn check_counts(&self) -> Result<(), Broken> {
        let machine = &self.machine;
        let starts = self.sqs.iter().filter(|sq| sq.call == Some(Call::Start)).count();
        let waiting: usize = machine.tenants.values().map(|t| t.waiters.len()).sum();
        let queued = machine.tenants.values().filter(|t| t.state == State::Queued).count();
        if starts != machine.shared.starting || starts > self.settings.max_starts {
            return Err(format!("{starts} starts, {} counted", machine.shared.starting));
        }
        if waiting != machine.shared.waiting || queued != machine.shared.queue.len() {
            return Err("askers or queued tenants are miscounted".to_owned());
        }
        let suspect = |state| {
            let of = machine.tenants.values().filter(move |t| t.state == state && t.is_suspect());
            of.count()
        };
        let few = suspect(State::Starting) >= self.settings.max_starts.div_ceil(2);
        let able = queued - if few { suspect(State::Queued) } else { 0 };
        if able > 0 && starts < self.settings.max_starts {
            return Err("a slot is free and a tenant waits".to_owned());
        }
        Ok(())
    }

    /// A hash that is the same for worlds that no rule can tell apart: times count only as far as
    /// something still compares them, changes and lives only by their distance from the newest.
    pub(in crate::tenants::lifecycle) fn fingerprint(&self) -> u64 {
        let mut h = DefaultHasher::new();
        let s = &self.settings;
        let left = |at: Ms| at.saturating_sub(self.now);
        let ago = |at: Ms, most: Ms| self.now.saturating_sub(at).min(most);
        let seq = |s: Seq| self.seq.saturating_sub(s).min(FAR);
        self.faults.hash(&mut h);
        for (t, sq) in self.sqs.iter().enumerate() {
            let life = |l: u32| if l == NOWHERE { 3 } else { (sq.lives - l).min(2) };
            let excused = left(sq.excused_until);
            (sq.alive.map(life), sq.frozen, sq.remains, sq.call, excused).hash(&mut h);
            sq.news.iter().for_each(|l| life(*l).hash(&mut h));
            self.published[t].map(life).hash(&mut h);
            for envoy in &self.envoys {
                let f = &envoy.filters[t];
                let most = if f.answer.is_some() { s.lease_ms } else { s.patience_ms + 2 };
                let answer = f.answer.map(|granted| granted && f.asked.is_some());
                let asked = f.asked.map(|(_, at)| ago(at, most));
                (asked, answer, left(f.lease_until), left(f.busy_until)).hash(&mut h);
                envoy.clusters[t].map(life).hash(&mut h);
            }
            if let Some(m) = self.machine.tenants.get(&tenant(t)) {
                self.hash_tenant(m, &mut h, &|i| {
                    life(i.0.split('.').nth(1).unwrap().parse().unwrap())
                });
            }
        }
        for envoy in &self.envoys {
            envoy.stream.is_some().hash(&mut h);
            let acked = envoy.stream.and_then(|s| self.machine.shared.streams.get(&s));
            acked.map(|s| seq(s.acked)).hash(&mut h);
            envoy.acks.iter().for_each(|s| seq(*s).hash(&mut h));
            for (s, message) in &envoy.inbox {
                seq(*s).hash(&mut h);
                let life = |t: usize, l: Option<u32>| {
                    l.map(|l| if l == NOWHERE { 3 } else { (self.sqs[t].lives - l).min(2) })
                };
                match message {
                    Message::Change(t, l) => (*t, life(*t, *l)).hash(&mut h),
                    Message::Everything(all) => {
                        all.iter().enumerate().for_each(|(t, l)| life(t, *l).hash(&mut h));
                    }
                }
            }
        }
        self.machine.shared.queue.names().for_each(|id| id.hash(&mut h));
        self.machine.shared.queue.start_ms().min(s.patience_ms + 1).hash(&mut h);
        h.finish()
    }

    fn hash_tenant(&self, t: &Tenant, h: &mut DefaultHasher, life: &dyn Fn(&InstanceId) -> u32) {
        let s = &self.settings;
        let left = |at: Ms| at.saturating_sub(self.now);
        let ago = |at: Ms, most: Ms| self.now.saturating_sub(at).min(most);
        let seq = |s: Seq| self.seq.saturating_sub(s).min(FAR);
        (t.state.index(), matches!(t.cluster, Cluster::Absent)).hash(h);
        match t.state {
            State::Failing(until) => left(until).hash(h),
            State::Retiring(goal) => (goal as u8, ago(t.since, s.ack_timeout_ms)).hash(h),
            _ => (),
        }
        match t.cluster {
            Cluster::Absent => (),
            Cluster::Published(at) | Cluster::Withdrawn(at) => seq(at).hash(h),
        }
        t.instance.as_ref().map(life).hash(h);
        t.death.as_ref().map(|(i, _)| life(i)).hash(h);
        let lease = t.lease_until.map(|at| left(at + s.grace_ms));
        let runs = matches!(t.state, State::Awake | State::Dozing | State::Retiring(_));
        let used = if runs { ago(t.used, s.sleep_after_ms) } else { 0 };
        let started = if t.instance.is_some() { ago(t.started, s.stable_ms) } else { 0 };
        (lease.filter(|l| *l > 0), used, started).hash(h);
        t.waiters.iter().for_each(|w| (&w.gateway, left(w.until)).hash(h));
        (t.restart, t.drain, t.held, t.squeezed, t.is_suspect(), t.stop.orderly, t.failures.min(3))
            .hash(h);
        t.stop.retry.map(left).hash(h);
        let refused = |e: &Envoy| e.stream.is_some_and(|s| t.refused_by.contains(&s));
        self.envoys.iter().for_each(|e| refused(e).hash(h));
    }

    /// Changes an Envoy has not taken yet: bounded, or the model never ends.
    pub(in crate::tenants::lifecycle) fn backlog(&self) -> usize {
        self.envoys.iter().map(|e| e.inbox.len() + e.acks.len()).max().unwrap_or(0)
    }
}
