//! Facts about processes on this host, from `/proc`.

use std::path::Path;

use procfs::process::{Process, all_processes};
use protocol::TenantId;

use crate::runtime::folder::Owner;
use crate::runtime::{key_file, sq_command};

/// State of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ProcessState {
    /// It runs or waits.
    Alive,
    /// It was sent SIGSTOP, and none of its threads is still inside a system call.
    Stopped,
    /// It has ended, reaped or not.
    Dead,
}

/// Reads the state of a process; one that does not exist is dead.
pub(super) fn state(pid: i32) -> ProcessState {
    let Ok(process) = Process::new(pid) else { return ProcessState::Dead };
    let Ok(stat) = process.stat() else { return ProcessState::Dead };
    match stat.state {
        'Z' | 'X' => ProcessState::Dead,
        'T' if all_threads_stopped(&process) => ProcessState::Stopped,
        _ => ProcessState::Alive,
    }
}

/// A process's own state is that of its first thread. Another thread may still be truncating or
/// writing a file: it stops when that call returns.
fn all_threads_stopped(process: &Process) -> bool {
    let Ok(threads) = process.tasks() else { return false };
    threads
        .filter_map(Result::ok)
        // A thread without a readable state has just ended.
        .all(|thread| thread.stat().map_or(true, |stat| matches!(stat.state, 'T' | 'Z' | 'X')))
}

/// Start time of a process, in clock ticks since the host's boot. Together with the boot's id it
/// tells a process from a later one with the same pid.
pub(super) fn start_ticks(pid: i32) -> Option<u64> {
    Some(Process::new(pid).ok()?.stat().ok()?.starttime)
}

/// User and group of a process.
pub(super) fn owner(pid: i32) -> Option<Owner> {
    let status = Process::new(pid).ok()?.status().ok()?;
    Some(Owner { uid: status.ruid, gid: status.rgid })
}

/// Resident memory of a process, in bytes.
pub(super) fn resident_bytes(pid: i32) -> Option<u64> {
    let kib = Process::new(pid).ok()?.status().ok()?.vmrss?;
    Some(kib * 1024)
}

/// Checks that a process is an SQ that was started on a folder of this tenant's name. With a daemon
/// on another host, or in another pid namespace, a pid means another process here.
pub(super) fn is_sq_of(pid: i32, tenant: &TenantId) -> bool {
    let Some(words) = command_line(pid) else { return false };
    let folder = sq_command::data_dir(words.iter().map(String::as_str));
    folder.and_then(|folder| folder.rsplit('/').next()) == Some(tenant.as_str())
}

/// Finds the SQ processes that an orchestrator started on folders directly below `root`, with the
/// names of the folders. The shell that is about to become SQ has the same words and counts as well.
pub(super) fn sq_processes_below(root: &Path) -> Vec<(i32, String)> {
    let Ok(processes) = all_processes() else { return Vec::new() };
    let pids = processes.filter_map(|process| Some(process.ok()?.pid()));
    pids.filter_map(|pid| Some((pid, sq_folder_below(root, pid)?))).collect()
}

/// Name of the folder directly below `root` on which a process is SQ, if it is one that an
/// orchestrator started.
pub(super) fn sq_folder_below(root: &Path, pid: i32) -> Option<String> {
    let words = command_line(pid)?;
    let words = || words.iter().map(String::as_str);
    // An SQ that a person started by hand has another kind of key.
    let has_key_file = sq_command::key_file(words()) == Some(key_file::STDIN);
    if !has_key_file && sq_command::key(words()).is_none() {
        return None;
    }
    let folder = Path::new(sq_command::data_dir(words())?);
    if folder.parent() != Some(root) {
        return None;
    }
    Some(folder.file_name()?.to_str()?.to_owned())
}

fn command_line(pid: i32) -> Option<Vec<String>> {
    Process::new(pid).ok()?.cmdline().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_process_is_alive() {
        let own = i32::try_from(std::process::id()).unwrap();
        assert_eq!(state(own), ProcessState::Alive);
        assert!(start_ticks(own).is_some());
        assert_eq!(start_ticks(own), start_ticks(own));
        assert!(resident_bytes(own).unwrap() > 100_000);
    }

    #[test]
    fn pid_zero_does_not_exist() {
        assert_eq!(state(0), ProcessState::Dead);
        assert_eq!(start_ticks(0), None);
        assert_eq!(resident_bytes(0), None);
    }

    #[test]
    fn another_tenants_process_is_not_mistaken() {
        let alice = TenantId::parse("alice").unwrap();
        for (folder, expected) in [("/data/alice", true), ("/data/alice-2", false)] {
            let mut child = std::process::Command::new("sh")
                .args(["-c", "read line", "sq", "--data-dir", folder])
                .stdin(std::process::Stdio::piped())
                .spawn()
                .unwrap();
            let pid = child.id().try_into().unwrap();
            // A new process has no command line until it has executed its program.
            while command_line(pid).unwrap().is_empty() {
                std::thread::yield_now();
            }
            assert_eq!(is_sq_of(pid, &alice), expected, "{folder}");
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }
}
