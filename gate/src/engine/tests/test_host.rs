//! A simulated host of one VM. It performs the gate's effects, and checks after each event that they
//! are allowed: no stream is settled twice, none goes on without a lease, no call is made twice.

use std::collections::{BTreeMap, BTreeSet};

use protocol::{ApiKey, Epoch, FilterConfig, GatewayId, KeyHash, TenantId, TierName};
use protocol::{TenantStatus, Verdict, VerifyResponse, lease, verify};

use crate::effect::{Call, CallFailed, CallId, CallResult, Effect, Headers, Reply, StreamId};
use crate::engine::stream::State;
use crate::engine::{Gate, Origin, ResponseHead};
use crate::shared::Local;

pub(super) use protocol::time::{MS_NS as MS, SECOND_NS as SECOND};

/// State of a request as seen by its client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Seen {
    Waiting,
    Forwarded(Headers),
    /// Forwarded except for the end of its body.
    Parked,
    Answered(Reply),
}

pub(super) struct Host {
    pub(super) gate: Gate,
    pub(super) shared: Local,
    pub(super) now: u64,
    /// Address that requests come from.
    pub(super) client: String,
    pub(super) streams: BTreeMap<StreamId, Seen>,
    /// Calls in flight, each with the stream in whose context it was made.
    pub(super) calls: BTreeMap<CallId, (Call, Option<StreamId>)>,
    next: u32,
    /// Calls made so far, by path without query.
    pub(super) made: BTreeMap<String, u32>,
    /// Calls fail while they are made, as with an open circuit breaker or a cluster without hosts.
    pub(super) calls_fail: bool,
    config: FilterConfig,
    /// The responses of SQ as clients have received them.
    responses: BTreeMap<StreamId, Got>,
}

/// A response as received by the client.
#[derive(Debug, Default)]
struct Got {
    is_rewritten: bool,
    ended: bool,
    body: Vec<u8>,
}

/// The head of a response from SQ.
pub(super) struct FromSq {
    pub(super) status: u16,
    pub(super) content_length: u64,
}

impl ResponseHead for FromSq {
    fn status(&self) -> u16 {
        self.status
    }

    fn content_length(&self) -> Option<u64> {
        Some(self.content_length)
    }

    fn origin(&self) -> Origin {
        Origin::Sq
    }
}

pub(super) fn key(n: u8) -> String {
    ApiKey::from_random([n; 16]).expose().to_owned()
}

pub(super) fn hash(n: u8) -> KeyHash {
    KeyHash::of(key(n).as_bytes())
}

pub(super) fn config() -> FilterConfig {
    FilterConfig {
        buffered: true,
        orchestrator_cluster: Some("orchestrator".to_owned()),
        cache_entries: 64,
        ..FilterConfig::default()
    }
}

pub(super) fn verdict(tenant: &str) -> Verdict {
    Verdict {
        tenant: TenantId::parse(tenant).unwrap(),
        tier: TierName::parse("free").unwrap(),
        status: TenantStatus::Active,
        expires_s: None,
        limits: protocol::Limits::default(),
    }
}

pub(super) fn epoch() -> Epoch {
    Epoch("e".to_owned())
}

pub(super) fn verified(revision: u64, verdict: Option<Verdict>) -> Vec<u8> {
    serde_json::to_vec(&VerifyResponse { epoch: epoch(), revision, verdict }).unwrap()
}

pub(super) fn changes(revision: u64, changed: &[KeyHash]) -> Vec<u8> {
    let changed = changed.to_vec();
    let answer = verify::ChangesResponse { epoch: epoch(), revision, reset: false, changed };
    serde_json::to_vec(&answer).unwrap()
}

pub(super) fn granted(tenant: &str, lease_ms: u64) -> Vec<u8> {
    let answer = lease::LeaseResponse {
        cluster: format!("sq/{tenant}"),
        lease_ms,
        wake: lease::WakeKind::Start,
        wake_ms: 300,
        waker: false,
        sq_version: protocol::SqVersion::V0_6_0,
        notice: lease::TenantNotice::default(),
    };
    serde_json::to_vec(&answer).unwrap()
}

impl Host {
    pub(super) fn new(config: FilterConfig) -> Self {
        let shared = Local::default();
        Self::after(config, shared, 1_800_000_000 * SECOND)
    }

    /// A VM that starts with the shared data of an earlier one.
    pub(super) fn after(config: FilterConfig, shared: Local, now: u64) -> Self {
        let gateway = GatewayId::parse("g").unwrap();
        let gate = Gate::new(config.clone(), gateway, "vm".to_owned(), &shared);
        Self {
            gate,
            shared,
            now,
            client: "192.0.2.1:4711".to_owned(),
            streams: BTreeMap::new(),
            calls: BTreeMap::new(),
            next: 0,
            made: BTreeMap::new(),
            calls_fail: false,
            config,
            responses: BTreeMap::new(),
        }
    }

    /// The VM panics and is replaced: its requests and calls are gone, the shared data stays.
    pub(super) fn reload(&mut self) {
        let next = Self::after(self.config.clone(), std::mem::take(&mut self.shared), self.now);
        *self = Self { next: self.next, calls_fail: self.calls_fail, ..next };
    }

    pub(super) fn get(&mut self, key: &str) -> StreamId {
        self.request("GET", "/api/v2/toc?p=index", &[("authorization", key)], true)
    }

    pub(super) fn request(
        &mut self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        ends: bool,
    ) -> StreamId {
        let pair = |name: &str, value: &str| (name.to_owned(), value.as_bytes().to_vec());
        let mut all = vec![pair(":method", method), pair(":path", path)];
        all.extend(headers.iter().map(|(name, value)| pair(name, value)));
        self.head(&all, ends)
    }

    pub(super) fn head(&mut self, headers: &[(String, Vec<u8>)], ends: bool) -> StreamId {
        let id = StreamId(self.next);
        self.next += 1;
        let client = || self.client.clone();
        self.gate.on_request_head(id, headers, ends, client, self.now, &mut self.shared);
        let seen = match self.perform_within(id) {
            Some(Effect::Forward(_, headers)) => Seen::Forwarded(headers),
            Some(Effect::Reply(_, reply)) => Seen::Answered(reply),
            None => Seen::Waiting,
            Some(other) => panic!("no effect for a request head: {other:?}"),
        };
        self.streams.insert(id, seen);
        self.check();
        id
    }

    pub(super) fn end(&mut self, id: StreamId) {
        self.gate.on_stream_end(id, self.now, &mut self.shared);
        self.streams.remove(&id);
        self.responses.remove(&id);
        self.perform(None);
        // The SDK drops the responses to calls of a stream that has ended.
        let kept = self.calls.values().find(|(_, caller)| *caller == Some(id));
        assert!(kept.is_none(), "a call was not abandoned: {kept:?}");
    }

    pub(super) fn tick(&mut self, after_ns: u64) {
        self.now += after_ns;
        self.gate.on_tick(self.now, &mut self.shared);
        self.perform(None);
    }

    pub(super) fn done(&mut self, id: CallId, result: CallResult<'_>) {
        let Some((_, leader)) = self.calls.remove(&id) else { return };
        self.gate.on_call_done(id, result, self.now, &mut self.shared);
        self.perform(leader);
    }

    /// The call to `path` in flight.
    pub(super) fn call_to(&self, path: &str) -> Option<CallId> {
        self.calls.iter().find(|(_, (call, _))| call.path.starts_with(path)).map(|(id, _)| *id)
    }

    /// Responds to the call to `path`.
    pub(super) fn respond(&mut self, path: &str, body: &[u8]) {
        let id = self.call_to(path).unwrap_or_else(|| panic!("no call to {path}"));
        self.done(id, Ok((200, body)));
    }

    pub(super) fn fail(&mut self, path: &str) {
        let id = self.call_to(path).unwrap_or_else(|| panic!("no call to {path}"));
        self.done(id, Err(CallFailed));
    }

    fn perform(&mut self, context: Option<StreamId>) {
        self.perform_but(None, context);
        self.check();
    }

    /// Performs effects in a callback of `own`, and returns the one that is about `own`.
    fn perform_within(&mut self, own: StreamId) -> Option<Effect> {
        self.perform_but(Some(own), Some(own))
    }

    /// Performs effects, except the one about `own`, which it returns.
    fn perform_but(&mut self, own: Option<StreamId>, context: Option<StreamId>) -> Option<Effect> {
        let mut settled = None;
        while let Some(effect) = self.gate.next_effect() {
            if own.is_some() && effect.stream() == own {
                assert!(settled.is_none(), "settled twice: {settled:?}, {effect:?}");
                settled = Some(effect);
            } else {
                self.perform_one(effect, context);
            }
        }
        settled
    }

    fn perform_one(&mut self, effect: Effect, context: Option<StreamId>) {
        match effect {
            Effect::Call(call) => {
                let path = call.path.split('?').next().unwrap_or_default().to_owned();
                *self.made.entry(path).or_default() += 1;
                let id = call.id;
                assert!(self.calls.insert(id, (call, context)).is_none());
                if self.calls_fail {
                    self.calls.remove(&id);
                    self.gate.on_call_done(id, Err(CallFailed), self.now, &mut self.shared);
                }
            }
            Effect::Forward(id, headers) => self.settle(id, Seen::Forwarded(headers)),
            Effect::Resume(id) => {
                let was = self.streams.insert(id, Seen::Forwarded(Headers::new()));
                assert_eq!(was, Some(Seen::Parked), "stream {id:?} was not parked");
                self.must_be_leased(id);
            }
            Effect::Reply(id, reply) => self.settle(id, Seen::Answered(reply)),
            Effect::Abandon(id) => {
                let (_, caller) = self.calls.remove(&id).expect("an abandoned call is in flight");
                let caller = caller.expect("only streams end");
                assert!(!self.streams.contains_key(&caller), "call {id:?} was abandoned too early");
            }
            Effect::SetResponseHeaders(..) | Effect::RemoveContentLength(_) => {
                panic!("a response was changed outside of its callback: {effect:?}")
            }
        }
    }

    fn settle(&mut self, id: StreamId, seen: Seen) {
        let was = self.streams.insert(id, seen);
        let waited = was == Some(Seen::Waiting) || was == Some(Seen::Parked);
        assert!(waited, "stream {id:?} was settled twice or is gone: {was:?}");
    }

    /// A piece of a request's body. Envoy reports it only for streams that are not paused.
    pub(super) fn body(&mut self, id: StreamId, chunk: &[u8], end: bool) {
        self.gate.on_request_body(id, end, || chunk.to_vec(), self.now, &mut self.shared);
        match self.perform_within(id) {
            Some(Effect::Resume(_)) if end => self.must_be_leased(id),
            Some(Effect::Resume(_)) => {}
            None => {
                assert!(self.is_forwarded(id) && end, "stream {id:?} was parked too early");
                self.streams.insert(id, Seen::Parked);
            }
            Some(Effect::Reply(_, reply)) => {
                assert!(self.is_forwarded(id), "a body was refused that was not forwarded");
                self.streams.insert(id, Seen::Answered(reply));
            }
            Some(other) => panic!("no effect for a request body: {other:?}"),
        }
        self.check();
    }

    /// Forwarded requests without a response.
    pub(super) fn awaits_sq(&self) -> Vec<StreamId> {
        let ids = self.streams.keys().copied();
        ids.filter(|id| self.is_forwarded(*id) && !self.responses.contains_key(id)).collect()
    }

    /// The head of a response, in its callback.
    pub(super) fn response_head(
        &mut self,
        id: StreamId,
        ends: bool,
        head: &impl ResponseHead,
    ) -> Option<Effect> {
        self.gate.on_response_head(id, ends, head);
        self.perform_within(id)
    }

    /// SQ responds to a forwarded request, in pieces. A client gets one response, whole.
    pub(super) fn sq_responds(&mut self, id: StreamId, status: u16, pieces: &[Vec<u8>]) {
        let asked = self.gate.streams.get(id).unwrap().head.clone();
        let content_length = pieces.concat().len() as u64;
        let mut got = Got::default();
        match self.response_head(id, pieces.is_empty(), &FromSq { status, content_length }) {
            None => {}
            Some(Effect::SetResponseHeaders(_, headers)) => {
                assert!(status != 200 && !headers.is_empty());
            }
            Some(Effect::RemoveContentLength(_)) => got.is_rewritten = true,
            Some(Effect::Reply(_, reply)) => {
                let has = |name| reply.headers.iter().any(|(n, _)| *n == name);
                assert!(has("content-type") && has("content-security-policy"), "{reply:?}");
                got = Got { is_rewritten: true, ended: true, body: reply.body.into_bytes() };
            }
            Some(other) => panic!("no effect for a response head: {other:?}"),
        }
        for (at, piece) in pieces.iter().enumerate().filter(|_| !got.ended) {
            let end = at + 1 == pieces.len();
            let rewritten = self.gate.on_response_body(id, piece.len(), end, || piece.clone());
            assert!(rewritten.is_some() || !got.is_rewritten, "a piece passed as it was");
            got.body.extend(rewritten.unwrap_or_else(|| piece.clone()));
        }
        if asked.method == "HEAD" {
            assert!(got.ended || got.body.is_empty(), "a body for HEAD");
        } else if status == 200 && asked.path.starts_with(b"/api/v2/json-export") {
            let valid = serde_json::from_slice::<serde_json::Value>(&got.body);
            let is_text = std::str::from_utf8(&pieces.concat()).is_ok();
            assert!(valid.is_ok() || !is_text, "{:?}", String::from_utf8_lossy(&got.body));
        } else if status == 200 && !got.is_rewritten {
            assert_eq!(got.body, pieces.concat());
        }
        self.responses.insert(id, got);
    }

    /// Envoy looks up the cluster of a stream that goes on, so there must be a lease.
    fn must_be_leased(&self, id: StreamId) {
        let Some(stream) = self.gate.streams.get(id) else { return };
        if let State::Forwarded(exchange) = &stream.state {
            let is_leased =
                self.gate.leases.is_live(exchange.request.tenant(), self.gate.clock.now_ns());
            assert!(is_leased, "stream {id:?} went on without a lease");
        }
    }

    /// At most one call per key and per tenant is in flight.
    fn check(&self) {
        let mut asked = BTreeSet::new();
        for (call, _) in self.calls.values() {
            // Requests for the own usage are not shared.
            let is_own_usage = call.path.starts_with(protocol::headers::TENANT_USAGE_PATH);
            if let Some(body) = call.body.as_deref().filter(|_| !is_own_usage) {
                let about: serde_json::Value = serde_json::from_str(body).unwrap();
                let about = about.get("key_sha256").or_else(|| about.get("tenant")).cloned();
                let about = about.map(|about| about.to_string());
                assert!(asked.insert((call.path.clone(), about)), "a call was made twice: {body}");
            }
        }
    }

    pub(super) fn seen(&self, id: StreamId) -> &Seen {
        &self.streams[&id]
    }

    pub(super) fn status(&self, id: StreamId) -> Option<u16> {
        match self.seen(id) {
            Seen::Answered(reply) => Some(reply.status),
            _ => None,
        }
    }

    pub(super) fn is_forwarded(&self, id: StreamId) -> bool {
        matches!(self.seen(id), Seen::Forwarded(_))
    }

    /// A VM with an open feed, a cached verdict and a lease for alice.
    pub(super) fn warm(config: FilterConfig) -> Self {
        let mut host = Self::new(config);
        host.tick(0);
        host.respond("/v1/changes", &changes(1, &[]));
        let id = host.get(&key(1));
        host.respond("/v1/verify", &verified(1, Some(verdict("alice"))));
        host.respond("/v1/lease", &granted("alice", 30_000));
        assert!(host.is_forwarded(id));
        host.end(id);
        host
    }
}
