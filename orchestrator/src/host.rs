//! Facts about this machine, read from the kernel: clock, boot id, available memory; and what this
//! process asks of it: open files, privacy.

use std::time::{SystemTime, UNIX_EPOCH};

use rustix::fs::Mode;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit, umask};
use tracing::{info, warn};

/// Reads `MemAvailable` of the kernel, in bytes; `None` on a host without `/proc`.
pub fn memory_available() -> Option<u64> {
    parse_available(&std::fs::read_to_string("/proc/meminfo").ok()?)
}

/// Keeps what this process writes, and its memory, from the other users of the host: files are private
/// unless they are opened up, and a crash leaves no core dump. SQ's processes inherit both.
pub fn keep_private() {
    // Folders that need not be closed stay passable: tenants' users pass through some.
    umask(Mode::RGRP | Mode::WGRP | Mode::ROTH | Mode::WOTH);
    let none = Rlimit { current: Some(0), maximum: Some(0) };
    if let Err(error) = setrlimit(Resource::Core, none) {
        warn!(%error, "core dumps can't be disabled: one would contain texts and keys");
    }
}

/// Raises the limit of open files to the hard limit. A tenant that runs as a process takes two, and
/// each waiting lease request one, while the usual soft limit is 1,024.
pub fn raise_open_files() {
    let limit = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }) {
        warn!(%error, ?limit, "limit of open files can't be raised");
    } else {
        info!(files = ?limit.maximum, "limit of open files raised");
    }
}

/// Reads the id of the host's present boot.
pub fn boot() -> std::io::Result<String> {
    Ok(std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

/// Returns the host's clock, in seconds since 1970 UTC.
pub(crate) fn now_s() -> u64 {
    unix_s(SystemTime::now())
}

/// Converts a time to seconds since 1970 UTC; an earlier time becomes 0.
pub(crate) fn unix_s(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

fn parse_available(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|l| l.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1_024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn available_memory_is_parsed_as_the_kernel_writes_it() {
        let text = "MemTotal:  8 kB\nMemAvailable:    5012 kB\nBuffers: 1 kB\n";
        assert_eq!(parse_available(text), Some(5_012 * 1_024));
        assert_eq!(parse_available("MemTotal: 1 kB"), None);
        assert!(memory_available().is_some());
    }
}
