//! Filter → relay: is this key good (`POST /v1/verify`), and what has changed since
//! (`GET /v1/changes`, a long poll).
//!
//! The registry has a *revision* that grows by one with every change that alters a verdict, within
//! an *epoch* (one life of the relay process). A verdict is right as of its revision. A filter that
//! follows the changes and drops what they name never serves a verdict that is out of date for
//! longer than one answer of the long poll takes.

use serde::{Deserialize, Serialize};

use crate::{KeyHash, Limits, TenantId, TierName};

/// One life of the relay: revisions are comparable only within it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct Epoch(pub String);

/// Body of `POST /v1/verify`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerifyRequest {
    /// SHA-256 of the client's key.
    pub key_sha256: KeyHash,
}

/// Answer to `POST /v1/verify`, always with status 200.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerifyResponse {
    /// The relay's life.
    pub epoch: Epoch,
    /// The registry as this answer saw it.
    pub revision: u64,
    /// `None`: no such key (or it has expired).
    pub verdict: Option<Verdict>,
}

/// What the registry says of a key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// Whose key it is.
    pub tenant: TenantId,
    /// The tier it pays for.
    pub tier: TierName,
    /// Whether the tenant may be served.
    pub status: TenantStatus,
    /// When the key ends, seconds since 1970 UTC; `None`: it does not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_s: Option<u64>,
    /// The tier's limits with the tenant's exceptions applied.
    #[serde(default)]
    pub limits: Limits,
}

/// Whether a tenant may be served.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TenantStatus {
    /// Yes.
    Active,
    /// No: answered with 403.
    Suspended,
}

/// Query of `GET /v1/changes?epoch=…&since=…&wait_ms=…`. Without `epoch` the answer comes at once
/// and tells where to start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangesRequest {
    /// The epoch the filter follows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epoch: Option<Epoch>,
    /// The last revision the filter has dealt with.
    #[serde(default)]
    pub since: u64,
    /// How long the relay may wait for a change before it answers with none.
    #[serde(default)]
    pub wait_ms: u32,
}

/// Answer to `GET /v1/changes`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangesResponse {
    /// The relay's life.
    pub epoch: Epoch,
    /// The registry's revision now.
    pub revision: u64,
    /// The relay can't say what changed (other epoch, or too long ago): everything must be asked
    /// anew. `changed` is empty then.
    #[serde(default)]
    pub reset: bool,
    /// Digests whose verdict differs from what it was at `since`.
    #[serde(default)]
    pub changed: Vec<KeyHash>,
}
