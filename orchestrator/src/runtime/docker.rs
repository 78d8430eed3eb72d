//! Tenants' SQ instances as Docker containers, hardened and limited as measured in docs/sq.md.
//!
//! ```text
//!  start ─► remove the old container ─► create a new one, in a prepared network if one is free,
//!           and prove the folder ─► start it ─► SQ answers 401 ─► announced: a death is an event
//! ```
//!
//! Each start creates a container and each stop removes it. So the key is new every time, and a
//! sleeping tenant leaves nothing on the host but its folder
//! (docs/decisions/2026-11-23-a-container-per-start.md has the cost). Name and labels tell to which
//! tenant a container belongs; together with the file of its key (`key_file.rs`) they are the only
//! state, and adoption reads them. There is no restart policy: the lifecycle decides about restarts.

mod adoption;
mod deaths;
mod engine;
mod network;
mod network_pool;
mod oom_kills;
mod seccomp;
mod start;
mod weight;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use protocol::TenantId;
use protocol::containers::{self, INSTALLATION, ROLE, ROLE_NAMESPACE, TENANT};
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinHandle;

use self::engine::{ContainerState, Engine, EngineError};
use self::network_pool::{NetworkPool, PreparedNetwork};
use crate::config::DockerConfig;
use crate::host;
use crate::runtime::firewall::{Firewall, FirewallState};
use crate::runtime::folder::Owner;
use crate::runtime::key_file::KeyFiles;
use crate::runtime::reclaim::Reclaim;
use crate::runtime::users::{UserRange, Users};
use crate::runtime::{
    Capabilities, Description, Died, Endpoint, ExitKind, Found, Runtime, RuntimeError,
    RuntimeFuture, Spec, Started, Stopped, proc,
};

/// Kind of this runtime, in its description and in the record of a run.
pub(super) const KIND: &str = "docker";

/// Port on which SQ listens inside its network namespace.
const PORT: u16 = 1337;

/// Bound on a container's processes and threads. SQ 0.6.0 serves 512 connections with a thread each
/// and crashes when it can't create one.
const PIDS: i64 = 600;

/// Interval at which a starting container is inspected, and pause before a lost daemon is retried.
const INSPECT_EVERY: Duration = Duration::from_millis(250);

/// Bound on containers and free prepared networks on one bridge: the kernel's `BR_MAX_PORTS` is
/// 1024, and some room is left for those that are being removed.
const BRIDGE_PORTS: usize = 1_000;

/// Deaths queued for the lifecycle.
const DEATHS_MAX: usize = 1024;

/// Runs SQ in containers. Dropping it leaves them running.
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
    /// Tells this installation's containers from those of others on the same daemon.
    installation: String,
    /// Present boot of the host; empty if it is unknown.
    boot: String,
    users: Users,
    key_files: KeyFiles,
    firewall: Firewall,
    /// Users of this host who may connect to tenants.
    client_uids: Vec<u32>,
    pool: NetworkPool,
    /// Number of prepared networks to maintain; 0 if the pool is disabled or has no image.
    pool_size: usize,
    reclaim: Option<Reclaim>,
    instances: Mutex<HashMap<TenantId, Instance>>,
    /// Prepared network of each tenant, from before its container joins until it is discarded.
    networks: Mutex<HashMap<TenantId, PreparedNetwork>>,
    /// Requests a search for deaths whose events were lost.
    reconcile_now: Notify,
}

/// A tenant's container.
#[derive(Debug, Clone)]
struct Instance {
    /// The container's id.
    container: String,
    endpoint: Endpoint,
    /// `start` has succeeded, so a death is an event. Before that, `start` returns it as its error.
    announced: bool,
    /// `Some` once it is dead.
    exit: Option<ExitKind>,
}

impl Drop for DockerRuntime {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl DockerRuntime {
    /// Connects to the daemon, creates the tenants' bridge with its firewall, removes unused
    /// prepared networks and begins to follow deaths. SQ runs as one of `users` if we are root, else
    /// as we do. The path of `data_root` distinguishes this installation from others on the daemon.
    /// Instance keys are kept in `state_dir`. `client_uids` are the users of this host who may
    /// connect to tenants.
    pub async fn connect(
        data_root: &Path,
        state_dir: &Path,
        users: UserRange,
        config: DockerConfig,
        client_uids: Vec<u32>,
    ) -> Result<Self, RuntimeError> {
        let engine = Engine::connect(&config.seccomp).await?;
        let data_root = data_root
            .canonicalize()
            .map_err(|error| RuntimeError::Failed(format!("{}: {error}", data_root.display())))?;
        let installation = containers::installation_id(data_root.as_os_str().as_encoded_bytes());
        let key_files = KeyFiles::open(state_dir).map_err(|error| {
            RuntimeError::Failed(format!("{}: instance keys: {error}", state_dir.display()))
        })?;
        let users = Some(users).filter(|_| rustix::process::geteuid().is_root());
        let users = Users::open(&data_root, users)?;
        let pool_size = if config.network_pool > 0 && engine.has_image(&config.pause_image).await? {
            config.network_pool.min(network_pool::SIZE_MAX)
        } else {
            0
        };
        let (pool, used_networks) = NetworkPool::new();
        let (died, deaths) = mpsc::channel(DEATHS_MAX);
        let inner = Arc::new(Inner {
            engine,
            config,
            data_root,
            firewall: Firewall::off(&installation),
            client_uids,
            installation,
            boot: host::boot().unwrap_or_default(),
            users,
            key_files,
            pool,
            pool_size,
            reclaim: Reclaim::detect(),
            instances: Mutex::default(),
            networks: Mutex::default(),
            reconcile_now: Notify::new(),
        });
        inner.secure_network().await?;
        inner.remove_leftovers().await?;
        // The task ends with the runtime. If it panics, the channel of deaths closes and the
        // orchestrator goes down.
        let task = tokio::spawn({
            let inner = inner.clone();
            async move {
                let pool_task = inner.pool_task().run(inner.pool.clone(), used_networks);
                tokio::join!(inner.follow_deaths(died), pool_task, inner.firewall.watch());
            }
        });
        Ok(Self { inner, deaths: Mutex::new(Some(deaths)), task })
    }

    /// Counts the prepared networks that are free.
    pub fn free_networks(&self) -> usize {
        self.inner.pool.free_count()
    }
}

impl Runtime for DockerRuntime {
    fn describe(&self) -> Description {
        let inner = &self.inner;
        let mut notes = vec![
            format!("Docker {}, network {}", inner.engine.version, inner.config.network),
            inner.users.note(),
            inner.firewall_note(),
        ];
        notes.push(match (inner.config.network_pool, inner.pool_size) {
            (0, _) => "no networks are prepared".to_owned(),
            (_, 0) => format!(
                "no networks are prepared: image {} does not exist; `make setup` creates it",
                inner.config.pause_image
            ),
            (_, size) => format!("{size} networks are prepared ahead of starts"),
        });
        if !inner.engine.weighs_disks {
            notes.push("disk time is not shared by weight: the kernel has no weights".to_owned());
        }
        notes.push(Reclaim::note(inner.reclaim.as_ref()).to_owned());
        Description { kind: KIND, notes }
    }

    fn firewall(&self) -> FirewallState {
        self.inner.firewall.state()
    }

    fn capabilities(&self) -> Capabilities {
        let pool_max = self.inner.config.network_pool.min(network_pool::SIZE_MAX);
        Capabilities {
            can_reclaim: self.inner.reclaim.is_some(),
            max_instances: Some(BRIDGE_PORTS - pool_max),
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
            let instance = self.inner.live_instance(tenant)?;
            let paused = self.inner.engine.pause(&instance.container).await;
            paused.map_err(|error| instance_error(tenant, error))
        })
    }

    fn resume<'a>(&'a self, tenant: &'a TenantId) -> RuntimeFuture<'a, ()> {
        Box::pin(async move {
            let instance = self.inner.live_instance(tenant)?;
            self.inner.firewall.require().await?;
            let resumed = self.inner.engine.unpause(&instance.container).await;
            resumed.map_err(|error| instance_error(tenant, error))?;
            self.inner.wait_until_ready(&instance.container, instance.endpoint.address).await
        })
    }

    fn stop<'a>(&'a self, tenant: &'a TenantId) -> RuntimeFuture<'a, Stopped> {
        Box::pin(self.inner.stop(tenant))
    }

    fn resize<'a>(&'a self, tenant: &'a TenantId, memory_bytes: u64) -> RuntimeFuture<'a, ()> {
        Box::pin(async move {
            let instance = self.inner.live_instance(tenant)?;
            let resized = self.inner.engine.resize(&instance.container, memory_bytes).await;
            resized.map_err(|error| instance_error(tenant, error))
        })
    }

    fn memory_bytes<'a>(&'a self, tenant: &'a TenantId) -> RuntimeFuture<'a, Option<u64>> {
        Box::pin(async move {
            let Ok(instance) = self.inner.live_instance(tenant) else { return Ok(None) };
            // Ask the kernel first: the daemon may take a second for a figure that `/proc` has. With
            // a remote daemon the pid belongs to another process here.
            let pid = self.inner.engine.pid(&instance.container).await?;
            let resident =
                pid.filter(|pid| proc::is_sq_of(*pid, tenant)).and_then(proc::resident_bytes);
            match resident {
                Some(bytes) => Ok(Some(bytes)),
                None => Ok(self.inner.engine.memory_bytes(&instance.container).await?),
            }
        })
    }

    fn pid<'a>(&'a self, tenant: &'a TenantId) -> RuntimeFuture<'a, Option<i32>> {
        Box::pin(async move {
            let instance = self.inner.live_instance(tenant)?;
            Ok(self.inner.engine.pid(&instance.container).await?)
        })
    }

    fn reclaim<'a>(&'a self, tenant: &'a TenantId) -> RuntimeFuture<'a, Option<u64>> {
        Box::pin(async move {
            let Some(reclaim) = self.inner.reclaim.clone() else { return Ok(None) };
            let instance = self.inner.live_instance(tenant)?;
            let Some(pid) = self.inner.engine.pid(&instance.container).await? else {
                return Ok(None);
            };
            // The kernel may write pages to swap before it returns.
            let reclaimed = tokio::task::spawn_blocking(move || reclaim.reclaim(pid)).await;
            let bytes = reclaimed.map_err(RuntimeError::failed)?.map_err(RuntimeError::failed)?;
            Ok(Some(bytes))
        })
    }

    fn events(&self) -> Option<mpsc::Receiver<Died>> {
        self.deaths.lock().take()
    }
}

impl Inner {
    fn instances(&self) -> MutexGuard<'_, HashMap<TenantId, Instance>> {
        self.instances.lock()
    }

    fn networks(&self) -> MutexGuard<'_, HashMap<TenantId, PreparedNetwork>> {
        self.networks.lock()
    }

    fn live_instance(&self, tenant: &TenantId) -> Result<Instance, RuntimeError> {
        match self.instances().get(tenant) {
            Some(instance) if instance.exit.is_none() => Ok(instance.clone()),
            _ => Err(RuntimeError::NoInstance(tenant.clone())),
        }
    }

    fn container_name(&self, tenant: &TenantId) -> String {
        format!("sq-{}-{tenant}", self.installation)
    }

    /// Filter for the containers of this installation.
    fn label_filter(&self) -> String {
        format!("{INSTALLATION}={}", self.installation)
    }

    fn labels(&self, role: &str) -> HashMap<String, String> {
        HashMap::from([
            (INSTALLATION.to_owned(), self.installation.clone()),
            (ROLE.to_owned(), role.to_owned()),
        ])
    }

    async fn exit_kind(&self, id: &str) -> Result<ExitKind, RuntimeError> {
        Ok(match self.engine.inspect(id).await?.map(|container| container.state) {
            Some(ContainerState::Ended(exit)) => exit,
            _ => ExitKind::Gone,
        })
    }

    async fn stop(&self, tenant: &TenantId) -> Result<Stopped, RuntimeError> {
        // Ask the daemon, not the table: a death whose event has not arrived yet must not count as
        // caused by this stop.
        let container = self.engine.inspect(&self.container_name(tenant)).await?;
        let was_alive = container.is_some_and(|container| {
            matches!(container.state, ContainerState::Running | ContainerState::Paused)
        });
        self.remove_container(tenant).await?;
        self.release_network(tenant).await;
        Ok(if was_alive { Stopped::Alive } else { Stopped::Dead })
    }

    /// Kills and removes the tenant's container, whatever its state.
    async fn remove_container(&self, tenant: &TenantId) -> Result<(), RuntimeError> {
        // Take it out of the table first, because a requested death is not an event.
        let instance = self.instances().remove(tenant);
        if let Err(error) = self.engine.remove(&self.container_name(tenant)).await {
            if let Some(instance) = instance {
                self.instances().insert(tenant.clone(), instance);
            }
            return Err(error.into());
        }
        self.key_files.remove(tenant).map_err(RuntimeError::failed)
    }

    /// Removes the prepared networks of an earlier orchestrator that no container has joined, as it
    /// is not known whether a tenant has used them before, and key files without a container.
    async fn remove_leftovers(&self) -> Result<(), RuntimeError> {
        let containers = self.engine.list(&self.label_filter()).await?;
        for holder in containers.iter().filter(|c| c.has_label(ROLE, ROLE_NAMESPACE)) {
            let joined = format!("container:{}", holder.id);
            if !containers.iter().any(|container| container.network == joined) {
                self.engine.remove(&holder.id).await?;
            }
        }
        let has_container = |tenant: &TenantId| {
            containers.iter().any(|container| container.has_label(TENANT, tenant.as_str()))
        };
        self.key_files.retain(has_container).map_err(RuntimeError::failed)
    }
}

fn instance_error(tenant: &TenantId, error: EngineError) -> RuntimeError {
    match error {
        EngineError::NotFound => RuntimeError::NoInstance(tenant.clone()),
        other => other.into(),
    }
}

fn own_ids() -> Owner {
    Owner { uid: rustix::process::geteuid().as_raw(), gid: rustix::process::getegid().as_raw() }
}
