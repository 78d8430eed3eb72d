//! One tenant's process: what is remembered of it, and what can be done to it.

use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use protocol::{Limits, SqVersion, TenantId, TierName};
use rustix::process::{Signal, pidfd_send_signal};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::proc::{ProcessState, state};
use super::{SIGNAL_WITHIN, failed};
use crate::runtime::instance_key::InstanceKey;
use crate::runtime::{Endpoint, ExitKind, Found, FoundState, InstanceId, RuntimeError};

/// A process that is known, dead or alive.
#[derive(Debug, Clone)]
pub(super) struct Live {
    pub(super) record: Record,
    pub(super) pidfd: Option<Arc<OwnedFd>>,
    /// It was ready once: its death is news. Before that, `start` tells.
    pub(super) announced: bool,
    pub(super) exit: watch::Receiver<Option<ExitKind>>,
}

/// What is remembered of an instance.
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

impl std::fmt::Debug for Record {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Record({} pid {} port {})", self.tenant, self.pid, self.port)
    }
}

impl Record {
    pub(super) fn instance(&self) -> InstanceId {
        InstanceId(format!("{}:{}", self.pid, self.start_ticks))
    }

    pub(super) fn endpoint(&self) -> Option<Endpoint> {
        Some(Endpoint {
            instance: self.instance(),
            address: SocketAddr::from((Ipv4Addr::LOCALHOST, self.port)),
            key: InstanceKey::parse(&self.key).ok()?,
        })
    }
}

impl Live {
    /// `boot`: the host's present one.
    pub(super) fn found(&self, boot: &str) -> Found {
        let exit = *self.exit.borrow();
        let state = match (exit, state(self.record.pid)) {
            (Some(_), _) if self.record.boot != boot => FoundState::FromEarlierBoot,
            (Some(exit), _) => FoundState::Stopped(exit),
            (None, ProcessState::Frozen) => FoundState::Paused,
            (None, _) => FoundState::Running,
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
        let Some(pidfd) = &self.pidfd else {
            return Err(RuntimeError::NoInstance(self.record.tenant.clone()));
        };
        match pidfd_send_signal(pidfd, signal) {
            // It has just died: whoever waits for its end sees it.
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(e) => Err(failed(e)),
        }
    }

    pub(super) async fn until(
        &self,
        wanted: impl Fn(ProcessState) -> bool,
    ) -> Result<(), RuntimeError> {
        let reached = async {
            while !wanted(state(self.record.pid)) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::select! {
            done = tokio::time::timeout(SIGNAL_WITHIN, reached) => done.map_err(failed),
            _ = exit_of(self.exit.clone()) => {
                Err(RuntimeError::NoInstance(self.record.tenant.clone()))
            }
        }
    }
}

/// Waits for the end.
pub(super) async fn exit_of(mut exit: watch::Receiver<Option<ExitKind>>) -> ExitKind {
    match exit.wait_for(Option::is_some).await {
        Ok(exit) => exit.unwrap_or(ExitKind::Gone),
        Err(_) => ExitKind::Gone,
    }
}
