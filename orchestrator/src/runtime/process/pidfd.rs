//! Process descriptors (pidfd), which refer to one process even after its pid is reused.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::runtime::RuntimeError;
use crate::runtime::proc::{self, ProcessState};

/// Interval at which a process is looked at when its pidfd can't be awaited.
const POLL: Duration = Duration::from_millis(200);

/// Opens a descriptor of a process; `None` if no process has this pid. Exhausted file descriptors are
/// an error: taken for a death, they would put a second SQ on the tenant's folder.
pub(super) fn open(pid: i32) -> Result<Option<OwnedFd>, RuntimeError> {
    let Some(pid) = Pid::from_raw(pid) else { return Ok(None) };
    match pidfd_open(pid, PidfdFlags::empty()) {
        Ok(pidfd) => Ok(Some(pidfd)),
        Err(Errno::SRCH) => Ok(None),
        Err(error) => Err(RuntimeError::Failed(format!("pid {pid:?} can't be watched: {error}"))),
    }
}

/// Sends a signal. A process that has just died is no error: its end is reported elsewhere.
pub(super) fn send_signal(pidfd: &OwnedFd, signal: Signal) -> Result<(), Errno> {
    match pidfd_send_signal(pidfd, signal) {
        Err(Errno::SRCH) => Ok(()),
        sent => sent,
    }
}

/// Completes when the process has ended. Works for processes that are not our children.
// Deprecated for types that may close their descriptor on their own, which `OwnedFd` can't.
#[allow(deprecated)]
pub(super) async fn wait_for_end(pid: i32, pidfd: Arc<OwnedFd>) {
    // Shares the descriptor instead of duplicating it, so that thousands of tenants stay within the
    // limit of open files.
    if let Ok(pidfd) = AsyncFd::try_with_interest(pidfd, Interest::READABLE) {
        let _ = pidfd.readable().await;
    }
    while proc::state(pid) != ProcessState::Dead {
        tokio::time::sleep(POLL).await;
    }
}
