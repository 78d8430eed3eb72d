//! The gate of one VM: ties all decisions on the request path into `on event → effects`.
//!
//! The shell reports events with the time of its wall clock, and performs the effects that
//! [`Gate::next_effect`] returns. Nothing here touches a host.
//!
//! Each event takes the [`Stream`] that it is about out of [`streams::Streams`] by
//! value, lets it go on as far as it can, and puts it back. A stream that is taken out cannot be
//! reached by its id, so no step can meet it in a state that an earlier step has already left.
//!
//! For any order of events (see `tests/properties.rs` and `tests/revocation.rs`): nothing panics; no
//! request is both forwarded and answered; each waiting request is settled by the end of a call,
//! by its deadline or by its own end; at most one call per key and one per tenant is in flight.
//!
//! | module | purpose |
//! |---|---|
//! | [`admission`] | the request head: verdict → meaning → limits → lease |
//! | [`forwarding`] | the request head that SQ gets |
//! | [`uploads`], [`responses`] | the body of a request, the response of SQ |
//! | [`limits`], [`metering`] | applies rate, quotas and storage; counts what was served |
//! | [`calls`], [`completions`] | outbound calls, and what their responses mean |
//! | [`replies`] | responses of the gateway itself |
//! | [`leases`] | the tenants that may be routed to |
//! | [`head`], [`stream`], [`streams`] | one request and its states; all requests of the VM |
//! | [`clock`], [`metrics`] | time that never goes back; a closed set of counters |

use std::collections::VecDeque;

use protocol::time::{MS_NS, SECOND_NS};
use protocol::{FilterConfig, GatewayId};

use crate::effect::{Effect, StreamId};
use crate::identity::changes_feed::ChangesFeed;
use crate::identity::unknown_keys::UnknownKeyLimiter;
use crate::identity::verdicts::Verdicts;
use crate::limits::body_budget::BodyBudget;
use crate::limits::rate::Buckets;
use crate::limits::usage::Usage;
use crate::shared::Shared;
use crate::{Refusal, RefusalKind};
use calls::Calls;
use clock::{Clock, Ctx};
use leases::Leases;
use metrics::Counts;
use stream::{Exchange, State, Stream};
use streams::Streams;

mod admission;
mod calls;
mod clock;
mod completions;
mod forwarding;
pub mod head;
pub(crate) mod leases;
mod limits;
mod metering;
pub(crate) mod metrics;
mod replies;
mod responses;
mod stream;
mod streams;
#[cfg(test)]
mod tests;
mod uploads;

pub use metrics::{HOSTCALLS, descriptions as metric_descriptions, names as metric_names};
pub use responses::{Origin, ResponseHead};

/// Interval of dropping expired entries.
const SWEEP_NS: u64 = SECOND_NS;
/// Interval of returning unspent tokens. Several of these fit into the time for which a VM may keep
/// them (`rate::BATCH_NS`).
const RETURN_TOKENS_NS: u64 = 100 * MS_NS;

/// All state and policy of one VM.
pub struct Gate {
    config: FilterConfig,
    gateway: GatewayId,
    clock: Clock,
    streams: Streams,
    calls: Calls,
    effects: VecDeque<Effect>,
    verdicts: Verdicts,
    unknown_keys: UnknownKeyLimiter,
    changes_feed: ChangesFeed,
    leases: Leases,
    buckets: Buckets,
    body_budget: BodyBudget,
    usage: Usage,
    /// A usage report is in flight.
    is_reporting: bool,
    next_report_ns: u64,
    next_sweep_ns: u64,
    next_return_ns: u64,
    counts: Counts,
}

impl Gate {
    /// A gate that knows only what earlier VMs have left in `shared`. `source` is unique to this VM
    /// instance: its usage counters are summed up under that name.
    pub fn new(
        config: FilterConfig,
        gateway: GatewayId,
        source: String,
        shared: &dyn Shared,
    ) -> Self {
        let outage_after_ns = u64::from(config.outage_after_ms) * MS_NS;
        Self {
            clock: Clock::default(),
            streams: Streams::default(),
            calls: Calls::default(),
            effects: VecDeque::new(),
            verdicts: Verdicts::new(&config),
            unknown_keys: UnknownKeyLimiter::new(config.verify_per_s),
            changes_feed: ChangesFeed::start(shared),
            leases: Leases::new(config.cache_entries as usize, outage_after_ns),
            buckets: Buckets::new(config.cache_entries as usize),
            body_budget: BodyBudget::default(),
            usage: Usage::new(gateway.clone(), source),
            is_reporting: false,
            next_report_ns: 0,
            next_sweep_ns: 0,
            next_return_ns: 0,
            counts: Counts::ZERO,
            config,
            gateway,
        }
    }

    /// The next effect to perform, oldest first. The queue keeps its memory, so that effects of the
    /// warm path allocate nothing.
    pub fn next_effect(&mut self) -> Option<Effect> {
        self.next_effect_after(0)
    }

    /// Number of effects that are still to be performed.
    pub fn pending_effects(&self) -> usize {
        self.effects.len()
    }

    /// The next effect behind the first `earlier` ones. A shell whose hostcall reports another event
    /// before it returns performs the effects of that event alone: if it went on with the others, a
    /// thousand replies would be a thousand calls deep.
    pub fn next_effect_after(&mut self, earlier: usize) -> Option<Effect> {
        self.effects.remove(earlier)
    }

    /// Returns whether the stream's head was reported with a key, and its end was not.
    pub fn has_stream(&self, id: StreamId) -> bool {
        self.streams.contains(id)
    }

    /// The stream has ended, for any reason. Idempotent.
    pub fn on_stream_end(&mut self, id: StreamId, wall_ns: u64, shared: &mut dyn Shared) {
        let mut ctx = self.enter(None, wall_ns, shared);
        let Some(stream) = self.streams.remove(id) else { return };
        self.meter(&stream, &ctx);
        if let Some(verdict) = &stream.verdict {
            self.body_budget.release(&verdict.tenant, stream.marks.reserved_bytes);
        }
        if let State::Forwarded(exchange) | State::Parked { exchange, .. } = &stream.state {
            if stream.status == 200 {
                exchange.confirm_write(&mut ctx);
            }
            self.end_lease_use(exchange);
        }
        self.abandon_calls_of(id, &ctx);
    }

    /// The shell could not write the head of a forwarded request: the client gets an error instead.
    pub fn on_forward_failed(&mut self, id: StreamId) {
        let Some(mut stream) = self.streams.take(id) else { return };
        if let State::Forwarded(exchange) = &stream.state {
            self.end_lease_use(exchange);
            // Nothing was forwarded, so the refusal must carry all of its headers itself.
            stream.state = State::Answered { refused: None, late_headers: None };
        }
        self.refuse(&mut stream, &Refusal::new(RefusalKind::Internal));
        self.streams.put(stream);
    }

    /// Performs the work that is due by time. Called every few milliseconds, in the context of no stream.
    pub fn on_tick(&mut self, wall_ns: u64, shared: &mut dyn Shared) {
        let ctx = self.enter(None, wall_ns, shared);
        self.poll_changes(&ctx);
        self.repeat_lost_verifications(&ctx);
        self.request_due_leases(&ctx);
        self.refuse_overdue(&ctx);
        self.report_usage(&ctx);
        if ctx.now_ns >= self.next_sweep_ns {
            self.next_sweep_ns = ctx.now_ns + SWEEP_NS;
            self.verdicts.sweep(ctx.now_ns);
        }
        if ctx.now_ns >= self.next_return_ns {
            self.next_return_ns = ctx.now_ns + RETURN_TOKENS_NS;
            self.buckets.settle(ctx.wall_ns, ctx.shared);
        }
    }

    /// Begins an event: reads the clock once for all that follows from it. `caller` is the stream
    /// whose callback reported the event.
    fn enter<'a>(
        &mut self,
        caller: Option<StreamId>,
        wall_ns: u64,
        shared: &'a mut dyn Shared,
    ) -> Ctx<'a> {
        let stepped_back = self.clock.advance(wall_ns);
        let now_ns = self.clock.now_ns();
        if stepped_back {
            // For an unknown time leases were longer here than at the orchestrator: give them up.
            self.leases.give_up_all(now_ns);
        }
        Ctx { now_ns, wall_ns, caller, shared }
    }

    /// Refuses streams that have waited past their deadline.
    fn refuse_overdue(&mut self, ctx: &Ctx<'_>) {
        for id in self.streams.overdue(ctx.now_ns) {
            let Some(mut stream) = self.streams.take(id) else { continue };
            let refusal = stream.overdue_refusal();
            self.refuse(&mut stream, &refusal);
            self.streams.put(stream);
        }
    }

    fn end_lease_use(&mut self, exchange: &Exchange) {
        self.leases.end_request(exchange.request.tenant(), exchange.request.writes());
    }

    /// Handles each of these streams that still waits. Waiters are remembered by id and may have
    /// ended or been refused since.
    fn for_each_waiter(
        &mut self,
        waiters: Vec<StreamId>,
        mut handle: impl FnMut(&mut Self, &mut Stream),
    ) {
        for id in waiters {
            let Some(mut stream) = self.streams.take(id) else { continue };
            if stream.is_waiting() {
                handle(self, &mut stream);
            }
            self.streams.put(stream);
        }
    }
}
