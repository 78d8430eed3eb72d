//! Refusals: every error response of the gateway is one row of one table.
//!
//! A refusal becomes a problem document (RFC 9457). [`TABLE`] holds all that is fixed for a kind,
//! the text of its detail included; `details.rs` fills in what depends on the request. No text for
//! clients is taken from a nested error. Envoy makes some of these refusals itself: a test compares
//! `local_reply_config` in `envoy/bootstrap.yaml` and the list in `docs/refusals.md` with the table.

use std::borrow::Cow;

use serde::Serialize;

pub(crate) mod details;
#[cfg(test)]
mod tests;

/// The reason why a request was not served.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum RefusalKind {
    /// The request has no API key.
    NoCredentials,
    /// The value sent as API key is not one.
    MalformedKey,
    /// The registry has no such key.
    UnknownKey,
    /// The request has two different keys.
    ConflictingKeys,
    /// The tenant is suspended.
    Suspended,
    /// The relay cannot be reached, and the key is not cached.
    RelayUnavailable,
    /// The budget for verifications of unknown keys is used up.
    TooManyUnknownKeys,
    /// There is no such endpoint.
    UnknownEndpoint,
    /// The endpoint exists but not with this method.
    MethodNotAllowed,
    /// A parameter is missing, repeated, unknown or invalid.
    BadParameter,
    /// The request line or a header is invalid.
    BadRequest,
    /// The request took too long to arrive. Made by Envoy.
    RequestTimeout,
    /// The body is invalid.
    BadBody,
    /// The body is compressed or otherwise encoded.
    EncodedBody,
    /// The request says that it is gRPC.
    Grpc,
    /// The body is larger than the tenant's limit.
    BodyTooLarge,
    /// The phext would grow beyond the tenant's limit.
    PhextTooLarge,
    /// The tenant's SQ, or this gateway, does not have the function.
    NotImplemented,
    /// The tenant's bucket is empty.
    RateLimited,
    /// The requests of the day or month are used up.
    QuotaExceeded,
    /// The bytes that the tenant may be answered in a day are used up.
    EgressQuotaExceeded,
    /// The tenant's storage is full.
    StorageFull,
    /// The tenant has as many phexts as its tier allows.
    TooManyPhexts,
    /// Free space on the host's disk is below its floor.
    HostFull,
    /// The tenant's starts of this hour are used up.
    WakeBudget,
    /// The tenant cannot be woken.
    WakeFailed,
    /// The tenant waits for a start permit.
    WakeQueued,
    /// The orchestrator cannot be reached.
    OrchestratorUnavailable,
    /// The tenant has more requests in flight than its SQ can take soon.
    DatabaseBusy,
    /// The tenant's SQ could not be reached, or rejected the request before it did anything.
    DatabaseUnavailable,
    /// The tenant's SQ took too long. Made by Envoy.
    DatabaseTimeout,
    /// The tenant's SQ failed on the request.
    DatabaseFailed,
    /// A fault of the gateway.
    Internal,
}

/// All that is fixed for a kind of refusal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Row {
    pub(crate) kind: RefusalKind,
    /// The HTTP status.
    pub(crate) status: u16,
    /// The last part of the problem's `type`, the label of its counter, and its name in the ledger.
    pub(crate) name: &'static str,
    /// The problem's `title`.
    pub(crate) title: &'static str,
    /// The problem's `detail`, with `{argument}` for what depends on the request.
    pub(crate) detail: &'static str,
    /// The `WWW-Authenticate` header of a 401, or of a 400 about the key.
    pub(crate) challenge: Option<Challenge>,
    /// `Retry-After` in seconds, unless the refusal comes with its own.
    pub(crate) retry_after_s: Option<u32>,
}

/// The error code of a challenge (RFC 6750, section 3). Its description is the row's title.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Challenge {
    /// The request had no credentials, so there is no error to report.
    Bare,
    /// The credentials were sent in more than one way.
    InvalidRequest,
    /// The credentials are malformed or unknown.
    InvalidToken,
}

use Challenge::{Bare, InvalidRequest, InvalidToken};
use RefusalKind as K;

/// One row per kind, in their order.
#[rustfmt::skip]
pub(crate) const TABLE: [Row; 33] = [
    row(K::NoCredentials, 401, "no-credentials", "API key required",
        "Send your API key with each request.").challenge(Bare),
    row(K::MalformedKey, 401, "malformed-key", "Malformed API key",
        "An API key is `pmb-v1-` followed by 32 hexadecimal digits.").challenge(InvalidToken),
    row(K::UnknownKey, 401, "unknown-key", "Unknown API key",
        "The API key does not exist, was revoked or has expired.").challenge(InvalidToken),
    row(K::ConflictingKeys, 400, "conflicting-keys", "Conflicting API keys",
        "The request has two different API keys: send one.").challenge(InvalidRequest),
    row(K::Suspended, 403, "suspended", "Account suspended",
        "The account is suspended. Its data is kept."),
    row(K::RelayUnavailable, 503, "relay-unavailable", "API key cannot be verified right now",
        "The service that verifies API keys is not responding. Your request was not carried out.")
        .retry_after(1),
    row(K::TooManyUnknownKeys, 429, "too-many-unknown-keys", "Too many unknown API keys",
        "Unknown API keys are verified at a limited rate. Your request was not carried out.")
        .retry_after(1),
    row(K::UnknownEndpoint, 404, "unknown-endpoint", "Unknown endpoint",
        "The path must be {base} followed by one of: {endpoints}."),
    row(K::MethodNotAllowed, 405, "method-not-allowed", "Method not allowed",
        "The endpoint `{endpoint}` does not take the method `{method}`: use one of {allowed}."),
    row(K::BadParameter, 400, "bad-parameter", "Invalid parameter",
        "Invalid parameter `{parameter}`: {fault}."),
    row(K::BadRequest, 400, "bad-request", "Malformed request",
        "Malformed request: {fault}."),
    row(K::RequestTimeout, 408, "request-timeout", "Request timed out",
        "The whole request must arrive within 60 s."),
    row(K::BadBody, 400, "bad-body", "Invalid body",
        "Invalid body: {fault}."),
    row(K::EncodedBody, 415, "encoded-body", "Encoded body not supported",
        "Bodies are stored as they are: send this one without `Content-Encoding`."),
    row(K::Grpc, 415, "grpc", "gRPC not supported",
        "SQ does not speak gRPC: send a `Content-Type` other than `application/grpc`."),
    row(K::BodyTooLarge, 413, "body-too-large", "Body too large",
        "The body is larger than the {max} bytes that your tier allows."),
    row(K::PhextTooLarge, 413, "phext-too-large", "Phext too large",
        "The phext might grow to {size} bytes, and your tier allows {cap}. Use another phext or ask \
         for a higher tier."),
    row(K::NotImplemented, 501, "not-implemented", "Not implemented",
        "{reason}."),
    row(K::RateLimited, 429, "rate-limited", "Too many requests",
        "Your tier allows {burst} requests at once and a limited rate. The `RateLimit` header shows \
         how many are left.").retry_after(1),
    row(K::QuotaExceeded, 429, "quota-exceeded", "Quota exceeded",
        "All {cap} {unit} are used. The next period begins in {wait_s} s. A higher tier takes effect \
         at once."),
    row(K::EgressQuotaExceeded, 429, "egress-quota-exceeded", "Quota of response bytes exceeded",
        "The responses of this day (UTC) have all {cap} bytes that your tier allows. Writes still \
         work. The next day begins in {wait_s} s. A higher tier takes effect at once."),
    row(K::StorageFull, 507, "storage-full", "Storage full",
        "{used} of {cap} bytes are used, and this write might not fit. Delete scrolls or ask for a \
         higher tier."),
    row(K::TooManyPhexts, 507, "too-many-phexts", "Too many phexts",
        "There is no phext of this name, and your tier allows {cap} phexts. Use an existing one or \
         ask for a higher tier. Empty phexts, which reading creates, are removed while the database \
         sleeps."),
    row(K::HostFull, 507, "host-full", "Gateway storage full",
        "The gateway's disk is nearly full: nothing can be changed until its operator has freed \
         space. Reading works.").retry_after(60),
    row(K::WakeBudget, 429, "wake-budget", "Database started too often",
        "Your database was started too often within an hour.").retry_after(1),
    row(K::WakeFailed, 503, "wake-failed", "Database cannot be started",
        "Your database does not start. The operator's log says why.").retry_after(1),
    row(K::WakeQueued, 503, "wake-queued", "Database is waiting to start",
        "Many databases are starting, and yours is waiting for its turn.").retry_after(1),
    row(K::OrchestratorUnavailable, 503, "orchestrator-unavailable",
        "Databases cannot be started right now",
        "The service that starts databases did not respond in time. Your request was not carried out.")
        .retry_after(1),
    row(K::DatabaseBusy, 503, "database-busy", "Database busy",
        "Too many of your requests are waiting. Send fewer at once.").retry_after(1),
    row(K::DatabaseUnavailable, 503, "database-unavailable", "Database unavailable",
        "Your database did not respond. It is being restarted.").retry_after(1),
    row(K::DatabaseTimeout, 504, "database-timeout", "Database timed out",
        "Your database did not respond within 30 s. The request may still take effect."),
    row(K::DatabaseFailed, 502, "database-failed", "Database failed",
        "Your database failed on this request. If it was a write, check whether it took effect."),
    row(K::Internal, 500, "internal", "Internal error",
        "The gateway failed on this request. Try again, and report the request ID to the operator if \
         it fails again.").retry_after(1),
];

const fn row(
    kind: RefusalKind,
    status: u16,
    name: &'static str,
    title: &'static str,
    detail: &'static str,
) -> Row {
    Row { kind, status, name, title, detail, challenge: None, retry_after_s: None }
}

impl Row {
    const fn challenge(mut self, challenge: Challenge) -> Self {
        self.challenge = Some(challenge);
        self
    }

    const fn retry_after(mut self, seconds: u32) -> Self {
        self.retry_after_s = Some(seconds);
        self
    }

    /// Value of `WWW-Authenticate`.
    pub(crate) fn www_authenticate(&self) -> Option<Cow<'static, str>> {
        let error = match self.challenge? {
            Challenge::Bare => return Some(Cow::Borrowed("Bearer realm=\"sq\"")),
            Challenge::InvalidRequest => "invalid_request",
            Challenge::InvalidToken => "invalid_token",
        };
        let title = self.title;
        Some(Cow::Owned(format!(
            "Bearer realm=\"sq\", error=\"{error}\", error_description=\"{title}\""
        )))
    }
}

impl RefusalKind {
    /// The row of this kind.
    pub(crate) const fn row(self) -> &'static Row {
        const ROWS: &[Row; 33] = &TABLE;
        &ROWS[self as usize]
    }
}

/// A refusal of one request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    pub(crate) kind: RefusalKind,
    /// The fault of this request and the way out, written for the client.
    pub detail: Cow<'static, str>,
    /// The parameter at fault.
    pub(crate) parameter: Option<Cow<'static, str>>,
    /// A request that would work.
    pub(crate) example: Option<&'static str>,
    /// Value of `Retry-After`, in seconds.
    pub(crate) retry_after_s: Option<u32>,
    /// Value of `Allow`: methods, separated by commas.
    pub(crate) allow: Option<&'static str>,
    /// `used` and `cap` of a refusal for size, storage or quota, each in the limit's own unit.
    pub(crate) used_and_cap: Option<(u64, u64)>,
}

/// A problem document (RFC 9457) with our extensions.
#[derive(Serialize)]
struct Problem<'a> {
    r#type: String,
    title: &'a str,
    status: u16,
    detail: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    parameter: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    example: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    retry_after_s: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    used: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cap: Option<u64>,
}

impl Refusal {
    /// The HTTP status of the response.
    pub fn status(&self) -> u16 {
        self.kind.row().status
    }

    /// The problem document. Its `type` is `base` followed by the kind's name.
    pub(crate) fn to_json(&self, base: &str) -> String {
        let row = self.kind.row();
        let problem = Problem {
            r#type: format!("{base}{}", row.name),
            title: row.title,
            status: row.status,
            detail: &self.detail,
            parameter: self.parameter.as_deref(),
            example: self.example,
            retry_after_s: self.retry_after_s,
            used: self.used_and_cap.map(|(used, _)| used),
            cap: self.used_and_cap.map(|(_, cap)| cap),
        };
        serde_json::to_string(&problem).unwrap_or_default()
    }
}
