//! Fingerprints: two worlds that no rule can tell apart have the same one, so that a search ends.
//!
//! A time counts only as long as it is still compared with something. Changes and instances count
//! by their distance from the newest.

use std::hash::{DefaultHasher, Hash, Hasher};

use super::*;
use crate::tenants::lifecycle::tenant::{Cluster, Tenant};

/// Distance that exceeds that of any two changes under way.
const FAR: u64 = 5;

impl World {
    pub(in crate::tenants::lifecycle) fn fingerprint(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        let h = &mut hasher;
        self.faults.hash(h);
        for t in 0..self.sqs.len() {
            self.hash_sq(t, h);
            for envoy in &self.envoys {
                self.hash_filter(&envoy.filters[t], h);
                envoy.clusters[t].map(|number| self.age(t, number)).hash(h);
            }
            if let Some(facts) = self.machine.tenants.get(&tenant(t)) {
                self.hash_tenant(t, facts, h);
            }
        }
        for envoy in &self.envoys {
            self.hash_envoy(envoy, h);
        }
        let queue = &self.machine.shared.queue;
        queue.tenants().for_each(|id| id.hash(h));
        queue.start_ms().min(self.settings.patience_ms + 1).hash(h);
        hasher.finish()
    }

    /// Time until `at`.
    fn left(&self, at: Ms) -> Ms {
        at.saturating_sub(self.now)
    }

    /// Time since `at`, up to a bound.
    fn since(&self, at: Ms, max: Ms) -> Ms {
        self.now.saturating_sub(at).min(max)
    }

    fn distance(&self, seq: Seq) -> u64 {
        self.seq.0.saturating_sub(seq.0).min(FAR)
    }

    /// Age of an instance in newer instances, up to 2; 3 for [`NOWHERE`].
    fn age(&self, t: usize, number: u32) -> u32 {
        if number == NOWHERE { 3 } else { (self.sqs[t].instances - number).min(2) }
    }

    fn age_of(&self, t: usize, instance: &InstanceId) -> u32 {
        let number = instance.0.split('.').nth(1).unwrap();
        self.age(t, number.parse().unwrap())
    }

    fn hash_sq(&self, t: usize, h: &mut DefaultHasher) {
        let sq = &self.sqs[t];
        sq.alive.map(|number| self.age(t, number)).hash(h);
        (sq.is_frozen, sq.remains, sq.recorded, sq.call, self.left(sq.excused_until)).hash(h);
        sq.unreported.iter().for_each(|number| self.age(t, *number).hash(h));
        self.published[t].map(|number| self.age(t, number)).hash(h);
    }

    fn hash_filter(&self, filter: &Filter, h: &mut DefaultHasher) {
        let settings = &self.settings;
        let max = match filter.decision {
            Some(_) => settings.lease_ms,
            None => settings.patience_ms + 2,
        };
        filter.requested.map(|(_, at)| self.since(at, max)).hash(h);
        filter.decision.map(|granted| granted && filter.requested.is_some()).hash(h);
        (self.left(filter.lease_until), self.left(filter.busy_until)).hash(h);
    }

    fn hash_envoy(&self, envoy: &Envoy, h: &mut DefaultHasher) {
        envoy.stream.is_some().hash(h);
        let stream = envoy.stream.and_then(|id| self.machine.shared.streams.get(&id));
        stream.map(|stream| self.distance(stream.acked)).hash(h);
        let slow_ms = self.settings.slow_ack_ms();
        stream.map(|stream| self.since(stream.opened_at, slow_ms)).hash(h);
        envoy.acks.iter().for_each(|seq| self.distance(*seq).hash(h));
        for (seq, message) in &envoy.inbox {
            self.distance(*seq).hash(h);
            match message {
                Message::Change(t, cluster) => {
                    (*t, cluster.map(|number| self.age(*t, number))).hash(h);
                }
                Message::Everything(clusters) => {
                    for (t, cluster) in clusters.iter().enumerate() {
                        cluster.map(|number| self.age(t, number)).hash(h);
                    }
                }
            }
        }
    }

    fn hash_tenant(&self, t: usize, facts: &Tenant, h: &mut DefaultHasher) {
        let settings = &self.settings;
        facts.state.index().hash(h);
        match facts.state {
            State::Failing(until) => self.left(until).hash(h),
            State::Retiring(goal) => {
                (goal, self.since(facts.since, settings.ack_timeout_ms)).hash(h);
            }
            State::Stopping { orderly, retry_at } => {
                (orderly, retry_at.map(|at| self.left(at))).hash(h);
            }
            _ => (),
        }
        matches!(facts.cluster, Cluster::Absent).hash(h);
        facts.cluster.seq().map(|seq| self.distance(seq)).hash(h);
        if let Cluster::Published { rejected_by, .. } = &facts.cluster {
            for envoy in &self.envoys {
                envoy.stream.is_some_and(|stream| rejected_by.contains(&stream)).hash(h);
            }
        }
        facts.instance.as_ref().map(|instance| self.age_of(t, instance)).hash(h);
        facts.pending_death.as_ref().map(|(instance, _)| self.age_of(t, instance)).hash(h);
        let lease = facts.lease_until.map(|at| self.left(at + settings.grace_ms));
        lease.filter(|left| *left > 0).hash(h);
        if matches!(facts.state, State::Awake | State::Dozing | State::Retiring(_)) {
            self.since(facts.used_at, settings.sleep_after_ms).hash(h);
        }
        if facts.instance.is_some() {
            self.since(facts.starts.last_at, settings.stable_ms).hash(h);
        }
        if facts.state == State::Awake && !facts.waiters.is_empty() {
            for stream in self.machine.shared.streams.values() {
                let began = facts.published_at.max(stream.opened_at);
                self.since(began, settings.ack_timeout_ms).hash(h);
            }
        }
        facts.waiters.iter().for_each(|w| (&w.gateway, self.left(w.deadline)).hash(h));
        (facts.restart, facts.sleep_request, facts.restore_locked).hash(h);
        (facts.starts.is_suspect(), facts.starts.failures.min(3)).hash(h);
    }

    /// Number of changes that an Envoy has not taken, and of acknowledgements that have not
    /// arrived.
    pub(in crate::tenants::lifecycle) fn backlog(&self) -> usize {
        self.envoys.iter().map(|e| e.inbox.len() + e.acks.len()).max().unwrap_or(0)
    }
}
