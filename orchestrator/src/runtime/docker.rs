//! Tenants' SQs as Docker containers, hardened and limited as measured in docs/sq.md.
//!
//! ```text
//!  start ─► folder proven ─► old container removed ─► created (in a prepared network slot when
//!           one is ready) ─► started ─► answers 401 ─► announced: from now on its death is news
//! ```
//!
//! A container is made for each start and removed at the stop: the key, which is part of its
//! command line, is then new each time and nothing is left on the host while the tenant sleeps
//! (docs/decisions has the price). Name and labels say whose it is; what runs is found again by
//! them, key included, so that no other state is kept. There is no restart policy: the lifecycle
//! restarts.

mod adoption;
mod deaths;
mod engine;
mod network_pool;
mod start;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use protocol::TenantId;
use protocol::containers::{self, INSTALLATION, ROLE, ROLE_NAMESPACE};
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinHandle;

use self::engine::{Engine, EngineError, Seen, SeenState};
use self::network_pool::{Keeper, SLOTS_MAX, Slot, Slots};
use crate::config::DockerConfig;
use crate::host;
use crate::runtime::folder::Owner;
use crate::runtime::process::{self, MALLOC_ENV};
use crate::runtime::reclaim::Reclaim;
use crate::runtime::{
    Capabilities, Description, Died, Endpoint, ExitKind, Found, Runtime, RuntimeError,
    RuntimeFuture, Spec, Started, Stopped,
};

/// Kind of this runtime, in its description and in the record of a run.
pub(super) const KIND: &str = "docker";

const PORT: u16 = 1337;

/// SQ 0.6.0 serves 512 connections with a thread each and dies when it can't have one.
const PIDS: i64 = 600;

/// How often a starting container is looked at for its death, and a lost daemon asked again.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// Containers and free slots on one bridge: the kernel's `BR_MAX_PORTS` is 1024, less some that are
/// being removed.
const BRIDGE_PORTS: usize = 1_000;

/// Deaths not yet taken by the lifecycle.
const DEATHS: usize = 1024;

/// The runtime. Dropping it leaves the containers running.
#[derive(Debug)]
pub struct DockerRuntime {
    inner: Arc<Inner>,
    deaths: Mutex<Option<mpsc::Receiver<Died>>>,
    task: JoinHandle<()>,
}

#[derive(Debug)]
struct Inner {
    engine: Engine,
    config: DockerConfig,
    data_root: PathBuf,
    installation: String,
    /// The host's present boot; empty where that can't be told.
    boot: String,
    /// What SQ runs as; differs from the configured one when we can't give files away.
    owner: Owner,
    may_chown: bool,
    slots: Slots,
    slots_on: bool,
    reclaim: Option<Reclaim>,
    live: Mutex<HashMap<TenantId, Live>>,
    /// The slot that each tenant has, from before it joins until it is thrown away.
    seats: Mutex<HashMap<TenantId, Slot>>,
    /// Somebody wants to know at once whether events of deaths were missed.
    look: Notify,
}

#[derive(Debug, Clone)]
struct Live {
    id: String,
    endpoint: Endpoint,
    /// It was ready once: its death is news. Before that, `start` tells.
    announced: bool,
    dead: Option<ExitKind>,
}

impl Drop for DockerRuntime {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl DockerRuntime {
    /// Connects, makes the network, clears away unused slots and watches for deaths.
    pub async fn connect(
        data_root: &Path,
        owner: Owner,
        config: DockerConfig,
    ) -> Result<Self, RuntimeError> {
        let engine = Engine::connect().await?;
        let data_root = data_root
            .canonicalize()
            .map_err(|e| RuntimeError::Failed(format!("{}: {e}", data_root.display())))?;
        let installation = containers::installation_id(data_root.as_os_str().as_encoded_bytes());
        let may_chown = rustix::process::geteuid().is_root();
        let owner = if may_chown { owner } else { own_ids() };
        let labels = HashMap::from([(INSTALLATION.to_owned(), installation.clone())]);
        let subnet = Some(config.subnet.as_str()).filter(|subnet| !subnet.is_empty());
        engine.ensure_network(&config.network, subnet, labels).await?;
        let slots_on = config.network_pool > 0 && engine.has_image(&config.pause_image).await?;
        let (slots, used) = Slots::new();
        let (died, deaths) = mpsc::channel(DEATHS);
        let inner = Arc::new(Inner {
            engine,
            config,
            data_root,
            installation,
            boot: host::boot().unwrap_or_default(),
            owner,
            may_chown,
            slots,
            slots_on,
            reclaim: Reclaim::found(),
            live: Mutex::default(),
            seats: Mutex::default(),
            look: Notify::new(),
        });
        inner.clear_unused_slots().await?;
        let follower = inner.clone();
        // Ends with the runtime. Should it end before, so does the channel of deaths: then the
        // process goes down.
        let task = tokio::spawn(async move {
            if slots_on {
                let keeper = follower.keeper().run(follower.slots.clone(), used);
                tokio::join!(follower.follow(died), keeper);
            } else {
                follower.follow(died).await;
            }
        });
        Ok(Self { inner, deaths: Mutex::new(Some(deaths)), task })
    }

    /// Prepared network slots, for the metrics.
    pub fn slots_ready(&self) -> usize {
        self.inner.slots.ready()
    }
}

impl Runtime for DockerRuntime {
    fn describe(&self) -> Description {
        let inner = &self.inner;
        let mut notes = vec![
            format!("Docker {}, network {}", inner.engine.version, inner.config.network),
            format!("SQ runs as {}:{}", inner.owner.uid, inner.owner.gid),
        ];
        if !inner.may_chown {
            notes.push("we are not root: SQ runs as our own uid".to_owned());
        }
        notes.push(match (inner.config.network_pool, inner.slots_on) {
            (0, _) => "no network slots".to_owned(),
            (wanted, true) => format!("{wanted} network slots"),
            (_, false) => format!(
                "no network slots: there is no image {}; `make setup` makes it",
                inner.config.pause_image
            ),
        });
        notes.push(Reclaim::note(inner.reclaim.as_ref()).to_owned());
        Description { kind: KIND, notes }
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            can_reclaim: self.inner.reclaim.is_some(),
            max_instances: Some(BRIDGE_PORTS - self.inner.config.network_pool.min(SLOTS_MAX)),
        }
    }

    fn list(&self) -> RuntimeFuture<'_, Vec<Found>> {
        Box::pin(self.inner.list())
    }

    fn start(&self, spec: Spec) -> RuntimeFuture<'_, Started> {
        Box::pin(async move { self.inner.start(&spec).await })
    }

    fn pause<'a>(&'a self, tenant: &'a TenantId) -> RuntimeFuture<'a, ()> {
        Box::pin(async move {
            let live = self.inner.alive(tenant)?;
            self.inner.engine.pause(&live.id).await.map_err(|e| about(tenant, e))
        })
    }

    fn resume<'a>(&'a self, tenant: &'a TenantId) -> RuntimeFuture<'a, ()> {
        Box::pin(async move {
            let live = self.inner.alive(tenant)?;
            self.inner.engine.unpause(&live.id).await.map_err(|e| about(tenant, e))?;
            self.inner.answers(&live.id, live.endpoint.address).await
        })
    }

    fn stop<'a>(&'a self, tenant: &'a TenantId) -> RuntimeFuture<'a, Stopped> {
        Box::pin(async move {
            // Asked of the daemon: a death of which no event has told must not pass for our doing.
            let seen = self.inner.engine.inspect(&self.inner.name(tenant)).await?;
            let alive =
                seen.is_some_and(|s| matches!(s.state, SeenState::Running | SeenState::Paused));
            self.inner.clear(tenant).await?;
            self.inner.give_up_slot(tenant).await;
            Ok(if alive { Stopped::Alive } else { Stopped::Dead })
        })
    }

    fn resize<'a>(&'a self, tenant: &'a TenantId, memory_bytes: u64) -> RuntimeFuture<'a, ()> {
        Box::pin(async move {
            let live = self.inner.alive(tenant)?;
            let resized = self.inner.engine.resize(&live.id, memory_bytes).await;
            resized.map_err(|e| about(tenant, e))
        })
    }

    fn memory_bytes<'a>(&'a self, tenant: &'a TenantId) -> RuntimeFuture<'a, Option<u64>> {
        Box::pin(async move {
            let Ok(live) = self.inner.alive(tenant) else { return Ok(None) };
            // A daemon may take a second for an answer that the kernel has in a file.
            let pid = self.pid(tenant).await?.filter(|pid| process::is_sq_of(*pid, tenant));
            match pid.and_then(process::rss) {
                Some(bytes) => Ok(Some(bytes)),
                None => Ok(self.inner.engine.memory_bytes(&live.id).await?),
            }
        })
    }

    fn pid<'a>(&'a self, tenant: &'a TenantId) -> RuntimeFuture<'a, Option<i32>> {
        Box::pin(async move {
            let live = self.inner.alive(tenant)?;
            Ok(self.inner.engine.pid(&live.id).await?.and_then(|pid| pid.try_into().ok()))
        })
    }

    fn reclaim<'a>(&'a self, tenant: &'a TenantId) -> RuntimeFuture<'a, Option<u64>> {
        Box::pin(async move {
            let Some(reclaim) = self.inner.reclaim.clone() else { return Ok(None) };
            let live = self.inner.alive(tenant)?;
            let Some(pid) = self.inner.engine.pid(&live.id).await? else { return Ok(None) };
            let taken = tokio::task::spawn_blocking(move || reclaim.reclaim(pid)).await;
            let failed = |e: &dyn std::fmt::Display| RuntimeError::Failed(e.to_string());
            taken.map_err(|e| failed(&e))?.map(Some).map_err(|e| failed(&e))
        })
    }

    fn events(&self) -> Option<mpsc::Receiver<Died>> {
        self.deaths.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl Inner {
    fn live(&self) -> MutexGuard<'_, HashMap<TenantId, Live>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn seats(&self) -> MutexGuard<'_, HashMap<TenantId, Slot>> {
        self.seats.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn alive(&self, tenant: &TenantId) -> Result<Live, RuntimeError> {
        let live = self.live().get(tenant).filter(|live| live.dead.is_none()).cloned();
        live.ok_or_else(|| RuntimeError::NoInstance(tenant.clone()))
    }

    fn name(&self, tenant: &TenantId) -> String {
        format!("sq-{}-{tenant}", self.installation)
    }

    fn ours(&self) -> String {
        format!("{INSTALLATION}={}", self.installation)
    }

    fn labels(&self, role: &str) -> HashMap<String, String> {
        HashMap::from([
            (INSTALLATION.to_owned(), self.installation.clone()),
            (ROLE.to_owned(), role.to_owned()),
        ])
    }

    async fn exit_of(&self, id: &str) -> Result<ExitKind, RuntimeError> {
        Ok(match self.engine.inspect(id).await?.map(|seen| seen.state) {
            Some(SeenState::Ended(exit)) => exit,
            _ => ExitKind::Gone,
        })
    }

    /// Removes the tenant's container, whatever it does.
    async fn clear(&self, tenant: &TenantId) -> Result<(), RuntimeError> {
        // Out of the table first: a death that was asked for is no news.
        let live = self.live().remove(tenant);
        if let Err(e) = self.engine.remove(&self.name(tenant)).await {
            if let Some(live) = live {
                self.live().insert(tenant.clone(), live);
            }
            return Err(e.into());
        }
        Ok(())
    }

    /// A used slot is thrown away; a tenant that died and is started again keeps its own.
    async fn give_up_slot(&self, tenant: &TenantId) {
        let slot = self.seats().remove(tenant);
        if let Some(slot) = slot {
            self.slots.discard(slot).await;
        }
    }

    fn keeper(&self) -> Keeper {
        Keeper {
            engine: self.engine.clone(),
            wanted: self.config.network_pool.min(SLOTS_MAX),
            image: self.config.pause_image.clone(),
            network: self.config.network.clone(),
            owner: self.owner,
            labels: self.labels(ROLE_NAMESPACE),
            name_prefix: format!("sq-{}-slot-", self.installation),
        }
    }

    /// Nobody knows whether a slot that an earlier orchestrator left was used before.
    async fn clear_unused_slots(&self) -> Result<(), RuntimeError> {
        let seen = self.engine.list(&self.ours()).await?;
        let is_slot = |s: &&Seen| s.labels.get(ROLE).is_some_and(|role| role == ROLE_NAMESPACE);
        for slot in seen.iter().filter(is_slot) {
            let joined = format!("container:{}", slot.id);
            if !seen.iter().any(|s| s.network == joined) {
                self.engine.remove(&slot.id).await?;
            }
        }
        Ok(())
    }
}

fn about(tenant: &TenantId, error: EngineError) -> RuntimeError {
    match error {
        EngineError::NotFound => RuntimeError::NoInstance(tenant.clone()),
        other => other.into(),
    }
}

fn own_ids() -> Owner {
    Owner { uid: rustix::process::geteuid().as_raw(), gid: rustix::process::getegid().as_raw() }
}
