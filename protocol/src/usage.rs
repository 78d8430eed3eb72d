//! Filter → orchestrator: counters of requests and traffic (`POST /v1/usage`).
//!
//! Counters are cumulative per source, tenant and hour, and the ledger keeps the maximum of each. So a
//! report that is sent twice changes nothing, and one that is lost is made up for by the next.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::time::SECOND_NS;
use crate::{GatewayId, Limits, TenantId, TenantNotice, TierName, WakeKind};

pub mod bounds;

/// Body of `POST /v1/usage`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UsageReport {
    /// The reporting Envoy.
    pub gateway: GatewayId,
    /// The reporting VM instance, as [`source_id`] names it.
    pub source: String,
    /// Grows with every report of this source; the response repeats it.
    pub sequence: u64,
    /// Counters that have changed since the last report with a response.
    pub rows: Vec<UsageRow>,
}

/// Names the VM instance that was created at `created_ns` (since 1970) as number `instance` of its
/// Envoy. The name is unique, so that the source's counters only grow. After a backwards clock step
/// the gate appends a number.
pub fn source_id(created_ns: u64, instance: u64) -> String {
    format!("{created_ns:x}-{instance}")
}

/// Reads the time of creation, in seconds since 1970, from a source's name; `None` if it has another
/// form.
pub fn source_created_s(source: &str) -> Option<u64> {
    let (created_ns, _) = source.split_once('-')?;
    let created_ns = u64::from_str_radix(created_ns, 16).ok()?;
    Some(created_ns / SECOND_NS)
}

/// The counters of one tenant for one hour.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UsageRow {
    /// The tenant that was served.
    pub tenant: TenantId,
    /// The tenant's tier at that time.
    pub tier: TierName,
    /// The tenant's limits at that time. Quotas are judged by the latest ones.
    pub limits: Limits,
    /// The hour, counted from 1970 in UTC.
    pub hour: u64,
    /// Totals of this source in this hour.
    pub counters: Counters,
}

/// Names of refusals, the keys of [`Counters::refused`]. They become labels of metrics, so the ledger
/// counts any other name as [`OTHER_REASON`].
pub const REASONS: [&str; 34] = [
    "bad-body",
    "bad-parameter",
    "bad-request",
    "body-too-large",
    "client-gone",
    "conflicting-keys",
    "database-busy",
    "database-failed",
    "database-timeout",
    "database-unavailable",
    "egress-quota-exceeded",
    "encoded-body",
    "grpc",
    "host-full",
    "internal",
    "malformed-key",
    "method-not-allowed",
    "no-credentials",
    "not-implemented",
    "orchestrator-unavailable",
    "phext-too-large",
    "quota-exceeded",
    "rate-limited",
    "relay-unavailable",
    "request-timeout",
    "storage-full",
    "suspended",
    "too-many-phexts",
    "too-many-unknown-keys",
    "unknown-endpoint",
    "unknown-key",
    "wake-budget",
    "wake-failed",
    "wake-queued",
];
/// Stands for a name that is not in [`REASONS`], which a filter of another release may send.
pub const OTHER_REASON: &str = "other";

/// Cumulative counters, which never decrease.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Counters {
    /// Forwarded requests that read.
    pub reads: u64,
    /// Forwarded requests that mutate.
    pub writes: u64,
    /// Requests that the gateway refused, by the refusal's name.
    pub refused: BTreeMap<String, u64>,
    /// Responses by class of status: index 1 is 1xx, … 5 is 5xx; index 0 counts requests without a
    /// response, as the client had disconnected.
    pub status: [u64; 6],
    /// Bytes of request bodies and query strings.
    pub bytes_in: u64,
    /// Bytes of response bodies.
    pub bytes_out: u64,
    /// Total time of all forwarded requests, from the forwarded head to the end of the response. One
    /// request's time is off by up to a tick of the filter (20 ms) in either direction; the errors
    /// cancel out.
    pub service_ms: u64,
    /// Wakes by kind. Each wake is counted by one source, even if several waited for it.
    pub wakes: BTreeMap<WakeKind, u64>,
}

impl Counters {
    /// All requests, forwarded and refused; the sum stops at the largest number.
    pub fn requests(&self) -> u64 {
        let forwarded = self.reads.saturating_add(self.writes);
        self.refused.values().copied().fold(forwarded, u64::saturating_add)
    }
}

/// Body of `POST /v1/usage/{tenant}`: the tenant as its latest verdict describes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TenantUsageRequest {
    /// The tenant's tier.
    pub tier: TierName,
    /// The tenant's limits.
    pub limits: Limits,
}

/// Response to `POST /v1/usage`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UsageResponse {
    /// The report's `sequence`: all rows up to this report are in the ledger or in its quarantine,
    /// and none has to be sent again.
    pub sequence: u64,
    /// Rows of this report that the ledger does not believe. They wait for the operator, or for the
    /// tenant's first lease.
    #[serde(default)]
    pub quarantined: u64,
    /// Notices of the tenants in the report.
    #[serde(default)]
    pub notices: BTreeMap<TenantId, TenantNotice>,
}

#[cfg(test)]
mod tests {
    #[cfg(target_family = "wasm")]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    use super::*;

    #[test]
    fn source_id_contains_its_creation_time() {
        let source = source_id(1_800_000_000_999_999_999, 7);
        assert_eq!(source_created_s(&source), Some(1_800_000_000));
        assert_eq!(source_created_s("vm"), None);
        assert_eq!(source_created_s("vm-1"), None);
    }
}
