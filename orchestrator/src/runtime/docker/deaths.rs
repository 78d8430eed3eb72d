//! Deaths of containers: from the daemon's events, and from reconciliation with its list, which
//! finds those whose event was lost.

use std::time::Duration;

use futures_util::StreamExt;
use tokio::sync::mpsc;
use tokio::time::Interval;

use super::engine::{Container, ContainerState, EngineError, Event};
use super::oom_kills::OomKills;
use super::{INSPECT_EVERY, Inner};
use crate::host;
use crate::runtime::{Died, ExitKind, InstanceId};

/// Exit code of a process that died of SIGKILL.
const SIGKILL_EXIT: i64 = 137;

/// Interval of reconciliation, for deaths whose event was lost.
const RECONCILE_EVERY: Duration = Duration::from_secs(30);

impl Inner {
    /// Reports deaths for as long as the runtime exists, across restarts of the daemon.
    pub(super) async fn follow_deaths(&self, deaths: mpsc::Sender<Died>) {
        let mut interval = tokio::time::interval(RECONCILE_EVERY);
        let mut kills = OomKills::begin();
        loop {
            // Take the time first: a death between the reconciliation and the first event is then
            // among the events.
            let since_s = host::now_s();
            if self.reconcile(&mut kills, &deaths).await.is_ok() {
                self.follow_events(since_s, &mut interval, &mut kills, &deaths).await;
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
        kills: &mut OomKills,
        deaths: &mpsc::Sender<Died>,
    ) {
        let events = self.engine.deaths(&self.label_filter(), since_s);
        tokio::pin!(events);
        loop {
            // `select!` chooses at random among the ready branches, so that a flood of events can't
            // prevent reconciliation.
            tokio::select! {
                event = events.next() => match event {
                    Some(Ok((id, Event::OutOfMemory))) => {
                        if self.is_alive(&id) {
                            kills.report(&id);
                        }
                    }
                    Some(Ok((id, Event::Die))) => self.on_death(&id, kills, deaths).await,
                    Some(Err(_)) | None => return,
                },
                _ = interval.tick() => {
                    if self.reconcile(kills, deaths).await.is_err() {
                        return;
                    }
                    kills.forget();
                }
                () = self.reconcile_now.notified() => {
                    if self.reconcile(kills, deaths).await.is_err() {
                        return;
                    }
                }
            }
        }
    }

    /// Finds containers that died without an event, by comparison with the daemon's list.
    async fn reconcile(
        &self,
        kills: &mut OomKills,
        deaths: &mpsc::Sender<Died>,
    ) -> Result<(), EngineError> {
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
                self.on_death(&id, kills, deaths).await;
            }
        }
        Ok(())
    }

    fn is_alive(&self, id: &str) -> bool {
        let instances = self.instances();
        instances.values().any(|instance| instance.container == id && instance.exit.is_none())
    }

    async fn on_death(&self, id: &str, kills: &mut OomKills, deaths: &mpsc::Sender<Died>) {
        if !self.is_alive(id) {
            return;
        }
        let exit = match self.engine.inspect(id).await {
            Ok(Some(Container { state: ContainerState::Ended(exit), .. })) => exit,
            Ok(None) => ExitKind::Gone,
            // It was started again, or the daemon is gone: the next reconciliation decides.
            Ok(Some(_)) | Err(_) => return,
        };
        let exit = match exit {
            ExitKind::OutOfMemory | ExitKind::Crashed(SIGKILL_EXIT)
                if kills.explain(id, exit == ExitKind::OutOfMemory) =>
            {
                ExitKind::OutOfMemory
            }
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
