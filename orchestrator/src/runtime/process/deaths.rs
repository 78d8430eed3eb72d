//! One task that awaits the exits of all processes, so that none can go unwatched unnoticed.

use std::pin::Pin;

use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::runtime::Died;

/// Follows one process to its end; returns its death if that is an event.
pub(super) type ExitWatch = Pin<Box<dyn Future<Output = Option<Died>> + Send>>;

/// Reports deaths until the runtime is gone and no process is watched any more. Also ends if a watch
/// panics, because the death of that process would then be missed.
pub(super) async fn follow_exits(
    mut new_watches: mpsc::UnboundedReceiver<ExitWatch>,
    deaths: mpsc::Sender<Died>,
) {
    let mut watches = JoinSet::new();
    loop {
        tokio::select! {
            Some(watch) = new_watches.recv() => drop(watches.spawn(watch)),
            Some(ended) = watches.join_next() => match ended {
                // Without a receiver the orchestrator is shutting down.
                Ok(Some(death)) => drop(deaths.send(death).await),
                Ok(None) => {}
                Err(error) => {
                    tracing::error!(%error, "watch of a process failed");
                    return;
                }
            },
            else => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn panic_of_a_watch_closes_the_channel() {
        let (watches, new_watches) = mpsc::unbounded_channel::<ExitWatch>();
        let (died, mut deaths) = mpsc::channel(1);
        tokio::spawn(follow_exits(new_watches, died));
        watches.send(Box::pin(async { None })).unwrap();
        watches.send(Box::pin(async { panic!("on purpose") })).unwrap();
        assert_eq!(deaths.recv().await, None);
    }
}
