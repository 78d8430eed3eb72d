//! States of a tenant, and the small types that events and facts share.

/// Milliseconds on the driver's monotonic clock, or a number of milliseconds.
pub type Ms = u64;

/// Identifies one waiting lease request; chosen by the driver, never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WaiterId(pub u64);

/// State of a tenant; [`crate::tenants::lifecycle`] has the diagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum State {
    /// No instance exists.
    Asleep,
    /// Waits for a start permit.
    Queued,
    /// The runtime is starting it, under a start permit.
    Starting,
    /// SQ responds, and the cluster is published.
    Awake,
    /// The cluster is withdrawn, and not every connected Envoy has acknowledged that.
    Retiring(Goal),
    /// The runtime is freezing it.
    Pausing,
    /// It is frozen in memory.
    Dozing,
    /// The runtime is unfreezing it.
    Resuming,
    /// The runtime is stopping it.
    Stopping {
        /// No request was in flight when the stop began, so the files are complete.
        orderly: bool,
        /// Time of the next attempt, after one that failed.
        retry_at: Option<Ms>,
    },
    /// It failed to start or crashes repeatedly; not started before this time.
    Failing(Ms),
    /// Its data needs the operator.
    Damaged,
}

/// Purpose of a retirement.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Goal {
    /// The tenant will be paused.
    Doze,
    /// The tenant will be stopped.
    Sleep,
    /// The instance died: only the cluster is left to withdraw.
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
            Self::Stopping { .. } => 8,
            Self::Failing(_) => 9,
            Self::Damaged => 10,
        }
    }

    /// Name of the state in status and metrics.
    pub fn label(self) -> &'static str {
        Self::LABELS[self.index()]
    }
}

/// Urgency of a sleep that the operator requested. Ordered by strength.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Drain {
    /// Once the last lease and its grace have ended.
    Gently,
    /// At once. Requests in flight fail.
    Forced,
}
