//! Everything around the machine, as small as it can be and as bad as it may get: Envoys, filters,
//! the runtime, messages that are late or lost, crashes. The model check explores it whole, the
//! simulation at random. Every broken promise is an `Err` with its name.

mod act;
mod look;

use std::collections::VecDeque;

use protocol::{GatewayId, LeaseRequest, Limits, TenantId, TierName, WakeKind};

use super::*;
use crate::runtime::instance_key::InstanceKey;
use crate::runtime::{Endpoint, Found, FoundState, InstanceId};

/// The life of nobody: lives begin at 1.
const NOWHERE: u32 = 0;

/// A broken promise.
pub(super) type Broken = String;

/// What the world may do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// A filter asks for a lease.
    Ask(usize, usize),
    /// A filter renews for a request in flight.
    Renew(usize, usize),
    /// The orchestrator's answer reaches the filter.
    AnswerArrives(usize, usize),
    /// It does not.
    AnswerLost(usize, usize),
    /// An Envoy takes the next change.
    Deliver(usize),
    /// An Envoy refuses it.
    Refuse(usize),
    /// Its acknowledgement reaches the orchestrator.
    AckArrives(usize),
    /// An Envoy's stream breaks.
    Disconnect(usize),
    /// It comes back.
    Connect(usize),
    /// The runtime does what it was asked for.
    Done(usize),
    /// The runtime fails.
    Fails(usize),
    /// It finds the tenant's data damaged.
    Damaged(usize),
    /// The operator has repaired them.
    Repaired(usize),
    /// A tenant dies.
    Die(usize),
    /// The orchestrator hears of it.
    DeathNews(usize),
    /// The orchestrator dies and starts again; calls under way were done, or not.
    Restart { calls_done: bool },
    /// The operator sends a tenant to sleep.
    Sleep(usize, Drain),
    /// The operator exchanges its files, and is done.
    Hold(usize, bool),
    /// The host is short of memory.
    Pressure,
    /// Time passes.
    Time(Ms),
}

/// How often what goes wrong may go wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Faults {
    /// Leases asked for; not a fault, but it bounds a search.
    pub(super) asks: u8,
    pub(super) lost_answers: u8,
    pub(super) refusals: u8,
    pub(super) disconnects: u8,
    pub(super) failures: u8,
    pub(super) damages: u8,
    pub(super) deaths: u8,
    pub(super) restarts: u8,
    pub(super) sleeps: u8,
    pub(super) forced: u8,
    pub(super) holds: u8,
    pub(super) pressures: u8,
}

impl Faults {
    /// As often as can be.
    pub(super) const ENDLESS: u8 = u8::MAX;

    pub(super) const NONE: Self = Self {
        asks: Self::ENDLESS,
        lost_answers: 0,
        refusals: 0,
        disconnects: 0,
        failures: 0,
        damages: 0,
        deaths: 0,
        restarts: 0,
        sleeps: 0,
        forced: 0,
        holds: 0,
        pressures: 0,
    };
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Call {
    Start,
    Pause,
    Resume,
    Stop,
}

/// A tenant's SQ.
#[derive(Debug, Clone, Default)]
struct Sq {
    lives: u32,
    alive: Option<u32>,
    frozen: bool,
    /// It died by itself, and the runtime has it still.
    remains: bool,
    call: Option<Call>,
    /// Lives whose death is not told yet.
    news: VecDeque<u32>,
    /// It crashed, failed or was forced: what its clients see until their leases end is excused.
    excused_until: Ms,
}

#[derive(Debug, Clone)]
enum Message {
    Change(usize, Option<u32>),
    Everything(Vec<Option<u32>>),
}

#[derive(Debug, Clone)]
struct Envoy {
    stream: Option<u64>,
    clusters: Vec<Option<u32>>,
    inbox: VecDeque<(Seq, Message)>,
    acks: VecDeque<Seq>,
    filters: Vec<Filter>,
}

/// What the filter knows of one tenant.
#[derive(Debug, Clone, Default)]
struct Filter {
    asked: Option<(u64, Ms)>,
    answer: Option<bool>,
    /// A request may be routed before this.
    lease_until: Ms,
    /// A request that was routed may be under way until this.
    busy_until: Ms,
}

/// The world.
#[derive(Debug, Clone)]
pub(super) struct World {
    pub(super) machine: Lifecycle,
    pub(super) now: Ms,
    settings: Settings,
    limits: Vec<Limits>,
    sqs: Vec<Sq>,
    envoys: Vec<Envoy>,
    seq: Seq,
    published: Vec<Option<u32>>,
    next_id: u64,
    faults: Faults,
    /// Acknowledgements arrive with what they are for.
    pub(super) prompt: bool,
    /// The longest request.
    longest: Ms,
    /// Changes of state so far.
    pub(super) moved: Vec<(&'static str, &'static str)>,
    /// Leases given so far.
    pub(super) granted: u64,
}

fn tenant(t: usize) -> TenantId {
    TenantId::parse(["a", "b", "c", "d", "e", "f"][t]).unwrap()
}

fn number(id: &TenantId) -> usize {
    usize::from(id.as_str().as_bytes()[0] - b'a')
}

fn instance(t: usize, life: u32) -> InstanceId {
    InstanceId(format!("{t}.{life}"))
}

impl World {
    pub(super) fn new(
        settings: Settings,
        broken: Option<Rule>,
        limits: Vec<Limits>,
        envoys: usize,
        faults: Faults,
    ) -> Self {
        let tenants = limits.len();
        let envoy = Envoy {
            stream: None,
            clusters: vec![None; tenants],
            inbox: VecDeque::new(),
            acks: VecDeque::new(),
            filters: vec![Filter::default(); tenants],
        };
        let (mut machine, _) = Lifecycle::adopt(settings.clone(), Vec::new(), 0, BEGIN);
        machine.shared.broken = broken;
        let mut world = Self {
            machine,
            now: BEGIN,
            longest: settings.grace_ms,
            settings,
            limits,
            sqs: vec![Sq::default(); tenants],
            envoys: vec![envoy; envoys],
            seq: 0,
            published: vec![None; tenants],
            next_id: 0,
            faults,
            prompt: false,
            moved: Vec::new(),
            granted: 0,
        };
        for e in 0..envoys {
            world.connect(e).unwrap();
        }
        world
    }

    /// What may happen next. `time`: how time may pass.
    pub(super) fn steps(&self, time: &[Ms]) -> Vec<Step> {
        // Envoys and tenants are alike: who is asked first makes no difference.
        if self.next_id == self.envoys.len() as u64 && self.faults.asks < Faults::ENDLESS {
            return vec![Step::Ask(0, 0)];
        }
        let mut steps = Vec::new();
        let f = &self.faults;
        for (e, envoy) in self.envoys.iter().enumerate() {
            for (t, filter) in envoy.filters.iter().enumerate() {
                if filter.asked.is_none() && f.asks > 0 {
                    steps.push(Step::Ask(e, t));
                    if self.now < filter.busy_until {
                        steps.push(Step::Renew(e, t));
                    }
                }
                if filter.answer.is_some() {
                    steps.push(Step::AnswerArrives(e, t));
                    if f.lost_answers > 0 {
                        steps.push(Step::AnswerLost(e, t));
                    }
                }
            }
            if let Some((_, message)) = envoy.inbox.front() {
                steps.push(Step::Deliver(e));
                if f.refusals > 0 && matches!(message, Message::Change(_, Some(_))) {
                    steps.push(Step::Refuse(e));
                }
            }
            if !envoy.acks.is_empty() {
                steps.push(Step::AckArrives(e));
            }
            if envoy.stream.is_none() {
                steps.push(Step::Connect(e));
            } else if f.disconnects > 0 {
                steps.push(Step::Disconnect(e));
            }
        }
        for (t, sq) in self.sqs.iter().enumerate() {
            if sq.call.is_some() {
                steps.push(Step::Done(t));
                if f.failures > 0 {
                    steps.push(Step::Fails(t));
                }
                if f.damages > 0 && sq.call == Some(Call::Start) {
                    steps.push(Step::Damaged(t));
                }
            }
            if self.machine.state(&tenant(t)) == Some(State::Damaged) {
                steps.push(Step::Repaired(t));
            }
            if sq.alive.is_some() && f.deaths > 0 {
                steps.push(Step::Die(t));
            }
            if !sq.news.is_empty() {
                steps.push(Step::DeathNews(t));
            }
            if f.sleeps > 0 {
                steps.push(Step::Sleep(t, Drain::Gently));
            }
            if self.held(t) {
                steps.push(Step::Hold(t, false));
            } else if f.holds > 0 {
                steps.push(Step::Hold(t, true));
            }
            if f.forced > 0 {
                steps.push(Step::Sleep(t, Drain::Forced));
            }
        }
        if f.pressures > 0 {
            steps.push(Step::Pressure);
        }
        if f.restarts > 0 {
            steps.push(Step::Restart { calls_done: true });
            if self.sqs.iter().any(|sq| sq.call.is_some()) {
                steps.push(Step::Restart { calls_done: false });
            }
        }
        steps.extend(time.iter().map(|ms| Step::Time(*ms)));
        steps
    }

    fn held(&self, t: usize) -> bool {
        self.machine.tenants.get(&tenant(t)).is_some_and(|t| t.held)
    }

    /// What is on its way already.
    pub(super) fn under_way(&self) -> Vec<Step> {
        let mut steps = self.steps(&[]);
        steps.retain(|step| {
            matches!(
                step,
                Step::AnswerArrives(..)
                    | Step::Deliver(_)
                    | Step::AckArrives(_)
                    | Step::Connect(_)
                    | Step::Done(_)
                    | Step::DeathNews(_)
                    | Step::Repaired(_)
                    | Step::Hold(_, false)
            )
        });
        steps
    }
}

/// When worlds begin: late enough that nothing lies before time.
const BEGIN: Ms = 1_000;
fn gateway(e: usize) -> GatewayId {
    GatewayId::parse(["g0", "g1", "g2"][e]).unwrap()
}
