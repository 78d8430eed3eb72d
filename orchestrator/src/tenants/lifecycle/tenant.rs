//! Facts about one tenant, which its rules decide by.

use protocol::time::HOUR_MS;
use protocol::{CountLimit, GatewayId, Limits, TierName, WakeKind};

use super::state::{Drain, Ms, State, WaiterId};
use crate::runtime::{ExitKind, InstanceId};
use crate::sockets::Peer;
use crate::xds::{Seq, StreamId};

/// Number of a change that the publisher has not numbered yet. It exceeds every acknowledged
/// number, so the change counts as not acknowledged.
pub(super) const UNNUMBERED: Seq = Seq::MAX;

/// A tenant's cluster, as the publisher has it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Cluster {
    /// Not published, and no acknowledgement of a removal is awaited.
    Absent,
    /// Published, at the instance or at an address that refuses connections.
    Published {
        /// The change that published the present content.
        seq: Seq,
        /// Streams whose Envoys rejected the present content.
        rejected_by: Vec<StreamId>,
    },
    /// Withdrawn by this change.
    Withdrawn(Seq),
}

impl Cluster {
    /// A cluster whose publication has no number yet.
    pub(super) fn publishing() -> Self {
        Self::Published { seq: UNNUMBERED, rejected_by: Vec::new() }
    }

    /// Number of the last change; `None` if the cluster is absent.
    pub(super) fn seq(&self) -> Option<Seq> {
        match self {
            Self::Absent => None,
            Self::Published { seq, .. } | Self::Withdrawn(seq) => Some(*seq),
        }
    }
}

/// A lease request that waits for its decision.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Waiter {
    pub(super) id: WaiterId,
    pub(super) gateway: GatewayId,
    /// The process that sent it.
    pub(super) peer: Peer,
    pub(super) asked_at: Ms,
    /// End of its patience: it is refused then.
    pub(super) deadline: Ms,
    /// The wake that happened while it waited.
    pub(super) wake: WakeKind,
}

/// Request to put a tenant to sleep before its idle time has passed. Ordered by strength: a
/// stronger request replaces a weaker one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum SleepRequest {
    /// The host is short of memory. A new lease cancels the request.
    MemoryShort,
    /// The operator or a restore. Stands until the tenant is asleep.
    Operator(Drain),
}

/// Facts about one tenant.
#[derive(Debug, Clone)]
pub(super) struct Tenant {
    /// Tier and limits are those of its last lease request.
    pub(super) tier: TierName,
    pub(super) limits: Limits,
    pub(super) state: State,
    /// Time of the last change of `state`.
    pub(super) since: Ms,
    pub(super) cluster: Cluster,
    /// Time at which the cluster was published with its present content.
    pub(super) published_at: Ms,
    /// The present instance; `None` once it is known to be dead or stopped.
    pub(super) instance: Option<InstanceId>,
    /// Memory limit of the present instance.
    pub(super) memory_bytes: u64,
    /// A death that was reported during a runtime call. It is taken into account when the call
    /// ends.
    pub(super) pending_death: Option<(InstanceId, ExitKind)>,
    /// Latest end of all leases. The client counts from before its request, so its end is earlier.
    pub(super) lease_until: Option<Ms>,
    /// Time of the last lease or wake.
    pub(super) used_at: Ms,
    /// Ordered by deadline.
    pub(super) waiters: Vec<Waiter>,
    /// The tenant is needed although no request waits, because leases on it are live.
    pub(super) restart: bool,
    pub(super) sleep_request: Option<SleepRequest>,
    /// A restore is replacing its files: it must not start.
    pub(super) restore_locked: bool,
    pub(super) starts: Starts,
    pub(super) history: History,
    pub(super) index: IndexKeys,
}

/// Starts and failures, as far as they limit further starts.
#[derive(Debug, Clone, Default)]
pub(super) struct Starts {
    /// Time of the last successful start or of the adoption.
    pub(super) last_at: Ms,
    /// Starts that failed in a row. The next one may hang as well.
    pub(super) failed: u32,
    /// Failures in a row: failed starts, and crashes of an instance that was not yet stable.
    pub(super) failures: u32,
    pub(super) budget: Budget,
}

impl Starts {
    /// Returns true if the last start failed. Suspects get half of the start permits at most.
    pub(super) fn is_suspect(&self) -> bool {
        self.failed > 0
    }
}

/// Keys under which the tenant stands in the indexes of [`Shared`](super::shared::Shared).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub(super) struct IndexKeys {
    pub(super) deadline: Option<Ms>,
    pub(super) ack: Option<Seq>,
}

/// Facts for the status. No rule reads them.
#[derive(Debug, Clone, Default)]
pub(super) struct History {
    pub(super) wakes: u64,
    pub(super) last_wake: Option<(WakeKind, Ms)>,
    /// The last wake has been counted for a request.
    pub(super) is_counted: bool,
    pub(super) deaths: u64,
    pub(super) last_death: Option<String>,
}

/// Starts within the present hour, which begins with its first start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub(super) struct Budget {
    began: Ms,
    starts: u32,
}

impl Budget {
    /// Returns the time until the next start is allowed; `None` if one is allowed now.
    pub(super) fn wait(&self, per_hour: CountLimit, now: Ms) -> Option<Ms> {
        let per_hour = per_hour.max()?;
        if per_hour == 0 {
            return Some(HOUR_MS);
        }
        let ends = self.began + HOUR_MS;
        let is_used_up = u64::from(self.starts) >= per_hour;
        if is_used_up && now < ends { Some(ends - now) } else { None }
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
            published_at: now,
            instance: None,
            pending_death: None,
            lease_until: None,
            used_at: now,
            waiters: Vec::new(),
            restart: false,
            sleep_request: None,
            restore_locked: false,
            starts: Starts::default(),
            history: History::default(),
            index: IndexKeys::default(),
        }
    }

    /// Returns true while a filter may route to the tenant under a lease.
    pub(super) fn is_leased(&self, now: Ms) -> bool {
        self.lease_until.is_some_and(|until| now < until)
    }

    /// Returns true if there is a reason to start the tenant and no restore forbids it.
    pub(super) fn may_start(&self) -> bool {
        let is_needed = self.restart || !self.waiters.is_empty();
        is_needed && !self.restore_locked
    }

    /// Notes a request for sleep, unless a stronger one stands.
    pub(super) fn request_sleep(&mut self, request: SleepRequest) {
        self.sleep_request = self.sleep_request.max(Some(request));
    }

    /// Notes a lease, which cancels a request for sleep that came from a shortage of memory.
    pub(super) fn cancel_memory_request(&mut self) {
        if self.sleep_request == Some(SleepRequest::MemoryShort) {
            self.sleep_request = None;
        }
    }

    /// The operator's way of draining the tenant, if the operator or a restore wants it asleep.
    pub(super) fn drain(&self) -> Option<Drain> {
        match self.sleep_request {
            Some(SleepRequest::Operator(drain)) => Some(drain),
            Some(SleepRequest::MemoryShort) | None => None,
        }
    }

    /// Takes the pending death, if it is that of the present instance, and records it.
    pub(super) fn take_death(&mut self) -> Option<ExitKind> {
        let (instance, exit) = self.pending_death.take()?;
        if self.instance.as_ref() != Some(&instance) {
            return None;
        }
        self.instance = None;
        self.history.deaths += 1;
        self.history.last_death = Some(describe_exit(exit));
        Some(exit)
    }
}

/// Describes an exit for the status.
pub(super) fn describe_exit(exit: ExitKind) -> String {
    match exit {
        ExitKind::Clean => "exit code 0".to_owned(),
        ExitKind::Crashed(code) => format!("exit code {code}"),
        ExitKind::OutOfMemory => "out of memory".to_owned(),
        ExitKind::Gone => "gone, exit code unknown".to_owned(),
    }
}
