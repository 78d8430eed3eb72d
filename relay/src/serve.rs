//! The relay as a server. The caller owns the listening socket and the shutdown signal.
//!
//! ```text
//! accept ── handshake permit ──► connection ──► HTTP interface
//! shutdown ──► no more accepts ──► long polls answered ──► connections end (≤ DRAIN) ──► return
//! ```
//!
//! | file | contents |
//! |---|---|
//! | `reload.rs` | source → verdicts: the task that follows the registry |
//! | `state.rs` | verdicts, their revision and the history of changes (pure) |
//! | `api.rs` | verify, changes, health, metrics over HTTP |
//! | `connection.rs` | one connection from handshake to close |
//! | `handshakes.rs` | the bound on handshakes, fair by address |
//! | `tls.rs` | certificates, and their reload |
//! | `metrics.rs` | the metrics of the relay |

use std::sync::Arc;
use std::time::Duration;

use protocol::Epoch;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tracing::{error, info, warn};

use crate::config::{Config, SourceConfig};
use crate::source::Source;
use crate::source::file::FileSource;
use crate::source::last_good::LastGoodWriter;
use crate::source::sq::SqSource;
use api::Api;
use connection::ConnectionContext;
use handshakes::Handshakes;
use metrics::Metrics;
use reload::Reloader;
use tls::{CertificateReloader, TlsError};

mod api;
pub mod connection;
mod handshakes;
mod kernel;
pub(crate) mod metrics;
mod reload;
mod state;
pub mod tls;

pub use kernel::{keep_private, raise_open_files};

/// Time for requests in flight when the relay stops; each takes milliseconds.
const DRAIN: Duration = Duration::from_secs(5);
/// Pause after a failed accept, most likely for want of file descriptors.
const ACCEPT_RETRY: Duration = Duration::from_millis(50);

/// Reasons why the relay ends before its shutdown.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The certificates can't be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The operating system has no randomness for the epoch.
    #[error("no randomness for the epoch: {0}")]
    Random(#[from] getrandom::Error),
    /// The listening socket has no address.
    #[error("listening socket: {0}")]
    Listener(std::io::Error),
    /// A task that reads or writes the registry or the certificates panicked.
    #[error("a task panicked: {0}")]
    Task(#[from] tokio::task::JoinError),
}

/// Serves on `listener` until `shutdown` completes.
pub async fn run(
    config: Config,
    listener: TcpListener,
    shutdown: impl Future<Output = ()>,
) -> Result<(), RunError> {
    let metrics = Arc::new(Metrics::default());
    let (certificates, tls) = CertificateReloader::new(config.tls, Arc::clone(&metrics))?;
    info!(address = %listener.local_addr().map_err(RunError::Listener)?, "relay is listening");
    let source = match config.source {
        SourceConfig::File(path) => Source::File(FileSource::new(path)),
        SourceConfig::Sq(address) => Source::Sq(SqSource::new(address)),
    };
    let (good_text_sender, good_texts) = watch::channel(None);
    let last_good = LastGoodWriter::new(config.last_good.clone(), good_texts, Arc::clone(&metrics));
    let (reloader, views) = Reloader::new(
        source,
        config.hold,
        config.last_good,
        good_text_sender,
        random_epoch()?,
        Arc::clone(&metrics),
    );
    let (closing_sender, closing) = watch::channel(false);
    let api = Api { views, closing: closing.clone(), metrics: Arc::clone(&metrics) };
    let context = ConnectionContext {
        router: api::router(api),
        clients: config.clients.into(),
        permits: Arc::new(Semaphore::new(config.connections.max)),
        limits: config.connections,
        was_full: Arc::default(),
        tls,
        closing,
        metrics,
    };
    let handshakes = Handshakes::default();
    let mut server = Server { listener, context, handshakes, connections: JoinSet::new() };
    let result = tokio::select! {
        () = shutdown => Ok(()),
        ended = reloader.run() => ended.map_err(RunError::from),
        ended = last_good.run() => ended.map_err(RunError::from),
        ended = certificates.run() => ended.map_err(RunError::from),
        never = server.accept() => never,
    };
    closing_sender.send_replace(true);
    server.drain().await;
    result
}

/// Generates the epoch of this run: 64 random bits, so that no two runs share one.
fn random_epoch() -> Result<Epoch, getrandom::Error> {
    let mut bits = [0; 8];
    getrandom::fill(&mut bits)?;
    Ok(Epoch(hex::encode(bits)))
}

struct Server {
    listener: TcpListener,
    context: ConnectionContext,
    handshakes: Handshakes,
    connections: JoinSet<()>,
}

impl Server {
    async fn accept(&mut self) -> ! {
        loop {
            self.reap_connections();
            match self.listener.accept().await {
                Ok((stream, peer)) => {
                    let (permit, has_displaced) = self.handshakes.begin(peer.ip());
                    if has_displaced {
                        self.context.metrics.handshakes_displaced.inc();
                    }
                    let context = self.context.clone();
                    self.connections.spawn(connection::serve(stream, permit, context));
                }
                Err(error) => {
                    warn!(%error, "connection can't be accepted");
                    sleep(ACCEPT_RETRY).await;
                }
            }
        }
    }

    fn reap_connections(&mut self) {
        while let Some(ended) = self.connections.try_join_next() {
            if let Err(error) = ended {
                error!(%error, "connection task panicked");
            }
        }
    }

    async fn drain(mut self) {
        drop(self.listener);
        let all_ended = async { while self.connections.join_next().await.is_some() {} };
        if timeout(DRAIN, all_ended).await.is_err() {
            warn!(open = self.connections.len(), "connections were cut at the end of the drain");
        }
        info!("relay stopped");
    }
}
