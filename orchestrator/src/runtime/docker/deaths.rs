//! Deaths: by the daemon's events, and by a look after those that were lost.
//!
//! Under load the daemon hears of an exit before it hears that memory was the reason, and then never
//! says so (Docker 20.10 did in 11 of 160 deaths). So one that died of SIGKILL, which nobody asked the
//! daemon for, was killed by the kernel, short of memory.

use std::collections::HashSet;
use std::time::Duration;

use futures_util::{StreamExt, pin_mut};
use tokio::sync::mpsc;

use super::engine::{EngineError, Event, Seen, SeenState};
use super::{Inner, LOOK_EVERY};
use crate::host;
use crate::runtime::{Died, ExitKind, InstanceId};

/// What a process exits with that died of SIGKILL.
const KILLED: i64 = 137;
/// Deaths are events; this finds those that were missed.
const RECONCILE_EVERY: Duration = Duration::from_secs(30);

/// Who may have killed a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum By {
    /// Somebody who asked the daemon to.
    Request,
    /// Nobody who asked the daemon to.
    Kernel,
    /// What was asked of the daemon was not heard.
    Unknown,
}

impl Inner {
    /// Tells of deaths for as long as the runtime lives, through restarts of the daemon.
    pub(super) async fn follow(&self, died: mpsc::Sender<Died>) {
        let mut look = tokio::time::interval(RECONCILE_EVERY);
        loop {
            // What dies between the look and the first event is among the events since `now`.
            let since_s = host::now_s();
            if self.reconcile(&died).await.is_ok() {
                let events = self.engine.deaths(&self.ours(), since_s);
                pin_mut!(events);
                // Of those that live; a request is told before the death that comes of it.
                let mut asked = HashSet::new();
                loop {
                    // However many events come, every so often it is looked.
                    let done = tokio::select! {
                        event = events.next() => match event {
                            Some(Ok((id, Event::Kill))) => {
                                if self.lives(&id) {
                                    asked.insert(id);
                                }
                                Ok(())
                            }
                            Some(Ok((id, Event::Die))) => {
                                let by = if asked.remove(&id) { By::Request } else { By::Kernel };
                                self.on_death(&id, by, &died).await;
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
            self.on_death(id, By::Unknown, died).await;
        }
        Ok(())
    }

    fn lives(&self, id: &str) -> bool {
        self.live().values().any(|live| live.id == id && live.dead.is_none())
    }

    /// `by`: who has killed it, if it was killed.
    async fn on_death(&self, id: &str, by: By, died: &mpsc::Sender<Died>) {
        if !self.lives(id) {
            return;
        }
        let exit = match self.engine.inspect(id).await {
            Ok(Some(Seen { state: SeenState::Ended(exit), .. })) => match (exit, by) {
                (ExitKind::Crashed(KILLED), By::Kernel) => ExitKind::OutOfMemory,
                (exit, _) => exit,
            },
            Ok(None) => ExitKind::Gone,
            // It runs again or the daemon is gone: the next look tells.
            Ok(Some(_)) | Err(_) => return,
        };
        let news = {
            let mut live = self.live();
            let found = live.iter_mut().find(|(_, live)| live.id == id && live.dead.is_none());
            found.and_then(|(tenant, live)| {
                live.dead = Some(exit);
                live.announced.then(|| tenant.clone())
            })
        };
        if let Some(tenant) = news {
            // Nobody listens when the orchestrator shuts down.
            let _ = died.send(Died { tenant, instance: InstanceId(id.to_owned()), exit }).await;
        }
    }
}
