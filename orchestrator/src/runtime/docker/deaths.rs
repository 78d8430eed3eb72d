//! Deaths of containers: from the daemon's events, and from reconciliation with its list, which
//! finds those whose event was lost.
//!
//! Under load the daemon may record an exit before it learns that lack of memory was the reason, and
//! then never says so (Docker 20.10: 11 of 160 deaths). Therefore a container that died of SIGKILL
//! without a request to the daemon counts as killed by the kernel for lack of memory.

use std::collections::HashSet;
use std::time::Duration;

use futures_util::StreamExt;
use tokio::sync::mpsc;
use tokio::time::Interval;

use super::engine::{Container, ContainerState, EngineError, Event};
use super::{INSPECT_EVERY, Inner};
use crate::host;
use crate::runtime::{Died, ExitKind, InstanceId};

/// Exit code of a process that died of SIGKILL.
const SIGKILL_EXIT: i64 = 137;

/// Interval of reconciliation, for deaths whose event was lost.
const RECONCILE_EVERY: Duration = Duration::from_secs(30);

/// Possible sender of the signal that killed a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Killer {
    /// A client of the daemon.
    Client,
    /// The kernel: the events show no client's request.
    Kernel,
    /// Not known: the events were not seen.
    Unknown,
}

impl Inner {
    /// Reports deaths for as long as the runtime exists, across restarts of the daemon.
    pub(super) async fn follow_deaths(&self, deaths: mpsc::Sender<Died>) {
        let mut interval = tokio::time::interval(RECONCILE_EVERY);
        loop {
            // Take the time first: a death between the reconciliation and the first event is then
            // among the events.
            let since_s = host::now_s();
            if self.reconcile(&deaths).await.is_ok() {
                self.follow_events(since_s, &mut interval, &deaths).await;
            }
            // The daemon is gone or overloaded: begin again.
            tokio::time::sleep(INSPECT_EVERY).await;
            // It may come back without the network; while it is gone, this fails as well.
            if let Err(error) = self.secure_network().await {
                tracing::warn!(%error, "network of the tenants can't be secured; trying again");
            }
        }
    }

    /// Follows the daemon's events until they end or a reconciliation fails.
    async fn follow_events(
        &self,
        since_s: u64,
        interval: &mut Interval,
        deaths: &mpsc::Sender<Died>,
    ) {
        let events = self.engine.deaths(&self.label_filter(), since_s);
        tokio::pin!(events);
        // Live containers that a client asked to kill. The daemon reports the request before the
        // death that follows from it.
        let mut kill_requested = HashSet::new();
        loop {
            // `select!` chooses at random among the ready branches, so that a flood of events can't
            // prevent reconciliation.
            tokio::select! {
                event = events.next() => match event {
                    Some(Ok((id, Event::Kill))) => {
                        if self.is_alive(&id) {
                            kill_requested.insert(id);
                        }
                    }
                    Some(Ok((id, Event::Die))) => {
                        let requested = kill_requested.remove(&id);
                        let killer = if requested { Killer::Client } else { Killer::Kernel };
                        self.on_death(&id, killer, deaths).await;
                    }
                    Some(Err(_)) | None => return,
                },
                _ = interval.tick() => if self.reconcile(deaths).await.is_err() { return },
                () = self.reconcile_now.notified() => {
                    if self.reconcile(deaths).await.is_err() {
                        return;
                    }
                }
            }
        }
    }

    /// Finds containers that died without an event, by comparison with the daemon's list.
    async fn reconcile(&self, deaths: &mpsc::Sender<Died>) -> Result<(), EngineError> {
        let live: Vec<String> = {
            let instances = self.instances();
            let live = instances.values().filter(|instance| instance.exit.is_none());
            live.map(|instance| instance.container.clone()).collect()
        };
        if live.is_empty() {
            return Ok(());
        }
        let listed = self.engine.list(&self.label_filter()).await?;
        for id in live {
            let is_running = listed.iter().any(|container| {
                container.id == id && !matches!(container.state, ContainerState::Ended(_))
            });
            if !is_running {
                self.on_death(&id, Killer::Unknown, deaths).await;
            }
        }
        Ok(())
    }

    fn is_alive(&self, id: &str) -> bool {
        let instances = self.instances();
        instances.values().any(|instance| instance.container == id && instance.exit.is_none())
    }

    async fn on_death(&self, id: &str, killer: Killer, deaths: &mpsc::Sender<Died>) {
        if !self.is_alive(id) {
            return;
        }
        let exit = match self.engine.inspect(id).await {
            Ok(Some(Container { state: ContainerState::Ended(exit), .. })) => exit,
            Ok(None) => ExitKind::Gone,
            // It was started again, or the daemon is gone: the next reconciliation decides.
            Ok(Some(_)) | Err(_) => return,
        };
        let exit = match (exit, killer) {
            (ExitKind::Crashed(SIGKILL_EXIT), Killer::Kernel) => ExitKind::OutOfMemory,
            _ => exit,
        };
        if let Some(tenant) = self.record_exit(id, exit) {
            // Without a receiver the orchestrator is shutting down.
            let _ = deaths.send(Died { tenant, instance: InstanceId(id.to_owned()), exit }).await;
        }
    }

    /// Marks an instance as dead. Returns its tenant if the death must be reported.
    fn record_exit(&self, id: &str, exit: ExitKind) -> Option<protocol::TenantId> {
        let mut instances = self.instances();
        let (tenant, instance) = instances
            .iter_mut()
            .find(|(_, instance)| instance.container == id && instance.exit.is_none())?;
        instance.exit = Some(exit);
        if instance.announced { Some(tenant.clone()) } else { None }
    }
}
