//! Deaths: by the daemon's events, and by a look after those that were lost.

use std::time::{Duration, SystemTime};

use futures_util::{StreamExt, pin_mut};
use tokio::sync::mpsc;

use super::engine::{EngineError, Seen, SeenState};
use super::{Inner, LOOK_EVERY, Live};
use crate::runtime::{Died, ExitKind, Instance};

/// Deaths are events; this finds those that were missed.
const RECONCILE_EVERY: Duration = Duration::from_secs(30);

impl Inner {
    /// Tells of deaths for as long as the runtime lives, through restarts of the daemon.
    pub(super) async fn follow(&self, died: mpsc::Sender<Died>) {
        let mut look = tokio::time::interval(RECONCILE_EVERY);
        loop {
            // What dies between the look and the first event is among the events since `now`.
            let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
            let since_s = now.map_or(0, |now| now.as_secs());
            if self.reconcile(&died).await.is_ok() {
                let events = self.engine.deaths(&self.ours(), since_s);
                pin_mut!(events);
                loop {
                    // However many events come, every so often it is looked.
                    let done = tokio::select! {
                        event = events.next() => match event {
                            Some(Ok(id)) => {
                                self.on_death(&id, &died).await;
                                Ok(())
                            }
                            _ => break,
                        },
                        _ = look.tick() => self.reconcile(&died).await,
                        () = self.look.notified() => self.reconcile(&died).await,
                    };
                    if done.is_err() {
                        break;
                    }
                }
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Finds deaths that no event told of.
    async fn reconcile(&self, died: &mpsc::Sender<Died>) -> Result<(), EngineError> {
        let known: Vec<String> = {
            let live = self.live();
            live.values().filter(|l| l.dead.is_none()).map(|l| l.id.clone()).collect()
        };
        if known.is_empty() {
            return Ok(());
        }
        let seen = self.engine.list(&self.ours()).await?;
        let runs =
            |id: &str| seen.iter().any(|s| s.id == id && !matches!(s.state, SeenState::Ended(_)));
        for id in known.iter().filter(|id| !runs(id)) {
            self.on_death(id, died).await;
        }
        Ok(())
    }

    async fn on_death(&self, id: &str, died: &mpsc::Sender<Died>) {
        let known = |live: &Live| live.id == id && live.dead.is_none();
        if !self.live().values().any(known) {
            return;
        }
        let exit = match self.engine.inspect(id).await {
            Ok(Some(Seen { state: SeenState::Ended(exit), .. })) => exit,
            Ok(None) => ExitKind::Gone,
            // It runs again or the daemon is gone: the next look tells.
            Ok(Some(_)) | Err(_) => return,
        };
        let news = {
            let mut live = self.live();
            let found = live.iter_mut().find(|(_, live)| known(live));
            found.and_then(|(tenant, live)| {
                live.dead = Some(exit);
                live.announced.then(|| tenant.clone())
            })
        };
        if let Some(tenant) = news {
            // Nobody listens when the orchestrator shuts down.
            let _ = died.send(Died { tenant, instance: Instance(id.to_owned()), exit }).await;
        }
    }
}
