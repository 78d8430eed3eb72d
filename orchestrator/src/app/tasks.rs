//! The tasks of the process and their orderly end.
//!
//! ```text
//!  Serving ─► Draining (no new lease; those under way are answered) ─► Closing (all else ends)
//! ```
//!
//! All tasks run until the shutdown. One that ends earlier is a fault that ends the
//! process, with the task's name and error: a gateway host without its driver or xDS server would
//! look alive and serve nothing.

use std::fmt;
use std::time::Duration;

use anyhow::anyhow;
use tokio::sync::watch;
use tokio::task::{JoinError, JoinSet};
use tokio::time::timeout;
use tracing::{error, info, warn};

/// Deadline for each of the two stages of the end: a client's usual patience for a lease.
const STAGE_DEADLINE: Duration = Duration::from_secs(10);

/// Identifies a task in errors and logs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TaskName {
    /// Serves the admin API.
    Admin,
    /// Keeps good copies of awake tenants' phexts.
    Backup,
    /// Drives the lifecycle of the tenants.
    Driver,
    /// Serves leases and usage reports to the filter.
    Gate,
    /// Watches that the ledger's thread is alive.
    Ledger,
    /// Watches the host's memory.
    Memory,
    /// Serves metrics to Prometheus.
    Metrics,
    /// Waits for the caller's request to shut down; the only task that may end first.
    Shutdown,
    /// Serves clusters to Envoy.
    Xds,
}

/// A stage on the way to the end of the process; later stages compare greater.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Stage {
    /// All is served.
    Serving,
    /// The gate API accepts no new connections.
    Draining,
    /// All tasks end.
    Closing,
}

type TaskEnd = (TaskName, anyhow::Result<()>);

/// The running tasks. Dropping it aborts them.
#[derive(Debug)]
pub(super) struct Tasks {
    set: JoinSet<TaskEnd>,
    stage: watch::Sender<Stage>,
}

impl fmt::Display for TaskName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Admin => "admin API",
            Self::Backup => "backup",
            Self::Driver => "driver",
            Self::Gate => "gate API",
            Self::Ledger => "ledger",
            Self::Memory => "memory watch",
            Self::Metrics => "metrics",
            Self::Shutdown => "shutdown signal",
            Self::Xds => "xDS server",
        })
    }
}

impl Tasks {
    pub(super) fn new() -> Self {
        Self { set: JoinSet::new(), stage: watch::Sender::new(Stage::Serving) }
    }

    /// Starts a task.
    pub(super) fn spawn(
        &mut self,
        name: TaskName,
        task: impl Future<Output = anyhow::Result<()>> + Send + 'static,
    ) {
        self.set.spawn(async move { (name, task.await) });
    }

    /// Starts a task that never completes: it is dropped at `stage`.
    pub(super) fn spawn_until(
        &mut self,
        stage: Stage,
        name: TaskName,
        task: impl Future<Output = anyhow::Result<()>> + Send + 'static,
    ) {
        let stopped = self.reached(stage);
        self.spawn(name, async move {
            tokio::select! {
                result = task => result,
                () = stopped => Ok(()),
            }
        });
    }

    /// Resolves when the process reaches `stage`.
    pub(super) fn reached(&self, stage: Stage) -> impl Future<Output = ()> + Send + 'static {
        let mut present = self.stage.subscribe();
        async move {
            // An error means that the sender is gone, which is later than any stage.
            let _ = present.wait_for(|present| *present >= stage).await;
        }
    }

    /// Waits for the first task to end. Only the shutdown signal may.
    pub(super) async fn first_end(&mut self) -> anyhow::Result<()> {
        match self.set.join_next().await {
            None | Some(Ok((TaskName::Shutdown, _))) => Ok(()),
            Some(Ok((name, Ok(())))) => Err(anyhow!("{name} ended unexpectedly")),
            Some(Ok((name, Err(error)))) => Err(error.context(format!("{name} failed"))),
            Some(Err(error)) => Err(anyhow!("a task panicked: {error}")),
        }
    }

    /// Ends all tasks: first the gate API, so that leases under way are answered, then the rest.
    pub(super) async fn drain(mut self) {
        info!("draining; tenants are left running");
        self.stage.send_replace(Stage::Draining);
        if timeout(STAGE_DEADLINE, self.gate_ended()).await.is_err() {
            warn!("gate API did not drain in time: leases were still being requested");
        }
        self.stage.send_replace(Stage::Closing);
        if timeout(STAGE_DEADLINE, self.all_ended()).await.is_err() {
            warn!("some tasks did not end in time");
        }
    }

    async fn gate_ended(&mut self) {
        while let Some(end) = self.set.join_next().await {
            log_failure(&end);
            if matches!(end, Ok((TaskName::Gate, _))) {
                return;
            }
        }
    }

    async fn all_ended(&mut self) {
        while let Some(end) = self.set.join_next().await {
            log_failure(&end);
        }
    }
}

/// Logs a failure during the end: the process goes down anyway, but the operator learns of it.
fn log_failure(end: &Result<TaskEnd, JoinError>) {
    match end {
        Ok((_, Ok(()))) => {}
        Ok((name, Err(error))) => {
            error!(task = %name, error = %format!("{error:#}"), "task failed");
        }
        Err(error) => error!(%error, "task panicked"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn task_that_ends_first_is_a_named_fault() {
        let mut tasks = Tasks::new();
        tasks.spawn(TaskName::Driver, async { Err(anyhow!("channel closed")) });
        let error = tasks.first_end().await.unwrap_err();
        assert_eq!(format!("{error:#}"), "driver failed: channel closed");
        tasks.spawn(TaskName::Xds, async { Ok(()) });
        let error = tasks.first_end().await.unwrap_err();
        assert_eq!(error.to_string(), "xDS server ended unexpectedly");
    }

    #[tokio::test]
    async fn shutdown_signal_may_end_first() {
        let mut tasks = Tasks::new();
        tasks.spawn(TaskName::Shutdown, async { Ok(()) });
        assert!(tasks.first_end().await.is_ok());
    }

    #[tokio::test]
    async fn gate_drains_before_the_rest_closes() {
        let mut tasks = Tasks::new();
        let closing = tasks.reached(Stage::Closing);
        let draining = tasks.reached(Stage::Draining);
        let (order, mut ended) = tokio::sync::mpsc::unbounded_channel();
        let first = order.clone();
        tasks.spawn(TaskName::Gate, async move {
            draining.await;
            Ok(first.send(TaskName::Gate)?)
        });
        tasks.spawn(TaskName::Xds, async move {
            closing.await;
            Ok(order.send(TaskName::Xds)?)
        });
        tasks.drain().await;
        assert_eq!(ended.recv().await, Some(TaskName::Gate));
        assert_eq!(ended.recv().await, Some(TaskName::Xds));
    }
}
