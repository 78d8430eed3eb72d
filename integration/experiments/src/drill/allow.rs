//! What clients may see of a drill.

use super::Drill;
use super::tally::Tally;

/// What is not a fault of the gateway.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Allowance {
    /// Writes in flight when their SQ is killed fail, and say so. Killed within a write, it leaves a
    /// cut file, for which the last good copy is put back.
    sq_dies: bool,
    /// Nobody answers while the only Envoy is gone: clients ask again, as their libraries do.
    envoy_dies: bool,
    /// Writes are refused while the disk is below its floor.
    disk_full: bool,
}

impl Allowance {
    /// The last line of the table.
    pub const GOAL: &str = "goal                                   any             0              * \
                            \x20    *        *          0      0          *         any\n\
                            * failed writes: only where an SQ or Envoy is killed, each with an answer that says so\n\
                            \x20 refused: only below the floor of the disk; asked again: only while Envoy is gone\n\
                            \x20 in window: acknowledged writes lost, only where an SQ is killed, none older than the\n\
                            \x20 window of the copies";

    /// Of a drill.
    pub fn of(drill: Drill) -> Self {
        use Drill as D;
        Self {
            sq_dies: matches!(
                drill,
                D::SqKilled | D::SqOutOfMemory | D::AllSqsKilled | D::DaemonRestarted
            ),
            envoy_dies: drill == D::EnvoyKilled,
            disk_full: drill == D::DiskFull,
        }
    }

    /// Which goals are missed.
    pub fn missed(self, tally: &Tally) -> Vec<String> {
        [
            ("failed reads", tally.failed_reads, false),
            ("failed writes", tally.failed_writes, self.sq_dies || self.envoy_dies),
            ("failed writes that don't say so", tally.mute_writes, self.envoy_dies),
            ("refused writes", tally.refused_writes, self.disk_full),
            ("requests without an answer", tally.unanswered, self.envoy_dies),
            ("wrong answers", tally.wrong, false),
            ("lost writes", tally.lost, false),
            ("lost writes within the window", tally.young, self.sq_dies),
        ]
        .into_iter()
        .filter(|(_, count, allowed)| *count > 0 && !allowed)
        .map(|(what, count, _)| format!("{count} {what}"))
        .collect()
    }
}
