//! The words of the machine: what is set, what can happen, what is to be done.

use protocol::{GatewayId, LeaseRequest, Limits, TenantId, TierName, WakeKind};

use super::state::{Answer, Drain, Ms, Seq, State};
use crate::runtime::{Died, InstanceId};

/// The durations and bounds of the machine, from the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// How long a lease holds.
    pub lease_ms: Ms,
    /// How long after its last lease a tenant is left alone: longer than the longest request.
    pub grace_ms: Ms,
    /// Idle time until a tenant is paused.
    pub doze_after_ms: Ms,
    /// Idle time until a tenant is stopped.
    pub sleep_after_ms: Ms,
    /// Starts at once.
    pub max_starts: usize,
    /// What a start takes, before the first was measured.
    pub start_ms: Ms,
    /// How long an asker waits.
    pub patience_ms: Ms,
    /// How much later a tenant of a priority one lower would have to come to start later.
    pub head_start_ms: Ms,
    /// How long an Envoy may take to acknowledge before its stream is cut.
    pub ack_timeout_ms: Ms,
    /// First back-off of a failing tenant; doubles.
    pub backoff_ms: Ms,
    /// Longest back-off.
    pub backoff_max_ms: Ms,
    /// Having run so long, a tenant's crashes are forgotten.
    pub stable_ms: Ms,
}

/// What can happen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A filter asks for a lease.
    Lease {
        /// Comes back with the answer.
        waiter: u64,
        /// What it asked.
        request: Box<LeaseRequest>,
    },
    /// The runtime started the tenant.
    Started(TenantId, InstanceId, WakeKind),
    /// The runtime could not start it and left nothing running; `damaged`: its data are broken.
    StartFailed {
        /// Whom.
        tenant: TenantId,
        /// Its data need the operator.
        damaged: bool,
        /// Why.
        reason: String,
    },
    /// The runtime froze it, or could not.
    Paused(TenantId, bool),
    /// The runtime thawed it and it answers, or not.
    Resumed(TenantId, bool),
    /// The runtime stopped it, or could not.
    Stopped(TenantId, bool),
    /// An instance died by itself.
    Died(Died),
    /// The publisher's answer to [`Effect::Publish`], [`Effect::PointNowhere`] and
    /// [`Effect::Withdraw`]; comes before any other event.
    Numbered(TenantId, Seq),
    /// An Envoy opened a stream.
    Connected(u64, GatewayId),
    /// A stream has everything up to this change.
    Acked(u64, Seq),
    /// A stream refused these tenants' clusters, as they were at this change.
    Nacked(u64, Vec<TenantId>, Seq),
    /// A stream ended.
    Disconnected(u64),
    /// The operator wants a tenant to sleep.
    Sleep(TenantId, Drain),
    /// Its files are being exchanged: it is put to sleep and not started until it is let go.
    Hold(TenantId, bool),
    /// The operator has repaired a damaged tenant.
    Repaired(TenantId),
    /// The host is short of memory: so many tenants are to make room.
    Pressure(usize),
    /// What the wall clock shows, in seconds since 1970 UTC: for [`Limits::warm_hours`] only.
    Clock(u64),
    /// Time has passed.
    Tick,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Start it.
    Start {
        /// Whom.
        tenant: TenantId,
        /// As what.
        tier: TierName,
        /// With which limits.
        limits: Box<Limits>,
    },
    /// Freeze it.
    Pause(TenantId),
    /// Thaw it.
    Resume(TenantId),
    /// Kill it; `orderly`: nothing is in flight, so its files are whole.
    Stop {
        /// Whom.
        tenant: TenantId,
        /// Nothing is in flight.
        orderly: bool,
    },
    /// Let it have so much memory from now on; nobody waits for it.
    Resize {
        /// Whom.
        tenant: TenantId,
        /// How much.
        memory_bytes: u64,
    },
    /// Put its cluster, as it is now, into the set; [`Event::Numbered`] follows.
    Publish(TenantId),
    /// Its SQ died and is started again: point its cluster where nobody listens, so that retries go
    /// on and nothing is sent to whoever gets its address next; [`Event::Numbered`] follows.
    PointNowhere(TenantId),
    /// Take its cluster out of the set; [`Event::Numbered`] follows.
    Withdraw(TenantId),
    /// Cut a stream that does not acknowledge.
    Disconnect(u64),
    /// Answer an asker.
    Answer(u64, Answer),
    /// For log and metrics: a tenant changed its state.
    Moved {
        /// Who.
        tenant: TenantId,
        /// From.
        from: State,
        /// To.
        to: State,
    },
}
