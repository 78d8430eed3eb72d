//! Tests of the lifecycle's rules, one by one, on a machine with one Envoy that acknowledges at
//! once unless a test says otherwise. The model check and the simulation test all rules together.

mod adoption;
mod deaths;
mod idleness;
mod leases;
mod model;
mod operator;
mod sim;
mod starts;
mod world;

use std::collections::VecDeque;

use protocol::lease::LeaseRefusalKind;
use protocol::{CountLimit, GatewayId, LeaseRequest, Limits, TenantId, TierName, WakeKind};

use super::*;
use crate::runtime::{ExitKind, Found, FoundState, InstanceId, RuntimeError};
use crate::sockets::Peer;
use crate::xds::{Seq, StreamId};

/// The process of the bench's Envoy.
const PEER: Peer = Peer { uid: 0, pid: Some(1) };
/// Its stream.
const STREAM: StreamId = StreamId(1);

struct Bench {
    machine: Lifecycle,
    now: Ms,
    seq: Seq,
    requests: u64,
    /// The Envoy acknowledges each change at once.
    acks_at_once: bool,
    /// Effects that the machine wants and no test has taken.
    wanted: Vec<Effect>,
}

fn settings() -> Settings {
    Settings {
        lease_ms: 30_000,
        grace_ms: 35_000,
        doze_after_ms: 120_000,
        sleep_after_ms: 1_800_000,
        max_starts: 2,
        start_ms: 400,
        patience_ms: 9_000,
        head_start_ms: 2_000,
        ack_timeout_ms: 10_000,
        backoff_ms: 1_000,
        backoff_max_ms: 8_000,
        stable_ms: 60_000,
    }
}

fn id(name: &str) -> TenantId {
    TenantId::parse(name).unwrap()
}

fn lease_request(tenant: &str) -> LeaseRequest {
    LeaseRequest {
        gateway: GatewayId::parse("g").unwrap(),
        tenant: id(tenant),
        tier: TierName::parse("free").unwrap(),
        limits: Limits::default(),
        renew_only: false,
        within_quotas: false,
        patience_ms: None,
    }
}

/// A tenant that the runtime has found, without an endpoint.
fn found(state: FoundState, tenant: TenantId) -> Found {
    Found {
        tenant,
        tier: TierName::parse("free").unwrap(),
        limits: Limits::default(),
        sq_version: protocol::SqVersion::V0_6_0,
        state,
        endpoint: None,
    }
}

fn failed_call() -> Result<(), CallError> {
    Err(RuntimeError::Failed("the daemon is broken".to_owned()).into())
}

impl Bench {
    fn new() -> Self {
        Self::with(settings())
    }

    fn with(settings: Settings) -> Self {
        let (machine, _) = Lifecycle::adopt(settings, Vec::new(), 0, 0);
        let mut bench = Self {
            machine,
            now: 1_000,
            seq: Seq::default(),
            requests: 0,
            acks_at_once: true,
            wanted: Vec::new(),
        };
        let gateway = GatewayId::parse("g").unwrap();
        bench.on(Event::Connected { stream: STREAM, gateway, peer: PEER });
        bench
    }

    fn on(&mut self, event: Event) {
        let mut effects = VecDeque::from(self.machine.on(event, self.now));
        while let Some(effect) = effects.pop_front() {
            if let Effect::Publish(tenant)
            | Effect::PointNowhere(tenant)
            | Effect::Withdraw(tenant) = &effect
            {
                self.seq = self.seq.following();
                let changed = Event::ClusterChanged { tenant: tenant.clone(), seq: self.seq };
                effects.extend(self.machine.on(changed, self.now));
                if self.acks_at_once {
                    let acked = Event::Acked { stream: STREAM, seq: self.seq };
                    effects.extend(self.machine.on(acked, self.now));
                }
            }
            if !matches!(effect, Effect::StateChanged { .. }) {
                self.wanted.push(effect);
            }
        }
    }

    fn request(&mut self, request: LeaseRequest) -> WaiterId {
        self.requests += 1;
        let waiter = WaiterId(self.requests);
        self.on(Event::LeaseRequested { waiter, peer: PEER, request: Box::new(request) });
        waiter
    }

    fn ask(&mut self, tenant: &str) -> WaiterId {
        self.request(lease_request(tenant))
    }

    fn ask_with(&mut self, tenant: &str, limits: Limits) -> WaiterId {
        self.request(LeaseRequest { limits, ..lease_request(tenant) })
    }

    fn renew(&mut self, tenant: &str) -> WaiterId {
        self.request(LeaseRequest { renew_only: true, ..lease_request(tenant) })
    }

    /// The Envoy acknowledges everything so far.
    fn ack(&mut self) {
        self.on(Event::Acked { stream: STREAM, seq: self.seq });
    }

    fn started(&mut self, tenant: &str) {
        let instance = InstanceId(format!("{tenant}{}", self.now));
        self.on(Event::Started { tenant: id(tenant), instance, kind: WakeKind::Start });
    }

    fn start_fails(&mut self, tenant: &str) {
        let error = StartError::Transient("SQ did not respond".to_owned());
        self.on(Event::StartFailed { tenant: id(tenant), error });
    }

    fn paused(&mut self, tenant: &str) {
        self.on(Event::Paused { tenant: id(tenant), result: Ok(()) });
    }

    fn resumed(&mut self, tenant: &str) {
        self.on(Event::Resumed { tenant: id(tenant), result: Ok(()) });
    }

    fn stopped(&mut self, tenant: &str) {
        self.on(Event::Stopped { tenant: id(tenant), result: Ok(()) });
    }

    fn wake(&mut self, tenant: &str) {
        self.wake_with(tenant, Limits::default());
    }

    fn wake_with(&mut self, tenant: &str, limits: Limits) {
        self.ask_with(tenant, limits);
        self.started(tenant);
        assert_eq!(self.state(tenant), "awake");
        self.wanted.clear();
    }

    fn dies(&mut self, tenant: &str) {
        self.dies_of(tenant, ExitKind::OutOfMemory);
    }

    fn dies_of(&mut self, tenant: &str, exit: ExitKind) {
        let instance = self.machine.tenants[&id(tenant)].instance.clone().unwrap();
        self.on(Event::Died(Died { tenant: id(tenant), instance, exit }));
    }

    fn put_to_sleep(&mut self, tenant: &str, drain: Drain) {
        self.on(Event::SleepRequested { tenant: id(tenant), drain });
    }

    /// Lets time pass from deadline to deadline.
    fn pass(&mut self, ms: Ms) {
        let end = self.now + ms;
        while let Some(at) = self.machine.next_deadline().filter(|at| *at <= end) {
            self.now = self.now.max(at);
            self.on(Event::Tick);
        }
        self.now = end;
    }

    fn state(&self, tenant: &str) -> &'static str {
        self.machine.state(&id(tenant)).map_or("unknown", State::label)
    }

    fn wants(&self, effect: &Effect) -> bool {
        self.wanted.contains(effect)
    }

    fn wants_stop(&self, tenant: &str, orderly: bool) -> bool {
        let is_wanted = |effect: &Effect| match effect {
            Effect::Stop { tenant: t, orderly: o, .. } => *t == id(tenant) && *o == orderly,
            _ => false,
        };
        self.wanted.iter().any(is_wanted)
    }

    /// Takes the decision about a request; `None` while it waits.
    fn decision(&mut self, waiter: WaiterId) -> Option<LeaseDecision> {
        let is_decision =
            |effect: &Effect| matches!(effect, Effect::Decide { waiter: w, .. } if *w == waiter);
        let place = self.wanted.iter().position(is_decision)?;
        match self.wanted.remove(place) {
            Effect::Decide { decision, .. } => Some(decision),
            _ => None,
        }
    }

    /// Takes the decision about a request, which must be a lease, and returns its kind of wake.
    #[track_caller]
    fn granted(&mut self, waiter: WaiterId) -> WakeKind {
        match self.decision(waiter) {
            Some(LeaseDecision::Granted { wake, .. }) => wake,
            other => panic!("no lease but {other:?}"),
        }
    }

    fn refusal(&mut self, waiter: WaiterId) -> Option<(LeaseRefusalKind, u32)> {
        match self.decision(waiter)? {
            LeaseDecision::Refused { kind, retry_after_s, .. } => Some((kind, retry_after_s)),
            LeaseDecision::Granted { .. } => None,
        }
    }

    /// Takes the starts that the machine wants.
    fn starts(&mut self) -> Vec<String> {
        let mut starts = Vec::new();
        self.wanted.retain(|effect| {
            if let Effect::Start { tenant, .. } = effect {
                starts.push(tenant.to_string());
                return false;
            }
            true
        });
        starts
    }
}
