//! The driver's API for the other tasks: each method sends one command and awaits its response.

use std::net::SocketAddr;

use protocol::{LeaseRequest, Limits, SqVersion, TenantId};
use tokio::sync::{mpsc, oneshot};

use crate::sockets::Peer;
use crate::tenants::lifecycle::{Drain, LeaseDecision, Ms, State, TenantView};

/// A command, with the channel for its response.
#[derive(Debug)]
pub(super) enum Command {
    Lease { peer: Peer, request: Box<LeaseRequest>, reply: oneshot::Sender<LeaseOutcome> },
    Sleep { tenant: TenantId, drain: Drain, reply: oneshot::Sender<Option<SleepOutcome>> },
    LockForRestore { tenant: TenantId, reply: oneshot::Sender<()> },
    UnlockAfterRestore { tenant: TenantId, reply: oneshot::Sender<()> },
    Repaired { tenant: TenantId, reply: oneshot::Sender<Option<State>> },
    Tenants { reply: oneshot::Sender<Vec<TenantView>> },
    Tenant { tenant: TenantId, reply: oneshot::Sender<Option<TenantView>> },
    State { tenant: TenantId, reply: oneshot::Sender<Option<State>> },
    Running { reply: oneshot::Sender<Vec<Running>> },
    Sample { max: usize, reply: oneshot::Sender<Vec<TenantId>> },
    RelievePressure { tenants: usize },
}

/// A tenant whose SQ responds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Running {
    /// The tenant's id.
    pub tenant: TenantId,
    /// Address of its SQ.
    pub address: SocketAddr,
    /// Limits as of its last lease request.
    pub limits: Limits,
    /// End of the last lease's grace, on the driver's clock. SQ does not write after it; each lease
    /// moves it.
    pub quiet_at_ms: Ms,
    /// `quiet_at_ms` has passed.
    pub quiet: bool,
}

/// Result of putting a tenant to sleep.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SleepOutcome {
    /// The tenant's state after the command.
    pub state: State,
    /// Time until the tenant can be stopped: while a lease is live, and in the grace after it, it
    /// can't.
    pub earliest_ms: Ms,
}

/// Result of a lease request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaseOutcome {
    /// The lease or the refusal.
    pub decision: LeaseDecision,
    /// The SQ version that the tenant runs.
    pub sq_version: SqVersion,
}

/// Sends commands to the driver. Cheap to clone. The driver ends when all handles are dropped.
#[derive(Debug, Clone)]
pub struct Handle {
    pub(super) commands: mpsc::Sender<Command>,
}

/// The driver has ended, and the process is about to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the orchestrator is shutting down")]
pub struct Closed;

impl Handle {
    async fn send<T>(
        &self,
        command: impl FnOnce(oneshot::Sender<T>) -> Command,
    ) -> Result<T, Closed> {
        let (reply, response) = oneshot::channel();
        self.commands.send(command(reply)).await.map_err(|_| Closed)?;
        response.await.map_err(|_| Closed)
    }

    /// Requests a lease for a process. Completes when it is granted or refused, after the patience at
    /// the latest.
    pub async fn lease(&self, peer: Peer, request: LeaseRequest) -> Result<LeaseOutcome, Closed> {
        let request = Box::new(request);
        self.send(|reply| Command::Lease { peer, request, reply }).await
    }

    /// Puts a tenant to sleep; `None` if there is no such tenant.
    pub async fn sleep(
        &self,
        tenant: TenantId,
        drain: Drain,
    ) -> Result<Option<SleepOutcome>, Closed> {
        self.send(|reply| Command::Sleep { tenant, drain, reply }).await
    }

    /// Takes the restore lock: the tenant is put to sleep gently and not started again. Lease
    /// requests wait until the lock is released.
    pub async fn lock_for_restore(&self, tenant: TenantId) -> Result<(), Closed> {
        self.send(|reply| Command::LockForRestore { tenant, reply }).await
    }

    /// Releases the restore lock.
    pub async fn unlock_after_restore(&self, tenant: TenantId) -> Result<(), Closed> {
        self.send(|reply| Command::UnlockAfterRestore { tenant, reply }).await
    }

    /// Lets a damaged or failing tenant start again. Returns its state; `None` if there is no such
    /// tenant.
    pub async fn repaired(&self, tenant: TenantId) -> Result<Option<State>, Closed> {
        self.send(|reply| Command::Repaired { tenant, reply }).await
    }

    /// Lists all tenants. O(tenants) in the driver's task, so only the operator may call it.
    pub async fn tenants(&self) -> Result<Vec<TenantView>, Closed> {
        self.send(|reply| Command::Tenants { reply }).await
    }

    /// Returns one tenant; `None` if it has never been requested.
    pub async fn tenant(&self, tenant: TenantId) -> Result<Option<TenantView>, Closed> {
        self.send(|reply| Command::Tenant { tenant, reply }).await
    }

    /// Returns a tenant's state; `None` if it has never been requested.
    pub async fn state(&self, tenant: TenantId) -> Result<Option<State>, Closed> {
        self.send(|reply| Command::State { tenant, reply }).await
    }

    /// Lists the tenants whose SQ responds.
    pub async fn running(&self) -> Result<Vec<Running>, Closed> {
        self.send(|reply| Command::Running { reply }).await
    }

    /// Returns up to `max` tenants that use memory: awake or dozing ones.
    pub async fn sample(&self, max: usize) -> Result<Vec<TenantId>, Closed> {
        self.send(|reply| Command::Sample { max, reply }).await
    }

    /// Stops up to `tenants` tenants that no request needs, to free memory or instances.
    pub async fn relieve_pressure(&self, tenants: usize) -> Result<(), Closed> {
        self.commands.send(Command::RelievePressure { tenants }).await.map_err(|_| Closed)
    }
}
