//! Runtimes start, pause and stop tenants' SQ instances: the [`Runtime`] trait and its types.
//!
//! ```text
//!            start                 pause
//!  (nothing) ──────► Running ◄──────────────► Paused
//!      ▲                │        resume          │
//!      │ stop           │ crash                  │ crash
//!      └──── Stopped ◄──┴────────────────────────┘
//! ```
//!
//! A tenant has at most one instance on its data folder, so `start` first removes whatever is left
//! of an earlier one. The caller makes one call per tenant at a time, and has drained the tenant
//! before `pause` and `stop`: SQ leaves a truncated file when it is killed in the middle of a write.
//!
//! | file | content |
//! |---|---|
//! | `select.rs` | chooses the runtime by configuration, by what ran before, and by what answers |
//! | `docker.rs` | containers, hardened and limited; adopted by their labels |
//! | `docker/engine.rs` | the Docker API: the only file that names bollard |
//! | `docker/network.rs` | the tenants' bridge and its firewall rules |
//! | `docker/start.rs` | creating and starting a tenant's container |
//! | `docker/network_pool.rs` | network namespaces prepared ahead of starts |
//! | `docker/seccomp.rs` | the system calls that a container may make |
//! | `docker/weight.rs` | a tenant's weight as shares of processor and disk |
//! | `docker/deaths.rs` | deaths, from the daemon's events and from reconciliation |
//! | `docker/oom_kills.rs` | evidence that lack of memory caused a death |
//! | `docker/adoption.rs` | finding containers that an earlier orchestrator started |
//! | `process.rs` | child processes, for hosts without Docker; adopted by their records |
//! | `process/instance.rs` | one process: its record on disk, signals, exit |
//! | `process/adoption.rs` | finding processes that an earlier orchestrator started |
//! | `process/start.rs` | starting a tenant's process |
//! | `process/deaths.rs` | the task that awaits every process's exit |
//! | `process/pidfd.rs` | process descriptors |
//! | `firewall.rs` | firewall rules: made, read back, restored |
//! | `firewall/rules.rs` | the rules as text |
//! | `firewall/nft.rs` | the program `nft` |
//! | `firewall/bridge.rs` | what the rules of a bridge need from this host |
//! | `firewall/changes.rs` | the kernel's announcements of changed rules |
//! | `proc.rs` | facts about processes from `/proc` |
//! | `sq_command.rs` | SQ's command line and environment |
//! | `probe.rs` | readiness probe over HTTP |
//! | `folder.rs` | ownership of a tenant's folder, and proof that SQ can write it |
//! | `users.rs` | the user of each tenant, and which ids are free |
//! | `reclaim.rs` | returning a paused tenant's memory to the host |
//! | `instance_key.rs` | the key that each instance is started with |
//! | `key_file.rs` | the file from which SQ reads its key |
//!
//! A start, as both runtimes do it:
//!
//! ```text
//!  driver        runtime             SQ           folder
//!    │  start       │                 │              │
//!    ├─────────────►│ remove the old instance, if any│
//!    │              ├── create, give to its user ───►│
//!    │              ├── write a file as its user ───►│
//!    │              ├── start, new key ─►│           │
//!    │              ├── GET, no key ────►│           │
//!    │              │◄───── 401 ─────────┤           │
//!    │◄─ Started ───┤                    │           │
//! ```

pub mod docker;
mod firewall;
pub mod folder;
pub mod instance_key;
mod key_file;
pub mod probe;
mod proc;
pub mod process;
mod reclaim;
pub mod select;
mod sq_command;
pub mod users;

use std::net::SocketAddr;
use std::pin::Pin;

use protocol::{Limits, SqVersion, TenantId, TierName, WakeKind};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

pub use self::firewall::FirewallState;
use crate::runtime::instance_key::InstanceKey;

/// Future of a runtime call; boxed so that [`Runtime`] is object-safe.
pub type RuntimeFuture<'a, T> = Pin<Box<dyn Future<Output = Result<T, RuntimeError>> + Send + 'a>>;

/// Starts, pauses and stops tenants' SQ instances. Dropping a runtime leaves them running; the next
/// one adopts them with `list`.
pub trait Runtime: Send + Sync + 'static {
    /// Describes the runtime for the log and for the operator's status.
    fn describe(&self) -> Description;

    /// Reports the abilities that not every runtime has.
    fn capabilities(&self) -> Capabilities;

    /// Reports whether firewall rules protect tenants and this host from each other.
    fn firewall(&self) -> FirewallState;

    /// Lists every instance of this installation, and adopts those that an earlier orchestrator
    /// started. Dead instances stay listed until `start` or `stop`.
    fn list(&self) -> RuntimeFuture<'_, Vec<Found>>;

    /// Starts SQ on `<data_root>/<tenant>/`. Completes once SQ answers and its folder has been proven
    /// writable. After an error nothing is left running.
    fn start(&self, spec: Spec) -> RuntimeFuture<'_, Started>;

    /// Freezes the instance in memory. Idempotent.
    fn pause<'a>(&'a self, tenant: &'a TenantId) -> RuntimeFuture<'a, ()>;

    /// Unfreezes the instance; completes once SQ answers. Idempotent.
    fn resume<'a>(&'a self, tenant: &'a TenantId) -> RuntimeFuture<'a, ()>;

    /// Kills the instance, whether it is running, paused or dead, and removes what is left of it.
    /// Reports the state just before. Idempotent: a second call finds no instance.
    fn stop<'a>(&'a self, tenant: &'a TenantId) -> RuntimeFuture<'a, Stopped>;

    /// Sets the memory limit of a running instance. A limit below current use may be refused.
    fn resize<'a>(&'a self, tenant: &'a TenantId, memory_bytes: u64) -> RuntimeFuture<'a, ()>;

    /// Reads how many bytes of memory the instance uses; `None` when that is unknown.
    fn memory_bytes<'a>(&'a self, tenant: &'a TenantId) -> RuntimeFuture<'a, Option<u64>>;

    /// Reads the instance's process id from the runtime itself, as the host's `/proc` has it; `None`
    /// or an error when there is no live process.
    fn pid<'a>(&'a self, tenant: &'a TenantId) -> RuntimeFuture<'a, Option<i32>>;

    /// Returns the memory of a paused instance to the host and reports how many bytes that was;
    /// `None` when it could not be tried. The instance may be resumed while this runs. Only called
    /// if [`Capabilities::can_reclaim`].
    fn reclaim<'a>(&'a self, tenant: &'a TenantId) -> RuntimeFuture<'a, Option<u64>>;

    /// Deaths that no call of `stop` or `start` caused, from the creation of the runtime on. `Some`
    /// on the first call only: there is one receiver.
    fn events(&self) -> Option<mpsc::Receiver<Died>>;
}

/// A runtime's description of itself, logged at the start and shown in the status.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Description {
    /// Either `docker` or `process`.
    pub kind: &'static str,
    /// Facts for the operator, one line each: versions, and limits that are not enforced.
    pub notes: Vec<String>,
}

/// Abilities that not every runtime has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capabilities {
    /// Memory of a paused instance can be returned to the host.
    pub can_reclaim: bool,
    /// Bound on simultaneous instances, paused ones included; `None` if only memory bounds them.
    pub max_instances: Option<usize>,
}

/// Parameters of a start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spec {
    /// The tenant whose folder SQ serves.
    pub tenant: TenantId,
    /// Recorded with the instance, for an orchestrator that adopts it.
    pub tier: TierName,
    /// Recorded with the instance as well; `memory_bytes` is enforced.
    pub limits: Limits,
    /// Version of SQ, such as `0.6.0`.
    pub sq_version: SqVersion,
}

/// Identifies one instance: a container id, or a process id with its start time. Never reused.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct InstanceId(pub String);

/// Address and key of a live instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// The instance that listens there.
    pub instance: InstanceId,
    /// Reachable from this host only.
    pub address: SocketAddr,
    /// The only key that this instance accepts.
    pub key: InstanceKey,
}

/// A started instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Started {
    /// Address and key; SQ answers there.
    pub endpoint: Endpoint,
    /// Either [`WakeKind::Create`] or [`WakeKind::Start`].
    pub kind: WakeKind,
}

/// An instance that was there before this orchestrator process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// The tenant it was started for.
    pub tenant: TenantId,
    /// The tenant's tier when it was started.
    pub tier: TierName,
    /// The tenant's limits when it was started.
    pub limits: Limits,
    /// The SQ version that it runs.
    pub sq_version: SqVersion,
    /// Its present state.
    pub state: FoundState,
    /// Address and key; `None` if it is dead.
    pub endpoint: Option<Endpoint>,
}

/// State of an instance that was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FoundState {
    /// It serves requests.
    Running,
    /// It is frozen in memory.
    Paused,
    /// It died while no orchestrator ran: its data must be examined.
    Stopped(ExitKind),
    /// It ended with an earlier boot of the host, and so did every gateway with a lease on it.
    FromEarlierBoot,
}

/// The death of an instance that nothing in this process asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Died {
    /// The tenant that lost its instance.
    pub tenant: TenantId,
    /// The dead instance; if it is not the current one, the event is stale.
    pub instance: InstanceId,
    /// Exit code or reason.
    pub exit: ExitKind,
}

/// Reason for the end of an instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExitKind {
    /// Exit code 0.
    Clean,
    /// Another exit code: 101 for a panic, 128 + n for signal n.
    Crashed(i64),
    /// Killed by the kernel for lack of memory.
    OutOfMemory,
    /// The process or container is gone, and no exit code is known.
    Gone,
}

/// State of an instance just before it was stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stopped {
    /// It was running or paused until the stop killed it.
    Alive,
    /// It was dead already, perhaps killed in the middle of a write, or there was none.
    Dead,
}

/// Failure of a runtime call. The text is for the operator, never for a client.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RuntimeError {
    /// The daemon does not answer; a retry may succeed.
    #[error("the container runtime does not answer: {0}")]
    Unavailable(String),
    /// The image or binary does not exist.
    #[error("{0}")]
    Missing(String),
    /// The tenant's user can't write the tenant's data folder.
    #[error("{path} can't be written by the tenant: {reason}")]
    Unwritable {
        /// The folder, or the file in it.
        path: String,
        /// The failed check or system call.
        reason: String,
    },
    /// SQ was started and did not answer in time.
    #[error("SQ did not answer within {waited_ms} ms")]
    NotReady {
        /// Length of the wait, in milliseconds.
        waited_ms: u64,
    },
    /// SQ exited before it answered.
    #[error("SQ died while starting: {0:?}")]
    DiedAtStart(ExitKind),
    /// The tenant has no live instance.
    #[error("{0} has no instance")]
    NoInstance(TenantId),
    /// Any other failure.
    #[error("{0}")]
    Failed(String),
}

impl RuntimeError {
    // By value, because that is what `map_err` passes.
    #[allow(clippy::needless_pass_by_value)]
    fn failed(reason: impl ToString) -> Self {
        Self::Failed(reason.to_string())
    }
}
