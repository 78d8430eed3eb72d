//! What the gate answers itself: refusals as problem+json, preflights, a tenant's own numbers.

use std::borrow::Cow;

use protocol::headers;

use super::admit::timing;
use super::{Gate, Headers, Reply, StreamId};
use crate::{Refusal, RefusalKind};

/// `Server-Timing` of an answer to a request whose key nobody has looked at.
const NO_KEY: &str = "auth;desc=none";
/// RFC 9457.
pub(super) const PROBLEM: &str = "application/problem+json";
/// Methods that a browser may use; what is not an endpoint's own is refused later.
const CORS_METHODS: &str = "GET, HEAD, POST, DELETE, OPTIONS";
const CORS_HEADERS: &str = "Authorization, Content-Type, X-SQ-API-Key";
/// What a page may read of an answer besides the safelisted headers.
const CORS_EXPOSED: &str =
    "X-Request-Id, Server-Timing, RateLimit, RateLimit-Policy, Retry-After, X-SQ-Quota-Warning";
/// Stored HTML does nothing in a browser. Where Envoy's filters see an answer they put it in.
const POLICY: &str = "default-src 'none'; sandbox";
/// A browser asks again after a day; most cap it lower.
const CORS_MAX_AGE_S: &str = "86400";

/// A 503 or 429 that says when to come back.
pub(super) fn try_again(kind: RefusalKind, retry_after_s: u32) -> Refusal {
    let detail = match kind {
        RefusalKind::RelayUnavailable => {
            "The service that knows the keys does not answer; your request was not carried out."
        }
        RefusalKind::TooManyUnknownKeys => {
            "Keys that are not known here are checked at a limited rate; try again."
        }
        RefusalKind::OrchestratorUnavailable => {
            "Your database could not be reached in time; your request was not carried out."
        }
        RefusalKind::DatabaseBusy => "Too many of your requests are waiting; send fewer at once.",
        RefusalKind::DatabaseUnavailable => "Your database did not answer; it is being restarted.",
        RefusalKind::WakeQueued => "Many databases are being started; yours is waiting.",
        RefusalKind::WakeFailed => "Your database does not start; the operator has been told.",
        RefusalKind::QuotaExceeded => "Your requests of this day or month are used up.",
        RefusalKind::WakeBudget => "Your database was started too often within an hour.",
        _ => "Try again.",
    };
    Refusal::new(kind, detail).retry_after_s(retry_after_s)
}

impl Gate {
    /// A refusal as the answer to a stream; counted.
    pub(super) fn refuse(&mut self, id: StreamId, refusal: &Refusal) -> Reply {
        self.count_refusal(refusal.kind);
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.refused = Some(refusal.kind);
            stream.status = refusal.status();
        }
        self.reply(id, refusal)
    }

    fn reply(&self, id: StreamId, refusal: &Refusal) -> Reply {
        let mut out = self.headers(id, PROBLEM);
        if let Some(challenge) = challenge(refusal.kind) {
            out.push(("www-authenticate", Cow::Borrowed(challenge)));
        }
        if let Some(seconds) = refusal.retry_after_s {
            out.push(("retry-after", Cow::Owned(seconds.to_string())));
        }
        if refusal.kind == RefusalKind::EncodedBody {
            out.push(("accept-encoding", Cow::Borrowed("identity")));
        }
        if let Some(methods) = refusal.allow {
            out.push(("allow", Cow::Borrowed(methods)));
        }
        Reply {
            status: refusal.status(),
            headers: out,
            body: refusal.to_json(&self.config.problem_base),
        }
    }

    /// The answer to a browser that asks whether it may.
    pub(super) fn preflight(&self) -> Reply {
        let mut out: Headers = vec![("server-timing", Cow::Borrowed(NO_KEY))];
        if !self.config.cors_origin.is_empty() {
            self.add_cors(&mut out);
            out.push(("access-control-allow-methods", Cow::Borrowed(CORS_METHODS)));
            out.push(("access-control-allow-headers", Cow::Borrowed(CORS_HEADERS)));
            out.push(("access-control-max-age", Cow::Borrowed(CORS_MAX_AGE_S)));
        }
        Reply { status: 204, headers: out, body: String::new() }
    }

    /// An answer of our own with 200.
    pub(super) fn answer(&self, id: StreamId, content_type: &'static str, body: String) -> Reply {
        Reply { status: 200, headers: self.headers(id, content_type), body }
    }

    /// An answer of our own in place of SQ's. Envoy sends it past its filters, so what they put into
    /// every answer is put in here.
    pub(super) fn in_place(
        &self,
        id: StreamId,
        status: u16,
        content_type: &'static str,
        body: String,
    ) -> Reply {
        let mut out = self.headers(id, content_type);
        out.push(("content-security-policy", Cow::Borrowed(POLICY)));
        if let Some(stream) = self.streams.get(&id) {
            if let Some(warning) = &stream.warning {
                out.push((headers::QUOTA_WARNING, Cow::Owned(warning.clone())));
            }
            if let Some(kind) = stream.shadowed {
                out.push((headers::WOULD_REFUSE, Cow::Borrowed(kind.row().name)));
            }
        }
        Reply { status, headers: out, body }
    }

    /// What every answer of our own carries.
    fn headers(&self, id: StreamId, content_type: &'static str) -> Headers {
        let mut out: Headers = vec![
            ("content-type", Cow::Borrowed(content_type)),
            ("cache-control", Cow::Borrowed("no-store")),
            ("x-content-type-options", Cow::Borrowed("nosniff")),
        ];
        if let Some(stream) = self.streams.get(&id) {
            out.push(("server-timing", timing(stream.auth_hit, stream.wake)));
            if let Some(rate) = &stream.rate {
                out.push(("ratelimit", Cow::Owned(rate.header())));
                out.push(("ratelimit-policy", Cow::Owned(rate.policy.to_string())));
            }
        } else {
            out.push(("server-timing", Cow::Borrowed(NO_KEY)));
        }
        self.add_cors(&mut out);
        out
    }

    fn add_cors(&self, out: &mut Headers) {
        if self.config.cors_origin.is_empty() {
            return;
        }
        out.push(("access-control-allow-origin", Cow::Owned(self.config.cors_origin.clone())));
        out.push(("access-control-expose-headers", Cow::Borrowed(CORS_EXPOSED)));
        if self.config.cors_origin != "*" {
            out.push(("vary", Cow::Borrowed("Origin")));
        }
    }
}

/// RFC 6750, section 3: no error code when no credentials were sent; `invalid_request` when they
/// were sent in more than one way.
fn challenge(kind: RefusalKind) -> Option<&'static str> {
    match kind {
        RefusalKind::NoCredentials => Some("Bearer realm=\"sq\""),
        RefusalKind::ConflictingKeys => Some(
            "Bearer realm=\"sq\", error=\"invalid_request\", error_description=\"Two different API keys were sent\"",
        ),
        RefusalKind::MalformedKey => Some(
            "Bearer realm=\"sq\", error=\"invalid_token\", error_description=\"The API key is malformed\"",
        ),
        RefusalKind::UnknownKey => Some(
            "Bearer realm=\"sq\", error=\"invalid_token\", error_description=\"The API key is not known\"",
        ),
        _ => None,
    }
}
