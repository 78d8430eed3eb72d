//! Names of headers, paths and clusters that more than one part knows.

/// Every header that starts so belongs to the gateway: a client's own are dropped.
pub const RESERVED_PREFIX: &str = "x-sq-";
/// Which cluster Envoy routes to (`cluster_header`).
pub const CLUSTER: &str = "x-sq-cluster";
/// What the answer's headers are to be. The filter writes these into the rebuilt *request*, and Envoy
/// keeps them as filter state, takes them out of what SQ gets, and copies them into the answer
/// (`%FILTER_STATE(sq.type:PLAIN)%`), which costs no hostcall: see `envoy/`. Left out where there is
/// nothing to say but what its configuration does by itself: each header costs about 0.5 µs.
pub mod answer {
    /// What Envoy says without [`TYPE`].
    pub const DEFAULT_TYPE: &str = "text/plain; charset=utf-8";
    /// What Envoy says without [`CORS`].
    pub const DEFAULT_CORS: &str = "*";
    /// For `content-type`.
    pub const TYPE: &str = "x-sq-answer-type";
    /// For `server-timing`.
    pub const TIMING: &str = "x-sq-answer-timing";
    /// For `access-control-allow-origin`.
    pub const CORS: &str = "x-sq-answer-cors";
    /// For `ratelimit`.
    pub const RATE: &str = "x-sq-answer-ratelimit";
    /// For `ratelimit-policy`.
    pub const POLICY: &str = "x-sq-answer-ratelimit-policy";
    /// For [`super::QUOTA_WARNING`].
    pub const WARNING: &str = "x-sq-answer-quota-warning";
    /// For [`super::WOULD_REFUSE`].
    pub const SHADOW: &str = "x-sq-answer-would-refuse";
}
/// On an answer: a quota that is nearly used up.
pub const QUOTA_WARNING: &str = "x-sq-quota-warning";
/// On an answer in shadow mode: the kind of the refusal that was not made.
pub const WOULD_REFUSE: &str = "x-sq-would-refuse";
/// One of the three places a client may put its key.
pub const API_KEY: &str = "x-sq-api-key";
/// Clusters of tenants are named `sq/<tenant>`.
pub const CLUSTER_PREFIX: &str = "sq/";

/// Path of the relay's question.
pub const VERIFY_PATH: &str = "/v1/verify";
/// Path of the relay's long poll.
pub const CHANGES_PATH: &str = "/v1/changes";
/// Path of the orchestrator's lease.
pub const LEASE_PATH: &str = "/v1/lease";
/// Path of the orchestrator's ledger.
pub const USAGE_PATH: &str = "/v1/usage";
/// Path of a tenant's own numbers, on the orchestrator: `GET /v1/usage/<tenant>`.
pub const TENANT_USAGE_PATH: &str = "/v1/usage/";
