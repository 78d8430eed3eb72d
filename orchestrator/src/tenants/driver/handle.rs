//! How the rest of the orchestrator asks the driver.

use std::net::SocketAddr;

use protocol::{LeaseRequest, Limits, SqVersion, TenantId};
use tokio::sync::{mpsc, oneshot};

use crate::tenants::lifecycle::{Answer, Drain, Ms, State, TenantView};

/// What others ask of the driver.
#[derive(Debug)]
pub(super) enum Command {
    Lease { request: Box<LeaseRequest>, reply: oneshot::Sender<LeaseOutcome> },
    Sleep { tenant: TenantId, drain: Drain, reply: oneshot::Sender<Option<SleepAnswer>> },
    Hold { tenant: TenantId, held: bool, reply: oneshot::Sender<()> },
    Repaired { tenant: TenantId, reply: oneshot::Sender<Option<State>> },
    View { reply: oneshot::Sender<Vec<TenantView>> },
    ViewOne { tenant: TenantId, reply: oneshot::Sender<Option<TenantView>> },
    State { tenant: TenantId, reply: oneshot::Sender<Option<State>> },
    Running { reply: oneshot::Sender<Vec<Running>> },
    Sample { most: usize, reply: oneshot::Sender<Vec<TenantId>> },
    Pressure { tenants: usize },
}

/// A tenant whose SQ answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Running {
    /// Who.
    pub tenant: TenantId,
    /// Where.
    pub address: SocketAddr,
    /// As of its last lease.
    pub limits: Limits,
    /// Until then SQ may be writing, on the driver's clock; each lease moves it.
    pub quiet_at_ms: Ms,
    /// That time has come.
    pub quiet: bool,
}

/// What the operator is told who sends a tenant to sleep.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SleepAnswer {
    /// Where it is now.
    pub state: State,
    /// No sooner than this it can be stopped: a lease is live, or was a moment ago.
    pub earliest_ms: Ms,
}

/// What an asker of a lease is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaseOutcome {
    /// The lease, or why not.
    pub answer: Answer,
    /// What the tenant runs.
    pub sq_version: SqVersion,
}

/// Asks the driver. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Handle {
    pub(super) commands: mpsc::Sender<Command>,
}

/// The driver is gone: the process is about to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the orchestrator is shutting down")]
pub struct Closed;

impl Handle {
    async fn ask<T>(
        &self,
        command: impl FnOnce(oneshot::Sender<T>) -> Command,
    ) -> Result<T, Closed> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(command(reply)).await.map_err(|_| Closed)?;
        answer.await.map_err(|_| Closed)
    }

    /// Asks for a lease; answers when it is decided.
    pub async fn lease(&self, request: LeaseRequest) -> Result<LeaseOutcome, Closed> {
        self.ask(|reply| Command::Lease { request: Box::new(request), reply }).await
    }

    /// Sends a tenant to sleep; `None`: there is no such tenant.
    pub async fn sleep(
        &self,
        tenant: TenantId,
        drain: Drain,
    ) -> Result<Option<SleepAnswer>, Closed> {
        self.ask(|reply| Command::Sleep { tenant, drain, reply }).await
    }

    /// Puts a tenant to sleep as soon as no lease is live, and keeps it so; or lets it go again.
    /// Whoever asks for it meanwhile waits.
    pub async fn hold(&self, tenant: TenantId, held: bool) -> Result<(), Closed> {
        self.ask(|reply| Command::Hold { tenant, held, reply }).await
    }

    /// Lets a damaged or failing tenant be tried again; answers with its state.
    pub async fn repaired(&self, tenant: TenantId) -> Result<Option<State>, Closed> {
        self.ask(|reply| Command::Repaired { tenant, reply }).await
    }

    /// All tenants: the driver's time grows with them, so only the operator asks.
    pub async fn tenants(&self) -> Result<Vec<TenantView>, Closed> {
        self.ask(|reply| Command::View { reply }).await
    }

    /// One tenant; `None`: it was never asked for.
    pub async fn tenant(&self, tenant: TenantId) -> Result<Option<TenantView>, Closed> {
        self.ask(|reply| Command::ViewOne { tenant, reply }).await
    }

    /// One tenant's state; `None`: there is no such tenant.
    pub async fn state(&self, tenant: TenantId) -> Result<Option<State>, Closed> {
        self.ask(|reply| Command::State { tenant, reply }).await
    }

    /// The tenants whose SQ answers now.
    pub async fn running(&self) -> Result<Vec<Running>, Closed> {
        self.ask(|reply| Command::Running { reply }).await
    }

    /// Some tenants that hold memory, awake or dozing: `most` of them at most.
    pub async fn sample(&self, most: usize) -> Result<Vec<TenantId>, Closed> {
        self.ask(|reply| Command::Sample { most, reply }).await
    }

    /// The host is short of memory: so many tenants are to make room.
    pub async fn pressure(&self, tenants: usize) -> Result<(), Closed> {
        self.commands.send(Command::Pressure { tenants }).await.map_err(|_| Closed)
    }
}
