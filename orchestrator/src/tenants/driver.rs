//! The one task that owns the lifecycle: it takes events from everywhere, asks the machine, and
//! has its effects done. Others ask it through a [`Handle`].
//!
//! ```text
//!  gate API, admin ──Command──►┌────────┐──Answer──► gate API
//!  xDS ──────────────XdsEvent─►│ driver │──publish, withdraw──► xDS
//!  runtime ──────────────Died─►│        │──start, pause, resume, stop──► runtime (a job each)
//!  jobs ────────────────Event─►└────────┘
//! ```
//!
//! The driver never waits for anything but the next event. The machine asks one thing per tenant
//! at a time, so at most one job per tenant is under way.

mod handle;
mod jobs;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, VecDeque};
use std::future::pending;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::sync::Arc;
use std::time::Duration;

use protocol::{SqVersion, TenantId};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};
use tracing::{info, warn};

use crate::host;
use crate::metrics::Metrics;
use crate::runtime::instance_key::InstanceKey;
use crate::runtime::{Died, Endpoint, Found, Runtime, Spec};
use crate::storage::vault::Vault;
use crate::tenants::lifecycle::{Answer, Effect, Event, Lifecycle, Ms, Settings, State};
use crate::xds::cluster::{BearerToken, ClusterSpec};
use crate::xds::{Publisher, StreamId, XdsEvent};
use handle::Command;
pub use handle::{Closed, Handle, LeaseOutcome, Running, SleepAnswer};
use jobs::Done;

/// Commands not yet taken: enough for a herd; then its askers wait in their connections.
const COMMANDS: usize = 1_024;
/// How long jobs may go on after the end was asked for.
const DRAIN: Duration = Duration::from_secs(10);
/// How often the wall clock is looked at: it may jump, and warm hours are judged by it.
const CLOCK: Duration = Duration::from_mins(1);

/// Refuses every connection at once: the port is reserved, needs root to be listened on, and the
/// kernel never chooses it, so that no connection ends at itself.
const NOWHERE: SocketAddr = SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 1));

/// What the driver works with.
#[derive(Clone)]
pub struct Parts {
    /// Runs tenants.
    pub runtime: Arc<dyn Runtime>,
    /// Tells Envoys.
    pub publisher: Publisher,
    /// Looks at a tenant's data before a start; `None`: not kept.
    pub vault: Option<Arc<Vault>>,
    /// Counts.
    pub metrics: Arc<Metrics>,
    /// What tenants run.
    pub sq_version: SqVersion,
}

/// Why the driver can't go on; the process goes down with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Broken(&'static str);

/// The task's state.
pub struct Driver {
    lifecycle: Lifecycle,
    parts: Parts,
    epoch: Instant,
    commands: mpsc::Receiver<Command>,
    xds: mpsc::Receiver<XdsEvent>,
    deaths: Option<mpsc::Receiver<Died>>,
    jobs: JoinSet<Done>,
    endpoints: HashMap<TenantId, Endpoint>,
    /// SQ versions of tenants found running with another than the present one.
    versions: HashMap<TenantId, SqVersion>,
    replies: HashMap<u64, (TenantId, oneshot::Sender<LeaseOutcome>)>,
    next_waiter: u64,
}

impl Driver {
    /// Takes over what the runtime has found, publishes it and opens the publisher. Nothing is
    /// stopped or withdrawn before all of it is known. `leases_ms`: how long leases of an earlier
    /// life may hold from now on.
    pub fn adopt(
        settings: Settings,
        parts: Parts,
        found: Vec<Found>,
        leases_ms: Ms,
        xds: mpsc::Receiver<XdsEvent>,
    ) -> (Self, Handle) {
        let deaths = parts.runtime.events();
        let mut endpoints = HashMap::new();
        let mut versions = HashMap::new();
        for f in &found {
            if let Some(endpoint) = &f.endpoint {
                endpoints.insert(f.tenant.clone(), endpoint.clone());
                versions.insert(f.tenant.clone(), f.sq_version);
            }
        }
        info!(tenants = found.len(), running = endpoints.len(), "adopted");
        let (lifecycle, effects) = Lifecycle::adopt(settings, found, leases_ms, 0);
        let (sender, commands) = mpsc::channel(COMMANDS);
        let mut driver = Self {
            lifecycle,
            parts,
            epoch: Instant::now(),
            commands,
            xds,
            deaths,
            jobs: JoinSet::new(),
            endpoints,
            versions,
            replies: HashMap::new(),
            next_waiter: 0,
        };
        driver.perform(effects);
        driver.on(Event::Clock(host::now_s()));
        driver.parts.publisher.ready();
        driver.parts.metrics.set_ready();
        (driver, Handle { commands: sender })
    }

    /// Works until `shutdown`, or every handle is gone; then ends the jobs under way. Tenants are
    /// left as they are, for the next life to adopt.
    pub async fn run(mut self, shutdown: impl Future<Output = ()>) -> Result<(), Broken> {
        tokio::pin!(shutdown);
        let mut clock = tokio::time::interval(CLOCK);
        loop {
            let deadline = self.lifecycle.next_deadline().map(|ms| self.at(ms));
            tokio::select! {
                () = &mut shutdown => break,
                command = self.commands.recv() => match command {
                    Some(command) => self.command(command),
                    None => break,
                },
                event = self.xds.recv() => {
                    self.xds_event(event.ok_or(Broken("nothing is heard of Envoys any more"))?);
                }
                died = next_death(self.deaths.as_mut()) => {
                    self.died(died.ok_or(Broken("nothing is heard of deaths any more"))?);
                }
                Some(done) = self.jobs.join_next() => {
                    self.done(done.map_err(|_| Broken("a call of the runtime panicked"))?);
                }
                () = maybe_sleep(deadline) => self.on(Event::Tick),
                _ = clock.tick() => self.on(Event::Clock(host::now_s())),
            }
            self.publish_counts();
        }
        let drained =
            tokio::time::timeout(DRAIN, async { while self.jobs.join_next().await.is_some() {} });
        if drained.await.is_err() {
            warn!(jobs = self.jobs.len(), "the runtime was still at work");
        }
        Ok(())
    }

    fn at(&self, ms: Ms) -> Instant {
        self.epoch + Duration::from_millis(ms)
    }

    fn now(&self) -> Ms {
        u64::try_from(self.epoch.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn on(&mut self, event: Event) {
        let effects = self.lifecycle.on(event, self.now());
        self.perform(effects);
    }

    fn command(&mut self, command: Command) {
        match command {
            Command::Lease { request, reply } => {
                self.next_waiter += 1;
                let waiter = self.next_waiter;
                self.replies.insert(waiter, (request.tenant.clone(), reply));
                self.on(Event::Lease { waiter, request });
            }
            Command::Sleep { tenant, drain, reply } => {
                let now = self.now();
                let earliest_ms = self.lifecycle.earliest_sleep(&tenant, now);
                self.on(Event::Sleep(tenant.clone(), drain));
                let state = self.lifecycle.state(&tenant);
                let answer = earliest_ms.zip(state).map(|(earliest_ms, state)| SleepAnswer {
                    state,
                    earliest_ms: if state == State::Awake { earliest_ms } else { 0 },
                });
                let _ = reply.send(answer);
            }
            Command::Hold { tenant, held, reply } => {
                self.on(Event::Hold(tenant, held));
                let _ = reply.send(());
            }
            Command::Repaired { tenant, reply } => {
                self.on(Event::Repaired(tenant.clone()));
                let _ = reply.send(self.lifecycle.state(&tenant));
            }
            Command::View { reply } => {
                let _ = reply.send(self.lifecycle.view(self.now()).collect());
            }
            Command::ViewOne { tenant, reply } => {
                let _ = reply.send(self.lifecycle.view_one(&tenant, self.now()));
            }
            Command::State { tenant, reply } => {
                let _ = reply.send(self.lifecycle.state(&tenant));
            }
            Command::Running { reply } => {
                let _ = reply.send(self.running());
            }
            Command::Sample { most, reply } => {
                let _ = reply.send(self.sample(most));
            }
            Command::Pressure { tenants } => self.on(Event::Pressure(tenants)),
        }
    }

    fn running(&self) -> Vec<Running> {
        let up = |t: &TenantId| {
            matches!(self.lifecycle.state(t), Some(State::Awake | State::Retiring(_)))
        };
        let now = self.now();
        let quiet_at = |t: &TenantId| self.lifecycle.quiet_at(t).unwrap_or(Ms::MAX);
        let running = self.endpoints.iter().filter(|(tenant, _)| up(tenant));
        running
            .map(|(tenant, endpoint)| Running {
                tenant: tenant.clone(),
                address: endpoint.address,
                limits: self.lifecycle.limits(tenant).cloned().unwrap_or_default(),
                quiet_at_ms: quiet_at(tenant),
                quiet: quiet_at(tenant) <= now,
            })
            .collect()
    }

    /// Only tenants with an endpoint hold memory: those asleep are not looked at.
    fn sample(&self, most: usize) -> Vec<TenantId> {
        let there =
            |t: &&TenantId| matches!(self.lifecycle.state(t), Some(State::Awake | State::Dozing));
        self.endpoints.keys().filter(there).take(most).cloned().collect()
    }

    fn xds_event(&mut self, event: XdsEvent) {
        match event {
            XdsEvent::Connected { stream, gateway } => {
                info!(stream = stream.0, %gateway, "Envoy connected");
                self.on(Event::Connected(stream.0, gateway));
            }
            XdsEvent::Acked { stream, seq } => self.on(Event::Acked(stream.0, seq)),
            XdsEvent::Nacked { stream, tenants, seq, reason } => {
                warn!(stream = stream.0, ?tenants, reason, "Envoy refused clusters");
                self.parts.metrics.count_rejected(tenants.len());
                self.on(Event::Nacked(stream.0, tenants, seq));
            }
            XdsEvent::Disconnected { stream } => {
                info!(stream = stream.0, "Envoy disconnected");
                self.on(Event::Disconnected(stream.0));
            }
        }
    }

    fn died(&mut self, died: Died) {
        warn!(tenant = %died.tenant, exit = ?died.exit, "tenant died");
        self.parts.metrics.count_death(died.exit);
        self.on(Event::Died(died));
    }

    fn done(&mut self, done: Done) {
        if let Some(endpoint) = done.endpoint {
            self.versions.remove(&done.tenant);
            self.endpoints.insert(done.tenant, endpoint);
        }
        let Some(event) = done.event else { return };
        match &event {
            Event::Started(_, _, kind) => self.parts.metrics.observe_wake(*kind, done.took),
            Event::Resumed(_, true) => {
                self.parts.metrics.observe_wake(protocol::WakeKind::Doze, done.took);
            }
            Event::Paused(tenant, true) if self.parts.runtime.capabilities().can_reclaim => {
                self.jobs.spawn(jobs::reclaim(self.parts.clone(), tenant.clone()));
            }
            _ => (),
        }
        self.on(event);
    }

    /// Does what the machine wants; numbers of changes go back to it at once.
    fn perform(&mut self, effects: Vec<Effect>) {
        let mut effects = VecDeque::from(effects);
        while let Some(effect) = effects.pop_front() {
            let numbered = match effect {
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
            if let Some((tenant, seq)) = numbered {
                let event = Event::Numbered(tenant, seq);
                effects.extend(self.lifecycle.on(event, self.now()));
            }
        }
    }

    fn publish(&self, tenant: &TenantId, instead: Option<SocketAddr>) -> Option<u64> {
        let (address, key) = match self.endpoints.get(tenant) {
            Some(endpoint) => (instead.unwrap_or(endpoint.address), endpoint.key.clone()),
            // A tenant that was found dead has no endpoint, so no key either.
            None => (instead?, InstanceKey::placeholder()),
        };
        let token = BearerToken::new(key.expose());
        let limits = self.lifecycle.limits(tenant).cloned().unwrap_or_default();
        let spec = ClusterSpec::new(address, token, &limits, self.version(tenant));
        Some(self.parts.publisher.publish(tenant, &spec))
    }

    fn version(&self, tenant: &TenantId) -> SqVersion {
        self.versions.get(tenant).copied().unwrap_or(self.parts.sq_version)
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
            Effect::Stop { tenant, orderly } => {
                self.endpoints.remove(&tenant);
                let limits = self.lifecycle.limits(&tenant).cloned().unwrap_or_default();
                self.jobs.spawn(jobs::stop(self.parts.clone(), tenant, limits, orderly));
            }
            Effect::Resize { tenant, memory_bytes } => {
                self.jobs.spawn(jobs::resize(self.parts.clone(), tenant, memory_bytes));
            }
            Effect::Disconnect(stream) => {
                warn!(stream, "Envoy does not acknowledge: its stream is cut");
                self.parts.publisher.disconnect(StreamId(stream));
            }
            Effect::Answer(waiter, answer) => {
                let refusal = match &answer {
                    Answer::Granted { .. } => None,
                    Answer::Refused { kind, .. } => Some(*kind),
                };
                self.parts.metrics.count_lease_request(refusal);
                if let Some((tenant, reply)) = self.replies.remove(&waiter) {
                    let sq_version = self.version(&tenant);
                    // An asker that has left needs no answer.
                    let _ = reply.send(LeaseOutcome { answer, sq_version });
                }
            }
            Effect::Moved { tenant, from, to } => {
                info!(%tenant, from = from.label(), to = to.label(), "moved");
            }
            Effect::Publish(_) | Effect::PointNowhere(_) | Effect::Withdraw(_) => (),
        }
    }

    fn publish_counts(&self) {
        let (streams, queued) = (self.lifecycle.streams(), self.lifecycle.queued());
        self.parts.metrics.set_counts(self.lifecycle.counts(), streams, queued);
    }
}

async fn next_death(deaths: Option<&mut mpsc::Receiver<Died>>) -> Option<Died> {
    match deaths {
        Some(deaths) => deaths.recv().await,
        None => pending().await,
    }
}

async fn maybe_sleep(deadline: Option<Instant>) {
    match deadline {
        Some(at) => sleep_until(at).await,
        None => pending().await,
    }
}
