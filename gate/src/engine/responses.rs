//! Bodies on their way in and answers on their way out, of requests that were forwarded.

use std::borrow::Cow;

use super::admit::Way;
use super::replies::{PROBLEM, try_again};
use super::{Effect, Gate, Headers, MS_NS, Reply, Step, StreamId};
use crate::engine::stream::{State, Stream};
use crate::http::response::TEXT;
use crate::shared::Shared;
use crate::{Refusal, RefusalKind};

/// What becomes of a piece of a request's body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BodyStep {
    /// It passes.
    Pass,
    /// It is the last one and waits until an effect names its stream.
    Wait,
    /// The request is refused.
    Refuse(Reply),
}

impl BodyStep {
    /// As [`Step::or`].
    #[must_use]
    pub fn or(self, settled: Option<Effect>) -> Self {
        match settled {
            Some(Effect::Resume(_)) => Self::Pass,
            Some(Effect::Answer(_, reply)) => Self::Refuse(reply),
            Some(Effect::Call(_) | Effect::Forward(..)) | None => self,
        }
    }
}

/// What becomes of an answer's head.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AnswerStep {
    /// It passes, and so does its body.
    Pass,
    /// It is our own, of a request that had been forwarded: these headers are put in.
    Put(Headers),
    /// Its body is rewritten: its length is not known any more.
    Rewrite,
    /// This is answered in its place, with all headers: Envoy's filters don't see it any more.
    Replace(Reply),
}

/// What may be asked of an answer's head. Each costs a hostcall and is seldom needed.
pub trait AnswerHead {
    /// `content-length`.
    fn length(&self) -> Option<u64>;
    /// Whether SQ gave it, and not Envoy in its place.
    fn is_sqs(&self) -> bool;
}

/// SQ is asked with GET for it. Over HTTP/2 Envoy would send on the body that SQ answers with.
const HEAD: &str = "HEAD";
const OK: u16 = 200;

impl Gate {
    /// Whether [`Gate::on_answer_head`] has something to say: not on what was answered at once.
    pub fn reads_answer(&self, id: StreamId) -> bool {
        self.streams
            .get(&id)
            .is_some_and(|stream| stream.state == State::Forwarded || stream.late_headers.is_some())
    }

    /// Whether [`Gate::on_request_body`] wants to see the bytes.
    pub fn reads_body(&self, id: StreamId) -> bool {
        self.streams.get(&id).is_some_and(|stream| stream.body.is_some())
    }

    /// A piece of a forwarded request's body. The last one must be told even if it is empty or
    /// [`Gate::reads_body`] wants none: not before it does Envoy look for the tenant's cluster.
    pub fn on_request_body(
        &mut self,
        id: StreamId,
        chunk: &[u8],
        end: bool,
        wall_ns: u64,
        shared: &mut dyn Shared,
    ) -> BodyStep {
        let now_ns = self.clock(wall_ns);
        self.context = Some(id);
        let checked = self.check_body(id, chunk, end);
        match checked.and_then(|()| if end { self.end_body(id, now_ns, shared) } else { Ok(true) })
        {
            Ok(true) => BodyStep::Pass,
            Ok(false) => BodyStep::Wait,
            Err(refusal) => {
                let mut reply = self.refuse(id, &refusal);
                self.take_back(id, &mut reply);
                BodyStep::Refuse(reply)
            }
        }
    }

    /// A request that was forwarded is answered here after all.
    pub(super) fn take_back(&mut self, id: StreamId, reply: &mut Reply) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        stream.state = State::Answered;
        // Envoy adds what the forwarded head asked for; ours would come on top of that.
        stream.late_headers = Some(std::mem::take(&mut reply.headers));
        if let Some(tenant) = stream.verdict.as_ref().map(|verdict| &verdict.tenant) {
            self.leases.end(tenant, stream.writes());
        }
    }

    /// All of the body has come. Whether it may go on now.
    fn end_body(&mut self, id: StreamId, now_ns: u64, shared: &mut dyn Shared) -> Way<bool> {
        let may_go = self.lease_at_end(id, now_ns)?;
        let counts = |s: &Stream| s.state == State::Forwarded && s.written.is_none();
        if may_go && self.streams.get(&id).is_some_and(counts) {
            self.count_storage(id, shared)?;
        }
        Ok(may_go)
    }

    /// The body took its time, and its tenant may be going to sleep: a request must come to SQ
    /// within a lease's grace. Whether it may go on now; otherwise it is held until it may. One that
    /// did not tell its length is refused instead: what is held passes Envoy's buffer filter twice,
    /// which would tell SQ twice the length.
    fn lease_at_end(&mut self, id: StreamId, now_ns: u64) -> Way<bool> {
        let Some(stream) = self.streams.get(&id) else { return Ok(true) };
        match (stream.state, &stream.verdict) {
            (State::Held, _) => Ok(false),
            (State::Forwarded, Some(verdict)) => {
                let (verdict, tells_length) =
                    (verdict.clone(), stream.head.content_length.is_some());
                if self.config.orchestrator_cluster.is_none()
                    || self.lease_or_wait(id, &verdict, now_ns)?.is_some()
                {
                    return Ok(true);
                }
                if !tells_length {
                    return Err(try_again(RefusalKind::OrchestratorUnavailable, 1));
                }
                self.hold(id, now_ns);
                Ok(false)
            }
            _ => Ok(true),
        }
    }

    fn hold(&mut self, id: StreamId, now_ns: u64) {
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.state = State::Held;
            stream.deadline_ns = now_ns + u64::from(self.config.lease_timeout_ms) * MS_NS;
            self.waiting += 1;
        }
    }

    /// What a held request waited for has come, or may have.
    pub(super) fn release(&mut self, id: StreamId, now_ns: u64, shared: &mut dyn Shared) -> Step {
        let verdict = self.streams.get(&id).and_then(|stream| stream.verdict.clone());
        let Some(verdict) = verdict else { return Step::Wait };
        let leased = self.lease_or_wait(id, &verdict, now_ns);
        let counted = leased.and_then(|lease| match lease {
            Some(_) => self.count_storage(id, shared).map(|()| true),
            None => Ok(false),
        });
        match counted {
            Ok(true) => Step::Forward(Headers::new()),
            Ok(false) => Step::Wait,
            Err(refusal) => Step::Answer(self.refuse(id, &refusal)),
        }
    }

    /// Room for a body that tells its length; one that does not needs it as it comes.
    pub(super) fn expect_body(&mut self, id: StreamId) -> Way<()> {
        let expected = self.streams.get(&id).filter(|stream| stream.body.is_some());
        let bytes = expected.and_then(|stream| stream.head.content_length);
        self.hold_body(id, bytes.unwrap_or(0))
    }

    fn hold_body(&mut self, id: StreamId, bytes: u64) -> Way<()> {
        let Some(stream) = self.streams.get_mut(&id) else { return Ok(()) };
        let Some(verdict) = &stream.verdict else { return Ok(()) };
        if !self.bodies.hold(&verdict.tenant, &verdict.limits, bytes) {
            return Err(try_again(RefusalKind::DatabaseBusy, 1));
        }
        stream.held_bytes += bytes;
        Ok(())
    }

    fn check_body(&mut self, id: StreamId, chunk: &[u8], end: bool) -> Way<()> {
        let Some(stream) = self.streams.get_mut(&id) else { return Ok(()) };
        if stream.state != State::Forwarded {
            return Ok(());
        }
        stream.bytes_in += chunk.len() as u64;
        if stream.body.is_some() && stream.head.content_length.is_none() {
            self.hold_body(id, chunk.len() as u64)?;
        }
        let Some(stream) = self.streams.get_mut(&id) else { return Ok(()) };
        let Some(body) = &mut stream.body else { return Ok(()) };
        if !chunk.is_empty() {
            body.on_chunk(chunk)?;
        }
        if end {
            body.on_end()?;
            stream.body_bytes = body.received_bytes();
            stream.body = None;
        }
        Ok(())
    }

    /// The answer's head.
    pub fn on_answer_head(
        &mut self,
        id: StreamId,
        status: u16,
        ends: bool,
        head: &impl AnswerHead,
    ) -> AnswerStep {
        let Some(stream) = self.streams.get_mut(&id) else { return AnswerStep::Pass };
        stream.status = status;
        if let Some(headers) = stream.late_headers.take() {
            return AnswerStep::Put(headers);
        }
        if status != OK {
            return self.on_failed_answer(id, status, head);
        }
        let Some(request) = stream.request.as_ref() else { return AnswerStep::Pass };
        let rule = request.answer();
        if rule.rewriter(Some(0)).is_none() {
            return AnswerStep::Pass;
        }
        stream.rewriter = rule.rewriter(head.length());
        if stream.rewriter.is_none() {
            return AnswerStep::Pass;
        }
        if !ends {
            return AnswerStep::Rewrite;
        }
        stream.rewriter = None;
        let whole = String::from_utf8(rule.on_body(b"")).unwrap_or_default();
        if whole.is_empty() {
            return AnswerStep::Pass;
        }
        let reply = self.in_place(id, OK, rule.content_type(), whole);
        self.replace(id, reply)
    }

    fn replace(&mut self, id: StreamId, reply: Reply) -> AnswerStep {
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.status = reply.status;
            stream.bytes_out = if stream.head.method == HEAD { 0 } else { reply.body.len() as u64 };
        }
        AnswerStep::Replace(reply)
    }

    /// SQ's own refusals are a few words without a type. What it says of the key that Envoy gave it
    /// or of itself is nothing a client can act on; the rest is text, whatever was asked for.
    fn on_failed_answer(
        &mut self,
        id: StreamId,
        status: u16,
        head: &impl AnswerHead,
    ) -> AnswerStep {
        if !head.is_sqs() {
            self.count_unserved(id, by_envoy(status));
            return AnswerStep::Pass;
        }
        let refusal = match status {
            401 | 503 => try_again(RefusalKind::DatabaseUnavailable, 1),
            403 | 500..=599 => Refusal::new(
                RefusalKind::DatabaseFailed,
                "Your database could not answer this; if it was a write, look whether it was done.",
            ),
            _ => return AnswerStep::Put(vec![("content-type", Cow::Borrowed(TEXT))]),
        };
        self.count_unserved(id, refusal.kind);
        let status = refusal.status();
        let body = refusal.to_json(&self.config.problem_base);
        let mut reply = self.in_place(id, status, PROBLEM, body);
        if let Some(seconds) = refusal.retry_after_s {
            reply.headers.push(("retry-after", Cow::Owned(seconds.to_string())));
        }
        self.replace(id, reply)
    }

    /// A request that was forwarded and not served: refused, for usage and quotas.
    fn count_unserved(&mut self, id: StreamId, kind: RefusalKind) {
        self.count_refusal(kind);
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.refused = Some(kind);
        }
    }

    /// `bytes` of the answer's body pass. `true`: they are rewritten by [`Gate::on_answer_body`].
    pub fn on_answer_bytes(&mut self, id: StreamId, bytes: usize) -> bool {
        let Some(stream) = self.streams.get_mut(&id) else { return false };
        if stream.head.method == HEAD {
            return true;
        }
        if stream.rewriter.is_none() {
            stream.bytes_out += bytes as u64;
        }
        stream.rewriter.is_some()
    }

    /// A piece of a body that is rewritten, and what takes its place.
    pub fn on_answer_body(&mut self, id: StreamId, chunk: &[u8], end: bool) -> Vec<u8> {
        if self.streams.get(&id).is_some_and(|stream| stream.head.method == HEAD) {
            return Vec::new();
        }
        let Some(stream) = self.streams.get_mut(&id) else { return chunk.to_vec() };
        let Some(rewriter) = &mut stream.rewriter else { return chunk.to_vec() };
        let mut out = rewriter.on_chunk(chunk);
        if end {
            out.extend(rewriter.on_end());
        }
        stream.bytes_out += out.len() as u64;
        out
    }
}

/// What Envoy's own answer to a forwarded request says, by its status.
fn by_envoy(status: u16) -> RefusalKind {
    match status {
        408 => RefusalKind::RequestTimeout,
        413 => RefusalKind::BodyTooLarge,
        // A rate limit over several gateways, as in envoy/ratelimit.yaml.
        429 => RefusalKind::RateLimited,
        400..=499 => RefusalKind::BadRequest,
        504 => RefusalKind::DatabaseTimeout,
        _ => RefusalKind::DatabaseUnavailable,
    }
}
