//! Prepared network slots: containers that do nothing but hold a network namespace.
//!
//! Most of a cold start is the network (docs/decisions): a waking tenant joins a slot that is there
//! already. A slot is used by one tenant and then thrown away, so that nothing of it (socket,
//! connection, address) is ever seen by the next. New ones are made while nobody is being started:
//! one in the making slows the start beside it (docs/decisions).

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, mpsc};

use super::engine::{Blueprint, Engine, Seen};
use crate::runtime::folder::Owner;

/// Prepared slots at most: each costs the host an idle process and its shim, 3 MB.
pub(super) const SLOTS_MAX: usize = 64;

/// Used slots that wait for their removal: as many as tenants stop while one removal takes.
const DISCARDS: usize = 1024;

/// A slot's process sleeps for ever; 6 MB is the least that every Docker takes.
const MEMORY_BYTES: u64 = 8 << 20;
const PIDS: i64 = 4;

/// After a failure: the daemon has other things to do.
const PAUSE_AFTER_FAILURE: Duration = Duration::from_secs(5);

/// A namespace that a tenant may join.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Slot {
    pub(super) id: String,
    pub(super) address: IpAddr,
}

/// The prepared slots. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Slots {
    free: Arc<Mutex<Vec<Slot>>>,
    /// Tenants that are being started.
    starts: Arc<AtomicUsize>,
    /// A start is over.
    idle: Arc<Notify>,
    discards: mpsc::Sender<Slot>,
}

/// A tenant is being started, until this is dropped.
pub(super) struct Starting<'a>(&'a Slots);

impl Drop for Starting<'_> {
    fn drop(&mut self) {
        self.0.starts.fetch_sub(1, Ordering::Relaxed);
        self.0.idle.notify_one();
    }
}

/// Makes and removes slots; runs until it is dropped.
pub(super) struct Keeper {
    pub(super) engine: Engine,
    pub(super) wanted: usize,
    pub(super) image: String,
    pub(super) network: String,
    pub(super) owner: Owner,
    pub(super) labels: HashMap<String, String>,
    pub(super) name_prefix: String,
}

impl Slots {
    /// No slots: every tenant gets its network the plain way.
    pub(super) fn new() -> (Self, mpsc::Receiver<Slot>) {
        let (discards, used) = mpsc::channel(DISCARDS);
        (
            Self { free: Arc::default(), starts: Arc::default(), idle: Arc::default(), discards },
            used,
        )
    }

    /// From here on a tenant is being started.
    pub(super) fn starting(&self) -> Starting<'_> {
        self.starts.fetch_add(1, Ordering::Relaxed);
        Starting(self)
    }

    /// A slot for a tenant, when one is ready.
    pub(super) fn take(&self) -> Option<Slot> {
        self.free().pop()
    }

    /// The tenant is gone: so goes its slot.
    pub(super) async fn discard(&self, slot: Slot) {
        if self.discards.send(slot).await.is_err() {
            tracing::debug!("slots are no longer kept");
        }
    }

    /// How many are ready.
    pub(super) fn ready(&self) -> usize {
        self.free().len()
    }

    fn free(&self) -> MutexGuard<'_, Vec<Slot>> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Keeper {
    /// Clears away and fills up, one container at a time: waking tenants come first, unless so many
    /// have left that nobody could be stopped any more.
    pub(super) async fn run(self, slots: Slots, mut used: mpsc::Receiver<Slot>) {
        let mut failed = false;
        loop {
            let idle = slots.starts.load(Ordering::Relaxed) == 0;
            let lacking = idle && slots.ready() < self.wanted;
            let clearing = idle || used.len() > DISCARDS / 2;
            // What is begun is ended: nothing here may be cut off in the middle of a making.
            if clearing && let Ok(slot) = used.try_recv() {
                self.remove(&slot).await;
            } else if lacking && !failed {
                match self.make().await {
                    Some(slot) => slots.free().push(slot),
                    None => failed = true,
                }
            } else {
                tokio::select! {
                    slot = used.recv(), if clearing => match slot {
                        Some(slot) => self.remove(&slot).await,
                        None => return,
                    },
                    () = slots.idle.notified() => {}
                    () = tokio::time::sleep(PAUSE_AFTER_FAILURE), if failed => failed = false,
                }
            }
        }
    }

    async fn make(&self) -> Option<Slot> {
        // A name is needed once; the daemon refuses one that is taken.
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let blueprint = Blueprint {
            name: format!("{}{}-{number}", self.name_prefix, std::process::id()),
            image: self.image.clone(),
            entrypoint: "/pause".to_owned(),
            command: Vec::new(),
            environment: Vec::new(),
            labels: self.labels.clone(),
            owner: self.owner,
            memory_bytes: MEMORY_BYTES,
            pids: PIDS,
            network: self.network.clone(),
            folder: None,
        };
        let made = async {
            let id = self.engine.make(blueprint).await?;
            self.engine.start(&id).await?;
            self.engine.inspect(&id).await
        };
        match made.await {
            Ok(Some(Seen { id, address: Some(address), .. })) => Some(Slot { id, address }),
            other => {
                tracing::warn!(?other, "no network slot could be made");
                None
            }
        }
    }

    async fn remove(&self, slot: &Slot) {
        if let Err(e) = self.engine.remove(&slot.id).await {
            tracing::warn!(slot = slot.id, ?e, "a used network slot is left behind");
        }
    }
}
