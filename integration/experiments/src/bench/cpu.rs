//! CPU time and memory of a process.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};

/// Reads the CPU time of all threads from `/proc/<pid>/task/*/schedstat`, in nanoseconds.
/// `/proc/<pid>/stat` has a resolution of only ten milliseconds.
pub(crate) fn cpu_time(pid: i32) -> Result<Duration> {
    let mut ns = 0;
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        let text = fs::read_to_string(task?.path().join("schedstat"))?;
        let first = text.split(' ').next().context("schedstat is empty")?;
        ns += first.parse::<u64>()?;
    }
    Ok(Duration::from_nanos(ns))
}

/// Reads the resident memory in KiB from `/proc/<pid>/status`.
pub(crate) fn rss_kib(pid: i32) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    let line = line.context("/proc/<pid>/status has no VmRSS")?;
    Ok(line.split_whitespace().nth(1).context("VmRSS is empty")?.parse()?)
}
