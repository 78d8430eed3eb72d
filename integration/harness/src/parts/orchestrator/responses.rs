//! Response bodies of the orchestrator's status and usage routes, with the fields that tests look at.
//!
//! The orchestrator's own types are not used: a field that it renames must fail a test.

use std::collections::BTreeMap;

use protocol::ByteLimit;
use serde::Deserialize;

/// The fields of a tenant's status that tests look at (`GET /v1/tenants`).
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct TenantStatus {
    /// The tenant's name.
    pub tenant: String,
    /// Lifecycle state, such as `awake`.
    pub state: String,
    /// Number of wakes.
    pub wakes: u64,
    /// Number of exits that the orchestrator did not cause.
    pub deaths: u64,
    /// Description of the last death or failed start.
    pub last_death: Option<String>,
    /// Number of truncated phexts that were replaced by their good copy.
    pub restored: u64,
    /// Reason why the last round of copies failed.
    pub copies_failing: Option<String>,
    /// Limit that the file system itself sets on the tenant's folder.
    pub storage_hard_bytes: Option<u64>,
}

/// Usage counters of one period, as the usage routes report them.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct UsageSums {
    /// Number of forwarded reads.
    pub reads: u64,
    /// Number of forwarded writes.
    pub writes: u64,
    /// Number of refused requests.
    pub refused: u64,
    /// Refused requests by problem kind; absent where only totals were queried.
    #[serde(default)]
    pub reasons: BTreeMap<String, u64>,
    /// Responses by class: index 2 is 2xx.
    pub status: Vec<u64>,
    /// Bytes of request bodies.
    pub bytes_in: u64,
    /// Bytes of response bodies.
    pub bytes_out: u64,
    /// Wakes by kind.
    pub wakes: BTreeMap<String, u64>,
    /// Time in SQ, in milliseconds.
    pub service_ms: u64,
}

impl UsageSums {
    /// All requests, forwarded or refused.
    pub fn requests(&self) -> u64 {
        self.reads + self.writes + self.refused
    }
}

/// A tenant's own usage (`GET /api/v2/usage`).
#[derive(Debug, Clone, Deserialize)]
pub struct TenantUsage {
    /// Usage of the present hour.
    pub hour: UsageSums,
    /// Usage of the present day.
    pub day: UsageSums,
    /// Usage of the present month.
    pub month: UsageSums,
    /// Used part of each quota, by name such as `requests_day`.
    pub quotas: BTreeMap<String, Quota>,
    /// All limits; `None` before the tenant's first report.
    pub limits: Option<serde_json::Value>,
    /// Size of the tenant's files.
    pub storage: StorageUsage,
    /// Lifecycle state, such as `asleep`.
    pub state: String,
    /// The last wake since the orchestrator started.
    pub last_wake: Option<LastWake>,
}

/// The used part of a quota.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub struct Quota {
    /// Requests or bytes counted in this period.
    pub used: u64,
    /// Requests or bytes allowed, `None` is not known yet.
    pub limit: Option<ByteLimit>,
}

/// Size of a tenant's files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub struct StorageUsage {
    /// Bytes of all files.
    pub used_bytes: u64,
}

/// A tenant's last wake.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct LastWake {
    /// Kind of the wake, such as `start`.
    pub kind: String,
    /// Time that the runtime took, in milliseconds.
    pub ms: u64,
}

/// A month of all tenants, or of one (`GET /v1/usage`).
#[derive(Debug, Clone, Deserialize)]
pub struct MonthUsage {
    /// Sum over the tenants.
    pub total: UsageSums,
    /// Prices of the tenants that were served.
    pub revenue: Revenue,
}

/// Revenue of a month.
#[derive(Debug, Clone, Copy, Deserialize)]
pub struct Revenue {
    /// Sum of the prices, in US cents.
    pub cents: u64,
}
