//! What the contexts of one VM share: the gate, the clock, the calls on their way.
//!
//! The gate is borrowed for one event at a time and never while its effects are performed.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use gate::Gate;
use gate::engine::{Call, CallFailed, CallId, Effect, Headers, metric_names};

use crate::host::{self, SharedData};

/// How often time-driven work is done. It also bounds how old the clock of a busy VM may be.
pub(crate) const TICK: Duration = Duration::from_millis(20);
/// Ticks between two gifts of counters to the host.
const METRIC_TICKS: u32 = 50;

pub(crate) struct Shell {
    root: u32,
    gate: RefCell<Gate>,
    /// Call by the host's token.
    tokens: RefCell<BTreeMap<u32, CallId>>,
    /// The time as of the last tick, or of a call that has ended since.
    clock: Cell<u64>,
    ticks: Cell<u32>,
    counters: Vec<Option<u32>>,
    hostcalls: Option<u32>,
}

impl Shell {
    pub(crate) fn new(root: u32, gate: Gate) -> Rc<Self> {
        Rc::new(Self {
            root,
            gate: RefCell::new(gate),
            tokens: RefCell::default(),
            clock: Cell::new(host::now_ns()),
            ticks: Cell::new(0),
            counters: metric_names().iter().map(|name| host::define_counter(name)).collect(),
            hostcalls: host::define_counter("sq.hostcalls"),
        })
    }

    /// The time, at most a tick and an event old: reading it for each request would cost as much
    /// as anything else the filter does. What is measured with it is right on the average, for it
    /// is as old at a request's begin as at its end.
    pub(crate) fn coarse_now(&self) -> u64 {
        self.clock.get()
    }

    /// The time.
    fn now(&self) -> u64 {
        let now = host::now_ns();
        self.clock.set(now);
        now
    }

    /// Reports an event to the gate.
    pub(crate) fn with<T>(&self, event: impl FnOnce(&mut Gate, &mut SharedData) -> T) -> T {
        event(&mut self.gate.borrow_mut(), &mut SharedData)
    }

    /// Performs what the gate wants done. `own`: the stream whose call has ended; `None`: the root's.
    pub(crate) fn perform(&self, own: Option<u32>) {
        while let Some(effects) = self.effects() {
            for effect in effects {
                self.perform_one(effect, own);
            }
        }
    }

    /// The same in a callback of `own`'s head or body, which has not returned yet. What becomes of
    /// `own` is given back, for it is what the callback returns: the host can't resume what it has not
    /// paused.
    pub(crate) fn perform_within(&self, own: u32) -> Option<Effect> {
        let mut settled = None;
        while let Some(effects) = self.effects() {
            for effect in effects {
                if effect.stream() == Some(own) {
                    settled = Some(effect);
                } else {
                    self.perform_one(effect, Some(own));
                }
            }
        }
        settled
    }

    /// What is to be done; `None`: nothing more. A call that can't be sent is reported at once, which
    /// may bring new effects.
    fn effects(&self) -> Option<Vec<Effect>> {
        let effects = self.with(|gate, _| gate.take_effects());
        (!effects.is_empty()).then_some(effects)
    }

    fn perform_one(&self, effect: Effect, own: Option<u32>) {
        if let Effect::Call(call) = effect {
            return self.send(&call);
        }
        let Some(stream) = effect.stream() else { return };
        if own != Some(stream) && !host::act_for(stream) {
            return;
        }
        match effect {
            Effect::Call(_) => {}
            Effect::Forward(_, headers) => {
                if self.forward(stream, &headers) {
                    host::resume_request();
                }
            }
            Effect::Resume(_) => host::resume_request(),
            Effect::Answer(_, reply) => host::send_reply(&reply),
        }
        self.act_for_own(own, stream);
    }

    /// Writes what goes on, in the stream's context. `false`: the stream is answered instead.
    pub(crate) fn forward(&self, stream: u32, headers: &Headers) -> bool {
        let written = host::set_request_headers(headers).is_ok();
        if !written {
            host::send_reply(&self.with(|gate, _| gate.on_forward_failed(stream)));
        }
        written
    }

    fn send(&self, call: &Call) {
        match host::dispatch(call) {
            Ok(token) => drop(self.tokens.borrow_mut().insert(token, call.id)),
            Err(_) => self.end_call(call.id, None),
        }
    }

    /// Calls are made in the context of the callback: back to it after acting for another stream.
    fn act_for_own(&self, own: Option<u32>, acted_for: u32) {
        if own != Some(acted_for) {
            host::act_for(own.unwrap_or(self.root));
        }
    }

    fn end_call(&self, id: CallId, answer: Option<&(u16, Vec<u8>)>) {
        let now = self.now();
        let result = answer.map(|(status, body)| (*status, body.as_slice()));
        self.with(|gate, shared| gate.on_call_done(id, result.ok_or(CallFailed), now, shared));
    }

    /// A stream is over. The host does not end its calls (each is the root's there), but the SDK drops
    /// their answers, so nothing would take them out of `tokens`.
    pub(crate) fn end_stream(&self, stream: u32) {
        let now = self.coarse_now();
        let lost = self.with(|gate, shared| gate.on_stream_end(stream, now, shared));
        if !lost.is_empty() {
            self.tokens.borrow_mut().retain(|_, call| !lost.contains(call));
        }
    }

    /// The callback for a call that this context has made.
    pub(crate) fn call_done(&self, own: Option<u32>, token: u32, headers: usize, size: usize) {
        let Some(id) = self.tokens.borrow_mut().remove(&token) else { return };
        self.end_call(id, host::call_answer(headers, size).as_ref());
        self.perform(own);
    }

    pub(crate) fn tick(&self) {
        let now = self.now();
        self.with(|gate, shared| gate.on_tick(now, shared));
        self.perform(None);
        self.ticks.set(self.ticks.get().wrapping_add(1));
        if self.ticks.get().is_multiple_of(METRIC_TICKS) {
            self.give_metrics();
        }
    }

    fn give_metrics(&self) {
        let counts = self.with(|gate, _| gate.take_metrics());
        for (metric, count) in self.counters.iter().zip(counts) {
            if let (Some(metric), true) = (metric, count > 0) {
                host::add(*metric, count);
            }
        }
        if let Some(metric) = self.hostcalls {
            host::add(metric, host::take_hostcalls());
        }
    }
}
