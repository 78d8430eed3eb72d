//! All processes that are watched, in one task, so that none goes unwatched unnoticed.

use std::pin::Pin;

use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::runtime::Died;

/// One process followed to its end; its death when that is news.
pub(super) type Watch = Pin<Box<dyn Future<Output = Option<Died>> + Send>>;

/// Tells of deaths until the runtime is gone and nothing is watched any more, or until a watch
/// panics: then nobody would hear of that process.
pub(super) async fn follow(mut asked: mpsc::UnboundedReceiver<Watch>, died: mpsc::Sender<Died>) {
    let mut watches = JoinSet::new();
    loop {
        tokio::select! {
            Some(watch) = asked.recv() => drop(watches.spawn(watch)),
            Some(ended) = watches.join_next() => match ended {
                // Nobody listens when the orchestrator shuts down.
                Ok(Some(death)) => drop(died.send(death).await),
                Ok(None) => {}
                Err(error) => return tracing::error!(%error, "a process is watched no longer"),
            },
            else => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_watch_that_panics_ends_the_channel_of_deaths() {
        let (ask, asked) = mpsc::unbounded_channel::<Watch>();
        let (died, mut deaths) = mpsc::channel(1);
        tokio::spawn(follow(asked, died));
        ask.send(Box::pin(async { None })).unwrap();
        ask.send(Box::pin(async { panic!("on purpose") })).unwrap();
        assert_eq!(deaths.recv().await, None);
    }
}
