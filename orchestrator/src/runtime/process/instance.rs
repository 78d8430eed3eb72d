//! One tenant's process: its record on disk, its signals and its exit.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use protocol::{Limits, SqVersion, TenantId, TierName};
use rustix::process::Signal;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::{SIGNAL_TIMEOUT, local_address, pidfd};
use crate::runtime::instance_key::InstanceKey;
use crate::runtime::proc::{self, ProcessState};
use crate::runtime::{Endpoint, ExitKind, Found, FoundState, InstanceId, RuntimeError};

/// Interval at which the effect of a signal is looked for.
const POLL: Duration = Duration::from_millis(1);

/// A tenant's process, dead or alive.
#[derive(Debug, Clone)]
pub(super) struct Instance {
    pub(super) record: Record,
    /// `None` if it was dead already when it was found.
    pub(super) pidfd: Option<Arc<OwnedFd>>,
    /// `start` has succeeded, so a death is an event. Before that, `start` returns it as its error.
    pub(super) announced: bool,
    /// Holds `Some` once it is dead.
    pub(super) exit: watch::Receiver<Option<ExitKind>>,
}

/// The facts about an instance that outlive the orchestrator.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    pub(super) tenant: TenantId,
    pub(super) tier: TierName,
    pub(super) limits: Limits,
    pub(super) sq_version: SqVersion,
    pub(super) pid: i32,
    pub(super) start_ticks: u64,
    pub(super) boot: String,
    pub(super) port: u16,
    pub(super) key: String,
}

// Leaves out the key.
impl std::fmt::Debug for Record {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Record({} pid {} port {})", self.tenant, self.pid, self.port)
    }
}

impl Record {
    pub(super) fn instance_id(&self) -> InstanceId {
        InstanceId(format!("{}:{}", self.pid, self.start_ticks))
    }

    pub(super) fn address(&self) -> SocketAddr {
        local_address(self.port)
    }

    /// `None` if the record's key is invalid.
    pub(super) fn endpoint(&self) -> Option<Endpoint> {
        Some(Endpoint {
            instance: self.instance_id(),
            address: self.address(),
            key: InstanceKey::parse(&self.key).ok()?,
        })
    }
}

impl Instance {
    /// Kind of its exit; `None` while it is alive.
    pub(super) fn exit_kind(&self) -> Option<ExitKind> {
        *self.exit.borrow()
    }

    /// Describes it for `list`. `boot` is the host's present boot.
    pub(super) fn found(&self, boot: &str) -> Found {
        let exit = self.exit_kind();
        let state = match exit {
            Some(_) if self.record.boot != boot => FoundState::FromEarlierBoot,
            Some(exit) => FoundState::Stopped(exit),
            None if proc::state(self.record.pid) == ProcessState::Stopped => FoundState::Paused,
            None => FoundState::Running,
        };
        Found {
            tenant: self.record.tenant.clone(),
            tier: self.record.tier.clone(),
            limits: self.record.limits.clone(),
            sq_version: self.record.sq_version,
            state,
            endpoint: if exit.is_none() { self.record.endpoint() } else { None },
        }
    }

    pub(super) fn signal(&self, signal: Signal) -> Result<(), RuntimeError> {
        match &self.pidfd {
            Some(pidfd) => pidfd::send_signal(pidfd, signal).map_err(RuntimeError::failed),
            None => Err(RuntimeError::NoInstance(self.record.tenant.clone())),
        }
    }

    /// Waits until the process is in a state, for a bounded time.
    pub(super) async fn wait_until(&self, wanted: ProcessState) -> Result<(), RuntimeError> {
        let reached = async {
            while proc::state(self.record.pid) != wanted {
                tokio::time::sleep(POLL).await;
            }
        };
        tokio::select! {
            reached = tokio::time::timeout(SIGNAL_TIMEOUT, reached) => {
                reached.map_err(RuntimeError::failed)
            }
            _ = wait_for_exit(self.exit.clone()) => {
                Err(RuntimeError::NoInstance(self.record.tenant.clone()))
            }
        }
    }
}

/// Waits for the end of a process. If its watch is gone, the process counts as gone too.
pub(super) async fn wait_for_exit(mut exit: watch::Receiver<Option<ExitKind>>) -> ExitKind {
    match exit.wait_for(Option::is_some).await {
        Ok(exit) => exit.unwrap_or(ExitKind::Gone),
        Err(_) => ExitKind::Gone,
    }
}
