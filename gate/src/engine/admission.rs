//! The request head on its way: key → verdict → meaning → rate → quota → lease → forwarded.
//!
//! [`Gate::advance`] goes as far as it can. It is called again when the thing that the stream waits
//! for has come or may have come; steps that must happen once leave their mark in the stream.

use std::rc::Rc;

use protocol::time::{MS_NS, SECOND_NS};
use protocol::{KeyHash, SqVersion, TenantStatus, Verdict};

use super::Gate;
use super::clock::Ctx;
use super::head::RequestHead;
use super::leases::{Admission, Lease};
use super::metrics::Metric;
use super::stream::{Body, Exchange, Reason, State, Stream, TenantRequest};
use crate::effect::{Effect, Headers, Reply, StreamId};
use crate::http::request::{self, Access, Endpoint, Request};
use crate::identity::credentials::CredentialFault;
use crate::identity::verdicts::Lookup;
use crate::shared::Shared;
use crate::{Refusal, RefusalKind};

/// Maximum number of paused streams in one VM. Each costs the memory of its head; above this,
/// requests that would have to wait are refused at once.
const WAITING_MAX: usize = 10_000;

/// The next state of a stream that was not refused.
enum Next {
    Forward(Headers),
    Answer(Reply),
    Wait(Reason),
}

impl Gate {
    /// The head of a request has come. `ends`: no body follows. `client` reads the client's address
    /// (as `192.0.2.1:4711`, empty if unknown); it costs a hostcall and is needed for unknown keys
    /// only.
    pub fn on_request_head(
        &mut self,
        id: StreamId,
        headers: &[(String, Vec<u8>)],
        ends: bool,
        client: impl FnOnce() -> String,
        wall_ns: u64,
        shared: &mut dyn Shared,
    ) {
        let mut ctx = self.enter(Some(id), wall_ns, shared);
        self.counts.add(Metric::Requests);
        if self.streams.contains(id) {
            // The host never reports a head twice; if it did, the first one would count.
            return;
        }
        let (head, key) = RequestHead::read(headers, ends);
        #[cfg(feature = "test-panic")]
        assert!(!head.test_panic, "a test asked for this panic");
        if head.has_two_hosts {
            let refusal = Refusal::bad_request("it has two `Host` headers");
            return self.refuse_unidentified(id, &refusal);
        }
        if head.is_grpc() {
            return self.refuse_unidentified(id, &Refusal::new(RefusalKind::Grpc));
        }
        if let Some(reply) = self.public_reply(&head) {
            self.counts.add(Metric::Answered);
            return self.effects.push_back(Effect::Reply(id, reply));
        }
        let key = match key {
            Ok(key) => key,
            Err(fault) => return self.refuse_unidentified(id, &no_key(fault)),
        };
        let patience_ms =
            u64::from(self.config.relay_timeout_ms) + u64::from(self.config.lease_timeout_ms);
        let deadline_ns = ctx.now_ns.saturating_add(patience_ms * MS_NS);
        let mut stream = Box::new(Stream::new(id, head, key, deadline_ns));
        let lookup = self.look_up(&key, client, &mut ctx);
        self.advance(&mut stream, Some(lookup), &mut ctx);
        self.streams.put(stream);
    }

    /// Looks up the key of a new request. Only the first request with an unknown key pays for it
    /// from the budget of verifications.
    fn look_up(
        &mut self,
        key: &KeyHash,
        client: impl FnOnce() -> String,
        ctx: &mut Ctx<'_>,
    ) -> Lookup {
        match self.verdicts.lookup(key, &self.changes_feed, ctx.now_ns, ctx.shared) {
            Lookup::AskWithinBudget
                if self.unknown_keys.may_ask(&client(), ctx.wall_ns, ctx.shared) =>
            {
                Lookup::Ask
            }
            lookup => lookup,
        }
    }

    /// Lets paused streams go on: what they wait for has come, or may have come.
    pub(super) fn resume(
        &mut self,
        waiters: Vec<StreamId>,
        lookup: Option<&Lookup>,
        ctx: &mut Ctx<'_>,
    ) {
        self.for_each_waiter(waiters, |gate, stream| {
            gate.resume_one(stream, lookup.cloned(), ctx);
        });
    }

    pub(super) fn resume_one(
        &mut self,
        stream: &mut Stream,
        lookup: Option<Lookup>,
        ctx: &mut Ctx<'_>,
    ) {
        match stream.state {
            State::Parked { .. } => self.release(stream, lookup, ctx),
            _ => self.advance(stream, lookup, ctx),
        }
    }

    /// Lets a waiting stream go on as far as it can.
    fn advance(&mut self, stream: &mut Stream, lookup: Option<Lookup>, ctx: &mut Ctx<'_>) {
        match self.admit(stream, lookup, ctx) {
            Ok(Next::Wait(reason)) => stream.wait_for(reason),
            Ok(Next::Forward(headers)) => {
                self.counts.add(Metric::Forwarded);
                self.effects.push_back(Effect::Forward(stream.id, headers));
            }
            Ok(Next::Answer(reply)) => self.answer(stream, reply),
            Err(refusal) => self.refuse(stream, &refusal),
        }
    }

    fn admit(
        &mut self,
        stream: &mut Stream,
        lookup: Option<Lookup>,
        ctx: &mut Ctx<'_>,
    ) -> Result<Next, Refusal> {
        // 1. The tenant.
        let Some(verdict) = self.identify(stream, lookup, ctx)? else {
            return Ok(Next::Wait(Reason::Verdict));
        };
        // 2. Parse. Faults are reported after the rate limit: malformed requests cost a token too.
        let understood = match stream.take_request() {
            Some(request) if Rc::ptr_eq(&request.verdict, &verdict) => Ok(request),
            _ => understand(stream, &verdict),
        };
        // 3. The tokens: a write may cost more than one.
        let writes = understood.as_ref().is_ok_and(TenantRequest::writes);
        self.take_tokens(&mut stream.marks, &verdict, writes, ctx)?;
        let request = understood?;
        // 4. The tenant's own pages, which wake nothing and use up no quota.
        if request.request.is_answered_here() {
            return self.own_page(stream, &request, ctx);
        }
        // 5. The quotas, then the lease, which may bring newer counts for them.
        self.check_quota(&mut stream.marks, &request, ctx)?;
        self.forward(stream, request, ctx)
    }

    /// The verdict on the stream's key; `None` while it is awaited.
    fn identify(
        &mut self,
        stream: &mut Stream,
        lookup: Option<Lookup>,
        ctx: &mut Ctx<'_>,
    ) -> Result<Option<Rc<Verdict>>, Refusal> {
        if let Some(verdict) = stream.verdict.clone() {
            let confirmed = self.confirm(stream.id, &stream.key, &verdict, lookup, ctx)?;
            stream.verdict = confirmed.clone().or(Some(verdict));
            return Ok(confirmed);
        }
        let lookup = lookup.unwrap_or_else(|| {
            self.verdicts.lookup(&stream.key, &self.changes_feed, ctx.now_ns, ctx.shared)
        });
        match lookup {
            Lookup::Cached(verdict) if !has_expired(&verdict, ctx) => {
                stream.verdict = Some(verdict.clone());
                self.counts.add(if stream.auth_hit {
                    Metric::VerdictHits
                } else {
                    Metric::VerdictMisses
                });
                match verdict.status {
                    TenantStatus::Active => Ok(Some(verdict)),
                    TenantStatus::Suspended => Err(Refusal::new(RefusalKind::Suspended)),
                }
            }
            Lookup::Cached(_) | Lookup::Unknown => Err(Refusal::new(RefusalKind::UnknownKey)),
            Lookup::AskWithinBudget => Err(Refusal::new(RefusalKind::TooManyUnknownKeys)),
            Lookup::RelayDown => Err(Refusal::new(RefusalKind::RelayUnavailable)),
            Lookup::Ask | Lookup::Wait if self.streams.waiting() >= WAITING_MAX => {
                Err(Refusal::new(RefusalKind::RelayUnavailable))
            }
            Lookup::Ask | Lookup::Wait => {
                stream.auth_hit = false;
                self.verdicts.wait(stream.key, stream.id);
                if matches!(lookup, Lookup::Ask) {
                    self.verify(stream.key, ctx);
                }
                Ok(None)
            }
        }
    }

    /// Looks up the verdict again, after the request has waited or its body has taken its time: the
    /// key may have been revoked or expired since, and its limits changed. `None` while it is verified;
    /// the stream is resumed then, with the response as its `lookup`.
    pub(super) fn confirm(
        &mut self,
        id: StreamId,
        key: &KeyHash,
        earlier: &Verdict,
        lookup: Option<Lookup>,
        ctx: &mut Ctx<'_>,
    ) -> Result<Option<Rc<Verdict>>, Refusal> {
        let lookup = lookup.unwrap_or_else(|| {
            self.verdicts.lookup(key, &self.changes_feed, ctx.now_ns, ctx.shared)
        });
        match lookup {
            Lookup::Cached(verdict)
                if has_expired(&verdict, ctx) || verdict.tenant != earlier.tenant =>
            {
                Err(Refusal::new(RefusalKind::UnknownKey))
            }
            Lookup::Cached(verdict) if verdict.status == TenantStatus::Suspended => {
                Err(Refusal::new(RefusalKind::Suspended))
            }
            Lookup::Cached(verdict) => Ok(Some(verdict)),
            Lookup::Unknown => Err(Refusal::new(RefusalKind::UnknownKey)),
            Lookup::RelayDown => Err(Refusal::new(RefusalKind::RelayUnavailable)),
            _ if self.streams.waiting() >= WAITING_MAX => {
                Err(Refusal::new(RefusalKind::RelayUnavailable))
            }
            // The key had a verdict, so it costs nothing of the budget for unknown keys.
            Lookup::Ask | Lookup::AskWithinBudget | Lookup::Wait => {
                self.verdicts.wait(*key, id);
                if !matches!(lookup, Lookup::Wait) {
                    self.verify(*key, ctx);
                }
                Ok(None)
            }
        }
    }

    /// A page about the tenant itself, answered without waking it: `version` or `usage`.
    fn own_page(
        &mut self,
        stream: &Stream,
        request: &TenantRequest,
        ctx: &Ctx<'_>,
    ) -> Result<Next, Refusal> {
        if request.request.endpoint == Endpoint::Usage {
            if !self.has_orchestrator() {
                return Err(Refusal::no_usage());
            }
            self.request_usage(stream.id, &request.verdict, ctx);
            return Ok(Next::Wait(Reason::Usage));
        }
        let version = self.leases.sq_version(request.tenant()).unwrap_or(self.config.sq_version);
        let content_type = request.request.content_type();
        Ok(Next::Answer(self.reply_with(stream, content_type, version.to_string())))
    }

    /// Forwards the request, or lets it wait for a lease on its tenant.
    fn forward(
        &mut self,
        stream: &mut Stream,
        request: TenantRequest,
        ctx: &mut Ctx<'_>,
    ) -> Result<Next, Refusal> {
        let lease = if self.has_orchestrator() {
            match self.lease_or_wait(stream.id, &request.verdict, ctx)? {
                Some(lease) => Some(lease),
                None => return Ok(Next::Wait(Reason::Lease(Box::new(request)))),
            }
        } else {
            None
        };
        let body = match request.request.body() {
            Some(check) if !check.accepts_nothing() && !self.may_stream(&stream.head) => {
                return Err(Refusal::unknown_length());
            }
            Some(check) => Body::Incoming(check),
            None => Body::Complete { bytes: 0 },
        };
        let length = stream.head.content_length;
        let written = self.check_storage(&mut stream.marks, &request, &body, length, ctx)?;
        self.reserve_announced(&mut stream.marks, &request, &body, length)?;
        self.charge_work(&mut stream.marks, &request, length.unwrap_or(0));
        // Endpoints were checked for the newest SQ; the lease tells which one the tenant runs.
        let sq_version = lease.as_ref().map_or(self.config.sq_version, |lease| lease.sq_version);
        if !request.request.endpoint.exists_in(sq_version) {
            parse(&stream.head, &request.verdict, sq_version)?;
        }
        let cluster =
            lease.map_or_else(|| request.tenant().cluster(), |lease| lease.cluster.clone());
        let headers = self.forwarded_head(stream, &request, &body, cluster);
        if stream.wake.is_none() {
            self.counts.add(Metric::LeaseHits);
        }
        self.leases.begin_request(request.tenant(), request.writes());
        stream.state = State::Forwarded(Exchange {
            request,
            forwarded_ns: ctx.now_ns,
            body,
            written,
            rewriter: None,
            failed: None,
        });
        Ok(Next::Forward(headers))
    }

    /// SQ stores the framing of a chunked body as text. Envoy's `buffer` filter replaces it by a length.
    fn may_stream(&self, head: &RequestHead) -> bool {
        self.config.buffered || head.content_length.is_some()
    }

    /// A live lease on the tenant; `None` if it was requested and the stream will be resumed.
    pub(super) fn lease_or_wait(
        &mut self,
        id: StreamId,
        verdict: &Rc<Verdict>,
        ctx: &Ctx<'_>,
    ) -> Result<Option<Rc<Lease>>, Refusal> {
        match self.leases.admit(verdict, ctx.now_ns) {
            Admission::Go(lease) => Ok(Some(lease)),
            Admission::Full => Err(Refusal::new(RefusalKind::WakeQueued)),
            _ if self.streams.waiting() >= WAITING_MAX => {
                Err(Refusal::new(RefusalKind::WakeQueued))
            }
            admission => {
                self.leases.add_waiter(&verdict.tenant, id);
                if admission == Admission::Ask {
                    self.request_lease(&verdict.tenant, ctx);
                }
                Ok(None)
            }
        }
    }

    /// With an orchestrator, tenants are woken and metered. Without one all of them always run.
    pub(super) fn has_orchestrator(&self) -> bool {
        self.config.orchestrator_cluster.is_some()
    }
}

/// Parses the request for the newest SQ.
fn understand(stream: &mut Stream, verdict: &Rc<Verdict>) -> Result<TenantRequest, Refusal> {
    if stream.head.encoding.is_some() {
        return Err(Refusal::new(RefusalKind::EncodedBody));
    }
    let request = parse(&stream.head, verdict, SqVersion::V0_6_0)?;
    // A write whose precondition is ignored would overwrite what its sender means to keep.
    if let Some(precondition) = stream.head.precondition.filter(|_| request.access != Access::Read)
    {
        return Err(Refusal::no_preconditions(precondition));
    }
    stream.is_metered = !request.is_answered_here();
    Ok(TenantRequest { verdict: verdict.clone(), request })
}

fn parse(head: &RequestHead, verdict: &Verdict, sq_version: SqVersion) -> Result<Request, Refusal> {
    request::parse(&head.as_request(), &verdict.limits, sq_version)
}

fn has_expired(verdict: &Verdict, ctx: &Ctx<'_>) -> bool {
    verdict.expires_s.is_some_and(|expires_s| ctx.wall_ns / SECOND_NS >= expires_s)
}

fn no_key(fault: CredentialFault) -> Refusal {
    Refusal::credentials(match fault {
        CredentialFault::Absent => RefusalKind::NoCredentials,
        CredentialFault::Malformed => RefusalKind::MalformedKey,
        CredentialFault::Conflicting => RefusalKind::ConflictingKeys,
    })
}
