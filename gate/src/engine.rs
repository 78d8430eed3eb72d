//! The gate of one VM: ties all decisions on the request path into `on event → effects`.
//!
//! The shell (the filter) reports what happens with the time, performs what [`Gate::take_effects`]
//! gives it, and reports back how calls ended. Nothing here touches a host.
//!
//! What holds for any order of events (see `engine/tests/`): no panic; no request both
//! forwarded and answered; every request that waits is settled by a call's end, its deadline or
//! its own end; at most one question per key and one per tenant on its way.
//!
//! | file | is |
//! |---|---|
//! | `engine/admit.rs` | a request's way: verdict → meaning → limits → lease → forwarded |
//! | `engine/limits.rs` | rate, quotas, storage; what was used |
//! | `engine/responses.rs` | bodies on their way in, answers on their way out |
//! | `engine/calls.rs` | questions to the relay and the orchestrator, and their ends |
//! | `engine/replies.rs` | what is answered here |
//! | `engine/metrics.rs` | the closed set of counters |

use std::borrow::Cow;
use std::collections::BTreeMap;

use protocol::time::MS_NS;
use protocol::{FilterConfig, GatewayId, KeyHash, TenantId};

use crate::RefusalKind;
use crate::engine::leases::Leases;
use crate::engine::stream::{Head, State, Stream, Waiting};
use crate::identity::changes_feed::ChangesFeed;
use crate::identity::unknown_keys::UnknownKeyLimiter;
use crate::identity::verdicts::Verdicts;
use crate::limits::body_budget::BodyBudget;
use crate::limits::rate::Buckets;
use crate::limits::usage::Usage;
use crate::shared::Shared;

mod admit;
mod calls;
pub(crate) mod leases;
mod limits;
mod metrics;
mod replies;
mod responses;
pub mod stream;
#[cfg(test)]
mod tests;

use metrics::Counts;
pub(crate) use metrics::Metric;
pub use metrics::names as metric_names;
pub use responses::{AnswerHead, AnswerStep, BodyStep};

/// A request, by the host's number of its context.
pub type StreamId = u32;
/// A call, numbered by the gate.
pub type CallId = u64;
/// Headers to write. A request's are complete: nothing else of the client's goes on.
pub type Headers = Vec<(&'static str, Cow<'static, str>)>;

/// Requests that wait at the same time in one VM; more are refused at once. Each costs its head.
const WAITING_MAX: usize = 10_000;

/// What becomes of a request now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// It goes on with exactly these headers.
    Forward(Headers),
    /// It is answered here.
    Answer(Reply),
    /// It is paused until an effect names it.
    Wait,
}

/// An answer of our own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// HTTP status.
    pub status: u16,
    /// All headers but those that Envoy adds.
    pub headers: Headers,
    /// The body.
    pub body: String,
}

/// A question over HTTP, made in the context of the event that caused it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// Reported back with its end.
    pub id: CallId,
    /// Envoy cluster.
    pub cluster: String,
    /// Method.
    pub method: &'static str,
    /// Path with query.
    pub path: String,
    /// JSON.
    pub body: Option<String>,
    /// When it ends at the latest.
    pub timeout_ms: u32,
}

/// What the shell is to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Ask.
    Call(Call),
    /// Let a paused request go on with these headers.
    Forward(StreamId, Headers),
    /// Let the end of a request's body go on.
    Resume(StreamId),
    /// Answer a paused request.
    Answer(StreamId, Reply),
}

impl Effect {
    /// Which paused request it settles; `None`: it is a call.
    pub fn stream(&self) -> Option<StreamId> {
        match self {
            Self::Call(_) => None,
            Self::Forward(id, _) | Self::Resume(id) | Self::Answer(id, _) => Some(*id),
        }
    }
}

impl Step {
    /// What becomes of a request that was settled before its callback returned: a call that can't be
    /// sent ends at once.
    #[must_use]
    pub fn or(self, settled: Option<Effect>) -> Self {
        match settled {
            Some(Effect::Forward(_, headers)) => Self::Forward(headers),
            Some(Effect::Answer(_, reply)) => Self::Answer(reply),
            Some(Effect::Call(_) | Effect::Resume(_)) | None => self,
        }
    }
}

/// Why a call has no answer: not sent, no connection, or its time is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CallFailed;

/// What a call is about.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Topic {
    Verify(KeyHash),
    Changes,
    Lease(TenantId),
    Usage(StreamId),
    Report { asked_ns: u64 },
}

/// A call on its way.
#[derive(Debug)]
struct Pending {
    topic: Topic,
    /// The stream that made it, and the only one its answer reaches. `None`: the root's.
    leader: Option<StreamId>,
}

/// Everything one VM knows and decides.
pub struct Gate {
    config: FilterConfig,
    gateway: GatewayId,
    streams: BTreeMap<StreamId, Stream>,
    waiting: usize,
    verdicts: Verdicts,
    unknown_keys: UnknownKeyLimiter,
    feed: ChangesFeed,
    leases: Leases,
    buckets: Buckets,
    bodies: BodyBudget,
    usage: Usage,
    /// A usage report is on its way.
    report_out: bool,
    /// When the next one is due.
    flush_ns: u64,
    calls: BTreeMap<CallId, Pending>,
    next_call: CallId,
    /// The stream whose callback this is; `None`: the root's. Calls are made in its context.
    context: Option<StreamId>,
    effects: Vec<Effect>,
    counts: Counts,
    swept_ns: u64,
    settled_ns: u64,
    /// The host's clock as of the last event.
    wall_ns: u64,
    /// By how much it went back, all in all.
    behind_ns: u64,
}

/// How often what has run out is forgotten.
const SWEEP_NS: u64 = 1_000_000_000;
/// How often tokens that were not spent in time are put back: often within `bucket::LEASE_NS`.
const SETTLE_NS: u64 = 100_000_000;

impl Gate {
    /// A gate that knows nothing but what VMs before it have left in `shared`.
    /// `source` names this VM and this life of it, like no other: its counters are summed under it.
    pub fn new(
        config: FilterConfig,
        gateway: GatewayId,
        source: String,
        shared: &dyn Shared,
    ) -> Self {
        Self {
            verdicts: Verdicts::new(&config),
            unknown_keys: UnknownKeyLimiter::new(config.verify_per_s),
            feed: ChangesFeed::start(shared),
            leases: Leases::new(
                config.cache_entries as usize,
                u64::from(config.outage_after_ms) * MS_NS,
            ),
            buckets: Buckets::new(config.cache_entries as usize),
            bodies: BodyBudget::default(),
            usage: Usage::new(gateway.clone(), source),
            report_out: false,
            flush_ns: 0,
            config,
            gateway,
            streams: BTreeMap::new(),
            waiting: 0,
            calls: BTreeMap::new(),
            next_call: 0,
            context: None,
            effects: Vec::new(),
            counts: Counts::ZERO,
            swept_ns: 0,
            settled_ns: 0,
            wall_ns: 0,
            behind_ns: 0,
        }
    }

    /// What is to be done since the last time.
    pub fn take_effects(&mut self) -> Vec<Effect> {
        std::mem::take(&mut self.effects)
    }

    /// A request's head has come; `ends`: it has no body. `client` reads where it came from, which
    /// costs a hostcall: as `192.0.2.1:4711`, empty if that is not known.
    pub fn on_request_head(
        &mut self,
        id: StreamId,
        headers: &[(String, Vec<u8>)],
        ends: bool,
        client: impl FnOnce() -> String,
        wall_ns: u64,
        shared: &mut dyn Shared,
    ) -> Step {
        let now_ns = self.clock(wall_ns);
        self.context = Some(id);
        self.count(Metric::Requests);
        if self.streams.contains_key(&id) {
            // The host never says so twice; if it does, the first one counts.
            return Step::Wait;
        }
        let (head, key) = Head::read(headers, ends);
        self.begin(id, head, key, client, now_ns, shared)
    }

    /// The request is over, whatever ended it. Said twice, it counts once. Returns the calls whose
    /// answers are not waited for any more.
    pub fn on_stream_end(
        &mut self,
        id: StreamId,
        wall_ns: u64,
        shared: &mut dyn Shared,
    ) -> Vec<CallId> {
        let now_ns = self.clock(wall_ns);
        let Some(stream) = self.streams.remove(&id) else { return Vec::new() };
        self.record(&stream, now_ns);
        self.settle_storage(&stream, shared);
        if let Some(tenant) = stream.tenant() {
            self.bodies.release(tenant, stream.held_bytes);
        }
        match stream.state {
            State::Waiting(_) => self.waiting = self.waiting.saturating_sub(1),
            State::Forwarded => self.end_lease_use(&stream),
            State::Held => {
                self.waiting = self.waiting.saturating_sub(1);
                self.end_lease_use(&stream);
            }
            State::Answered => {}
        }
        if stream.leads { self.drop_calls_of(id, now_ns) } else { Vec::new() }
    }

    /// A request that was forwarded could not be written: it is answered instead.
    pub fn on_forward_failed(&mut self, id: StreamId) -> Reply {
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.state = State::Answered;
            if let Some(tenant) = stream.tenant() {
                self.leases.end(tenant, stream.writes());
            }
        }
        self.refuse(id, &admit::internal())
    }

    /// A call has ended.
    pub fn on_call_done(
        &mut self,
        id: CallId,
        result: Result<(u16, &[u8]), CallFailed>,
        wall_ns: u64,
        shared: &mut dyn Shared,
    ) {
        let now_ns = self.clock(wall_ns);
        if let Some(pending) = self.calls.remove(&id) {
            self.context = pending.leader;
            self.call_done(pending, result, now_ns, shared);
        }
    }

    /// Time has passed; called in the root's context.
    pub fn on_tick(&mut self, wall_ns: u64, shared: &mut dyn Shared) {
        let now_ns = self.clock(wall_ns);
        self.context = None;
        self.poll_changes(now_ns);
        self.adopt_orphans(now_ns);
        self.ask_due_leases(now_ns);
        self.end_patience(now_ns);
        self.flush_usage(now_ns);
        if now_ns.saturating_sub(self.swept_ns) >= SWEEP_NS {
            self.swept_ns = now_ns;
            self.verdicts.sweep(now_ns);
        }
        if now_ns.saturating_sub(self.settled_ns) >= SETTLE_NS {
            self.settled_ns = now_ns;
            self.buckets.settle(wall_ns, shared);
        }
    }

    /// The host has a wall clock only. What is measured here must not go back with it: by as much
    /// as it does, `behind_ns` grows. Leases might be stretched by that, so they are given up.
    fn clock(&mut self, wall_ns: u64) -> u64 {
        if wall_ns < self.wall_ns {
            self.behind_ns = self.behind_ns.saturating_add(self.wall_ns - wall_ns);
            self.leases.distrust(wall_ns.saturating_add(self.behind_ns));
        }
        self.wall_ns = wall_ns;
        wall_ns.saturating_add(self.behind_ns)
    }

    /// Refuses those who have waited long enough.
    fn end_patience(&mut self, now_ns: u64) {
        if self.waiting == 0 {
            return;
        }
        let late: Vec<(StreamId, Waiting)> = self
            .streams
            .iter()
            .filter(|(_, stream)| now_ns >= stream.deadline_ns)
            .filter_map(|(id, stream)| match stream.state {
                State::Waiting(waiting) => Some((*id, waiting)),
                State::Held => Some((*id, Waiting::Lease)),
                _ => None,
            })
            .collect();
        for (id, waiting) in late {
            let kind = match waiting {
                Waiting::Verdict => RefusalKind::RelayUnavailable,
                Waiting::Lease | Waiting::Usage(_) => RefusalKind::OrchestratorUnavailable,
            };
            let reply = self.refuse(id, &replies::try_again(kind, 1));
            self.settle(id, Step::Answer(reply));
        }
    }

    /// Ends the waiting of a request by an effect.
    fn settle(&mut self, id: StreamId, step: Step) {
        let Some(stream) = self.streams.get(&id).filter(|stream| stream.is_waiting()) else {
            return;
        };
        let held = stream.state == State::Held;
        let (state, effect) = match step {
            Step::Wait => return,
            Step::Forward(_) if held => (State::Forwarded, Effect::Resume(id)),
            Step::Forward(headers) => (State::Forwarded, Effect::Forward(id, headers)),
            Step::Answer(mut reply) => {
                if held {
                    self.take_back(id, &mut reply);
                }
                (State::Answered, Effect::Answer(id, reply))
            }
        };
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.state = state;
            self.waiting = self.waiting.saturating_sub(1);
            self.effects.push(effect);
        }
    }

    fn end_lease_use(&mut self, stream: &Stream) {
        if let Some(tenant) = stream.tenant() {
            self.leases.end(tenant, stream.writes());
        }
    }
}
