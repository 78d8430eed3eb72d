//! Processes of a stack that are not our children: tenants' SQs, and what a killed run left behind.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// Longest wait for a killed process to be gone: one that hangs in the kernel stays.
const PATIENCE: Duration = Duration::from_secs(10);
/// Between two looks.
const TICK: Duration = Duration::from_millis(2);

/// Programs that a stack runs.
pub const PARTS: [&str; 4] = ["envoy", "relay", "orchestrator", "sq"];

/// Pids of processes named as one of `programs` with an argument that is a path below `dir`.
pub fn with_argument_below(dir: &Path, programs: &[&str]) -> Vec<i32> {
    let prefix = format!("{}/", dir.display());
    find(programs, |arg| arg.starts_with(&prefix))
}

/// Pids of processes named as one of `programs` with `path` as an argument.
pub fn with_argument(path: &Path, programs: &[&str]) -> Vec<i32> {
    let path = path.display().to_string();
    find(programs, |arg| arg == path)
}

fn find(programs: &[&str], wanted: impl Fn(&str) -> bool) -> Vec<i32> {
    let Ok(all) = fs::read_dir("/proc") else { return Vec::new() };
    all.flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
        .filter(|pid| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line);
            let mut args = line.split('\0');
            let program = args.next().unwrap_or_default();
            let program = program.rsplit('/').next().unwrap_or_default();
            programs.contains(&program) && args.any(&wanted)
        })
        .collect()
}

/// Pids of a process's children.
pub fn children(parent: i32) -> Vec<i32> {
    let Ok(all) = fs::read_dir("/proc") else { return Vec::new() };
    let parent_of = |pid: &i32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        stat.rsplit(')').next()?.split_whitespace().nth(1)?.parse::<i32>().ok()
    };
    let pids = all.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.filter(|pid| parent_of(pid) == Some(parent)).collect()
}

/// SIGKILL for all of them, and waits until they are gone.
pub fn kill_all(pids: &[i32]) {
    pids.iter().copied().for_each(kill);
    let start = Instant::now();
    while pids.iter().any(|pid| is_alive(*pid)) && start.elapsed() < PATIENCE {
        std::thread::sleep(TICK);
    }
}

/// SIGKILL for one process.
pub fn kill(pid: i32) {
    signal(pid, Signal::KILL);
}

/// A signal for one process; one that is gone already is no error.
pub fn signal(pid: i32, signal: Signal) {
    if let Some(pid) = Pid::from_raw(pid) {
        let _ = kill_process(pid, signal);
    }
}

/// Whether a process is there.
pub fn is_alive(pid: i32) -> bool {
    // A zombie has ended; only its parent has not looked yet.
    fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !stat.rsplit(')').next().unwrap_or_default().starts_with(" Z"))
}
