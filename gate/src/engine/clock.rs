//! Time that never goes back, made of a wall clock that may.
//!
//! The host has a wall clock only. Deadlines and leases are measured on a monotonic time: the wall
//! clock plus the sum of all its steps backwards.

use protocol::time::{MS_NS, SECOND_NS};

use crate::effect::StreamId;
use crate::shared::Shared;

/// Time, caller and shared data of one event.
pub(super) struct Ctx<'a> {
    /// Monotonic time, for deadlines.
    pub(super) now_ns: u64,
    /// The host's clock, nanoseconds since 1970: for expiry, days, and what VMs compare.
    pub(super) wall_ns: u64,
    /// The stream whose callback reported the event. Calls are made in its context and die with it.
    pub(super) caller: Option<StreamId>,
    pub(super) shared: &'a mut dyn Shared,
}

impl Ctx<'_> {
    pub(super) fn wall_ms(&self) -> u64 {
        self.wall_ns / MS_NS
    }

    /// The host's clock as of now, in milliseconds: for what VMs compare with each other's times. The
    /// event's own time may be from before Envoy stood still.
    pub(super) fn fresh_wall_ms(&self) -> u64 {
        self.wall_ns.max(self.shared.now_ns()) / MS_NS
    }

    pub(super) fn wall_s(&self) -> u64 {
        self.wall_ns / SECOND_NS
    }

    /// The wall-clock time, in milliseconds, of a moment in monotonic time.
    pub(super) fn wall_ms_of(&self, monotonic_ns: u64) -> u64 {
        let ahead_ns = self.now_ns - self.wall_ns;
        monotonic_ns.saturating_sub(ahead_ns) / MS_NS
    }
}

/// The clock of one VM.
#[derive(Debug, Default)]
pub(super) struct Clock {
    /// The wall clock as of the last event.
    wall_ns: u64,
    /// Sum of all steps backwards.
    stepped_back_ns: u64,
}

impl Clock {
    /// Takes the wall clock's time; `true` if it went back since the last event.
    pub(super) fn advance(&mut self, wall_ns: u64) -> bool {
        let step_ns = self.wall_ns.saturating_sub(wall_ns);
        self.stepped_back_ns = self.stepped_back_ns.saturating_add(step_ns);
        self.wall_ns = wall_ns;
        step_ns > 0
    }

    /// The wall clock as of the last event.
    pub(super) fn wall_ns(&self) -> u64 {
        self.wall_ns
    }

    /// Monotonic time as of the last event.
    pub(super) fn now_ns(&self) -> u64 {
        self.wall_ns.saturating_add(self.stepped_back_ns)
    }
}
