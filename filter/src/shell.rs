//! State that the contexts of one VM share: the gate, its clock, the calls in flight. Performs the
//! gate's effects.
//!
//! Envoy runs each hostcall on the stream of the current callback. An effect on another stream is
//! performed by switching the effective context to that stream and back. The effect on the
//! callback's own stream becomes the callback's return value, because Envoy cannot resume a stream
//! that it has not paused yet.
//!
//! Callbacks nest: before Envoy returns from a callback, it sends the replies and resumes the requests
//! of that callback, each of them inside the one before, because each causes another callback. A
//! thousand replies to the clients that waited for one key would overflow V8's stack and end the VM.
//! So a callback performs only the effects of the event that it reports ([`Shell::begin`]), and at most
//! [`BATCH`] on other streams. The rest is postponed to ticks that follow at once.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::time::Duration;

use gate::Gate;
use gate::effect::{Call, CallFailed, CallId, Effect, StreamId};
use gate::engine::{HOSTCALLS, metric_names};
use proxy_wasm::types::Action;

use crate::host::{self, SharedData};

/// Interval of time-driven work. It also bounds the age of the clock in a busy VM.
pub(crate) const TICK: Duration = Duration::from_millis(20);
/// Interval of ticks while effects are postponed: the shortest that Envoy has.
const BUSY_TICK: Duration = Duration::from_millis(1);
/// Maximum number of effects on other streams in one callback. Envoy survived 100 replies in one
/// callback and not 200.
const BATCH: usize = 32;
/// Ticks between two flushes of the counters.
const METRIC_TICKS: u32 = 50;

/// A callback of Envoy that is running.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Callback {
    /// Number of effects that belong to callbacks around this one. Their hostcalls have not returned,
    /// so it does not change before this callback ends.
    earlier: usize,
}

pub(crate) struct Shell {
    root: u32,
    gate: RefCell<Gate>,
    /// The calls in flight, by the host's token.
    tokens: RefCell<BTreeMap<u32, CallId>>,
    /// Effects on paused streams that wait for a tick.
    postponed: RefCell<VecDeque<Effect>>,
    ticks: Cell<u32>,
    /// The time of the last tick that was reported to the gate.
    last_tick_ns: Cell<u64>,
    counters: Vec<Option<u32>>,
    hostcalls: Option<u32>,
}

impl Shell {
    pub(crate) fn new(root: u32, gate: Gate) -> Rc<Self> {
        Rc::new(Self {
            root,
            gate: RefCell::new(gate),
            tokens: RefCell::default(),
            postponed: RefCell::default(),
            ticks: Cell::new(0),
            last_tick_ns: Cell::new(0),
            counters: metric_names().iter().map(|name| host::define_counter(name)).collect(),
            hostcalls: host::define_counter(HOSTCALLS),
        })
    }

    /// The time, stale by at most a tick and one event, and in the first events after Envoy stood
    /// still by all that time: reading the host's clock for each request would cost as much as
    /// anything else that the filter does. Durations measured with it are unbiased on average,
    /// because both ends are equally stale.
    pub(crate) fn coarse_now() -> u64 {
        host::last_now_ns()
    }

    /// Reports an event to the gate.
    pub(crate) fn with<T>(&self, event: impl FnOnce(&mut Gate, &mut SharedData) -> T) -> T {
        event(&mut self.gate.borrow_mut(), &mut SharedData)
    }

    /// Begins a callback, before its event is reported to the gate.
    pub(crate) fn begin(&self) -> Callback {
        Callback { earlier: self.gate.borrow().pending_effects() }
    }

    fn next_effect(&self, callback: Callback) -> Option<Effect> {
        self.gate.borrow_mut().next_effect_after(callback.earlier)
    }

    /// Performs the effects of a callback: of a call that `caller` has made (`None`: the root) or of
    /// a tick. Streams that are named by an effect are paused.
    fn perform(&self, callback: Callback, caller: Option<StreamId>) {
        let mut performed = 0;
        while let Some(effect) = self.next_effect(callback) {
            self.perform_or_postpone(effect, caller, &mut performed);
        }
    }

    /// Performs an effect, or postpones it if it is about a stream and `performed` such effects are
    /// as many as one callback may perform.
    fn perform_or_postpone(&self, effect: Effect, caller: Option<StreamId>, performed: &mut usize) {
        if effect.stream().is_some() {
            let mut postponed = self.postponed.borrow_mut();
            if *performed >= BATCH || !postponed.is_empty() {
                if postponed.is_empty() {
                    host::set_tick_period(BUSY_TICK);
                }
                return postponed.push_back(effect);
            }
            *performed += 1;
        }
        self.perform_elsewhere(effect, caller);
    }

    /// Performs the oldest postponed effects, in a tick.
    fn perform_postponed(&self) {
        for _ in 0..BATCH {
            let Some(effect) = self.postponed.borrow_mut().pop_front() else { break };
            self.perform_elsewhere(effect, None);
        }
        if self.postponed.borrow().is_empty() {
            host::set_tick_period(TICK);
        }
    }

    /// Takes out the postponed effect on a stream of which Envoy reports more before the effect was
    /// performed. Only a reply is still to be made then: the callback itself lets the stream go on.
    pub(crate) fn take_postponed_reply(&self, own: StreamId) -> Option<Effect> {
        let mut postponed = self.postponed.borrow_mut();
        let place = postponed.iter().position(|effect| effect.stream() == Some(own))?;
        postponed.remove(place).filter(|effect| matches!(effect, Effect::Reply(..)))
    }

    /// Performs the effects that are not about `own`, in the callback of `own`'s head or body, up to
    /// the first one that is.
    pub(crate) fn next_own_effect(&self, callback: Callback, own: StreamId) -> Option<Effect> {
        let mut performed = 0;
        while let Some(effect) = self.next_effect(callback) {
            if effect.stream() == Some(own) {
                return Some(effect);
            }
            self.perform_or_postpone(effect, Some(own), &mut performed);
        }
        None
    }

    /// Performs the effects of a callback of `own`. Returns the action for the callback to return;
    /// `None` if no effect was about `own`.
    pub(crate) fn perform_own(&self, callback: Callback, own: StreamId) -> Option<Action> {
        let mut action = None;
        while let Some(effect) = self.next_own_effect(callback, own) {
            action = Some(self.apply(effect));
        }
        action
    }

    /// Performs an effect on a stream other than the callback's, or a call.
    fn perform_elsewhere(&self, effect: Effect, caller: Option<StreamId>) {
        let stream = match (effect.stream(), &effect) {
            (Some(stream), _) => stream,
            (None, Effect::Call(call)) => return self.send(call),
            (None, Effect::Abandon(call)) => return self.abandon(*call),
            (None, _) => return,
        };
        let is_elsewhere = caller != Some(stream);
        // Envoy keeps the context of a stream for a moment after it has reported the end, and the SDK
        // panics if another event follows.
        if is_elsewhere && !(self.has_stream(stream) && host::switch_to(stream.0)) {
            return;
        }
        if self.apply(effect) == Action::Continue {
            host::resume_request();
        }
        if is_elsewhere {
            // Calls that follow are made in the context of the callback again.
            host::switch_to(caller.map_or(self.root, |caller| caller.0));
        }
    }

    fn has_stream(&self, stream: StreamId) -> bool {
        self.gate.borrow().has_stream(stream)
    }

    /// Performs an effect in the context of its stream. Returns whether the stream goes on.
    pub(crate) fn apply(&self, effect: Effect) -> Action {
        match effect {
            Effect::Forward(stream, headers) => {
                if host::set_request_headers(&headers).is_err() {
                    self.with(|gate, _| gate.on_forward_failed(stream));
                    return Action::Pause;
                }
                Action::Continue
            }
            Effect::Resume(_) | Effect::Call(_) | Effect::Abandon(_) => Action::Continue,
            Effect::Reply(_, reply) => {
                host::send_reply(&reply);
                Action::Pause
            }
            Effect::SetResponseHeaders(_, headers) => {
                host::set_response_headers(&headers);
                Action::Continue
            }
            Effect::RemoveContentLength(_) => {
                host::remove_response_header("content-length");
                Action::Continue
            }
        }
    }

    fn send(&self, call: &Call) {
        match host::dispatch(call) {
            Ok(token) => drop(self.tokens.borrow_mut().insert(token, call.id)),
            // Reported at once, which may bring new effects.
            Err(_) => self.end_call(call.id, None),
        }
    }

    /// The host does not cancel the calls of a stream that has ended, but the SDK drops their
    /// responses, so nothing else would take them out of `tokens`.
    fn abandon(&self, call: CallId) {
        self.tokens.borrow_mut().retain(|_, id| *id != call);
    }

    fn end_call(&self, id: CallId, response: Option<&(u16, Vec<u8>)>) {
        let now = host::now_ns();
        let result = response.map(|(status, body)| (*status, body.as_slice())).ok_or(CallFailed);
        self.with(|gate, shared| gate.on_call_done(id, result, now, shared));
    }

    pub(crate) fn end_stream(&self, stream: StreamId) {
        let callback = self.begin();
        let now = Self::coarse_now();
        self.with(|gate, shared| gate.on_stream_end(stream, now, shared));
        self.perform(callback, None);
    }

    /// A call has ended that `caller` (`None`: the root) has made.
    pub(crate) fn call_done(
        &self,
        caller: Option<StreamId>,
        token: u32,
        headers: usize,
        size: usize,
    ) {
        let Some(id) = self.tokens.borrow_mut().remove(&token) else { return };
        let callback = self.begin();
        self.end_call(id, host::call_response(headers, size).as_ref());
        self.perform(callback, caller);
    }

    pub(crate) fn tick(&self) {
        let now = host::now_ns();
        if !self.postponed.borrow().is_empty() {
            self.perform_postponed();
            let since_ns = now.abs_diff(self.last_tick_ns.get());
            if u128::from(since_ns) < TICK.as_nanos() {
                return;
            }
        }
        self.last_tick_ns.set(now);
        let callback = self.begin();
        self.with(|gate, shared| gate.on_tick(now, shared));
        self.perform(callback, None);
        self.ticks.set(self.ticks.get().wrapping_add(1));
        if self.ticks.get().is_multiple_of(METRIC_TICKS) {
            self.flush_metrics();
        }
    }

    fn flush_metrics(&self) {
        let counts = self.with(|gate, _| gate.take_metrics());
        for (metric, count) in self.counters.iter().zip(counts) {
            if count == 0 {
                continue;
            }
            if let Some(metric) = metric {
                host::add(*metric, count);
            }
        }
        if let Some(metric) = self.hostcalls {
            host::add(metric, host::take_hostcalls());
        }
    }
}
