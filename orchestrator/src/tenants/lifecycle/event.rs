//! Settings, events and effects: the whole interface of the state machine.

use protocol::lease::LeaseRefusalKind;
use protocol::{GatewayId, LeaseRequest, Limits, TenantId, TierName, WakeKind};

use super::state::{Drain, Ms, State, WaiterId};
use crate::runtime::{Died, InstanceId, RuntimeError};
use crate::sockets::Peer;
use crate::xds::{Seq, StreamId};

/// Durations and bounds of the machine, from the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Length of a lease.
    pub lease_ms: Ms,
    /// Grace: time after its last lease in which a tenant is left running. Exceeds the longest
    /// request, which may begin when the lease ends.
    pub grace_ms: Ms,
    /// Idle time after which a tenant is paused.
    pub doze_after_ms: Ms,
    /// Idle time after which a tenant is stopped.
    pub sleep_after_ms: Ms,
    /// Start permits: the bound on concurrent starts.
    pub max_starts: usize,
    /// Estimated duration of a start, until one has been measured.
    pub start_ms: Ms,
    /// Longest time that a lease request waits for a wake.
    pub patience_ms: Ms,
    /// Head start in the queue per level of priority.
    pub head_start_ms: Ms,
    /// Time in which an Envoy must acknowledge a change before its stream is cut.
    pub ack_timeout_ms: Ms,
    /// First back-off of a failing tenant; doubles with each failure in a row.
    pub backoff_ms: Ms,
    /// Bound on the back-off.
    pub backoff_max_ms: Ms,
    /// Run time after which earlier failures no longer count.
    pub stable_ms: Ms,
}

/// An Envoy that needs longer than this part of its time-out for an acknowledgement is slow: one
/// tenth.
const SLOW_ACK_DIVISOR: Ms = 10;

impl Settings {
    /// Time after which an Envoy that has not acknowledged is slow.
    pub(super) fn slow_ack_ms(&self) -> Ms {
        self.ack_timeout_ms / SLOW_ACK_DIVISOR
    }
}

/// An input of the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A filter requests a lease.
    LeaseRequested {
        /// Returned with the decision, in [`Effect::Decide`].
        waiter: WaiterId,
        /// The process that sent it.
        peer: Peer,
        /// The request as it came over HTTP.
        request: Box<LeaseRequest>,
    },
    /// The runtime started the tenant, and SQ responds.
    Started {
        /// The tenant that was started.
        tenant: TenantId,
        /// Its new instance.
        instance: InstanceId,
        /// The work that the start took.
        kind: WakeKind,
    },
    /// The start failed, and no instance is left.
    StartFailed {
        /// The tenant that was to be started.
        tenant: TenantId,
        /// Reason, and whether a retry can help.
        error: StartError,
    },
    /// The runtime has tried to pause the tenant.
    Paused {
        /// The tenant that was to be paused.
        tenant: TenantId,
        /// On an error the state of the instance is unknown.
        result: Result<(), CallError>,
    },
    /// The runtime has tried to resume the tenant.
    Resumed {
        /// The tenant that was to be resumed.
        tenant: TenantId,
        /// `Ok` once SQ responds.
        result: Result<(), CallError>,
    },
    /// The runtime has tried to stop the tenant.
    Stopped {
        /// The tenant that was to be stopped.
        tenant: TenantId,
        /// On an error the stop is tried again.
        result: Result<(), CallError>,
    },
    /// An instance died that nothing in this process stopped.
    Died(Died),
    /// The publisher has performed [`Effect::Publish`], [`Effect::PointNowhere`] or
    /// [`Effect::Withdraw`]. Must come before any other event. Only the publisher knows the number,
    /// because content that is already published gets no new one.
    ClusterChanged {
        /// The tenant whose cluster was changed.
        tenant: TenantId,
        /// An Envoy that acknowledges this number has the change.
        seq: Seq,
    },
    /// An Envoy opened a stream.
    Connected {
        /// The new stream.
        stream: StreamId,
        /// The Envoy's `node.id`.
        gateway: GatewayId,
        /// The Envoy's process.
        peer: Peer,
    },
    /// An Envoy has every change up to a number, except those that it rejected.
    Acked {
        /// The stream on which it acknowledged.
        stream: StreamId,
        /// The last change that it has.
        seq: Seq,
    },
    /// An Envoy rejected clusters.
    Nacked {
        /// The stream on which it rejected them.
        stream: StreamId,
        /// Tenants whose clusters were rejected.
        tenants: Vec<TenantId>,
        /// Last change that the rejected response covered; later changes are not rejected.
        seq: Seq,
    },
    /// A stream ended.
    Disconnected(StreamId),
    /// The operator puts a tenant to sleep.
    SleepRequested {
        /// The tenant to be stopped.
        tenant: TenantId,
        /// Gently after live leases, or by force.
        drain: Drain,
    },
    /// A restore is about to replace the tenant's files: the tenant is put to sleep and not started
    /// until [`Event::RestoreUnlocked`].
    RestoreLocked(TenantId),
    /// The restore has ended.
    RestoreUnlocked(TenantId),
    /// The operator has repaired a damaged tenant.
    Repaired(TenantId),
    /// The host is short of memory.
    MemoryShort {
        /// Number of tenants to stop, including those that are being stopped already.
        tenants: usize,
    },
    /// A reading of the wall clock, which serves [`Limits::warm_hours`] only.
    Clock {
        /// Seconds since 1970 UTC.
        utc_s: u64,
    },
    /// A deadline may have passed.
    Tick,
}

/// An output of the machine, for the driver to perform.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Start the tenant; ends with [`Event::Started`] or [`Event::StartFailed`].
    Start {
        /// The tenant to start.
        tenant: TenantId,
        /// Recorded with the instance.
        tier: TierName,
        /// Recorded with the instance as well; the memory limit is enforced.
        limits: Box<Limits>,
    },
    /// Freeze the tenant in memory; ends with [`Event::Paused`].
    Pause(TenantId),
    /// Unfreeze the tenant; ends with [`Event::Resumed`].
    Resume(TenantId),
    /// Kill the tenant's SQ; ends with [`Event::Stopped`].
    Stop {
        /// The tenant to stop.
        tenant: TenantId,
        /// No request is in flight, so the files are complete.
        orderly: bool,
        /// The tenant will be started again, because leases on it are live.
        restarts: bool,
    },
    /// Set the memory limit of a running tenant. No event reports the end.
    SetMemory {
        /// The tenant with the new limit.
        tenant: TenantId,
        /// The new limit in bytes.
        memory_bytes: u64,
    },
    /// Publish the tenant's cluster with the present address and limits.
    Publish(TenantId),
    /// Point the published cluster of a dead instance at an address that refuses connections. So
    /// Envoy goes on retrying until the tenant runs again, and sends nothing to the next owner of
    /// the old address.
    PointNowhere(TenantId),
    /// Remove the tenant's cluster from all Envoys.
    Withdraw(TenantId),
    /// Cut a stream whose Envoy does not acknowledge.
    Disconnect(StreamId),
    /// Respond to a lease request.
    Decide {
        /// The request, as in [`Event::LeaseRequested`].
        waiter: WaiterId,
        /// The lease or the refusal.
        decision: LeaseDecision,
    },
    /// A tenant has changed its state; for logs and metrics.
    StateChanged {
        /// The tenant that changed.
        tenant: TenantId,
        /// State before the change.
        from: State,
        /// State after the change.
        to: State,
    },
}

/// Decision about a lease request.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum LeaseDecision {
    /// A lease that begins now.
    Granted {
        /// Work that waking the tenant took.
        wake: WakeKind,
        /// Time that the request waited for the wake; 0 with [`WakeKind::None`].
        wake_ms: Ms,
        /// The wake is counted for this request. A wake counts for one of the requests that wait
        /// for it.
        waker: bool,
    },
    /// The request gets no lease.
    Refused {
        /// Reason of the refusal.
        kind: LeaseRefusalKind,
        /// Time after which a retry makes sense.
        retry_after_s: u32,
        /// Text for the operator's log.
        detail: &'static str,
    },
}

/// Failure of a start.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StartError {
    /// The tenant's data needs the operator: no retry can help.
    #[error("{0}")]
    Damaged(String),
    /// A retry after a back-off may succeed.
    #[error("{0}")]
    Transient(String),
}

/// Failure of a runtime call.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// The runtime reported an error.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    /// The runtime took too long, and the call was given up.
    #[error("no result within {limit_s} s")]
    TimedOut {
        /// Bound of the call, in seconds.
        limit_s: u64,
    },
}

impl From<CallError> for StartError {
    fn from(error: CallError) -> Self {
        Self::Transient(error.to_string())
    }
}
