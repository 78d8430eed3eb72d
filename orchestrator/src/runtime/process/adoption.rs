//! Adoption: processes of an earlier orchestrator are found by their records. Processes without a
//! record are killed.

use std::fs;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use protocol::TenantId;
use rustix::process::Signal;
use tokio::sync::watch;

use super::instance::{Instance, Record};
use super::{Inner, SIGNAL_TIMEOUT, pidfd};
use crate::runtime::proc::{self, ProcessState};
use crate::runtime::{ExitKind, Found, RuntimeError};

impl Inner {
    pub(super) async fn list(self: &Arc<Self>) -> Result<Vec<Found>, RuntimeError> {
        self.adopt_all()?;
        self.kill_strays().await?;
        Ok(self.instances().values().map(|instance| instance.found(&self.boot)).collect())
    }

    fn adopt_all(self: &Arc<Self>) -> Result<(), RuntimeError> {
        let entries = fs::read_dir(&self.records).map_err(RuntimeError::failed)?;
        for entry in entries.filter_map(Result::ok) {
            let path = entry.path();
            let stem = path.file_stem().and_then(|stem| stem.to_str());
            match stem.map(TenantId::parse) {
                Some(Ok(tenant)) if path.extension().is_some_and(|e| e == "json") => {
                    self.adopt(&tenant)?;
                }
                _ => tracing::warn!(path = %path.display(), "file is not an instance's record"),
            }
        }
        Ok(())
    }

    /// Kills SQ processes that have no record: an orchestrator was killed between their start and the
    /// writing of the record. No gateway ever routed to them, and they must not be the second SQ on a
    /// folder.
    async fn kill_strays(&self) -> Result<(), RuntimeError> {
        let recorded: Vec<i32> =
            self.instances().values().map(|instance| instance.record.pid).collect();
        for (pid, folder) in proc::sq_processes_below(&self.data_root) {
            if recorded.contains(&pid) {
                continue;
            }
            let Some(pidfd) = pidfd::open(pid)? else { continue };
            // Check again: before the pidfd was open, the pid may have been reused.
            if proc::sq_folder_below(&self.data_root, pid).as_ref() != Some(&folder) {
                continue;
            }
            tracing::warn!(pid, folder, "SQ process has no record and is killed");
            pidfd::send_signal(&pidfd, Signal::KILL).map_err(|error| {
                RuntimeError::Failed(format!("pid {pid} can't be killed: {error}"))
            })?;
            let end = pidfd::wait_for_end(pid, Arc::new(pidfd));
            tokio::time::timeout(SIGNAL_TIMEOUT, end)
                .await
                .map_err(|_| RuntimeError::Failed(format!("pid {pid} does not die")))?;
        }
        Ok(())
    }

    /// Adopts a tenant's process by its record, unless it is in the table already. Fails if the
    /// process may be alive and can't be watched.
    pub(super) fn adopt(self: &Arc<Self>, tenant: &TenantId) -> Result<(), RuntimeError> {
        if self.instances().contains_key(tenant) {
            return Ok(());
        }
        let Some(record) = self.read_record(tenant) else { return Ok(()) };
        let pidfd = self.open_recorded(&record)?.map(Arc::new);
        let exit = if pidfd.is_some() { None } else { Some(ExitKind::Gone) };
        let (exited, exit) = watch::channel(exit);
        let instance =
            Instance { record: record.clone(), pidfd: pidfd.clone(), announced: true, exit };
        self.instances().insert(tenant.clone(), instance);
        if let Some(pidfd) = pidfd {
            let pid = record.pid;
            self.watch_exit(record, exited, async move {
                pidfd::wait_for_end(pid, pidfd).await;
                ExitKind::Gone
            });
        }
        Ok(())
    }

    fn read_record(&self, tenant: &TenantId) -> Option<Record> {
        let path = self.record_path(tenant);
        let json = fs::read(&path).ok();
        let record = json.and_then(|json| serde_json::from_slice::<Record>(&json).ok());
        let record = record.filter(|r| r.tenant == *tenant && r.endpoint().is_some());
        if record.is_none() && path.exists() {
            tracing::warn!(path = %path.display(), "instance's record is unreadable");
        }
        record
    }

    /// Opens the recorded process; `None` if it is dead.
    fn open_recorded(&self, record: &Record) -> Result<Option<OwnedFd>, RuntimeError> {
        if record.boot != self.boot {
            return Ok(None);
        }
        // Open it first: the checks below then concern the process that the pidfd refers to.
        let Some(pidfd) = pidfd::open(record.pid)? else { return Ok(None) };
        let is_recorded = proc::start_ticks(record.pid) == Some(record.start_ticks);
        let is_alive = proc::state(record.pid) != ProcessState::Dead;
        Ok(if is_recorded && is_alive { Some(pidfd) } else { None })
    }
}
