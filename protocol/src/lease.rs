//! Filter → orchestrator: may I route to this tenant (`POST /v1/lease`).
//!
//! A lease is the promise that the tenant's cluster exists in the asking Envoy and its SQ answers,
//! until `lease_ms` have passed. The filter counts from before its call, the orchestrator from
//! after its answer, so the filter's lease always ends first. A lease renewed is a tenant in use.

use serde::{Deserialize, Serialize};

use crate::{GatewayId, Limits, SqVersion, TenantId, TierName};

/// Body of `POST /v1/lease`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseRequest {
    /// The Envoy that asks, by its `node.id`: its ACK is waited for.
    pub gateway: GatewayId,
    /// Whom to wake.
    pub tenant: TenantId,
    /// The tenant's tier, for status, priority and revenue.
    pub tier: TierName,
    /// The tenant's limits as of the verdict.
    pub limits: Limits,
    /// The tenant is held by requests in flight, nothing new was asked: never wakes it.
    #[serde(default)]
    pub renew_only: bool,
    /// Refuse it, and wake nobody, when the requests of its day or month are used up.
    #[serde(default)]
    pub within_quotas: bool,
    /// How long the asker waits for the answer; `None`: as long as the orchestrator thinks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub patience_ms: Option<u64>,
}

/// Answer 200 to `POST /v1/lease`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseResponse {
    /// Value for `x-sq-cluster`.
    pub cluster: String,
    /// How long the lease holds.
    pub lease_ms: u64,
    /// What it took.
    pub wake: WakeKind,
    /// How long that took; 0 with [`WakeKind::None`].
    #[serde(default)]
    pub wake_ms: u64,
    /// Of all who waited for this wake, the asker is the one that it is counted for.
    #[serde(default)]
    pub waker: bool,
    /// The release of SQ behind the cluster.
    pub sq_version: SqVersion,
    /// What the tenant has used so far.
    #[serde(default)]
    pub notice: TenantNotice,
}

/// What it took to have the tenant awake.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize,
)]
#[serde(rename_all = "snake_case")]
pub enum WakeKind {
    /// It was awake.
    #[default]
    None,
    /// It was paused.
    Doze,
    /// It was stopped; its container stood.
    Start,
    /// Its container had to be made.
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

/// Answer 503 (or 429 for [`LeaseRefusalKind::WakeBudget`] and [`LeaseRefusalKind::Quota`]) to
/// `POST /v1/lease`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseRefusal {
    /// Why.
    pub kind: LeaseRefusalKind,
    /// When asking again makes sense.
    pub retry_after_s: u32,
    /// For the operator's log; never shown to a client.
    #[serde(default)]
    pub detail: String,
    /// With [`LeaseRefusalKind::Quota`]: what was used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub notice: Option<TenantNotice>,
}

/// Why no lease was given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LeaseRefusalKind {
    /// More tenants want to start than can within the client's patience.
    Queue,
    /// The tenant's SQ fails to start and backs off.
    Failing,
    /// The tenant's data needs the operator.
    Damaged,
    /// The tenant used up its starts of this hour.
    WakeBudget,
    /// The requests of the tenant's day or month are used up.
    Quota,
    /// The asking Envoy is not connected over xDS, or refused the cluster.
    Gateway,
    /// The orchestrator is shutting down or starting up.
    Unavailable,
    /// `renew_only` and the tenant is not awake.
    Asleep,
}

/// Facts about a tenant that only the orchestrator knows; the filter decides with them. Comes with
/// every lease and every usage answer.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct TenantNotice {
    /// Requests of this UTC day, over all gateways.
    pub requests_day: u64,
    /// Requests of this UTC month, over all gateways.
    pub requests_month: u64,
    /// Mutating requests of this UTC day, over all gateways.
    pub writes_day: u64,
    /// When the day ends, seconds since 1970 UTC; 0: not known.
    pub day_ends_s: u64,
    /// When the month ends, seconds since 1970 UTC; 0: not known.
    pub month_ends_s: u64,
    /// Sum of the tenant's phext files.
    pub storage_used_bytes: u64,
    /// How long before this answer the files were measured.
    pub storage_age_ms: u64,
    /// What each phext of the tenant counts against the largest, by name: its size, or more where it
    /// has many small scrolls.
    pub phexts: std::collections::BTreeMap<String, u64>,
    /// The host's disk is below its floor: no mutations.
    pub host_full: bool,
}

impl TenantNotice {
    /// Whether its numbers of requests mean anything: not while the ledger is being read.
    pub fn knows_usage(&self) -> bool {
        self.day_ends_s != 0
    }

    /// When requests are allowed again, seconds since 1970 UTC, if those of the day or of the month
    /// are used up; with both, when the month ends.
    pub fn requests_resume_s(&self, limits: &crate::Limits) -> Option<u64> {
        let over = |used: u64, cap: u64| self.knows_usage() && cap > 0 && used >= cap;
        if over(self.requests_month, limits.requests_per_month) {
            return Some(self.month_ends_s);
        }
        over(self.requests_day, limits.requests_per_day).then_some(self.day_ends_s)
    }

    /// Whether one of the quotas in `limits` is used up.
    pub fn is_over(&self, limits: &crate::Limits) -> bool {
        let over = |used: u64, cap: u64| cap > 0 && used >= cap;
        over(self.requests_day, limits.requests_per_day)
            || over(self.requests_month, limits.requests_per_month)
            || over(self.writes_day, limits.writes_per_day)
    }
}

#[cfg(test)]
mod tests {
    use crate::Limits;
    #[cfg(target_family = "wasm")]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    use super::*;

    #[test]
    fn used_up_requests_come_back_when_the_day_ends_or_the_month() {
        let limits = Limits { requests_per_day: 10, requests_per_month: 100, ..Limits::default() };
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
        let unlimited = Limits { requests_per_day: 0, requests_per_month: 0, ..limits.clone() };
        assert_eq!(notice(10, 100).requests_resume_s(&unlimited), None);
        let unknown = TenantNotice { day_ends_s: 0, ..notice(10, 100) };
        assert_eq!(unknown.requests_resume_s(&limits), None, "the ledger is still read");
    }
}
