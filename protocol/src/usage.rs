//! Filter → orchestrator: what was served (`POST /v1/usage`).
//!
//! Counters are cumulative per source, tenant and hour. A report sent twice or lost in between
//! changes nothing: the ledger keeps the maximum of what it has seen.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{GatewayId, Limits, TenantId, TenantNotice, TierName, WakeKind};

/// Body of `POST /v1/usage`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UsageReport {
    /// The Envoy it comes from.
    pub gateway: GatewayId,
    /// The VM it comes from: unique per life of a VM, so that its counters only grow. See
    /// [`source`].
    pub source: String,
    /// Grows with every report of this source; the answer repeats it.
    pub sequence: u64,
    /// What changed since the last report that was answered.
    pub rows: Vec<UsageRow>,
}

/// Names a life of a VM that began at `born_ns` (since 1970) and is the `life`th of its Envoy. One that
/// can't go on under it (its clock had been ahead) adds a number.
pub fn source(born_ns: u64, life: u64) -> String {
    format!("{born_ns:x}-{life}")
}

/// When a source began, seconds since 1970; `None`: its name does not tell.
pub fn born_s(source: &str) -> Option<u64> {
    let (born_ns, _) = source.split_once('-')?;
    Some(u64::from_str_radix(born_ns, 16).ok()? / 1_000_000_000)
}

/// One tenant's hour.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UsageRow {
    /// Who.
    pub tenant: TenantId,
    /// Tier at the time.
    pub tier: TierName,
    /// Limits at the time: quotas are judged by the newest.
    pub limits: Limits,
    /// Hours since 1970 UTC.
    pub hour: u64,
    /// Cumulative for this source and hour.
    pub counters: Counters,
}

/// Why requests are refused: the names that [`Counters::refused`] may have. Labels of metrics are made
/// of them, so a ledger counts any other name as [`OTHER_REASON`].
pub const REASONS: [&str; 32] = [
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
    "encoded-body",
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
/// What stands for a name that is not in [`REASONS`]: of a newer or a broken filter.
pub const OTHER_REASON: &str = "other";

/// Cumulative counters. All only grow.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Counters {
    /// Requests forwarded that read.
    pub reads: u64,
    /// Requests forwarded that mutate.
    pub writes: u64,
    /// Requests refused by the gateway, by problem name.
    pub refused: BTreeMap<String, u64>,
    /// Answers by class of status: index 0 is "no answer" (client gone), 1 is 1xx … 5 is 5xx.
    pub status: [u64; 6],
    /// Bytes of request bodies and query strings.
    pub bytes_in: u64,
    /// Bytes of answer bodies.
    pub bytes_out: u64,
    /// Time from the forwarded headers to the end of the answer, over all forwarded requests. Of one it
    /// is off by a tick of the filter (20 ms) either way, of many it is right.
    pub service_ms: u64,
    /// Wakes that were counted for this source: each for one, however many waited.
    pub wakes: BTreeMap<WakeKind, u64>,
}

impl Counters {
    /// All requests, forwarded and refused.
    pub fn requests(&self) -> u64 {
        self.reads + self.writes + self.refused.values().sum::<u64>()
    }
}

/// Body of `POST /v1/usage/{tenant}`: what the verdict says of it now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TenantUsageRequest {
    /// Its tier.
    pub tier: TierName,
    /// Its limits.
    pub limits: Limits,
}

/// Answer to `POST /v1/usage`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UsageResponse {
    /// The report's `sequence`: everything up to it is in the ledger.
    pub sequence: u64,
    /// News on the tenants in the report.
    #[serde(default)]
    pub notices: BTreeMap<TenantId, TenantNotice>,
}

#[cfg(test)]
mod tests {
    #[cfg(target_family = "wasm")]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    use super::*;

    #[test]
    fn a_source_tells_when_it_began() {
        assert_eq!(born_s(&source(1_800_000_000_999_999_999, 7)), Some(1_800_000_000));
        assert_eq!((born_s("vm"), born_s("vm-1")), (None, None));
    }
}
