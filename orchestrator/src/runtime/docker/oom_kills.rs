//! Evidence that lack of memory killed a container.
//!
//! Exit code 137 says only that a process died of SIGKILL. The daemon knows the reason from the
//! container's cgroup, but under load it may record the exit before it learns of the lack of memory,
//! and then never says so (Docker 20.10: 11 of 160 deaths). The kernel's own count of its kills
//! decides then: it rises with each of them, and with no signal that a process or a person sends.

use std::collections::HashSet;
use std::fs;

/// The kernel's counters.
const VMSTAT: &str = "/proc/vmstat";
/// The number of processes that the kernel has killed for lack of memory, of all cgroups.
const COUNTER: &str = "oom_kill";

/// The kernel's kills for lack of memory that no container's death accounts for yet.
#[derive(Debug, Default)]
pub(super) struct OomKills {
    /// Kills that were accounted for, or were there before.
    accounted: u64,
    /// Containers of which the daemon has reported a lack of memory, and no death yet.
    reported: HashSet<String>,
}

impl OomKills {
    /// Begins to count.
    pub(super) fn begin() -> Self {
        Self { accounted: count(), reported: HashSet::new() }
    }

    /// The daemon has reported that a container lacks memory.
    pub(super) fn report(&mut self, id: &str) {
        self.reported.insert(id.to_owned());
    }

    /// Forgets kills of other processes of the host, so that they explain no later death.
    pub(super) fn forget(&mut self) {
        self.accounted = count();
    }

    /// Returns whether lack of memory killed the container `id`, which has died of SIGKILL. `is_said`:
    /// the daemon says so.
    pub(super) fn explain(&mut self, id: &str, is_said: bool) -> bool {
        self.judge(id, is_said, count())
    }

    fn judge(&mut self, id: &str, is_said: bool, count: u64) -> bool {
        let is_reported = self.reported.remove(id);
        let is_killed = is_said || is_reported || count > self.accounted;
        if is_killed {
            self.accounted = (self.accounted + 1).min(count);
        }
        is_killed
    }
}

/// Reads the kernel's counter; 0 where there is none.
fn count() -> u64 {
    fs::read_to_string(VMSTAT).ok().and_then(|text| parse(&text)).unwrap_or(0)
}

fn parse(text: &str) -> Option<u64> {
    let mut lines = text.lines().filter_map(|line| line.split_once(' '));
    lines.find(|(name, _)| *name == COUNTER)?.1.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kill_from_outside_is_no_lack_of_memory() {
        let mut kills = OomKills { accounted: 7, ..OomKills::default() };
        assert!(!kills.judge("a", false, 7));
    }

    #[test]
    fn each_kill_of_the_kernel_explains_one_death() {
        let mut kills = OomKills { accounted: 7, ..OomKills::default() };
        // The kernel has killed two, and the daemon knows of one of them.
        assert!(kills.judge("a", true, 9));
        assert!(kills.judge("b", false, 9));
        assert!(!kills.judge("c", false, 9));
    }

    #[test]
    fn report_of_the_daemon_explains_one_death() {
        let mut kills = OomKills::default();
        kills.report("a");
        assert!(kills.judge("a", false, 0), "a kernel without the counter");
        assert!(!kills.judge("a", false, 0) && !kills.judge("b", false, 0));
    }

    #[test]
    fn counter_is_found_by_its_whole_name() {
        assert_eq!(parse("oom_kill_x 3\nnr_free 1\noom_kill 42\n"), Some(42));
        assert_eq!(parse("nr_free 1\n"), None);
    }
}
