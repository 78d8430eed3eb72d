//! Every answer that the gateway gives itself is one row of one table: status, stable name, title.
//!
//! A refusal becomes a problem+json document (RFC 9457). Its `detail` is written for the client by
//! the code that refuses, never taken from a nested error.

use std::borrow::Cow;

use serde::Serialize;

/// Why a request is answered here and not by the tenant's SQ.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum RefusalKind {
    /// No key was sent.
    NoCredentials,
    /// What was sent is not a key.
    MalformedKey,
    /// The ranch does not know the key.
    UnknownKey,
    /// Two different keys were sent.
    ConflictingKeys,
    /// The tenant is suspended.
    Suspended,
    /// The ranch can't be reached and the key is not known here.
    RelayUnavailable,
    /// More unknown keys than the ranch is asked about.
    TooManyUnknownKeys,
    /// No such endpoint.
    UnknownEndpoint,
    /// The endpoint exists, not with this method.
    MethodNotAllowed,
    /// A parameter is missing, repeated, unknown or wrong.
    BadParameter,
    /// A header or the request line is wrong.
    BadRequest,
    /// The request took too long to arrive: Envoy's answer.
    RequestTimeout,
    /// The body is wrong.
    BadBody,
    /// The body is compressed or otherwise encoded.
    EncodedBody,
    /// The body is larger than the tenant's limit.
    BodyTooLarge,
    /// The phext would become larger than the tenant's limit.
    PhextTooLarge,
    /// The running SQ can't do this.
    NotImplemented,
    /// The bucket is empty.
    RateLimited,
    /// The day's or month's requests are used up.
    QuotaExceeded,
    /// The tenant's storage is used up.
    StorageFull,
    /// The tenant has as many phexts as it may.
    TooManyPhexts,
    /// The host's disk is below its floor.
    HostFull,
    /// The tenant's starts of this hour are used up.
    WakeBudget,
    /// The tenant can't be woken now.
    WakeFailed,
    /// The tenant is waiting for its turn to start.
    WakeQueued,
    /// The orchestrator can't be reached.
    OrchestratorUnavailable,
    /// The tenant has more on its way than its SQ can take soon.
    DatabaseBusy,
    /// The tenant's SQ could not be reached, or turned the request away before it did anything.
    DatabaseUnavailable,
    /// The tenant's SQ took too long: Envoy's answer.
    DatabaseTimeout,
    /// The tenant's SQ failed on the request.
    DatabaseFailed,
    /// A fault of ours.
    Internal,
}

/// One row of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Row {
    /// HTTP status.
    pub status: u16,
    /// Last part of the problem's `type`, and the metric's label.
    pub(crate) name: &'static str,
    /// The problem's `title`.
    pub(crate) title: &'static str,
}

const fn row(status: u16, name: &'static str, title: &'static str) -> Row {
    Row { status, name, title }
}

impl RefusalKind {
    /// All of them, each once and in order.
    pub(crate) const ALL: [Self; 31] = [
        Self::NoCredentials,
        Self::MalformedKey,
        Self::UnknownKey,
        Self::ConflictingKeys,
        Self::Suspended,
        Self::RelayUnavailable,
        Self::TooManyUnknownKeys,
        Self::UnknownEndpoint,
        Self::MethodNotAllowed,
        Self::BadParameter,
        Self::BadRequest,
        Self::RequestTimeout,
        Self::BadBody,
        Self::EncodedBody,
        Self::BodyTooLarge,
        Self::PhextTooLarge,
        Self::NotImplemented,
        Self::RateLimited,
        Self::QuotaExceeded,
        Self::StorageFull,
        Self::TooManyPhexts,
        Self::HostFull,
        Self::WakeBudget,
        Self::WakeFailed,
        Self::WakeQueued,
        Self::OrchestratorUnavailable,
        Self::DatabaseBusy,
        Self::DatabaseUnavailable,
        Self::DatabaseTimeout,
        Self::DatabaseFailed,
        Self::Internal,
    ];

    /// The row of this kind.
    pub(crate) const fn row(self) -> Row {
        match self {
            Self::NoCredentials => row(401, "no-credentials", "An API key is required"),
            Self::MalformedKey => row(401, "malformed-key", "The API key is malformed"),
            Self::UnknownKey => row(401, "unknown-key", "The API key is not known"),
            Self::ConflictingKeys => {
                row(400, "conflicting-keys", "Two different API keys were sent")
            }
            Self::Suspended => row(403, "suspended", "The account is suspended"),
            Self::RelayUnavailable => {
                row(503, "relay-unavailable", "The key can't be checked right now")
            }
            Self::TooManyUnknownKeys => {
                row(503, "too-many-unknown-keys", "Too many unknown keys are being tried")
            }
            Self::UnknownEndpoint => row(404, "unknown-endpoint", "There is no such endpoint"),
            Self::MethodNotAllowed => {
                row(405, "method-not-allowed", "The endpoint does not take this method")
            }
            Self::BadParameter => row(400, "bad-parameter", "A parameter is not right"),
            Self::BadRequest => row(400, "bad-request", "The request is not right"),
            Self::RequestTimeout => {
                row(408, "request-timeout", "The request took too long to arrive")
            }
            Self::BadBody => row(400, "bad-body", "The body is not right"),
            Self::EncodedBody => row(415, "encoded-body", "The body must not be encoded"),
            Self::BodyTooLarge => row(413, "body-too-large", "The body is too large"),
            Self::PhextTooLarge => row(413, "phext-too-large", "The phext would become too large"),
            Self::NotImplemented => row(501, "not-implemented", "This SQ version can't do that"),
            Self::RateLimited => row(429, "rate-limited", "Too many requests"),
            Self::QuotaExceeded => row(429, "quota-exceeded", "The quota is used up"),
            Self::StorageFull => row(507, "storage-full", "The storage is used up"),
            Self::TooManyPhexts => row(507, "too-many-phexts", "There are too many phexts"),
            Self::HostFull => row(507, "host-full", "The gateway's storage is used up"),
            Self::WakeBudget => row(429, "wake-budget", "The database was started too often"),
            Self::WakeFailed => row(503, "wake-failed", "The database can't be started right now"),
            Self::WakeQueued => row(503, "wake-queued", "The database waits for its turn to start"),
            Self::OrchestratorUnavailable => {
                row(503, "orchestrator-unavailable", "Databases can't be started right now")
            }
            Self::DatabaseBusy => row(503, "database-busy", "The database is busy"),
            Self::DatabaseUnavailable => {
                row(503, "database-unavailable", "The database can't be reached right now")
            }
            Self::DatabaseTimeout => row(504, "database-timeout", "The database took too long"),
            Self::DatabaseFailed => {
                row(502, "database-failed", "The database failed on this request")
            }
            Self::Internal => row(500, "internal", "The gateway made a mistake"),
        }
    }
}

/// A refusal on its way to a client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The row.
    pub kind: RefusalKind,
    /// What was wrong with this request and what to send instead; written for the client.
    pub detail: Cow<'static, str>,
    /// Which parameter was wrong.
    pub(crate) parameter: Option<Cow<'static, str>>,
    /// Something that would work.
    pub(crate) example: Option<Cow<'static, str>>,
    /// Seconds for `Retry-After`.
    pub(crate) retry_after_s: Option<u32>,
    /// Comma-separated methods for `Allow`.
    pub(crate) allow: Option<&'static str>,
    /// `used` and `cap` of a storage, body or quota refusal, in its own unit.
    pub(crate) used_and_cap: Option<(u64, u64)>,
}

/// The document, RFC 9457.
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
    /// A refusal with its text for the client.
    pub(crate) fn new(kind: RefusalKind, detail: impl Into<Cow<'static, str>>) -> Self {
        Self {
            kind,
            detail: detail.into(),
            parameter: None,
            example: None,
            retry_after_s: None,
            allow: None,
            used_and_cap: None,
        }
    }

    /// Names the parameter that was wrong.
    #[must_use]
    pub(crate) fn parameter(mut self, name: impl Into<Cow<'static, str>>) -> Self {
        self.parameter = Some(name.into());
        self
    }

    /// Shows something that would work.
    #[must_use]
    pub(crate) fn example(mut self, example: impl Into<Cow<'static, str>>) -> Self {
        self.example = Some(example.into());
        self
    }

    /// Says when to try again; at least one second.
    #[must_use]
    pub(crate) fn retry_after_s(mut self, seconds: u32) -> Self {
        self.retry_after_s = Some(seconds.max(1));
        self
    }

    /// Says which methods are taken.
    #[must_use]
    pub(crate) fn allow(mut self, methods: &'static str) -> Self {
        self.allow = Some(methods);
        self
    }

    /// Says how much is used of how much.
    #[must_use]
    pub(crate) fn used_and_cap(mut self, used: u64, cap: u64) -> Self {
        self.used_and_cap = Some((used, cap));
        self
    }

    /// HTTP status.
    pub fn status(&self) -> u16 {
        self.kind.row().status
    }

    /// The problem+json document; `base` is put before the kind's name to make the `type`.
    pub(crate) fn to_json(&self, base: &str) -> String {
        let row = self.kind.row();
        let problem = Problem {
            r#type: format!("{base}{}", row.name),
            title: row.title,
            status: row.status,
            detail: &self.detail,
            parameter: self.parameter.as_deref(),
            example: self.example.as_deref(),
            retry_after_s: self.retry_after_s,
            used: self.used_and_cap.map(|(used, _)| used),
            cap: self.used_and_cap.map(|(_, cap)| cap),
        };
        serde_json::to_string(&problem).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    #[cfg(target_family = "wasm")]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    #[test]
    fn each_kind_has_a_name_of_its_own_and_a_place_in_the_list() {
        let mut names = std::collections::BTreeSet::new();
        for (place, kind) in RefusalKind::ALL.into_iter().enumerate() {
            assert_eq!(kind as usize, place, "{kind:?}");
            assert!(names.insert(kind.row().name), "{kind:?}");
        }
        assert_eq!(RefusalKind::Internal as usize + 1, RefusalKind::ALL.len());
        // What a report may say: the ledger knows no other.
        names.insert(crate::limits::usage::GONE);
        assert!(names.into_iter().eq(protocol::usage::REASONS), "in the order of the alphabet");
    }

    #[test]
    fn a_refusal_is_a_problem_document_that_says_what_to_send() {
        let refusal = Refusal::new(RefusalKind::BadParameter, "c must be nine integers 1…999")
            .parameter("c")
            .example("1.1.1/1.1.1/1.1.1");
        assert_eq!(
            refusal.to_json("urn:sq:problem:"),
            "{\"type\":\"urn:sq:problem:bad-parameter\",\"title\":\"A parameter is not right\",\
             \"status\":400,\"detail\":\"c must be nine integers 1…999\",\"parameter\":\"c\",\
             \"example\":\"1.1.1/1.1.1/1.1.1\"}"
        );
    }
}
