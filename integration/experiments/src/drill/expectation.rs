//! The outcomes that clients may see in each drill.

use super::Drill;
use super::outcomes::ClientOutcomes;

/// The failures that a drill's fault causes and that the gateway cannot prevent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Expectation {
    /// Writes in flight when their SQ is killed fail with an error response. An SQ that is killed
    /// during a write leaves a truncated file, and the last good copy replaces it.
    sq_dies: bool,
    /// There are no responses while the only Envoy is gone: clients retry, as their libraries do.
    envoy_dies: bool,
    /// Writes are refused while the disk has less room than its floor.
    disk_full: bool,
}

impl Expectation {
    /// The lines below the table.
    pub const NOTES: &str = "* failed writes: only when an SQ or Envoy is killed, each with an \
                             error response\n\
                             \x20 refused: only while the disk is below its floor; retried: only \
                             while Envoy is gone\n\
                             \x20 in window: acknowledged writes lost, only when an SQ is killed, \
                             none older than the\n\
                             \x20 window of the copies";

    /// Returns the expectation of a drill.
    pub fn new(drill: Drill) -> Self {
        let sq_dies = matches!(
            drill,
            Drill::SqKilled
                | Drill::SqOutOfMemory
                | Drill::AllSqsKilled
                | Drill::DaemonRestarted
                | Drill::TwoAtOnce
                | Drill::DaemonAndAnother
        );
        Self {
            sq_dies,
            envoy_dies: drill == Drill::EnvoyKilled,
            disk_full: drill == Drill::DiskFull,
        }
    }

    /// Lists the goals that were missed.
    pub fn missed_goals(self, outcomes: &ClientOutcomes) -> Vec<String> {
        [
            ("failed reads", outcomes.failed_reads, false),
            ("failed writes", outcomes.failed_writes, self.sq_dies || self.envoy_dies),
            ("failed writes without a problem document", outcomes.silent_writes, self.envoy_dies),
            ("refused writes", outcomes.refused_writes, self.disk_full),
            ("requests without a response", outcomes.unanswered, self.envoy_dies),
            ("wrong responses", outcomes.wrong_reads, false),
            ("lost writes", outcomes.lost_writes, false),
            ("lost writes within the window", outcomes.lost_in_window, self.sq_dies),
        ]
        .into_iter()
        .filter(|(_, count, allowed)| *count > 0 && !allowed)
        .map(|(goal, count, _)| format!("{count} {goal}"))
        .collect()
    }
}
