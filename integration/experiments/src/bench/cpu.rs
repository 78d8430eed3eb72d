//! How much CPU a process has used.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};

/// Time on a core over all threads, from `/proc/<pid>/task/*/schedstat`: nanoseconds, where
/// `/proc/<pid>/stat` counts in hundredths of a second.
pub fn used(pid: i32) -> Result<Duration> {
    let mut ns = 0;
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        let text = fs::read_to_string(task?.path().join("schedstat"))?;
        let first = text.split(' ').next().context("an empty schedstat")?;
        ns += first.parse::<u64>()?;
    }
    Ok(Duration::from_nanos(ns))
}

/// Resident memory in KiB, from `/proc/<pid>/status`.
pub fn rss_kib(pid: i32) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).context("no VmRSS")?;
    Ok(line.split_whitespace().nth(1).context("an empty VmRSS")?.parse()?)
}
