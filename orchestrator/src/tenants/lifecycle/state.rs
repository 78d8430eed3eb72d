//! One tenant as the lifecycle knows it: facts and the state they led to.

use protocol::lease::LeaseRefusalKind;
use protocol::time::HOUR_MS;
use protocol::{GatewayId, Limits, TierName, WakeKind};

use crate::runtime::{ExitKind, InstanceId};

/// Milliseconds on the driver's monotonic clock.
pub type Ms = u64;
/// Place in the sequence of all changes of the cluster set.
pub type Seq = u64;

/// A change that was asked for and has no number yet: nobody can have acknowledged it.
pub(super) const UNNUMBERED: Seq = Seq::MAX;

/// Where a tenant is in its life; the diagram is in [`crate::tenants::lifecycle`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum State {
    /// Nothing runs.
    Asleep,
    /// Waits for a start slot.
    Queued,
    /// The runtime starts it; holds a slot.
    Starting,
    /// It answers and its cluster is published.
    Awake,
    /// Its cluster is withdrawn; connected Envoys have not all acknowledged that.
    Retiring(Goal),
    /// The runtime freezes it.
    Pausing,
    /// Frozen.
    Dozing,
    /// The runtime thaws it.
    Resuming,
    /// The runtime kills it.
    Stopping,
    /// It failed to start or crashes in a loop: not tried again before this time.
    Failing(Ms),
    /// Its data needs the operator.
    Damaged,
}

/// What a retirement is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Goal {
    /// To be paused.
    Doze,
    /// To be stopped.
    Sleep,
    /// It died: nothing is left to stop.
    Gone,
}

impl State {
    /// Number of labels.
    pub const COUNT: usize = 11;
    /// All labels, in the order of [`State::index`].
    pub const LABELS: [&'static str; Self::COUNT] = [
        "asleep", "queued", "starting", "awake", "retiring", "pausing", "dozing", "resuming",
        "stopping", "failing", "damaged",
    ];

    /// Position in [`State::LABELS`].
    pub fn index(self) -> usize {
        match self {
            Self::Asleep => 0,
            Self::Queued => 1,
            Self::Starting => 2,
            Self::Awake => 3,
            Self::Retiring(_) => 4,
            Self::Pausing => 5,
            Self::Dozing => 6,
            Self::Resuming => 7,
            Self::Stopping => 8,
            Self::Failing(_) => 9,
            Self::Damaged => 10,
        }
    }

    /// Label in status and metrics.
    pub fn label(self) -> &'static str {
        Self::LABELS[self.index()]
    }
}

/// Whether the tenant's cluster is in the set that Envoys are told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Cluster {
    /// Not, and no removal is waited for.
    Absent,
    /// Since this change.
    Published(Seq),
    /// No longer since this change.
    Withdrawn(Seq),
}

/// Someone who asked for a lease and has no answer yet.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Waiter {
    pub(super) id: u64,
    pub(super) gateway: GatewayId,
    pub(super) asked: Ms,
    /// When it gets a refusal instead.
    pub(super) until: Ms,
    /// What the tenant needed while it waited.
    pub(super) wake: WakeKind,
}

/// An operator's wish that the tenant sleep.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Drain {
    /// As soon as no lease is live.
    Gently,
    /// Now, whatever is under way.
    Forced,
}

/// Facts about one tenant.
#[derive(Debug, Clone)]
pub(super) struct Tenant {
    pub(super) tier: TierName,
    pub(super) limits: Limits,
    pub(super) state: State,
    pub(super) since: Ms,
    pub(super) cluster: Cluster,
    /// The current life, while one is known.
    pub(super) instance: Option<InstanceId>,
    /// With how much memory it runs.
    pub(super) memory_bytes: u64,
    /// A death heard of while the runtime was at work on the tenant.
    pub(super) death: Option<(InstanceId, ExitKind)>,
    /// No lease outlives this; counted from after the answer.
    pub(super) lease_until: Option<Ms>,
    /// When a lease was last given.
    pub(super) used: Ms,
    pub(super) waiters: Vec<Waiter>,
    /// Gateways' streams that refused the present cluster.
    pub(super) refused_by: Vec<u64>,
    /// To be started though nobody waits: its leases are live.
    pub(super) restart: bool,
    pub(super) drain: Option<Drain>,
    /// Not to be started: its files are being exchanged.
    pub(super) held: bool,
    /// To be stopped as soon as no lease is live: the host needs the memory.
    pub(super) squeezed: bool,
    /// Starts that failed in a row, maybe by hanging: few tenants with any may start at once.
    pub(super) failed_starts: u32,
    /// When it last started.
    pub(super) started: Ms,
    /// Failures in a row.
    pub(super) failures: u32,
    pub(super) budget: Budget,
    pub(super) history: History,
    pub(super) stop: Stop,
    pub(super) index: Index,
}

/// How it is being stopped.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub(super) struct Stop {
    /// Its requests are over.
    pub(super) orderly: bool,
    /// When the runtime may be asked again.
    pub(super) retry: Option<Ms>,
}

/// Under which keys the tenant stands in the global indexes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub(super) struct Index {
    pub(super) due: Option<Ms>,
    pub(super) ack: Option<Seq>,
}

/// What status shows and no rule reads.
#[derive(Debug, Clone, Default)]
pub(super) struct History {
    pub(super) wakes: u64,
    pub(super) last_wake: Option<(WakeKind, Ms)>,
    /// The last wake was counted for an asker.
    pub(super) is_counted: bool,
    pub(super) deaths: u64,
    pub(super) last_death: Option<String>,
}

/// Starts of the present hour.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub(super) struct Budget {
    began: Ms,
    starts: u32,
}

impl Budget {
    /// Milliseconds until a start is allowed; `None`: now.
    pub(super) fn wait(&self, per_hour: u32, now: Ms) -> Option<Ms> {
        let ends = self.began + HOUR_MS;
        (per_hour > 0 && self.starts >= per_hour && now < ends).then(|| ends - now)
    }

    pub(super) fn count(&mut self, now: Ms) {
        if self.starts == 0 || now >= self.began + HOUR_MS {
            *self = Self { began: now, starts: 0 };
        }
        self.starts = self.starts.saturating_add(1);
    }
}

impl Tenant {
    pub(super) fn new(tier: TierName, limits: Limits, now: Ms) -> Self {
        Self {
            memory_bytes: limits.memory_bytes,
            tier,
            limits,
            state: State::Asleep,
            since: now,
            cluster: Cluster::Absent,
            instance: None,
            death: None,
            lease_until: None,
            used: now,
            waiters: Vec::new(),
            refused_by: Vec::new(),
            restart: false,
            drain: None,
            held: false,
            squeezed: false,
            failed_starts: 0,
            started: 0,
            failures: 0,
            budget: Budget::default(),
            history: History::default(),
            stop: Stop::default(),
            index: Index::default(),
        }
    }

    /// Whether it may hang at its next start.
    pub(super) fn is_suspect(&self) -> bool {
        self.failed_starts > 0
    }

    /// Whether some filter may still route to it by a lease.
    pub(super) fn leased(&self, now: Ms) -> bool {
        self.lease_until.is_some_and(|until| now < until)
    }
}

/// What an asker of a lease is told.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Answer {
    /// A lease that counts from now.
    Granted {
        /// What it took.
        wake: WakeKind,
        /// How long that took; 0 with [`WakeKind::None`].
        wake_ms: Ms,
        /// The wake is counted for this asker, and for nobody else who waited.
        waker: bool,
    },
    /// No lease.
    Refused {
        /// Why.
        kind: LeaseRefusalKind,
        /// When to ask again.
        retry_after_s: u32,
        /// For the operator's log.
        detail: &'static str,
    },
}
