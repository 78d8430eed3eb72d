//! Response bodies of the usage routes.

use std::collections::BTreeMap;
use std::path::PathBuf;

use protocol::{ByteLimit, CountLimit, Limits, TenantId, TierName};
use serde::{Deserialize, Serialize};

use crate::api::status::LastWake;
use crate::usage::revenue::Revenue;
use crate::usage::sums::{Sums, TenantSums};

/// A tenant's own usage, shown to its clients by `GET /api/v2/usage`. Periods are in UTC.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TenantUsage {
    /// The tenant's name.
    pub tenant: TenantId,
    /// Its tier; `None` before its first report.
    pub tier: Option<TierName>,
    /// Usage of the present hour.
    pub hour: Sums,
    /// Usage of the present day.
    pub day: Sums,
    /// Usage of the present month.
    pub month: Sums,
    /// Each quota and the used part of it.
    pub quotas: Quotas,
    /// All limits; `None` before its first report.
    pub limits: Option<Limits>,
    /// Size of its files.
    pub storage: StorageUsage,
    /// Lifecycle state, such as `asleep`; `unknown` until tenants are adopted.
    pub state: String,
    /// Its last wake since the orchestrator started.
    pub last_wake: Option<LastWake>,
}

/// All quotas of a tenant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quotas {
    /// Forwarded requests of this day.
    pub requests_day: Quota,
    /// Forwarded requests of this month.
    pub requests_month: Quota,
    /// Forwarded writes of this day.
    pub writes_day: Quota,
    /// Bytes of responses of this day.
    pub egress_day: ByteQuota,
}

/// One quota and the used part of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quota {
    /// Requests counted in this period.
    pub used: u64,
    /// Requests allowed, or `"unlimited"`; `None` is not known yet.
    pub limit: Option<CountLimit>,
    /// End of the period, in seconds since 1970.
    pub ends_s: u64,
}

/// A quota of bytes and the used part of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ByteQuota {
    /// Bytes counted in this period.
    pub used: u64,
    /// Bytes allowed, or `"unlimited"`; `None` is not known yet.
    pub limit: Option<ByteLimit>,
    /// End of the period, in seconds since 1970.
    pub ends_s: u64,
}

/// Size of a tenant's files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StorageUsage {
    /// Bytes of all files.
    pub used_bytes: u64,
    /// Bytes allowed; `None` is not known yet.
    pub limit_bytes: Option<u64>,
    /// Size of each phext as the size limit counts it: its bytes, or more with many small scrolls.
    pub phexts: BTreeMap<String, u64>,
}

/// A month of all tenants, or of one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MonthUsage {
    /// The month as `YYYY-MM`.
    pub month: String,
    /// Usage by tenant.
    pub tenants: Vec<TenantSums>,
    /// Sum over the tenants.
    pub total: Sums,
    /// Prices of the tenants that were served.
    pub revenue: Revenue,
}

/// Location of the ledger.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LedgerFile {
    /// The database file on the orchestrator's host.
    pub path: PathBuf,
}
