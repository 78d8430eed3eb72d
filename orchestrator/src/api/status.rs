//! Response body of `GET /v1/tenants`: the host and its tenants, as the operator sees them.

use protocol::{SqVersion, TenantId, TierName, WakeKind};
use serde::{Deserialize, Serialize};

use crate::storage::disk::HostDisk;

/// Response to `GET /v1/tenants`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// The gateway host.
    pub host: HostStatus,
    /// All known tenants, by name.
    pub tenants: Vec<TenantStatus>,
}

/// Status of the gateway host.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostStatus {
    /// The runtime: `docker` or `process`.
    pub runtime: String,
    /// Remarks for the operator: limits of the runtime, a ledger that is not open.
    pub notes: Vec<String>,
    /// Version of SQ that tenants are started with.
    pub sq_version: SqVersion,
    /// Number of connected Envoys.
    pub streams: usize,
    /// Memory that the host can hand out without swapping; `None` where the kernel does not say.
    pub memory_available_bytes: Option<u64>,
    /// The disk below the data root; `None` if it can't be examined.
    pub disk: Option<HostDisk>,
}

/// Status of one tenant. Counters start at 0 with the orchestrator process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TenantStatus {
    /// The tenant's name.
    pub tenant: TenantId,
    /// Tier as of the last lease.
    pub tier: TierName,
    /// Lifecycle state: one of [`State::LABELS`](crate::tenants::lifecycle::State::LABELS).
    pub state: String,
    /// Time spent in that state.
    pub for_ms: u64,
    /// Start of that state, in seconds since 1970 UTC.
    pub since_s: u64,
    /// Time since the last lease was granted.
    pub idle_ms: u64,
    /// True while a lease is live.
    pub leased: bool,
    /// Number of waiters for a lease.
    pub waiting: usize,
    /// Memory in use; `None` if nothing runs or the runtime does not say.
    pub memory_bytes: Option<u64>,
    /// Size of all files in the tenant's folder.
    pub storage_bytes: Option<u64>,
    /// Limit that the file system itself sets on the folder; `None` if it sets or shows none.
    #[serde(default)]
    pub storage_hard_bytes: Option<u64>,
    /// Number of wakes.
    pub wakes: u64,
    /// The last wake.
    pub last_wake: Option<LastWake>,
    /// Number of deaths: exits that the orchestrator did not cause.
    pub deaths: u64,
    /// Description of the last death or failed start.
    pub last_death: Option<String>,
    /// Number of truncated phexts that were replaced by their good copy.
    #[serde(default)]
    pub restored: u64,
    /// Reason why the last round of good copies was incomplete; `None` if it was complete.
    #[serde(default)]
    pub copies_failing: Option<String>,
}

/// A tenant's last wake.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastWake {
    /// Depth of the sleep that it ended.
    pub kind: WakeKind,
    /// Time that the runtime took.
    pub ms: u64,
}
