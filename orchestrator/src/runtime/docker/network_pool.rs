//! A pool of network namespaces, prepared ahead of container starts.
//!
//! Most of a cold start is spent on the network (docs/decisions/2026-11-23-a-container-per-start.md), so a starting tenant joins a
//! namespace that exists already. A namespace is held by a container that does nothing else. It
//! serves one tenant and is then discarded, so that no socket, connection or address of one tenant
//! is ever seen by the next.
//!
//! ```text
//!  create ──► free ──take──► used by a tenant ──discard──► used up ──► removed
//! ```
//!
//! Namespaces are created and removed only while no tenant is starting, because the daemon's work on
//! one slows the start beside it (same decision).

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::{Notify, mpsc};

use super::engine::{Container, ContainerSpec, Engine};
use crate::runtime::folder::Owner;

/// Bound on the pool's size: each namespace costs the host an idle process and its shim, 3 MB.
pub(super) const SIZE_MAX: usize = 64;

/// Bound on used namespaces that wait for their removal: as many as tenants may stop while one
/// removal takes.
const USED_MAX: usize = 1024;

/// Memory limit of a holder. Its process only sleeps; 6 MB is the least that every Docker accepts.
const MEMORY_BYTES: u64 = 8 << 20;

/// Bound on processes in a holder.
const PIDS: i64 = 4;

/// Pause after a failure, during which the daemon can recover.
const BACKOFF: Duration = Duration::from_secs(5);

/// A network namespace that a tenant's container may join.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PreparedNetwork {
    /// Id of the container that holds the namespace.
    pub(super) holder: String,
    pub(super) address: IpAddr,
}

/// The namespaces that are free. Cheap to clone; clones share one pool.
#[derive(Debug, Clone)]
pub(super) struct NetworkPool {
    free: Arc<Mutex<Vec<PreparedNetwork>>>,
    /// Number of tenants that are starting now.
    starts: Arc<AtomicUsize>,
    /// Notified at the end of each start.
    start_ended: Arc<Notify>,
    used: mpsc::Sender<PreparedNetwork>,
}

/// Marks a start in progress until it is dropped.
pub(super) struct StartGuard<'a>(&'a NetworkPool);

impl Drop for StartGuard<'_> {
    fn drop(&mut self) {
        self.0.starts.fetch_sub(1, Ordering::Relaxed);
        self.0.start_ended.notify_one();
    }
}

impl NetworkPool {
    /// Creates an empty pool, and the receiver of used namespaces for [`PoolTask::run`].
    pub(super) fn new() -> (Self, mpsc::Receiver<PreparedNetwork>) {
        let (used, receiver) = mpsc::channel(USED_MAX);
        let pool = Self {
            free: Arc::default(),
            starts: Arc::default(),
            start_ended: Arc::default(),
            used,
        };
        (pool, receiver)
    }

    /// Keeps the pool's own work away from a start, until the guard is dropped.
    pub(super) fn begin_start(&self) -> StartGuard<'_> {
        self.starts.fetch_add(1, Ordering::Relaxed);
        StartGuard(self)
    }

    /// Takes a free namespace, if there is one.
    pub(super) fn take(&self) -> Option<PreparedNetwork> {
        self.free().pop()
    }

    /// Hands over a used namespace for removal.
    pub(super) async fn discard(&self, network: PreparedNetwork) {
        if let Err(unsent) = self.used.send(network).await {
            // Only while the runtime is going down; the next one removes it.
            tracing::debug!(holder = unsent.0.holder, "network pool has ended: namespace stays");
        }
    }

    /// Counts the free namespaces.
    pub(super) fn free_count(&self) -> usize {
        self.free().len()
    }

    fn is_idle(&self) -> bool {
        self.starts.load(Ordering::Relaxed) == 0
    }

    fn free(&self) -> MutexGuard<'_, Vec<PreparedNetwork>> {
        self.free.lock()
    }
}

/// Refills the pool and removes used namespaces.
pub(super) struct PoolTask {
    pub(super) engine: Engine,
    /// Number of free namespaces to maintain; 0 if the pool is disabled.
    pub(super) size: usize,
    /// Image of the holder.
    pub(super) image: String,
    /// Network of the tenants.
    pub(super) network: String,
    pub(super) owner: Owner,
    pub(super) labels: HashMap<String, String>,
    pub(super) name_prefix: String,
}

impl PoolTask {
    /// Works on one namespace at a time until every clone of the pool is dropped. Starting tenants
    /// come first, unless used namespaces pile up to the point where stops would have to wait.
    pub(super) async fn run(self, pool: NetworkPool, mut used: mpsc::Receiver<PreparedNetwork>) {
        let mut backing_off = false;
        loop {
            let idle = pool.is_idle();
            // Create and remove outside of `select!`, which would cancel them half-way.
            let may_remove = idle || used.len() > USED_MAX / 2;
            if may_remove && let Ok(network) = used.try_recv() {
                self.remove(&network).await;
                continue;
            }
            if idle && !backing_off && pool.free_count() < self.size {
                match self.create().await {
                    Some(network) => pool.free().push(network),
                    None => backing_off = true,
                }
                continue;
            }
            // Nothing to do: wait until a namespace is discarded, a start ends, or the pause is over.
            tokio::select! {
                network = used.recv(), if may_remove => match network {
                    Some(network) => self.remove(&network).await,
                    None => return,
                },
                () = pool.start_ended.notified() => {}
                () = tokio::time::sleep(BACKOFF), if backing_off => backing_off = false,
            }
        }
    }

    async fn create(&self) -> Option<PreparedNetwork> {
        // The daemon refuses a name that is in use, so each name is used once.
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let spec = ContainerSpec {
            name: format!("{}{}-{number}", self.name_prefix, std::process::id()),
            image: self.image.clone(),
            entrypoint: "/pause".to_owned(),
            command: Vec::new(),
            environment: Vec::new(),
            labels: self.labels.clone(),
            owner: self.owner,
            memory_bytes: MEMORY_BYTES,
            pids: PIDS,
            weight: None,
            network: self.network.clone(),
            mounts: Vec::new(),
        };
        let created = async {
            let id = self.engine.create(spec).await?;
            self.engine.start(&id).await?;
            self.engine.inspect(&id).await
        };
        match created.await {
            Ok(Some(Container { id, address: Some(address), .. })) => {
                Some(PreparedNetwork { holder: id, address })
            }
            Ok(_) => {
                tracing::warn!("prepared network has no address");
                None
            }
            Err(error) => {
                tracing::warn!(%error, "network could not be prepared");
                None
            }
        }
    }

    async fn remove(&self, network: &PreparedNetwork) {
        if let Err(error) = self.engine.remove(&network.holder).await {
            tracing::warn!(holder = network.holder, %error, "used network could not be removed");
        }
    }
}
