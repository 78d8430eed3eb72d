//! The world around the machine, as a model: Envoys, filters, the runtime, late and lost messages,
//! crashes. The model check explores it completely, the simulation at random. A broken promise is
//! an `Err` that names it.
//!
//! | file | content |
//! |---|---|
//! | `act.rs` | performs one action |
//! | `effects.rs` | performs the machine's effects |
//! | `instances.rs` | SQ instances: ends of calls, deaths, a restart of the orchestrator |
//! | `invariants.rs` | what must hold after each action |
//! | `fingerprint.rs` | which worlds count as equal |

mod act;
mod effects;
mod fingerprint;
mod instances;
mod invariants;

use std::collections::VecDeque;

use protocol::{GatewayId, Limits, TenantId};

use super::*;
use crate::runtime::InstanceId;
use crate::sockets::Peer;

/// Number of an instance that no tenant has, because theirs begin at 1. A cluster with this number
/// points at the address that refuses connections.
const NOWHERE: u32 = 0;

/// Time at which worlds begin: late enough that no time becomes negative.
const BEGIN: Ms = 1_000;

/// Description of a broken promise.
pub(super) type Violation = String;

/// An action that the world may take next. Numbers are those of an Envoy and a tenant, in this
/// order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Action {
    /// A filter requests a lease.
    Request(usize, usize),
    /// A filter renews the lease of a request in flight.
    Renew(usize, usize),
    /// The orchestrator's decision reaches the filter.
    DecisionArrives(usize, usize),
    /// The decision is lost on its way.
    DecisionLost(usize, usize),
    /// An Envoy takes the next change.
    Deliver(usize),
    /// An Envoy rejects the next change.
    Reject(usize),
    /// An Envoy's acknowledgement reaches the orchestrator.
    AckArrives(usize),
    /// An Envoy's stream breaks.
    Disconnect(usize),
    /// An Envoy reconnects.
    Connect(usize),
    /// The runtime call of a tenant succeeds.
    CallSucceeds(usize),
    /// The runtime call of a tenant fails.
    CallFails(usize),
    /// The start finds the tenant's data damaged.
    DataDamaged(usize),
    /// The operator repairs the data.
    Repair(usize),
    /// A tenant's SQ dies.
    Die(usize),
    /// The report of a death reaches the orchestrator.
    DeathReported(usize),
    /// The orchestrator dies and starts again, in the middle of its calls.
    Restart(Progress),
    /// The operator puts a tenant to sleep.
    Sleep(usize, Drain),
    /// A restore takes the restore lock.
    LockForRestore(usize),
    /// The restore ends.
    UnlockAfterRestore(usize),
    /// The host is short of memory.
    MemoryShort,
    /// Time passes.
    Time(Ms),
}

/// Progress of the calls that were under way when the orchestrator died.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Progress {
    /// The runtime has done nothing, except that a start has removed what was left of the dead
    /// instance.
    Begun,
    /// The runtime is done, and the tenant's record is that of before.
    Unrecorded,
    /// All is done.
    Done,
}

/// Bounds on the number of actions that go wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Faults {
    /// Lease requests. They are no fault, but must be bounded for some searches to end.
    pub(super) requests: u8,
    pub(super) lost_decisions: u8,
    pub(super) rejections: u8,
    pub(super) disconnects: u8,
    pub(super) failures: u8,
    pub(super) damages: u8,
    pub(super) deaths: u8,
    pub(super) restarts: u8,
    pub(super) sleeps: u8,
    pub(super) forced_sleeps: u8,
    pub(super) restores: u8,
    pub(super) memory_shortages: u8,
}

impl Faults {
    /// No bound; for requests only.
    pub(super) const ENDLESS: u8 = u8::MAX;

    pub(super) const NONE: Self = Self {
        requests: Self::ENDLESS,
        lost_decisions: 0,
        rejections: 0,
        disconnects: 0,
        failures: 0,
        damages: 0,
        deaths: 0,
        restarts: 0,
        sleeps: 0,
        forced_sleeps: 0,
        restores: 0,
        memory_shortages: 0,
    };
}

/// A safety rule that is put out of action, to prove that the invariants notice. The world deceives
/// the machine about one fact, so the machine itself needs no switch for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sabotage {
    /// The machine is given no grace, though requests last as long as before.
    NoGrace,
    /// Envoys seem to acknowledge removals at once.
    EarlyRemovalAck,
    /// Envoys seem to acknowledge publications at once.
    EarlyPublicationAck,
    /// Clusters keep the address of a dead instance.
    DeadAddressKept,
    /// No start is recorded for the next run.
    NoAwakeRecords,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Call {
    Start,
    Pause,
    Resume,
    /// `restarts`: leases are live, so the record stays.
    Stop {
        restarts: bool,
    },
}

/// A tenant's SQ.
#[derive(Debug, Clone, Default)]
struct Sq {
    /// Number of instances so far, which is the number of the last one.
    instances: u32,
    /// Number of the live instance.
    alive: Option<u32>,
    is_frozen: bool,
    /// The last instance died, and the runtime still lists it.
    remains: bool,
    /// It has been started, and not stopped in order since, as the next run will read.
    recorded: bool,
    call: Option<Call>,
    /// Dead instances whose death has not been reported.
    unreported: VecDeque<u32>,
    /// It crashed, failed or was forced to sleep: effects on its clients are excused until their
    /// leases have ended.
    excused_until: Ms,
}

/// A message to an Envoy. A cluster is the number of the instance that it points at.
#[derive(Debug, Clone)]
enum Message {
    Change(usize, Option<u32>),
    Everything(Vec<Option<u32>>),
}

#[derive(Debug, Clone)]
struct Envoy {
    stream: Option<StreamId>,
    clusters: Vec<Option<u32>>,
    inbox: VecDeque<(Seq, Message)>,
    /// Acknowledgements on their way to the orchestrator.
    acks: VecDeque<Seq>,
    filters: Vec<Filter>,
}

/// State of an Envoy's filter about one tenant.
#[derive(Debug, Clone, Default)]
struct Filter {
    /// The request that waits, and its time.
    requested: Option<(WaiterId, Ms)>,
    /// The decision on its way: granted or not.
    decision: Option<bool>,
    /// End of the time in which a request may be routed.
    lease_until: Ms,
    /// End of the time in which a routed request may be in flight.
    busy_until: Ms,
}

#[derive(Debug, Clone)]
pub(super) struct World {
    pub(super) machine: Lifecycle,
    pub(super) now: Ms,
    settings: Settings,
    sabotage: Option<Sabotage>,
    limits: Vec<Limits>,
    sqs: Vec<Sq>,
    envoys: Vec<Envoy>,
    seq: Seq,
    published: Vec<Option<u32>>,
    /// Last id of a stream or a waiter.
    last_id: u64,
    faults: Faults,
    /// Acknowledgements arrive together with the delivery of what they acknowledge.
    pub(super) acks_at_once: bool,
    /// Duration of the longest request.
    longest_ms: Ms,
    /// State changes of the last action.
    pub(super) state_changes: Vec<(&'static str, &'static str)>,
    /// Leases granted so far.
    pub(super) granted: u64,
}

fn tenant(t: usize) -> TenantId {
    id(["a", "b", "c", "d", "e", "f"][t])
}

fn number(id: &TenantId) -> usize {
    usize::from(id.as_str().as_bytes()[0] - b'a')
}

fn instance(t: usize, number: u32) -> InstanceId {
    InstanceId(format!("{t}.{number}"))
}

/// The process of an Envoy.
fn peer(e: usize) -> Peer {
    Peer { uid: 0, pid: i32::try_from(e).ok().map(|e| e + 1) }
}

fn gateway(e: usize) -> GatewayId {
    GatewayId::parse(["g0", "g1", "g2"][e]).unwrap()
}

impl World {
    pub(super) fn new(
        settings: Settings,
        sabotage: Option<Sabotage>,
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
        let (machine, _) =
            Lifecycle::adopt(machine_settings(&settings, sabotage), Vec::new(), 0, BEGIN);
        let mut world = Self {
            machine,
            now: BEGIN,
            longest_ms: settings.grace_ms,
            settings,
            sabotage,
            limits,
            sqs: vec![Sq::default(); tenants],
            envoys: vec![envoy; envoys],
            seq: Seq::default(),
            published: vec![None; tenants],
            last_id: 0,
            faults,
            acks_at_once: false,
            state_changes: Vec::new(),
            granted: 0,
        };
        for e in 0..envoys {
            world.connect(e).unwrap();
        }
        world
    }

    /// Lists the actions that are possible now. `time` has the durations that may pass.
    pub(super) fn actions(&self, time: &[Ms]) -> Vec<Action> {
        // Envoys and tenants are alike, so the first request can be that of any pair.
        let is_first = self.last_id == self.envoys.len() as u64;
        if is_first && self.faults.requests < Faults::ENDLESS {
            return vec![Action::Request(0, 0)];
        }
        let mut actions = Vec::new();
        for e in 0..self.envoys.len() {
            self.add_envoy_actions(e, &mut actions);
        }
        for t in 0..self.sqs.len() {
            self.add_tenant_actions(t, &mut actions);
        }
        if self.faults.memory_shortages > 0 {
            actions.push(Action::MemoryShort);
        }
        if self.faults.restarts > 0 {
            actions.push(Action::Restart(Progress::Done));
            if self.sqs.iter().any(|sq| sq.call.is_some()) {
                actions.push(Action::Restart(Progress::Begun));
                actions.push(Action::Restart(Progress::Unrecorded));
            }
        }
        actions.extend(time.iter().map(|ms| Action::Time(*ms)));
        actions
    }

    fn add_envoy_actions(&self, e: usize, actions: &mut Vec<Action>) {
        let faults = &self.faults;
        let envoy = &self.envoys[e];
        for (t, filter) in envoy.filters.iter().enumerate() {
            if filter.requested.is_none() && faults.requests > 0 {
                actions.push(Action::Request(e, t));
                if self.now < filter.busy_until {
                    actions.push(Action::Renew(e, t));
                }
            }
            if filter.decision.is_some() {
                actions.push(Action::DecisionArrives(e, t));
                if faults.lost_decisions > 0 {
                    actions.push(Action::DecisionLost(e, t));
                }
            }
        }
        if let Some((_, message)) = envoy.inbox.front() {
            actions.push(Action::Deliver(e));
            if faults.rejections > 0 && matches!(message, Message::Change(_, Some(_))) {
                actions.push(Action::Reject(e));
            }
        }
        if !envoy.acks.is_empty() {
            actions.push(Action::AckArrives(e));
        }
        if envoy.stream.is_none() {
            actions.push(Action::Connect(e));
        } else if faults.disconnects > 0 {
            actions.push(Action::Disconnect(e));
        }
    }

    fn add_tenant_actions(&self, t: usize, actions: &mut Vec<Action>) {
        let faults = &self.faults;
        let sq = &self.sqs[t];
        if sq.call.is_some() {
            actions.push(Action::CallSucceeds(t));
            if faults.failures > 0 {
                actions.push(Action::CallFails(t));
            }
            if faults.damages > 0 && sq.call == Some(Call::Start) {
                actions.push(Action::DataDamaged(t));
            }
        }
        if self.machine.state(&tenant(t)) == Some(State::Damaged) {
            actions.push(Action::Repair(t));
        }
        if sq.alive.is_some() && faults.deaths > 0 {
            actions.push(Action::Die(t));
        }
        if !sq.unreported.is_empty() {
            actions.push(Action::DeathReported(t));
        }
        if faults.sleeps > 0 {
            actions.push(Action::Sleep(t, Drain::Gently));
        }
        if self.is_restore_locked(t) {
            actions.push(Action::UnlockAfterRestore(t));
        } else if faults.restores > 0 {
            actions.push(Action::LockForRestore(t));
        }
        if faults.forced_sleeps > 0 {
            actions.push(Action::Sleep(t, Drain::Forced));
        }
    }

    fn is_restore_locked(&self, t: usize) -> bool {
        self.machine.tenants.get(&tenant(t)).is_some_and(|t| t.restore_locked)
    }

    /// Lists the possible actions that complete something that has begun.
    pub(super) fn completions(&self) -> Vec<Action> {
        let mut actions = self.actions(&[]);
        actions.retain(|action| {
            matches!(
                action,
                Action::DecisionArrives(..)
                    | Action::Deliver(_)
                    | Action::AckArrives(_)
                    | Action::Connect(_)
                    | Action::CallSucceeds(_)
                    | Action::DeathReported(_)
                    | Action::Repair(_)
                    | Action::UnlockAfterRestore(_)
            )
        });
        actions
    }
}

fn machine_settings(settings: &Settings, sabotage: Option<Sabotage>) -> Settings {
    let grace_ms = if sabotage == Some(Sabotage::NoGrace) { 0 } else { settings.grace_ms };
    Settings { grace_ms, ..settings.clone() }
}
