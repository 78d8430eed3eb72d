//! What an earlier orchestrator left: processes that it wrote down, and one that it could not.

use std::fs;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use protocol::TenantId;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::sync::watch;

use super::instance::{Live, Record};
use super::proc::{ProcessState, ended, folder_of, start_ticks, started_below, state};
use super::{Inner, SIGNAL_WITHIN, failed};
use crate::runtime::{ExitKind, Found, RuntimeError};

impl Inner {
    pub(super) async fn list(self: &Arc<Self>) -> Result<Vec<Found>, RuntimeError> {
        self.adopt_all()?;
        self.end_strays().await?;
        Ok(self.live().values().map(|live| live.found(&self.boot)).collect())
    }

    fn adopt_all(self: &Arc<Self>) -> Result<(), RuntimeError> {
        let entries = fs::read_dir(&self.folder).map_err(failed)?;
        for entry in entries.filter_map(Result::ok) {
            let path = entry.path();
            let stem = path.file_stem().and_then(|stem| stem.to_str());
            match stem.map(TenantId::parse) {
                Some(Ok(tenant)) if path.extension().is_some_and(|e| e == "json") => {
                    self.adopt(&tenant)?;
                }
                _ => tracing::warn!(path = %path.display(), "not a record of an instance"),
            }
        }
        Ok(())
    }

    /// An orchestrator that was killed between a start and its record left an SQ that nobody knows.
    /// Nobody was routed to it, and it must not be the second on its folder.
    async fn end_strays(&self) -> Result<(), RuntimeError> {
        let root = &self.data_root;
        let known: Vec<i32> = self.live().values().map(|live| live.record.pid).collect();
        for (pid, folder) in started_below(root) {
            if known.contains(&pid) {
                continue;
            }
            let Some(pidfd) = pidfd_of(pid)? else { continue };
            // Still the one that was seen.
            if folder_of(pid, root).is_none_or(|now| now != folder) {
                continue;
            }
            tracing::warn!(pid, folder, "an SQ that no record tells of: killed");
            match pidfd_send_signal(&pidfd, Signal::KILL) {
                Ok(()) | Err(rustix::io::Errno::SRCH) => {}
                Err(e) => return Err(failed(format!("pid {pid} can't be killed: {e}"))),
            }
            let gone = tokio::time::timeout(SIGNAL_WITHIN, ended(pid, Arc::new(pidfd))).await;
            gone.map_err(|_| failed(format!("pid {pid} does not die")))?;
        }
        Ok(())
    }

    /// Takes up what an earlier orchestrator left, when it is not known yet. An error: it may live
    /// and can't be watched.
    pub(super) fn adopt(self: &Arc<Self>, tenant: &TenantId) -> Result<(), RuntimeError> {
        if self.live().contains_key(tenant) {
            return Ok(());
        }
        let path = self.path(tenant);
        let record =
            fs::read(&path).ok().and_then(|json| serde_json::from_slice::<Record>(&json).ok());
        let Some(record) = record.filter(|r| r.tenant == *tenant && r.endpoint().is_some()) else {
            if path.exists() {
                tracing::warn!(path = %path.display(), "unreadable record of an instance");
            }
            return Ok(());
        };
        // The pidfd first: what it shows is then of one and the same process.
        let this_boot = record.boot == self.boot;
        let pidfd = if this_boot { pidfd_of(record.pid)? } else { None }
            .filter(|_| start_ticks(record.pid) == Some(record.start_ticks))
            .filter(|_| state(record.pid) != ProcessState::Dead);
        let (exited, exit) =
            watch::channel(if pidfd.is_some() { None } else { Some(ExitKind::Gone) });
        let pidfd = pidfd.map(Arc::new);
        let live = Live { record: record.clone(), pidfd: pidfd.clone(), announced: true, exit };
        self.live().insert(tenant.clone(), live);
        if let Some(pidfd) = pidfd {
            let pid = record.pid;
            self.watch(record, exited, async move {
                ended(pid, pidfd).await;
                ExitKind::Gone
            });
        }
        Ok(())
    }
}

/// A descriptor of the process; `None`: there is none of this number. Too many open files is an
/// error: taken for a death, it would put a second SQ on the tenant's folder.
pub(super) fn pidfd_of(pid: i32) -> Result<Option<OwnedFd>, RuntimeError> {
    let Some(pid) = Pid::from_raw(pid) else { return Ok(None) };
    match pidfd_open(pid, PidfdFlags::empty()) {
        Ok(pidfd) => Ok(Some(pidfd)),
        Err(rustix::io::Errno::SRCH) => Ok(None),
        Err(e) => Err(failed(format!("pid {pid:?} can't be watched: {e}"))),
    }
}
