//! A request's way: key → verdict → meaning → rate → quota → lease → forwarded.
//!
//! [`Gate::advance`] goes as far as it can and is called again when what was waited for has come.
//! It may be called any number of times; what must happen once is remembered in the stream.

use std::borrow::Cow;
use std::rc::Rc;

use protocol::time::SECOND_NS;
use protocol::{KeyHash, SqVersion, TenantStatus, Verdict, WakeKind, headers};

use super::replies::try_again;
use super::{Gate, Headers, MS_NS, Metric, Reply, Step, StreamId, WAITING_MAX};
use crate::engine::leases::{Admission, Lease};
use crate::engine::stream::{Head, State, Stream, Waiting};
use crate::http::request;
use crate::identity::credentials::CredentialFault;
use crate::identity::verdicts::Lookup;
use crate::shared::Shared;
use crate::{Refusal, RefusalKind};

/// As many as there are at most, so that the list never grows.
const FORWARDED_HEADERS: usize = 14;

/// How the way goes on; a refusal leaves by `Err`.
pub(super) type Way<T> = Result<T, Refusal>;

/// Where the way has led.
pub(super) enum Next {
    Forward(Headers),
    Answer(Reply),
    Wait(Waiting),
}

impl Gate {
    /// A request has come.
    pub(super) fn begin(
        &mut self,
        id: StreamId,
        head: Head,
        key: Result<KeyHash, CredentialFault>,
        client: impl FnOnce() -> String,
        now_ns: u64,
        shared: &mut dyn Shared,
    ) -> Step {
        #[cfg(feature = "test-panic")]
        assert!(!head.test_panic, "asked to, by a test");
        if head.is_preflight {
            self.count(Metric::Answered);
            return Step::Answer(self.preflight());
        }
        let key = match key {
            Ok(key) => key,
            Err(fault) => return Step::Answer(self.refuse(id, &no_key(fault))),
        };
        let patience_ms =
            u64::from(self.config.relay_timeout_ms) + u64::from(self.config.lease_timeout_ms);
        let deadline_ns = now_ns.saturating_add(patience_ms * MS_NS);
        self.streams.insert(id, Stream::new(head, key, deadline_ns));
        let lookup = self.look_up(&key, client, now_ns, shared);
        let step = self.advance(id, Some(lookup), now_ns, shared);
        if let Some(stream) = self.streams.get_mut(&id) {
            match &step {
                Step::Forward(_) => stream.state = State::Forwarded,
                Step::Answer(_) => stream.state = State::Answered,
                Step::Wait => self.waiting += 1,
            }
        }
        step
    }

    /// What is known of a key that has just come; of one that nobody has heard of, whether it may be
    /// asked about.
    fn look_up(
        &mut self,
        key: &KeyHash,
        client: impl FnOnce() -> String,
        now_ns: u64,
        shared: &mut dyn Shared,
    ) -> Lookup {
        match self.verdicts.lookup(key, &self.feed, now_ns, shared) {
            Lookup::AskWithinBudget
                if self.unknown_keys.may_ask(&client(), self.wall_ns, shared) =>
            {
                Lookup::Ask
            }
            lookup => lookup,
        }
    }

    /// What was waited for has come, or may have: those who wait go on.
    pub(super) fn resume(
        &mut self,
        waiters: Vec<StreamId>,
        lookup: Option<&Lookup>,
        now_ns: u64,
        shared: &mut dyn Shared,
    ) {
        for id in waiters {
            let step = match self.streams.get(&id).map(|stream| stream.state) {
                Some(State::Waiting(_)) => self.advance(id, lookup.cloned(), now_ns, shared),
                Some(State::Held) => self.release(id, now_ns, shared),
                _ => continue,
            };
            self.settle(id, step);
        }
    }

    /// As far as it goes now.
    fn advance(
        &mut self,
        id: StreamId,
        lookup: Option<Lookup>,
        now_ns: u64,
        shared: &mut dyn Shared,
    ) -> Step {
        match self.go_on(id, lookup, now_ns, shared) {
            Ok(Next::Answer(reply)) => {
                self.count(Metric::Answered);
                Step::Answer(reply)
            }
            Ok(Next::Forward(headers)) => {
                self.count(Metric::Forwarded);
                Step::Forward(headers)
            }
            Ok(Next::Wait(what)) => {
                if let Some(stream) = self.streams.get_mut(&id) {
                    stream.state = State::Waiting(what);
                }
                Step::Wait
            }
            Err(refusal) => Step::Answer(self.refuse(id, &refusal)),
        }
    }

    fn go_on(
        &mut self,
        id: StreamId,
        lookup: Option<Lookup>,
        now_ns: u64,
        shared: &mut dyn Shared,
    ) -> Way<Next> {
        let Some(verdict) = self.find_verdict(id, lookup, now_ns, shared)? else {
            return Ok(Next::Wait(Waiting::Verdict));
        };
        // The meaning first, for it tells the cost; its fault last, for garbage costs a token too.
        let understood = self.understand(id, &verdict);
        self.take_token(id, &verdict, shared)?;
        understood?;
        if let Some(next) = self.answer_here(id, &verdict)? {
            return Ok(next);
        }
        self.check_quota(id)?;
        self.find_lease(id, &verdict, now_ns, shared)
    }

    /// The verdict on the stream's key; `None`: it is waited for.
    fn find_verdict(
        &mut self,
        id: StreamId,
        lookup: Option<Lookup>,
        now_ns: u64,
        shared: &mut dyn Shared,
    ) -> Way<Option<Rc<Verdict>>> {
        let wall_ns = self.wall_ns;
        let Some(stream) = self.streams.get_mut(&id) else { return Err(internal()) };
        if let Some(verdict) = &stream.verdict {
            return Ok(Some(verdict.clone()));
        }
        let key = stream.key;
        let lookup =
            lookup.unwrap_or_else(|| self.verdicts.lookup(&key, &self.feed, now_ns, shared));
        match lookup {
            Lookup::Cached(verdict) if !has_expired(&verdict, wall_ns) => {
                let metric =
                    if stream.auth_hit { Metric::VerdictHits } else { Metric::VerdictMisses };
                stream.verdict = Some(verdict.clone());
                self.count(metric);
                match verdict.status {
                    TenantStatus::Active => Ok(Some(verdict)),
                    TenantStatus::Suspended => Err(suspended()),
                }
            }
            Lookup::Cached(_) | Lookup::Unknown => Err(unknown_key()),
            Lookup::AskWithinBudget => Err(try_again(RefusalKind::TooManyUnknownKeys, 1)),
            Lookup::RelayDown => Err(try_again(RefusalKind::RelayUnavailable, 1)),
            Lookup::Ask | Lookup::Wait if self.waiting >= WAITING_MAX => {
                Err(try_again(RefusalKind::RelayUnavailable, 1))
            }
            Lookup::Ask | Lookup::Wait => {
                stream.auth_hit = false;
                self.verdicts.wait(key, id);
                if matches!(lookup, Lookup::Ask) {
                    self.ask_verdict(key, now_ns);
                }
                Ok(None)
            }
        }
    }

    /// The request understood. Newer SQs have all endpoints; which one runs is known with the lease.
    fn understand(&mut self, id: StreamId, verdict: &Verdict) -> Way<()> {
        let Some(stream) = self.streams.get_mut(&id) else { return Err(internal()) };
        if stream.request.is_none() {
            let head = stream.head.as_request();
            if stream.head.encoding.is_some() {
                return Err(encoded());
            }
            let request = request::parse(&head, &verdict.limits, SqVersion::V0_6_0)?;
            stream.body = request.body();
            stream.request = Some(request);
        }
        Ok(())
    }

    /// The lease on the tenant, and with it the request as SQ gets it.
    fn find_lease(
        &mut self,
        id: StreamId,
        verdict: &Rc<Verdict>,
        now_ns: u64,
        shared: &mut dyn Shared,
    ) -> Way<Next> {
        let lease = if self.config.orchestrator_cluster.is_none() {
            None
        } else {
            let lease = self.lease_or_wait(id, verdict, now_ns)?;
            if lease.is_none() {
                return Ok(Next::Wait(Waiting::Lease));
            }
            lease
        };
        self.check_storage(id, shared)?;
        self.expect_body(id)?;
        let sq_version = lease.as_ref().map_or(self.config.sq_version, |l| l.sq_version);
        let cluster =
            lease.as_ref().map_or_else(|| verdict.tenant.cluster(), |l| l.cluster.clone());
        let headers = self.forward(id, verdict, cluster, sq_version, now_ns)?;
        let writes = self.streams.get(&id).is_some_and(Stream::writes);
        self.leases.begin(&verdict.tenant, writes);
        Ok(Next::Forward(headers))
    }

    /// A live lease on the tenant; `None`: it is asked for and the stream will be told.
    pub(super) fn lease_or_wait(
        &mut self,
        id: StreamId,
        verdict: &Rc<Verdict>,
        now_ns: u64,
    ) -> Way<Option<Rc<Lease>>> {
        match self.leases.admit(verdict, now_ns) {
            Admission::Go(lease) => Ok(Some(lease)),
            Admission::Full => Err(try_again(RefusalKind::WakeQueued, 1)),
            _ if self.waiting >= WAITING_MAX => Err(try_again(RefusalKind::WakeQueued, 1)),
            admission => {
                self.leases.wait(&verdict.tenant, id);
                if admission == Admission::Ask {
                    self.ask_lease(&verdict.tenant, now_ns);
                }
                Ok(None)
            }
        }
    }

    /// The request written anew: nothing of the client's that is not named here.
    fn forward(
        &mut self,
        id: StreamId,
        verdict: &Verdict,
        cluster: String,
        sq: SqVersion,
        now_ns: u64,
    ) -> Way<Headers> {
        let Some(stream) = self.streams.get_mut(&id) else { return Err(internal()) };
        let Some(request) = &stream.request else { return Err(internal()) };
        if !request.endpoint.exists_in(sq) {
            request::parse(&stream.head.as_request(), &verdict.limits, sq)?;
        }
        stream.forwarded_ns = now_ns;
        if stream.wake.is_none() {
            self.counts.add(Metric::LeaseHits);
        }
        let mut out: Headers = Vec::with_capacity(FORWARDED_HEADERS);
        out.push((":method", Cow::Borrowed(request.method())));
        out.push((":path", Cow::Owned(request.path())));
        out.push((":authority", Cow::Borrowed("sq")));
        // Envoy finds no route without it; the route removes it again.
        out.push(("x-forwarded-proto", Cow::Borrowed("https")));
        if let (true, Some(length)) = (stream.body.is_some(), stream.head.content_length) {
            out.push(("content-length", Cow::Owned(length.to_string())));
        }
        if let Some(request_id) = &stream.head.request_id {
            out.push(("x-request-id", Cow::Owned(request_id.clone())));
        }
        out.push((headers::CLUSTER, Cow::Owned(cluster)));
        let content_type = request.answer().content_type();
        if content_type != headers::answer::DEFAULT_TYPE {
            out.push((headers::answer::TYPE, Cow::Borrowed(content_type)));
        }
        out.push((headers::answer::TIMING, timing(stream.auth_hit, stream.wake)));
        add_answer_headers(&mut out, stream, &self.config.cors_origin);
        Ok(out)
    }
}

/// What else Envoy is to say with the answer.
fn add_answer_headers(out: &mut Headers, stream: &Stream, cors_origin: &str) {
    if !cors_origin.is_empty() && cors_origin != headers::answer::DEFAULT_CORS {
        out.push((headers::answer::CORS, Cow::Owned(cors_origin.to_owned())));
    }
    if cfg!(feature = "unlimited-told") {
        out.push((headers::answer::RATE, Cow::Borrowed("\"burst\";r=999999;t=1")));
        out.push((headers::answer::POLICY, Cow::Borrowed("\"burst\";q=1000000;w=1")));
    }
    if let Some(rate) = &stream.rate {
        out.push((headers::answer::RATE, Cow::Owned(rate.header())));
        out.push((headers::answer::POLICY, Cow::Owned(rate.policy.to_string())));
    }
    if let Some(warning) = &stream.warning {
        out.push((headers::answer::WARNING, Cow::Owned(warning.clone())));
    }
    if let Some(kind) = stream.shadowed {
        out.push((headers::answer::SHADOW, Cow::Borrowed(kind.row().name)));
    }
}

/// `Server-Timing`: whether the key was known, and what waking took.
pub(super) fn timing(auth_hit: bool, wake: Option<(WakeKind, u64)>) -> Cow<'static, str> {
    let auth = if auth_hit { "hit" } else { "miss" };
    match wake {
        None | Some((WakeKind::None, _)) if auth_hit => {
            Cow::Borrowed("auth;desc=hit, wake;desc=none")
        }
        None | Some((WakeKind::None, _)) => Cow::Borrowed("auth;desc=miss, wake;desc=none"),
        Some((kind, ms)) => {
            let kind = kind.as_str();
            Cow::Owned(format!("auth;desc={auth}, wake;desc={kind};dur={ms}"))
        }
    }
}

fn has_expired(verdict: &Verdict, wall_ns: u64) -> bool {
    verdict.expires_s.is_some_and(|at| wall_ns / SECOND_NS >= at)
}

fn no_key(fault: CredentialFault) -> Refusal {
    let refusal = match fault {
        CredentialFault::Absent => {
            Refusal::new(RefusalKind::NoCredentials, "Send your API key with each request.")
        }
        CredentialFault::Malformed => Refusal::new(
            RefusalKind::MalformedKey,
            "A key is pmb-v1- and 32 hexadecimal digits; what was sent is not.",
        ),
        CredentialFault::Conflicting => Refusal::new(
            RefusalKind::ConflictingKeys,
            "Two different API keys were sent; send one, in one header.",
        ),
    };
    refusal.example("Authorization: Bearer pmb-v1-0123456789abcdef0123456789abcdef")
}

fn encoded() -> Refusal {
    Refusal::new(
        RefusalKind::EncodedBody,
        "Bodies are stored as they come; send this one without Content-Encoding.",
    )
}

fn unknown_key() -> Refusal {
    Refusal::new(RefusalKind::UnknownKey, "The key does not exist, was revoked, or has expired.")
}

fn suspended() -> Refusal {
    Refusal::new(RefusalKind::Suspended, "The account is suspended; its data is kept.")
}

pub(super) fn internal() -> Refusal {
    Refusal::new(RefusalKind::Internal, "Please try again, and tell the operator the request id.")
}
