//! What `/proc` and a pidfd tell of a process.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use protocol::TenantId;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::runtime::instance_key::InstanceKey;

/// How often a process is looked at when its pidfd can't be waited for.
const POLL: Duration = Duration::from_millis(200);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ProcessState {
    /// It runs or waits.
    Alive,
    /// It was sent SIGSTOP, and none of its threads is still within a call.
    Frozen,
    /// It has ended, reaped or not.
    Dead,
}

/// Fields of `/proc/<pid>/stat` after the name, which may hold anything (proc(5)).
fn stat(pid: i32) -> Option<Vec<String>> {
    stat_in(&Path::new("/proc").join(pid.to_string()))
}

fn stat_in(task: &Path) -> Option<Vec<String>> {
    let text = fs::read_to_string(task.join("stat")).ok()?;
    let (_, rest) = text.rsplit_once(')')?;
    Some(rest.split_whitespace().map(str::to_owned).collect())
}

/// When it started, in clock ticks since the boot: field 22.
pub(super) fn start_ticks(pid: i32) -> Option<u64> {
    stat(pid)?.get(19)?.parse().ok()
}

/// How it is: field 3.
pub(super) fn state(pid: i32) -> ProcessState {
    let process = Path::new("/proc").join(pid.to_string());
    match letter(&process).as_deref() {
        Some("T") if all_stopped(&process) => ProcessState::Frozen,
        None | Some("Z" | "X") => ProcessState::Dead,
        Some(_) => ProcessState::Alive,
    }
}

/// SQs that an orchestrator started on a folder directly below `root`, by their command lines, with
/// the folder's name. Before it becomes SQ, the shell has the same words.
pub(super) fn started_below(root: &Path) -> Vec<(i32, String)> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    pids.filter_map(|pid: i32| Some((pid, folder_of(pid, root)?))).collect()
}

/// Which folder below `root` a process is SQ on.
pub(super) fn folder_of(pid: i32, root: &Path) -> Option<String> {
    let line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let line = String::from_utf8(line).ok()?;
    let words: Vec<&str> = line.split('\0').collect();
    let after = |name| Some(words[words.iter().position(|word| *word == name)? + 1]);
    // Not one that somebody runs by hand.
    InstanceKey::parse(after("--key")?).ok()?;
    let folder = Path::new(after("--data-dir")?);
    (folder.parent() == Some(root)).then(|| folder.file_name()?.to_str().map(str::to_owned))?
}

/// The letter in a process's own line is that of its first thread. Another may still be truncating or
/// writing a file: it stops when that call ends.
fn all_stopped(process: &Path) -> bool {
    let Ok(tasks) = fs::read_dir(process.join("task")) else { return false };
    tasks
        .filter_map(Result::ok)
        .all(|task| matches!(letter(&task.path()).as_deref(), None | Some("T" | "Z" | "X")))
}

fn letter(task: &Path) -> Option<String> {
    stat_in(task)?.into_iter().next()
}

/// Checks that a process is an SQ that was started on a folder of this tenant's name. With a daemon
/// elsewhere, or in another namespace of pids, a pid means another process here.
pub(crate) fn is_sq_of(pid: i32, tenant: &TenantId) -> bool {
    let Ok(line) = fs::read(format!("/proc/{pid}/cmdline")) else { return false };
    let mut words = line.split(|byte| *byte == 0).skip_while(|word| *word != b"--data-dir");
    let folder = words.nth(1).and_then(|folder| std::str::from_utf8(folder).ok());
    folder.and_then(|folder| folder.rsplit('/').next()) == Some(tenant.as_str())
}

/// Resident memory in bytes.
pub(crate) fn rss(pid: i32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().strip_suffix(" kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

/// Returns when the process has ended; works for processes that are not our children.
// Deprecated for types that may close their descriptor behind its back: `OwnedFd` can't.
#[allow(deprecated)]
pub(super) async fn ended(pid: i32, pidfd: Arc<OwnedFd>) {
    // The descriptor is shared: thousands of tenants are within the limit of open files.
    if let Ok(own) = AsyncFd::try_with_interest(pidfd, Interest::READABLE) {
        let _ = own.readable().await;
    }
    while state(pid) != ProcessState::Dead {
        tokio::time::sleep(POLL).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn we_are_alive_and_started_once() {
        let own = i32::try_from(std::process::id()).unwrap();
        assert_eq!(state(own), ProcessState::Alive);
        assert!(start_ticks(own).is_some() && start_ticks(own) == start_ticks(own));
        assert!(rss(own).unwrap() > 100_000);
    }

    #[test]
    fn another_tenants_process_is_not_taken_for_this_ones() {
        let alice = TenantId::parse("alice").unwrap();
        for (folder, expected) in [("/data/alice", true), ("/data/alice-2", false)] {
            let mut child = std::process::Command::new("sh")
                .args(["-c", "read line", "sq", "--data-dir", folder])
                .stdin(std::process::Stdio::piped())
                .spawn()
                .unwrap();
            let pid = child.id().try_into().unwrap();
            // A new process has no command line until it has executed its program.
            while fs::read(format!("/proc/{pid}/cmdline")).unwrap().is_empty() {
                std::thread::yield_now();
            }
            assert_eq!(is_sq_of(pid, &alice), expected, "{folder}");
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    #[test]
    fn nobody_has_pid_zero() {
        assert_eq!((state(0), start_ticks(0), rss(0)), (ProcessState::Dead, None, None));
    }
}
