//! Filter → orchestrator: permission to route to a tenant (`POST /v1/lease`).
//!
//! A lease is the promise that, for `lease_ms`, the tenant's cluster exists in the requesting Envoy
//! and its SQ responds. The filter counts from before its call, the orchestrator from after its
//! response, so the filter's lease always ends first. A tenant whose lease is renewed counts as in
//! use.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{CountLimit, GatewayId, Limits, SqVersion, TenantId, TierName};

/// Body of `POST /v1/lease`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseRequest {
    /// The requesting Envoy, by its `node.id`. The response waits for its ACK of the cluster.
    pub gateway: GatewayId,
    /// The tenant to route to.
    pub tenant: TenantId,
    /// The tenant's tier, for status, priority and revenue.
    pub tier: TierName,
    /// The tenant's limits as the verdict states them.
    pub limits: Limits,
    /// Renews the lease for requests in flight; a sleeping or dozing tenant is not woken.
    #[serde(default)]
    pub renew_only: bool,
    /// Refuses the lease, without a wake, if the tenant's requests of the day or month are used up.
    #[serde(default)]
    pub within_quotas: bool,
    /// Longest wait of the client; `None` leaves it to the orchestrator's `lifecycle.patience`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub patience_ms: Option<u64>,
}

/// Response 200 to `POST /v1/lease`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseResponse {
    /// The cluster to route to, for the header `x-sq-cluster`.
    pub cluster: String,
    /// Duration of the lease.
    pub lease_ms: u64,
    /// Kind of the wake that preceded the lease.
    pub wake: WakeKind,
    /// Duration of the wake; 0 with [`WakeKind::None`].
    #[serde(default)]
    pub wake_ms: u64,
    /// True for one of the requests that waited for this wake: the one whose gateway counts it.
    #[serde(default)]
    pub waker: bool,
    /// The release of SQ behind the cluster.
    pub sq_version: SqVersion,
    /// The tenant's usage so far.
    #[serde(default)]
    pub notice: TenantNotice,
}

/// The work that a lease required.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize,
)]
#[serde(rename_all = "snake_case")]
pub enum WakeKind {
    /// The tenant was awake already.
    #[default]
    None,
    /// The tenant was dozing and has been resumed.
    Doze,
    /// SQ has been started in an existing container, or as a process.
    Start,
    /// A container has been created and started.
    Create,
}

impl WakeKind {
    /// Its name in metrics, logs, tables and the header `server-timing`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Doze => "doze",
            Self::Start => "start",
            Self::Create => "create",
        }
    }
}

/// Response 503 to `POST /v1/lease`, or 429 for [`LeaseRefusalKind::WakeBudget`] and
/// [`LeaseRefusalKind::Quota`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseRefusal {
    /// Reason of the refusal.
    pub kind: LeaseRefusalKind,
    /// Time after which a retry can succeed.
    pub retry_after_s: u32,
    /// Details for the operator's log; a client never sees them.
    #[serde(default)]
    pub detail: String,
    /// The tenant's usage, with [`LeaseRefusalKind::Quota`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub notice: Option<TenantNotice>,
}

/// Reasons why a lease is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LeaseRefusalKind {
    /// More tenants are waiting for a start than can be started within the client's patience.
    Queue,
    /// The tenant's SQ fails to start; the next start waits for the back-off.
    Failing,
    /// The tenant's data is damaged and needs the operator.
    Damaged,
    /// The tenant has used up its starts of this hour.
    WakeBudget,
    /// The tenant has used up its requests of the day or month.
    Quota,
    /// The requesting Envoy is not connected over xDS, or has rejected the cluster.
    Gateway,
    /// The orchestrator is shutting down or starting up.
    Unavailable,
    /// The request was `renew_only`, and the tenant is not awake.
    Asleep,
}

/// The orchestrator's figures on a tenant, by which the filter enforces quotas and storage limits.
/// Part of every lease and of every response to a usage report.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct TenantNotice {
    /// Requests of this UTC day, over all gateways.
    pub requests_day: u64,
    /// Requests of this UTC month, over all gateways.
    pub requests_month: u64,
    /// Mutating requests of this UTC day, over all gateways.
    pub writes_day: u64,
    /// Bytes of responses of this UTC day, over all gateways.
    pub bytes_out_day: u64,
    /// End of the UTC day, in seconds since 1970; 0 while the ledger is being opened.
    pub day_ends_s: u64,
    /// End of the UTC month, in seconds since 1970; 0 while the ledger is being opened.
    pub month_ends_s: u64,
    /// Size of all of the tenant's phext files.
    pub storage_used_bytes: u64,
    /// Age of that measurement at the time of the response.
    pub storage_age_ms: u64,
    /// Weight of each phext by name, to be compared with `Limits::phext_max_bytes`: its size, or more
    /// if it has many small scrolls.
    pub phexts: BTreeMap<String, u64>,
    /// The host's free disk space is below its floor: mutations are refused.
    pub host_full: bool,
}

impl TenantNotice {
    /// False while the ledger is being opened, when the numbers of requests are meaningless.
    pub fn knows_usage(&self) -> bool {
        self.day_ends_s != 0
    }

    /// End of the exhausted quota, in seconds since 1970: of the month if its requests are used up,
    /// else of the day. `None` if requests are left.
    pub fn requests_resume_s(&self, limits: &Limits) -> Option<u64> {
        if !self.knows_usage() {
            return None;
        }
        if is_exhausted(self.requests_month, limits.requests_per_month) {
            return Some(self.month_ends_s);
        }
        let is_day_exhausted = is_exhausted(self.requests_day, limits.requests_per_day);
        is_day_exhausted.then_some(self.day_ends_s)
    }

    /// True if one of the quotas in `limits` is used up.
    pub fn is_over(&self, limits: &Limits) -> bool {
        is_exhausted(self.requests_day, limits.requests_per_day)
            || is_exhausted(self.requests_month, limits.requests_per_month)
            || is_exhausted(self.writes_day, limits.writes_per_day)
            || limits.egress_per_day_max().is_some_and(|cap| self.bytes_out_day >= cap)
    }
}

fn is_exhausted(used: u64, limit: CountLimit) -> bool {
    limit.max().is_some_and(|cap| used >= cap)
}

#[cfg(test)]
mod tests {
    use crate::{ByteLimit, Limits};
    #[cfg(target_family = "wasm")]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    use super::*;

    #[test]
    fn answered_bytes_are_a_quota() {
        let is_over = |used, cap| {
            let limits = Limits { egress_bytes_per_day: cap, ..Limits::default() };
            TenantNotice { bytes_out_day: used, ..TenantNotice::default() }.is_over(&limits)
        };
        assert!(!is_over(99, ByteLimit::Bytes(100)) && is_over(100, ByteLimit::Bytes(100)));
        assert!(is_over(0, ByteLimit::Bytes(0)), "zero allows nothing");
        assert!(!is_over(u64::MAX, ByteLimit::Unlimited));
    }

    #[test]
    fn exhausted_requests_resume_with_day_or_month() {
        let limits = Limits {
            requests_per_day: CountLimit::Count(10),
            requests_per_month: CountLimit::Count(100),
            ..Limits::default()
        };
        let notice = |requests_day, requests_month| TenantNotice {
            requests_day,
            requests_month,
            day_ends_s: 500,
            month_ends_s: 9_000,
            ..TenantNotice::default()
        };
        let resume = |day, month| notice(day, month).requests_resume_s(&limits);
        assert_eq!(
            [resume(9, 99), resume(10, 10), resume(10, 100)],
            [None, Some(500), Some(9_000)]
        );
        let unlimited = Limits {
            requests_per_day: CountLimit::Unlimited,
            requests_per_month: CountLimit::Unlimited,
            ..limits.clone()
        };
        assert_eq!(notice(10, 100).requests_resume_s(&unlimited), None);
        let unknown = TenantNotice { day_ends_s: 0, ..notice(10, 100) };
        assert_eq!(unknown.requests_resume_s(&limits), None, "the ledger is still being opened");
    }
}
