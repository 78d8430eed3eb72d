//! Processes of a stack that are not children of this one: tenants' SQ instances, and those that a
//! killed run left behind.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// Deadline for killed processes to disappear: one that hangs in the kernel stays.
const KILL_TIMEOUT: Duration = Duration::from_secs(10);

/// Interval of checks for the end of a process.
const POLL_INTERVAL: Duration = Duration::from_millis(2);

/// Names of the programs that a stack runs.
pub const PARTS: [&str; 4] = ["envoy", "relay", "orchestrator", "sq"];

/// Pids of the named programs that have a path below `dir` as an argument.
pub fn with_argument_below(dir: &Path, programs: &[&str]) -> Vec<i32> {
    let prefix = format!("{}/", dir.display());
    find(programs, |argument| argument.starts_with(&prefix))
}

/// Pids of the named programs that have `path` as an argument.
pub fn with_argument(path: &Path, programs: &[&str]) -> Vec<i32> {
    let path = path.display().to_string();
    find(programs, |argument| argument == path)
}

fn find(programs: &[&str], is_wanted: impl Fn(&str) -> bool) -> Vec<i32> {
    let matches = |pid: &i32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line);
        let mut arguments = line.split('\0');
        let path = arguments.next().unwrap_or_default();
        let program = path.rsplit('/').next().unwrap_or_default();
        programs.contains(&program) && arguments.any(&is_wanted)
    };
    all().into_iter().filter(matches).collect()
}

/// Pids of the child processes of `parent`.
pub fn children(parent: i32) -> Vec<i32> {
    let parent_of = |pid: i32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The fields after the name, which is in parentheses: state, parent, …
        stat.rsplit(')').next()?.split_whitespace().nth(1)?.parse::<i32>().ok()
    };
    all().into_iter().filter(|pid| parent_of(*pid) == Some(parent)).collect()
}

/// Pids of all processes of the host.
fn all() -> Vec<i32> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// Sends SIGKILL to all of them and waits until they have ended.
pub fn kill_all(pids: &[i32]) {
    pids.iter().copied().for_each(kill);
    let start = Instant::now();
    while pids.iter().any(|pid| is_alive(*pid)) && start.elapsed() < KILL_TIMEOUT {
        std::thread::sleep(POLL_INTERVAL);
    }
}

/// Sends SIGKILL to one process.
pub fn kill(pid: i32) {
    signal(pid, Signal::KILL);
}

/// Sends a signal to one process. A process that has ended is no error.
pub fn signal(pid: i32, signal: Signal) {
    if let Some(pid) = Pid::from_raw(pid) {
        let _ = kill_process(pid, signal);
    }
}

/// True while the process runs.
pub fn is_alive(pid: i32) -> bool {
    // A zombie has ended; its parent has not collected its status yet.
    fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !stat.rsplit(')').next().unwrap_or_default().starts_with(" Z"))
}
