//! The driver: the one task that owns the state machine of all tenants.
//!
//! ```text
//!  gate API, admin API ── Command ──►┌────────┐── LeaseOutcome ──► gate API
//!  xDS ───────────────── XdsEvent ──►│ driver │── publish, withdraw ──► xDS
//!  runtime ───────────────── Died ──►│        │── start, pause, resume, stop ──► jobs
//!  jobs ─────────────────── Event ──►└────────┘
//! ```
//!
//! The driver receives inputs from all sides, hands them to the machine as events, and performs the
//! effects. It awaits nothing but the next input. Other tasks send commands through a [`Handle`].
//!
//! | file | content |
//! |---|---|
//! | `handle.rs` | the commands, and the methods that send them |
//! | `commands.rs` | execution of commands |
//! | `effects.rs` | execution of effects |
//! | `jobs.rs` | calls of the runtime and the vault |

mod commands;
mod effects;
mod handle;
mod jobs;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use protocol::{SqVersion, TenantId, WakeKind};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};
use tracing::{info, warn};

use crate::host;
use crate::runtime::{Died, Endpoint, Found, Runtime};
use crate::sockets::Peer;
use crate::storage::vault::Vault;
use crate::tenants::awake_records::AwakeRecords;
use crate::tenants::lifecycle::{Event, Lifecycle, Ms, Settings, WaiterId};
use crate::tenants::metrics::Metrics;
use crate::xds::{Publisher, XdsEvent};
use handle::Command;
pub use handle::{Closed, Handle, LeaseOutcome, Running, SleepOutcome};
use jobs::Done;

/// Bound on queued commands: enough for a burst. When the queue is full, HTTP requests wait.
const COMMANDS_MAX: usize = 1_024;

/// Time for jobs to end after the shutdown was requested.
const DRAIN: Duration = Duration::from_secs(10);

/// Interval of reading the wall clock, which may be set at any time; warm hours depend on it.
const CLOCK_INTERVAL: Duration = Duration::from_mins(1);

/// The parts that the driver works with. Cheap to clone.
#[derive(Clone)]
pub struct Parts {
    /// Runs the tenants' SQ.
    pub runtime: Arc<dyn Runtime>,
    /// Publishes clusters to Envoys.
    pub publisher: Publisher,
    /// Examines and copies tenants' data; `None` in tests without data.
    pub vault: Option<Arc<Vault>>,
    /// Records of started tenants; `None` in tests without a state folder.
    pub awake: Option<Arc<AwakeRecords>>,
    /// The orchestrator's metrics.
    pub metrics: Arc<Metrics>,
    /// SQ version of tenants that are started from now on.
    pub sq_version: SqVersion,
}

/// Reason why the driver can't go on. The process ends with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DriverError {
    /// The xDS server no longer sends events.
    #[error("the channel of xDS events closed")]
    XdsClosed,
    /// The runtime no longer reports deaths.
    #[error("the channel of deaths closed")]
    DeathsClosed,
    /// A panic in a job leaves a tenant's state unknown.
    #[error("a job panicked")]
    JobPanicked,
}

/// State of the driver's task.
pub struct Driver {
    lifecycle: Lifecycle,
    parts: Parts,
    /// Zero of the machine's clock.
    epoch: Instant,
    commands: mpsc::Receiver<Command>,
    xds: mpsc::Receiver<XdsEvent>,
    /// `None` for a runtime that reports no deaths.
    deaths: Option<mpsc::Receiver<Died>>,
    jobs: JoinSet<Done>,
    /// Endpoints of the tenants that have a live instance.
    endpoints: HashMap<TenantId, Endpoint>,
    /// SQ versions of adopted instances, which may differ from the present version.
    adopted_versions: HashMap<TenantId, SqVersion>,
    pending_leases: HashMap<WaiterId, PendingLease>,
    last_waiter: u64,
}

/// A lease request that the machine has not decided.
struct PendingLease {
    tenant: TenantId,
    reply: oneshot::Sender<LeaseOutcome>,
}

impl Driver {
    /// Adopts the instances that the runtime has found, publishes them, and opens the publisher: a
    /// restarted server may send a set of clusters only once the set is complete. `leases_ms` is
    /// how long leases of earlier runs may be live from now on.
    pub fn adopt(
        settings: Settings,
        parts: Parts,
        found: Vec<Found>,
        leases_ms: Ms,
        xds: mpsc::Receiver<XdsEvent>,
    ) -> (Self, Handle) {
        let deaths = parts.runtime.events();
        let mut endpoints = HashMap::new();
        let mut adopted_versions = HashMap::new();
        for instance in &found {
            if let Some(endpoint) = &instance.endpoint {
                endpoints.insert(instance.tenant.clone(), endpoint.clone());
                adopted_versions.insert(instance.tenant.clone(), instance.sq_version);
            }
        }
        info!(tenants = found.len(), alive = endpoints.len(), "tenants adopted");
        let (lifecycle, effects) = Lifecycle::adopt(settings, found, leases_ms, 0);
        let (sender, commands) = mpsc::channel(COMMANDS_MAX);
        let mut driver = Self {
            lifecycle,
            parts,
            epoch: Instant::now(),
            commands,
            xds,
            deaths,
            jobs: JoinSet::new(),
            endpoints,
            adopted_versions,
            pending_leases: HashMap::new(),
            last_waiter: 0,
        };
        driver.perform(effects);
        driver.on(Event::Clock { utc_s: host::now_s() });
        driver.parts.publisher.ready();
        driver.parts.metrics.set_ready();
        (driver, Handle { commands: sender })
    }

    /// Runs until `shutdown` completes or all handles are dropped, then waits for the jobs under
    /// way. Tenants keep running, for the next run to adopt.
    pub async fn run(mut self, shutdown: impl Future<Output = ()>) -> Result<(), DriverError> {
        tokio::pin!(shutdown);
        let mut clock = tokio::time::interval(CLOCK_INTERVAL);
        loop {
            let deadline = self.lifecycle.next_deadline().map(|ms| self.instant(ms));
            tokio::select! {
                () = &mut shutdown => break,
                command = self.commands.recv() => match command {
                    Some(command) => self.command(command),
                    None => break,
                },
                event = self.xds.recv() => {
                    self.xds_event(event.ok_or(DriverError::XdsClosed)?);
                }
                died = next_death(self.deaths.as_mut()) => {
                    self.died(died.ok_or(DriverError::DeathsClosed)?);
                }
                Some(done) = self.jobs.join_next() => {
                    self.job_done(done.map_err(|_| DriverError::JobPanicked)?);
                }
                () = sleep_until_deadline(deadline) => self.on(Event::Tick),
                _ = clock.tick() => self.on(Event::Clock { utc_s: host::now_s() }),
            }
            self.update_metrics();
        }
        self.drain_jobs().await;
        Ok(())
    }

    async fn drain_jobs(&mut self) {
        let drained = timeout(DRAIN, async { while self.jobs.join_next().await.is_some() {} });
        if drained.await.is_err() {
            warn!(jobs = self.jobs.len(), "jobs were still running at the shutdown");
        }
    }

    fn instant(&self, ms: Ms) -> Instant {
        self.epoch + Duration::from_millis(ms)
    }

    fn now(&self) -> Ms {
        u64::try_from(self.epoch.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn on(&mut self, event: Event) {
        let effects = self.lifecycle.on(event, self.now());
        self.perform(effects);
    }

    fn xds_event(&mut self, event: XdsEvent) {
        match event {
            XdsEvent::Connected { stream, gateway, peer } => {
                let Peer { uid, pid } = peer;
                info!(stream = stream.0, %gateway, uid, pid, "Envoy connected");
                self.on(Event::Connected { stream, gateway, peer });
            }
            XdsEvent::Acked { stream, seq } => self.on(Event::Acked { stream, seq }),
            XdsEvent::Nacked { stream, tenants, seq, reason } => {
                warn!(stream = stream.0, ?tenants, error = reason, "Envoy rejected clusters");
                self.parts.metrics.count_rejected(tenants.len());
                self.on(Event::Nacked { stream, tenants, seq });
            }
            XdsEvent::Disconnected { stream } => {
                info!(stream = stream.0, "Envoy disconnected");
                self.on(Event::Disconnected(stream));
            }
        }
    }

    fn died(&mut self, died: Died) {
        warn!(tenant = %died.tenant, exit = ?died.exit, "tenant died");
        self.parts.metrics.count_death(died.exit);
        self.on(Event::Died(died));
    }

    fn job_done(&mut self, done: Done) {
        if let Some(endpoint) = done.endpoint {
            self.adopted_versions.remove(&done.tenant);
            self.endpoints.insert(done.tenant, endpoint);
        }
        let Some(event) = done.event else { return };
        match &event {
            Event::Started { kind, .. } => self.parts.metrics.observe_wake(*kind, done.took),
            Event::Resumed { result: Ok(()), .. } => {
                self.parts.metrics.observe_wake(WakeKind::Doze, done.took);
            }
            Event::Paused { tenant, result: Ok(()) }
                if self.parts.runtime.capabilities().can_reclaim =>
            {
                self.jobs.spawn(jobs::reclaim(self.parts.clone(), tenant.clone()));
            }
            _ => (),
        }
        self.on(event);
    }

    fn update_metrics(&self) {
        let counts = self.lifecycle.counts();
        let streams = self.lifecycle.streams();
        self.parts.metrics.set_counts(counts, streams, self.lifecycle.queued());
    }
}

async fn next_death(deaths: Option<&mut mpsc::Receiver<Died>>) -> Option<Died> {
    match deaths {
        Some(deaths) => deaths.recv().await,
        None => pending().await,
    }
}

async fn sleep_until_deadline(deadline: Option<Instant>) {
    match deadline {
        Some(at) => sleep_until(at).await,
        None => pending().await,
    }
}
