//! The relay as a whole: listener, TLS, connections, feed. The caller owns the socket and the signal.
//!
//! ```text
//! accept ──handshake slot──► connection ──► api
//! shutdown ──► no more accepts ──► long polls answered ──► connections finish (≤ DRAIN) ──► end
//! ```

use std::sync::Arc;
use std::time::Duration;

use protocol::Epoch;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tracing::{error, info, warn};

use crate::config::{Config, SourceConfig};
use crate::source::last_good::Keeper;
use crate::source::{FileSource, Source, SqSource};
use api::Api;
use connection::Terms;
use metrics::Metrics;
use reload::Feed;
use tls::{Renewal, TlsError};

pub mod api;
pub mod connection;
pub mod metrics;
pub mod reload;
pub mod state;
pub mod tls;

/// Handshakes at once: who has shown no certificate takes no room from those who have, and this much
/// from each other. More wait in the listener's backlog.
const HANDSHAKES_MAX: usize = 256;
/// Time for requests in flight when the relay stops; each takes milliseconds.
const DRAIN: Duration = Duration::from_secs(5);
/// Pause after an accept that failed: no file descriptors, most likely.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Why the relay ended before it was asked to.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// It can't start with these certificates.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// No randomness for the epoch.
    #[error("no randomness: {0}")]
    Random(#[from] getrandom::Error),
    /// Reading or keeping the registry, or reading the certificates, panicked.
    #[error("a task died: {0}")]
    Task(#[from] tokio::task::JoinError),
}

/// Serves on `listener` until `shutdown` completes.
pub async fn run(
    config: Config,
    listener: TcpListener,
    shutdown: impl Future<Output = ()>,
) -> Result<(), RunError> {
    let metrics = Arc::new(Metrics::default());
    let (renewal, tls) = Renewal::new(config.tls, Arc::clone(&metrics))?;
    let source = match config.source {
        SourceConfig::File(path) => Source::File(FileSource::new(path)),
        SourceConfig::Sq(address) => Source::Sq(SqSource::new(address)),
    };
    let mut epoch = [0; 8];
    getrandom::fill(&mut epoch)?;
    let epoch = Epoch(hex::encode(epoch));
    let (keep, texts) = watch::channel(None);
    let keeper = Keeper::new(config.last_good.clone(), texts, Arc::clone(&metrics));
    let kept = (config.last_good, keep);
    let (feed, views) = Feed::new(source, config.hold, kept, epoch, Arc::clone(&metrics));
    let (closing, closed) = watch::channel(false);
    let api = Api { views, closing: closed.clone(), metrics: Arc::clone(&metrics) };
    let terms = Terms {
        app: api::router(api),
        clients: config.clients.into(),
        room: Arc::new(Semaphore::new(config.connections.max)),
        limits: config.connections,
        full: Arc::default(),
        tls,
        closing: closed,
        metrics,
    };
    let handshakes = Arc::new(Semaphore::new(HANDSHAKES_MAX));
    let mut server = Server { listener, terms, handshakes, connections: JoinSet::new() };
    let ended = tokio::select! {
        () = shutdown => Ok(()),
        ended = feed.run() => ended.map_err(RunError::from),
        ended = keeper.run() => ended.map_err(RunError::from),
        ended = renewal.run() => ended.map_err(RunError::from),
        never = server.accept() => never,
    };
    closing.send_replace(true);
    server.drain().await;
    ended
}

struct Server {
    listener: TcpListener,
    terms: Terms,
    handshakes: Arc<Semaphore>,
    connections: JoinSet<()>,
}

impl Server {
    async fn accept(&mut self) -> ! {
        loop {
            while let Some(ended) = self.connections.try_join_next() {
                if let Err(e) = ended {
                    error!("a connection's task died: {e}");
                }
            }
            // The semaphore is never closed.
            let Ok(slot) = Arc::clone(&self.handshakes).acquire_owned().await else { continue };
            let stream = match self.listener.accept().await {
                Ok((stream, _)) => stream,
                Err(e) => {
                    warn!("accept: {e}");
                    sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            self.connections.spawn(connection::serve(stream, slot, self.terms.clone()));
        }
    }

    async fn drain(mut self) {
        drop(self.listener);
        let all = async { while self.connections.join_next().await.is_some() {} };
        if timeout(DRAIN, all).await.is_err() {
            warn!(left = self.connections.len(), "connections were cut");
        }
        info!("stopped");
    }
}

/// Takes as many open files as the host allows, where the usual soft limit is 1,024: without one
/// neither a connection nor the registry can be opened.
pub fn raise_open_files() {
    let limit = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }) {
        warn!(%error, ?limit, "the limit of open files stays");
    }
}
