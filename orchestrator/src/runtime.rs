//! What runs a tenant's SQ: the words and the trait. `docker` and `process` implement it.
//!
//! ```text
//!            start                 pause
//!  (nothing) ──────► Running ◄──────────────► Paused
//!      ▲                │        resume          │
//!      │ stop           │ dies by itself         │
//!      └──── Stopped ◄──┴────────────────────────┘
//! ```
//!
//! One tenant has at most one instance on its data folder: `start` first clears away whatever is
//! left of the tenant. The caller asks one thing per tenant at a time and has drained the tenant
//! before `pause` and `stop`: SQ cuts its files when it is killed within a write.

pub mod docker;
pub mod instance_key;
pub mod process;
pub mod readiness;
pub mod reclaim;
pub mod select;

use std::net::SocketAddr;
use std::pin::Pin;

use protocol::{Limits, TenantId, TierName, WakeKind};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use crate::runtime::instance_key::MintedKey;

/// What a runtime answers with; boxed so that the trait is object-safe.
pub type Answer<'a, T> = Pin<Box<dyn Future<Output = Result<T, RuntimeError>> + Send + 'a>>;

/// What to start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spec {
    /// Whose SQ.
    pub tenant: TenantId,
    /// Kept with the instance, so that it is known after a restart of the orchestrator.
    pub tier: TierName,
    /// Kept with the instance as well; `memory_bytes` is enforced.
    pub limits: Limits,
    /// Such as `0.6.0`.
    pub sq_version: String,
}

/// One life of a tenant's SQ: a container id, or process id and start time.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Instance(pub String);

/// Where an instance answers and with which key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Which life.
    pub instance: Instance,
    /// Reachable from this host.
    pub address: SocketAddr,
    /// What SQ was started with.
    pub key: MintedKey,
}

/// A started instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Started {
    /// It answers there.
    pub endpoint: Endpoint,
    /// What it took: [`WakeKind::Create`] or [`WakeKind::Start`].
    pub kind: WakeKind,
}

/// An instance that was there before the orchestrator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Whose.
    pub tenant: TenantId,
    /// As it was at the start.
    pub tier: TierName,
    /// As they were at the start.
    pub limits: Limits,
    /// As it was started.
    pub sq_version: String,
    /// How it is.
    pub state: FoundState,
    /// `Some` unless it is stopped.
    pub endpoint: Option<Endpoint>,
}

/// How a found instance is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FoundState {
    /// It answers.
    Running,
    /// It is frozen.
    Paused,
    /// It died while nobody watched: its data want a check.
    Stopped(ExitKind),
    /// It ended with an earlier boot of the host, and with it all who had leases on it.
    Left,
}

/// An instance died and nobody had asked for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Died {
    /// Whose.
    pub tenant: TenantId,
    /// Which life: news of another one than the current is old news.
    pub instance: Instance,
    /// How.
    pub exit: ExitKind,
}

/// How an instance died.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExitKind {
    /// Exit code 0.
    Clean,
    /// Another exit code, 101 for a panic, 128 + n for signal n.
    Crashed(i64),
    /// The kernel killed it for its memory.
    OutOfMemory,
    /// It is gone without a trace.
    Gone,
}

/// How an instance was when it was stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stopped {
    /// It ran or was frozen until then.
    Alive,
    /// It had died before, or there was none: nobody knows what it was doing when it ended.
    Dead,
}

/// Why a runtime can't do what it was asked for. The text is the operator's, never a client's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RuntimeError {
    /// The daemon does not answer; trying again later makes sense.
    #[error("the container runtime does not answer: {0}")]
    Unavailable(String),
    /// There is nothing to run.
    #[error("{0}")]
    Missing(String),
    /// The tenant's data folder can't be written by its uid.
    #[error("{path} can't be written by the tenant: {reason}")]
    Unwritable {
        /// The folder.
        path: String,
        /// What is wrong with it.
        reason: String,
    },
    /// It started and did not answer in time.
    #[error("SQ did not answer within {waited_ms} ms")]
    NotReady {
        /// How long was waited.
        waited_ms: u64,
    },
    /// It started and died at once.
    #[error("SQ died while starting: {0:?}")]
    DiedAtStart(ExitKind),
    /// There is no such instance (any more).
    #[error("{0} has no instance")]
    NoInstance(TenantId),
    /// Anything else.
    #[error("{0}")]
    Failed(String),
}

/// What a runtime says of itself: shown at the start and in the status.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Description {
    /// `docker` or `process`.
    pub kind: &'static str,
    /// What the operator should know, a line each: versions, limits that are not enforced.
    pub notes: Vec<String>,
}

/// Runs tenants' SQs. Dropping it leaves them running: they are found again by `list`.
pub trait Runtime: Send + Sync + 'static {
    /// What it is.
    fn describe(&self) -> Description;

    /// Everything of this installation, found or not before. `Stopped` ones stay until `start` or
    /// `stop`.
    fn list(&self) -> Answer<'_, Vec<Found>>;

    /// Starts SQ in `<data_root>/<tenant>/`. Returns when it answers and its folder is proven to
    /// be writable; on an error nothing is left running.
    fn start(&self, spec: Spec) -> Answer<'_, Started>;

    /// Freezes it. Idempotent.
    fn pause<'a>(&'a self, tenant: &'a TenantId) -> Answer<'a, ()>;

    /// Thaws it; returns when it answers. Idempotent.
    fn resume<'a>(&'a self, tenant: &'a TenantId) -> Answer<'a, ()>;

    /// Kills it, running, paused or dead, and removes what is left; answers with how it was just
    /// before. Idempotent: a second one finds none.
    fn stop<'a>(&'a self, tenant: &'a TenantId) -> Answer<'a, Stopped>;

    /// Lets a running instance have so much memory. Less than it uses may be refused.
    fn resize<'a>(&'a self, tenant: &'a TenantId, memory_bytes: u64) -> Answer<'a, ()>;

    /// What it uses now; `None` when that can't be told.
    fn memory_bytes<'a>(&'a self, tenant: &'a TenantId) -> Answer<'a, Option<u64>>;

    /// Its process, as this host's `/proc` knows it; `None` when that can't be told.
    fn pid<'a>(&'a self, tenant: &'a TenantId) -> Answer<'a, Option<i32>> {
        let _ = tenant;
        Box::pin(async { Ok(None) })
    }

    /// Hands the memory of a frozen tenant back to the host, where the kernel can; answers with how
    /// much. It may be thawed meanwhile.
    fn reclaim<'a>(&'a self, tenant: &'a TenantId) -> Answer<'a, Option<u64>> {
        let _ = tenant;
        Box::pin(async { Ok(None) })
    }

    /// How many instances it can have at once, frozen ones included; `None`: as many as memory holds.
    fn most(&self) -> Option<usize> {
        None
    }

    /// Deaths, from the creation of the runtime on. `Some` once: there is one listener.
    fn events(&self) -> Option<mpsc::Receiver<Died>>;
}
