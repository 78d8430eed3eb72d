//! Filter → relay: verification of a key (`POST /v1/verify`), and the changes feed (`GET
//! /v1/changes`, a long poll).
//!
//! The registry has a *revision*, which grows by one with every change that alters a verdict, within
//! an *epoch*, one run of the relay process. A verdict is correct as of its revision. A filter that
//! follows the feed and drops the verdicts that it names never serves an outdated one for longer than
//! one response of the long poll takes.

use serde::{Deserialize, Serialize};

use crate::{KeyHash, Limits, TenantId, TierName};

/// One run of the relay process. Revisions are comparable only within it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct Epoch(pub String);

/// Body of `POST /v1/verify`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerifyRequest {
    /// SHA-256 of the client's key.
    pub key_sha256: KeyHash,
}

/// Response to `POST /v1/verify`, always with status 200.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerifyResponse {
    /// The relay's present epoch.
    pub epoch: Epoch,
    /// Revision of the registry that the response is based on.
    pub revision: u64,
    /// `None` if the key does not exist or has expired.
    pub verdict: Option<Verdict>,
}

/// The registry's answer about a key: its tenant and what the tenant may use.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// The tenant that the key belongs to.
    pub tenant: TenantId,
    /// The tenant's tier.
    pub tier: TierName,
    /// Active or suspended.
    pub status: TenantStatus,
    /// Expiry of the key, in seconds since 1970; `None` if it does not expire.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_s: Option<u64>,
    /// The tier's limits with the tenant's exceptions applied.
    #[serde(default)]
    pub limits: Limits,
}

/// A tenant's standing with the operator.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TenantStatus {
    /// The tenant is served.
    Active,
    /// The tenant's requests are refused with 403.
    Suspended,
}

/// Query of `GET /v1/changes?epoch=…&since=…&wait_ms=…`. Without `epoch` the relay responds at once
/// with the epoch and revision to start from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangesRequest {
    /// The epoch that the filter follows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epoch: Option<Epoch>,
    /// The last revision that the filter has applied.
    #[serde(default)]
    pub since: u64,
    /// Longest wait for a change before the relay responds without one.
    #[serde(default)]
    pub wait_ms: u32,
}

/// Response to `GET /v1/changes`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangesResponse {
    /// The relay's present epoch.
    pub epoch: Epoch,
    /// The registry's present revision.
    pub revision: u64,
    /// The changes are unknown, as `since` is of another epoch or too long ago: every verdict must be
    /// verified again. `changed` is empty then.
    #[serde(default)]
    pub reset: bool,
    /// Digests of the keys whose verdicts have changed after `since`.
    #[serde(default)]
    pub changed: Vec<KeyHash>,
}
