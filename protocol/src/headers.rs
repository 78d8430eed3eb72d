//! Names of headers, paths and clusters that several parts use.

/// Prefix of the gateway's own headers. A client's headers with this prefix are dropped, except
/// [`API_KEY`].
pub const RESERVED_PREFIX: &str = "x-sq-";
/// Request header that names the cluster to which Envoy routes (`cluster_header`).
pub const CLUSTER: &str = "x-sq-cluster";

/// Request headers whose values Envoy copies into the response.
///
/// The filter adds them to the rebuilt *request*. Envoy stores them as filter state, removes them
/// before it forwards the request to SQ, and writes them into the response
/// (`%FILTER_STATE(sq.type:PLAIN)%`, see `envoy/`). So the filter needs no hostcall on the response
/// path. A header whose value is the default of Envoy's configuration is left out: each costs about
/// 0.5 µs.
pub mod response {
    /// Value of `content-type` in the absence of [`TYPE`].
    pub const DEFAULT_TYPE: &str = "text/plain; charset=utf-8";
    /// Value of `access-control-allow-origin` in the absence of [`CORS`].
    pub const DEFAULT_CORS: &str = "*";
    /// Becomes the header `content-type`.
    pub const TYPE: &str = "x-sq-response-type";
    /// Becomes the header `server-timing`.
    pub const TIMING: &str = "x-sq-response-timing";
    /// Becomes the header `access-control-allow-origin`.
    pub const CORS: &str = "x-sq-response-cors";
    /// Becomes the header `ratelimit`.
    pub const RATE: &str = "x-sq-response-ratelimit";
    /// Becomes the header `ratelimit-policy`.
    pub const POLICY: &str = "x-sq-response-ratelimit-policy";
    /// Becomes the header [`super::QUOTA_WARNING`].
    pub const WARNING: &str = "x-sq-response-quota-warning";
    /// Becomes the header [`super::WOULD_REFUSE`].
    pub const SHADOW: &str = "x-sq-response-would-refuse";
}

/// Response header: names a quota that is nearly used up.
pub const QUOTA_WARNING: &str = "x-sq-quota-warning";
/// Response header in shadow mode: names the refusal that was not enforced.
pub const WOULD_REFUSE: &str = "x-sq-would-refuse";
/// One of the three places in which a client may send its key.
pub const API_KEY: &str = "x-sq-api-key";
/// Prefix of the tenants' clusters, which are named `sq/<tenant>`.
pub const CLUSTER_PREFIX: &str = "sq/";

/// Path of verify requests, on the relay.
pub const VERIFY_PATH: &str = "/v1/verify";
/// Path of the changes feed, on the relay.
pub const CHANGES_PATH: &str = "/v1/changes";
/// Path of lease requests, on the orchestrator.
pub const LEASE_PATH: &str = "/v1/lease";
/// Path of usage reports, on the orchestrator.
pub const USAGE_PATH: &str = "/v1/usage";
/// Path of one tenant's usage, on the orchestrator; the tenant's name follows it.
pub const TENANT_USAGE_PATH: &str = "/v1/usage/";
