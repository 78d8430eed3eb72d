//! SQ's response on its way to the client: relabelled, rewritten or replaced.

use std::borrow::Cow;

use super::Gate;
use super::limits::charge;
use super::replies::PROBLEM;
use super::stream::{Exchange, State, Stream};
use crate::effect::{Effect, Reply, StreamId};
use crate::http::response::TEXT;
use crate::{Refusal, RefusalKind};

/// The head of a response. Each of these costs a hostcall, so the gate asks for few of them.
pub trait ResponseHead {
    /// The HTTP status; 0 if there is none.
    fn status(&self) -> u16;
    /// The `content-length`, if there is one.
    fn content_length(&self) -> Option<u64>;
    /// The sender of the response.
    fn origin(&self) -> Origin;
}

/// The sender of a response: SQ, or Envoy in its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// SQ has responded.
    Sq,
    /// Envoy has no cluster of the tenant.
    NoCluster,
    /// Envoy could not reach SQ, with all retries.
    Unreachable,
    /// Envoy has responded for another reason, such as a time-out.
    Envoy,
}

/// Start of Envoy's details of a response to a request that did not get through to SQ; the reason
/// follows in braces.
const RESET: &[u8] = b"upstream_reset_before_response_started{";

impl Origin {
    /// Reads Envoy's details of a response (`%RESPONSE_CODE_DETAILS%`).
    pub fn of(details: &[u8]) -> Self {
        match details {
            b"via_upstream" => Self::Sq,
            b"cluster_not_found" => Self::NoCluster,
            b"no_healthy_upstream" => Self::Unreachable,
            // A full circuit breaker tells nothing about SQ.
            _ => match details.strip_prefix(RESET) {
                Some(reason) if !reason.starts_with(b"overflow") => Self::Unreachable,
                _ => Self::Envoy,
            },
        }
    }
}

const OK: u16 = 200;

/// The handling of a response's head.
enum Handling {
    Pass,
    RewriteBody,
    Replace(Reply),
}

impl Gate {
    /// The head of a response has come; `ends`: it has no body. Without an effect it passes.
    pub fn on_response_head(&mut self, id: StreamId, ends: bool, head: &impl ResponseHead) {
        let Some(mut stream) = self.streams.take(id) else { return };
        match &mut stream.state {
            State::Forwarded(_) => self.on_exchange_head(&mut stream, ends, head),
            State::Answered { late_headers, .. } => {
                if let Some(headers) = late_headers.take() {
                    stream.status = head.status();
                    self.effects.push_back(Effect::SetResponseHeaders(id, headers));
                }
            }
            State::Waiting { .. } | State::Parked { .. } => {}
        }
        self.streams.put(stream);
    }

    fn on_exchange_head(&mut self, stream: &mut Stream, ends: bool, head: &impl ResponseHead) {
        let id = stream.id;
        stream.status = head.status();
        let handling = if stream.status == OK {
            self.handle_success(stream, ends, head)
        } else {
            self.handle_failure(stream, head)
        };
        match handling {
            Handling::Pass => {}
            Handling::RewriteBody => self.effects.push_back(Effect::RemoveContentLength(id)),
            Handling::Replace(reply) => {
                stream.status = reply.status;
                stream.bytes_out =
                    if stream.is_head_method() { 0 } else { reply.body.len() as u64 };
                self.effects.push_back(Effect::Reply(id, reply));
            }
        }
    }

    /// A response with status 200: some endpoints have its body rewritten.
    fn handle_success(
        &self,
        stream: &mut Stream,
        ends: bool,
        head: &impl ResponseHead,
    ) -> Handling {
        let State::Forwarded(exchange) = &mut stream.state else { return Handling::Pass };
        let rule = exchange.request.request.response_rule();
        // Read the length, which costs a hostcall, only where it can matter.
        if rule.rewriter(Some(0)).is_none() {
            return Handling::Pass;
        }
        let Some(rewriter) = rule.rewriter(head.content_length()) else { return Handling::Pass };
        if !ends {
            exchange.rewriter = Some(rewriter);
            return Handling::RewriteBody;
        }
        let whole = String::from_utf8(rule.on_body(b"")).unwrap_or_default();
        if whole.is_empty() {
            return Handling::Pass;
        }
        Handling::Replace(self.reply_in_place(stream, OK, rule.content_type(), whole))
    }

    /// Any other status. SQ's own errors are a few words without a type. The client cannot act on
    /// what SQ says about the instance key or about itself; the rest is text, whatever the endpoint.
    fn handle_failure(&mut self, stream: &mut Stream, head: &impl ResponseHead) -> Handling {
        let status = stream.status;
        let State::Forwarded(exchange) = &mut stream.state else { return Handling::Pass };
        let origin = head.origin();
        if origin != Origin::Sq {
            self.fail(exchange, kind_of_envoy(status));
            self.doubt_lease(exchange, origin);
            return Handling::Pass;
        }
        let refusal = match status {
            401 | 503 => Refusal::new(RefusalKind::DatabaseUnavailable),
            403 | 500..=599 => Refusal::new(RefusalKind::DatabaseFailed),
            _ => {
                let headers = vec![("content-type", Cow::Borrowed(TEXT))];
                self.effects.push_back(Effect::SetResponseHeaders(stream.id, headers));
                return Handling::Pass;
            }
        };
        self.fail(exchange, refusal.kind);
        let body = refusal.to_json(&self.config.problem_base);
        let mut reply = self.reply_in_place(stream, refusal.status(), PROBLEM, body);
        if let Some(seconds) = refusal.retry_after_s {
            reply.headers.push(("retry-after", Cow::Owned(seconds.to_string())));
        }
        Handling::Replace(reply)
    }

    /// Has the orchestrator asked again about a tenant that Envoy did not reach under its lease: its
    /// orchestrator may have been killed before it could start the tenant's SQ again.
    fn doubt_lease(&mut self, exchange: &Exchange, origin: Origin) {
        let tenant = exchange.request.tenant();
        let now_ns = self.clock.now_ns();
        match origin {
            Origin::NoCluster => self.leases.give_up(tenant, exchange.forwarded_ns, now_ns),
            Origin::Unreachable => self.leases.doubt(tenant, exchange.forwarded_ns, now_ns),
            Origin::Sq | Origin::Envoy => (),
        }
    }

    /// A request that was forwarded and not served counts as refused, in usage and quotas.
    fn fail(&mut self, exchange: &mut Exchange, kind: RefusalKind) {
        self.counts.add_refusal(kind);
        exchange.failed = Some(kind);
    }

    /// A piece of a response's body has come, of `bytes`; `end`: it is the last one. Returns the
    /// bytes that replace it; without any it passes. `read` copies it from the host and is called
    /// only if it has to be rewritten.
    pub fn on_response_body(
        &mut self,
        id: StreamId,
        bytes: usize,
        end: bool,
        read: impl FnOnce() -> Vec<u8>,
    ) -> Option<Vec<u8>> {
        let stream = self.streams.get_mut(id)?;
        if stream.is_head_method() {
            // SQ was sent a GET. Over HTTP/2 Envoy would pass on the body of its response.
            return Some(Vec::new());
        }
        let rewriter = match &mut stream.state {
            State::Forwarded(exchange) => exchange.rewriter.as_mut(),
            _ => None,
        };
        let rewritten = rewriter.map(|rewriter| {
            let mut out = rewriter.on_chunk(&read());
            if end {
                out.extend(rewriter.on_end());
            }
            out
        });
        stream.bytes_out += rewritten.as_ref().map_or(bytes, Vec::len) as u64;
        // A response pays as it passes: a client that disconnects in the middle has had the first part.
        if stream.bytes_out > stream.marks.paid_bytes
            && let Some(verdict) = &stream.verdict
        {
            let now_ns = self.clock.wall_ns();
            charge(&mut self.buckets, &mut stream.marks, verdict, stream.bytes_out, now_ns);
        }
        rewritten
    }
}

/// The kind of an error that Envoy itself has responded with to a forwarded request.
fn kind_of_envoy(status: u16) -> RefusalKind {
    match status {
        408 => RefusalKind::RequestTimeout,
        413 => RefusalKind::BodyTooLarge,
        // A rate limit across gateways, as in envoy/ratelimit.yaml.
        429 => RefusalKind::RateLimited,
        400..=499 => RefusalKind::BadRequest,
        504 => RefusalKind::DatabaseTimeout,
        _ => RefusalKind::DatabaseUnavailable,
    }
}
