//! Responses of the gateway itself: refusals as problem+json, preflights, the tenant's own pages.

use std::borrow::Cow;

use protocol::headers;

use super::Gate;
use super::forwarding::server_timing;
use super::head::RequestHead;
use super::metrics::Metric;
use super::stream::{State, Stream};
use crate::effect::{Effect, Headers, Reply, StreamId};
use crate::http::response::TEXT;
use crate::http::{pages, request};
use crate::{Refusal, RefusalKind};

/// `Server-Timing` of a reply to a request whose key was not looked up.
const NO_KEY: &str = "auth;desc=none";
/// Media type of RFC 9457.
pub(super) const PROBLEM: &str = "application/problem+json";
/// Methods that a page may send: all. It can read the refusal of one that an endpoint does not take,
/// which is better than "Failed to fetch".
const CORS_METHODS: &str = "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS";
/// Headers that a page may send: all, because SQ gets none of them. `*` does not stand for
/// `Authorization`.
const CORS_HEADERS: &str = "Authorization, Content-Type, X-SQ-API-Key, *";
/// Response headers that a page may read in addition to the safelisted ones.
const CORS_EXPOSED: &str = "X-Request-Id, Server-Timing, RateLimit, RateLimit-Policy, Retry-After, X-SQ-Quota-Warning, Allow, \
     WWW-Authenticate";
/// Makes stored HTML inert in a browser. Responses that pass Envoy's filters get it from Envoy.
const CONTENT_SECURITY: &str = "default-src 'none'; sandbox";
/// Cache time of a preflight in browsers: a day, which most of them cap lower.
const CORS_MAX_AGE_S: &str = "86400";

impl Gate {
    /// Refuses a request, in whatever state it is. After the request was forwarded, the headers of
    /// the refusal follow with the response's head, where they replace those of Envoy.
    pub(super) fn refuse(&mut self, stream: &mut Stream, refusal: &Refusal) {
        self.counts.add_refusal(refusal.kind);
        stream.status = refusal.status();
        let mut reply = self.problem(Some(stream), refusal);
        let late_headers = match &stream.state {
            State::Forwarded(exchange) | State::Parked { exchange, .. } => {
                self.end_lease_use(exchange);
                Some(std::mem::take(&mut reply.headers))
            }
            State::Waiting { .. } | State::Answered { .. } => None,
        };
        stream.state = State::Answered { refused: Some(refusal.kind), late_headers };
        self.effects.push_back(Effect::Reply(stream.id, reply));
    }

    /// Refuses a request without a usable key. It is in no tenant's usage.
    pub(super) fn refuse_unidentified(&mut self, id: StreamId, refusal: &Refusal) {
        self.counts.add_refusal(refusal.kind);
        let reply = self.problem(None, refusal);
        self.effects.push_back(Effect::Reply(id, reply));
    }

    /// Answers a request without SQ.
    pub(super) fn answer(&mut self, stream: &mut Stream, reply: Reply) {
        self.counts.add(Metric::Answered);
        stream.state = State::Answered { refused: None, late_headers: None };
        self.effects.push_back(Effect::Reply(stream.id, reply));
    }

    fn problem(&self, stream: Option<&Stream>, refusal: &Refusal) -> Reply {
        let mut out = self.reply_headers(stream, PROBLEM);
        if let Some(challenge) = refusal.kind.row().www_authenticate() {
            out.push(("www-authenticate", challenge));
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

    /// The reply to a request that needs no key: a preflight, `OPTIONS`, a page for everybody.
    pub(super) fn public_reply(&self, head: &RequestHead) -> Option<Reply> {
        if head.is_preflight {
            return Some(self.preflight());
        }
        if head.method == "OPTIONS" {
            let allow = request::allowed_methods(&head.path)?;
            let mut headers = self.reply_headers(None, TEXT);
            headers.push(("allow", Cow::Borrowed(allow)));
            return Some(Reply { status: 204, headers, body: String::new() });
        }
        let page = matches!(&*head.method, "GET" | "HEAD").then(|| pages::find(&head.path))??;
        let headers = self.reply_headers(None, page.content_type);
        Some(Reply { status: 200, headers, body: page.body.to_owned() })
    }

    /// The reply to a CORS preflight.
    fn preflight(&self) -> Reply {
        let mut out: Headers = vec![("server-timing", Cow::Borrowed(NO_KEY))];
        if !self.config.cors_origin.is_empty() {
            self.add_cors(&mut out);
            out.push(("access-control-allow-methods", Cow::Borrowed(CORS_METHODS)));
            out.push(("access-control-allow-headers", Cow::Borrowed(CORS_HEADERS)));
            out.push(("access-control-max-age", Cow::Borrowed(CORS_MAX_AGE_S)));
        }
        Reply { status: 204, headers: out, body: String::new() }
    }

    /// A reply with status 200.
    pub(super) fn reply_with(
        &self,
        stream: &Stream,
        content_type: &'static str,
        body: String,
    ) -> Reply {
        Reply { status: 200, headers: self.reply_headers(Some(stream), content_type), body }
    }

    /// A reply that replaces SQ's response. Envoy sends it past its filters, so it carries itself
    /// the headers that they would add.
    pub(super) fn reply_in_place(
        &self,
        stream: &Stream,
        status: u16,
        content_type: &'static str,
        body: String,
    ) -> Reply {
        let mut out = self.reply_headers(Some(stream), content_type);
        out.push(("content-security-policy", Cow::Borrowed(CONTENT_SECURITY)));
        if let Some(warning) = &stream.marks.warning {
            out.push((headers::QUOTA_WARNING, Cow::Owned(warning.clone())));
        }
        if let Some(kind) = stream.marks.shadowed {
            out.push((headers::WOULD_REFUSE, Cow::Borrowed(kind.row().name)));
        }
        Reply { status, headers: out, body }
    }

    /// Headers of each reply. There is no stream without a usable key.
    fn reply_headers(&self, stream: Option<&Stream>, content_type: &'static str) -> Headers {
        let mut out: Headers = vec![
            ("content-type", Cow::Borrowed(content_type)),
            ("cache-control", Cow::Borrowed("no-store")),
            ("x-content-type-options", Cow::Borrowed("nosniff")),
        ];
        match stream {
            Some(stream) => {
                out.push(("server-timing", server_timing(stream.auth_hit, stream.wake)));
                if let Some(rate) = &stream.marks.rate {
                    out.push(("ratelimit", Cow::Owned(rate.header())));
                    out.push(("ratelimit-policy", Cow::Owned(rate.policy.to_string())));
                }
            }
            None => out.push(("server-timing", Cow::Borrowed(NO_KEY))),
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
