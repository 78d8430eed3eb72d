//! The life of all tenants as one pure state machine: events and time in, effects out.
//!
//! ```mermaid
//! stateDiagram-v2
//! asleep --> awake: found running at the start
//! asleep --> dozing: found paused at the start
//! asleep --> queued: a lease is asked for, or is live after a failure
//! queued --> asleep: nobody waits any more
//! queued --> starting: a slot is free
//! starting --> awake: SQ answers: its cluster is published
//! starting --> failing: it can't be started
//! starting --> damaged: its data can't be used
//! awake --> queued: it died and is needed
//! awake --> failing: it crashes in a loop
//! awake --> retiring: idle, sent to sleep, or dead and not needed
//! retiring --> awake: a lease is asked for
//! retiring --> pausing: all Envoys have acknowledged, to doze
//! retiring --> stopping: all Envoys have acknowledged, to sleep
//! retiring --> asleep: it is dead
//! pausing --> dozing: it is frozen
//! pausing --> stopping: it can't be frozen
//! pausing --> asleep: it died
//! dozing --> resuming: a lease is asked for
//! dozing --> stopping: idle for long, memory is short, or sent to sleep
//! dozing --> asleep: it died
//! resuming --> awake: SQ answers: its cluster is published
//! resuming --> stopping: it can't be thawed
//! stopping --> asleep: it is stopped
//! failing --> asleep: its back-off is over
//! damaged --> asleep: the operator has repaired it
//! ```
//!
//! The model check fails when the machine takes another arrow, and when one is never taken.
//!
//! Three rules keep requests whole. An asker gets its lease only when every stream of its gateway
//! has acknowledged the tenant's cluster. A cluster is withdrawn only when no lease has been live
//! for the grace. The runtime may pause or stop only when every connected Envoy has acknowledged
//! the removal. The set of clusters is seen as a sequence of changes; an Envoy acknowledges
//! everything up to a number.
//!
//! An instance that dies is routed to no longer, at once: its address may become another tenant's.
//! When it is started again its cluster points meanwhile where nobody listens, so that Envoy's
//! retries go on until it answers; else the cluster is withdrawn.
//!
//! Handlers of events note facts; then `rules` brings the tenant to the state that the facts
//! call for. So an event may come late, twice or at the wrong time, and no path is written twice.

mod adoption;
mod event;
mod queue;
mod rules;
mod state;
#[cfg(test)]
mod tests;
mod view;

use std::collections::{BTreeMap, BTreeSet};

use protocol::lease::LeaseRefusalKind;
use protocol::{GatewayId, KeepAwake, LeaseRequest, Limits, TenantId, TierName, WakeKind};

pub use event::{Effect, Event, Settings};
pub use state::{Answer, Drain, Goal, Ms, Seq, State};
pub use view::TenantView;

use crate::runtime::{Died, ExitKind};
use queue::Queue;
use state::{Cluster, Tenant, UNNUMBERED, Waiter};

/// Askers of one tenant that may wait; a browser opens six connections, a herd some hundred.
const WAITERS_PER_TENANT: usize = 4_096;
/// Askers that may wait in all: each holds an HTTP connection of the gate API.
const WAITERS: usize = 20_000;
/// Tenants remembered; each costs about 1 KB.
const TENANTS: usize = 1_000_000;
/// Connected Envoys; more would be a loop of connects.
const STREAMS: usize = 256;
/// The wall clock is taken anew when it is off by more than this; it drifts by less.
const CLOCK_OFF_S: u64 = 2;

/// A connected Envoy.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Stream {
    gateway: GatewayId,
    acked: Seq,
}

/// A rule that a test may break, to see that the model check notices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rule {
    Grace,
    RemovalAck,
    LeaseAck,
    /// An instance that died is not routed to, though it will be back.
    Nowhere,
}

/// Everything that is not one tenant's.
#[derive(Debug, Clone)]
struct Shared {
    settings: Settings,
    broken: Option<Rule>,
    streams: BTreeMap<u64, Stream>,
    queue: Queue,
    starting: usize,
    /// Those among them whose last start failed.
    suspects: usize,
    waiting: usize,
    /// Tenants by state.
    counts: [usize; State::COUNT],
    /// When a tenant wants to be looked at.
    due: BTreeSet<(Ms, TenantId)>,
    /// Which change a tenant wants acknowledged.
    acks: BTreeSet<(Seq, TenantId)>,
    effects: Vec<Effect>,
    /// When the wall clock was read, and what it showed.
    clock: Option<(Ms, u64)>,
}

/// The machine.
#[derive(Debug, Clone)]
pub struct Lifecycle {
    tenants: BTreeMap<TenantId, Tenant>,
    shared: Shared,
}

impl Lifecycle {
    /// Takes one event in.
    pub fn on(&mut self, event: Event, now: Ms) -> Vec<Effect> {
        match event {
            Event::Lease { waiter, request } => self.lease(waiter, *request, now),
            Event::Connected(stream, gateway) => self.connected(stream, gateway),
            Event::Acked(stream, seq) => self.acked(stream, seq, now),
            Event::Nacked(stream, tenants, seq) => self.nacked(stream, &tenants, seq, now),
            Event::Disconnected(stream) => self.disconnected(stream, now),
            Event::Sleep(tenant, drain) => self.note(&tenant, now, |t| {
                if !matches!(t.state, State::Asleep | State::Failing(_) | State::Damaged) {
                    t.drain = Some(t.drain.map_or(drain, |d| stronger(d, drain)));
                }
            }),
            Event::Hold(tenant, held) => self.hold(&tenant, held, now),
            Event::Repaired(tenant) => self.repaired(&tenant, now),
            Event::Pressure(tenants) => self.squeeze(tenants, now),
            Event::Clock(utc_s) => self.set_clock(utc_s, now),
            Event::Tick => self.tick(now),
            Event::Numbered(tenant, seq) => self.note(&tenant, now, |t| match &mut t.cluster {
                Cluster::Published(s) | Cluster::Withdrawn(s) => *s = seq,
                Cluster::Absent => (),
            }),
            Event::Started(tenant, instance, kind) => {
                self.with(&tenant, now, |s, id, t| s.started(id, t, instance, kind, now));
            }
            Event::StartFailed { tenant, damaged, reason } => {
                self.with(&tenant, now, |s, id, t| s.start_failed(id, t, damaged, reason, now));
            }
            Event::Paused(tenant, ok) => {
                self.with(&tenant, now, |s, id, t| s.paused(id, t, ok, now));
            }
            Event::Resumed(tenant, ok) => {
                self.with(&tenant, now, |s, id, t| s.resumed(id, t, ok, now));
            }
            Event::Stopped(tenant, ok) => {
                self.with(&tenant, now, |s, id, t| s.stopped(id, t, ok, now));
            }
            Event::Died(Died { tenant, instance, exit }) => {
                self.with(&tenant, now, |s, id, t| s.died(id, t, instance, exit, now));
            }
        }
        self.fill_slots(now);
        std::mem::take(&mut self.shared.effects)
    }

    fn lease(&mut self, waiter: u64, request: LeaseRequest, now: Ms) {
        let shared = &mut self.shared;
        let known = self.tenants.contains_key(&request.tenant);
        let full = shared.waiting >= WAITERS || (!known && self.tenants.len() >= TENANTS);
        if full {
            let text = "too many askers or tenants";
            return shared.refuse(waiter, LeaseRefusalKind::Unavailable, 1_000, text);
        }
        if !known {
            if request.renew_only {
                return shared.refuse(waiter, LeaseRefusalKind::Asleep, 1_000, "");
            }
            shared.counts[State::Asleep.index()] += 1;
        }
        let LeaseRequest { gateway, tenant, tier, limits, renew_only, patience_ms, .. } = request;
        let t = self
            .tenants
            .entry(tenant.clone())
            .or_insert_with(|| Tenant::new(tier.clone(), limits.clone(), now));
        if t.tier != tier {
            t.tier = tier;
        }
        if t.limits != limits {
            let wider = t.limits.concurrency != limits.concurrency;
            t.limits = limits;
            if wider && t.state == State::Awake {
                shared.publish(&tenant, t);
            }
        }
        if renew_only && !rules::renewable(t.state) {
            shared.refuse(waiter, LeaseRefusalKind::Asleep, 1_000, "");
        } else if t.waiters.len() >= WAITERS_PER_TENANT {
            shared.refuse(waiter, LeaseRefusalKind::Queue, 1_000, "too many askers");
        } else {
            shared.waiting += 1;
            let most = shared.settings.patience_ms;
            let until = now + patience_ms.unwrap_or(most).min(most);
            let waiter = Waiter { id: waiter, gateway, asked: now, until, wake: WakeKind::None };
            // In the order in which their patience ends.
            let place = t.waiters.partition_point(|w| w.until <= until);
            t.waiters.insert(place, waiter);
        }
        self.touch(&tenant, now);
    }

    fn connected(&mut self, stream: u64, gateway: GatewayId) {
        if self.shared.streams.len() >= STREAMS {
            self.shared.effects.push(Effect::Disconnect(stream));
        } else {
            self.shared.streams.insert(stream, Stream { gateway, acked: 0 });
        }
    }

    fn acked(&mut self, stream: u64, seq: Seq, now: Ms) {
        let Some(known) = self.shared.streams.get_mut(&stream) else { return };
        known.acked = known.acked.max(seq);
        let reached: Vec<_> = self
            .shared
            .acks
            .iter()
            .take_while(|(s, _)| *s <= seq)
            .map(|(_, t)| t.clone())
            .collect();
        for tenant in reached {
            self.touch(&tenant, now);
        }
    }

    fn nacked(&mut self, stream: u64, tenants: &[TenantId], seq: Seq, now: Ms) {
        if !self.shared.streams.contains_key(&stream) {
            return;
        }
        for tenant in tenants {
            self.note(tenant, now, |t| {
                let it_is = matches!(t.cluster, Cluster::Published(at) if at <= seq);
                if it_is && !t.refused_by.contains(&stream) {
                    t.refused_by.push(stream);
                }
            });
        }
    }

    fn disconnected(&mut self, stream: u64, now: Ms) {
        if self.shared.streams.remove(&stream).is_some() {
            let waiting: Vec<_> = self.shared.acks.iter().map(|(_, t)| t.clone()).collect();
            for tenant in waiting {
                self.note(&tenant, now, |t| t.refused_by.retain(|s| *s != stream));
            }
        }
    }

    fn repaired(&mut self, tenant: &TenantId, now: Ms) {
        self.with(tenant, now, |s, id, t| {
            if matches!(t.state, State::Damaged | State::Failing(_)) {
                t.failures = 0;
                s.go(id, t, State::Asleep, now);
            }
        });
    }

    fn hold(&mut self, tenant: &TenantId, held: bool, now: Ms) {
        if held && !self.tenants.contains_key(tenant) {
            // Never asked for in this life of ours; its first lease says tier and limits.
            let t = Tenant::new(TierName::default(), Limits::default(), now);
            self.shared.counts[State::Asleep.index()] += 1;
            self.tenants.insert(tenant.clone(), t);
        }
        self.note(tenant, now, |t| {
            t.held = held;
            if held {
                t.drain = t.drain.or(Some(Drain::Gently));
            }
        });
    }

    /// Stops who was used least recently: dozing ones first, then awake ones without a lease. Who is
    /// being stopped already makes room too.
    fn squeeze(&mut self, tenants: usize, now: Ms) {
        let shared = &self.shared;
        let rank = |t: &Tenant| match t.state {
            State::Dozing => Some((0, t.used)),
            State::Awake
                if t.limits.keep != KeepAwake::Awake
                    && shared.warm_until(t, now).is_none()
                    && t.waiters.is_empty()
                    && shared.quiet_at(t) <= now =>
            {
                Some((1, t.used))
            }
            _ => None,
        };
        let mut able: Vec<_> =
            self.tenants.iter().filter_map(|(id, t)| Some((rank(t)?, id.clone()))).collect();
        able.sort_unstable();
        let leaves = |t: &&Tenant| t.squeezed || t.state == State::Stopping;
        let leaving = self.tenants.values().filter(leaves).count();
        for (_, tenant) in able.into_iter().take(tenants.saturating_sub(leaving)) {
            self.note(&tenant, now, |t| t.squeezed = true);
        }
    }

    /// Takes the wall clock in, and files anew who is kept warm by it when it has jumped.
    fn set_clock(&mut self, utc_s: u64, now: Ms) {
        let clock = &mut self.shared.clock;
        let known = clock.map(|(at, was_s)| was_s + now.saturating_sub(at) / 1_000);
        if known.is_some_and(|known| known.abs_diff(utc_s) <= CLOCK_OFF_S) {
            return;
        }
        *clock = Some((now, utc_s));
        let warm = self.tenants.iter().filter(|(_, t)| t.limits.warm_hours.is_some());
        let warm: Vec<_> = warm.map(|(id, _)| id.clone()).collect();
        for tenant in warm {
            self.touch(&tenant, now);
        }
    }

    fn tick(&mut self, now: Ms) {
        let due: Vec<_> = self
            .shared
            .due
            .iter()
            .take_while(|(at, _)| *at <= now)
            .map(|(_, t)| t.clone())
            .collect();
        for tenant in due {
            self.touch(&tenant, now);
        }
    }

    /// Gives free slots to who is first in the queue.
    fn fill_slots(&mut self, now: Ms) {
        while self.shared.starting < self.shared.settings.max_starts {
            // One that hangs holds its slot until it is given up: others keep theirs.
            let few = self.shared.suspects >= self.shared.settings.max_starts.div_ceil(2);
            let tenants = &self.tenants;
            let next =
                self.shared.queue.pop(|id| !few || tenants.get(id).is_none_or(|t| !t.is_suspect()));
            let Some(tenant) = next else { break };
            self.with(&tenant, now, |s, id, t| s.start(id, t, now));
        }
    }

    fn touch(&mut self, tenant: &TenantId, now: Ms) {
        self.with(tenant, now, |_, _, _| ());
    }

    fn note(&mut self, tenant: &TenantId, now: Ms, fact: impl FnOnce(&mut Tenant)) {
        self.with(tenant, now, |_, _, t| fact(t));
    }

    /// Notes facts about a tenant and applies the rules.
    fn with(
        &mut self,
        tenant: &TenantId,
        now: Ms,
        handle: impl FnOnce(&mut Shared, &TenantId, &mut Tenant),
    ) {
        let Some(t) = self.tenants.get_mut(tenant) else { return };
        handle(&mut self.shared, tenant, t);
        self.shared.settle(tenant, t, now);
        self.shared.reindex(tenant, t, now);
    }
}

impl Shared {
    fn keeps(&self, rule: Rule) -> bool {
        self.broken != Some(rule)
    }

    fn go(&mut self, tenant: &TenantId, t: &mut Tenant, to: State, now: Ms) {
        let from = t.state;
        self.counts[from.index()] -= 1;
        self.counts[to.index()] += 1;
        t.state = to;
        t.since = now;
        self.effects.push(Effect::Moved { tenant: tenant.clone(), from, to });
    }

    fn publish(&mut self, tenant: &TenantId, t: &mut Tenant) {
        t.cluster = Cluster::Published(UNNUMBERED);
        t.refused_by.clear();
        self.effects.push(Effect::Publish(tenant.clone()));
    }

    /// Of a dead instance that will be back: its address may be another tenant's by now.
    fn point_nowhere(&mut self, tenant: &TenantId, t: &mut Tenant) {
        if self.keeps(Rule::Nowhere) && matches!(t.cluster, Cluster::Published(_)) {
            t.cluster = Cluster::Published(UNNUMBERED);
            t.refused_by.clear();
            self.effects.push(Effect::PointNowhere(tenant.clone()));
        }
    }

    fn withdraw(&mut self, tenant: &TenantId, t: &mut Tenant) {
        if matches!(t.cluster, Cluster::Published(_)) {
            t.cluster = Cluster::Withdrawn(UNNUMBERED);
            t.refused_by.clear();
            self.effects.push(Effect::Withdraw(tenant.clone()));
        }
    }

    fn refuse(&mut self, waiter: u64, kind: LeaseRefusalKind, after: Ms, detail: &'static str) {
        let retry_after_s = u32::try_from(after.div_ceil(1_000)).unwrap_or(u32::MAX).max(1);
        let answer = Answer::Refused { kind, retry_after_s, detail };
        self.effects.push(Effect::Answer(waiter, answer));
    }

    /// Files the tenant under the time and the change that it waits for.
    fn reindex(&mut self, tenant: &TenantId, t: &mut Tenant, now: Ms) {
        let (due, ack) = (self.due(t, now), Self::wanted_ack(t));
        if t.index.due != due {
            if let Some(old) = t.index.due {
                self.due.remove(&(old, tenant.clone()));
            }
            if let Some(new) = due {
                self.due.insert((new, tenant.clone()));
            }
        }
        if t.index.ack != ack {
            if let Some(old) = t.index.ack {
                self.acks.remove(&(old, tenant.clone()));
            }
            if let Some(new) = ack {
                self.acks.insert((new, tenant.clone()));
            }
        }
        t.index = state::Index { due, ack };
    }
}

fn stronger(a: Drain, b: Drain) -> Drain {
    if a == Drain::Forced || b == Drain::Forced { Drain::Forced } else { Drain::Gently }
}

fn describe(exit: ExitKind) -> String {
    match exit {
        ExitKind::Clean => "exited by itself".to_owned(),
        ExitKind::Crashed(code) => format!("exit code {code}"),
        ExitKind::OutOfMemory => "out of memory".to_owned(),
        ExitKind::Gone => "gone without a trace".to_owned(),
    }
}
