//! One connection: who is it, is there room, what does it ask, and when does it end.
//!
//! ```text
//! handshake ──► known name? ──► room? ──► HTTP/1.1 ──► idle too long, or gone: closed
//!    └── none, other CA │          │          └── too old, other certificates, relay stops:
//!                  └────┴──────────┴► closed       the answer under way (≤ LAST_ANSWER), then closed
//! ```

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use rustls::ServerConfig;
use rustls::client::verify_server_name;
use rustls::server::ParsedCertificate;
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tracing::{debug, warn};

use crate::serve::api;
use crate::serve::metrics::{Gauged, Metrics};

/// Time for a TLS handshake; Envoy itself waits for 1 s.
const HANDSHAKE: Duration = Duration::from_secs(3);
/// Time for the answer that is under way: the longest poll and its way.
const LAST_ANSWER: Duration = api::WAIT_MAX.saturating_add(Duration::from_secs(5));

/// How many connections there may be, and how long they live.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnectionLimits {
    /// At once. HTTP/1.1 has one request in flight per connection, so this bounds long polls too.
    pub max: usize,
    /// Time for a request's headers, idle time before them included. Longer than Envoy's
    /// `idle_timeout` for the relay: Envoy closes first, and no request meets a connection that is
    /// just being closed.
    pub idle: Duration,
    /// Time until it has to show its certificate again: one that has ended is noticed by then.
    /// Longer than Envoy's `max_connection_duration`, for the same reason.
    pub age: Duration,
}

/// What all connections share.
#[derive(Debug, Clone)]
pub struct Terms {
    /// What answers.
    pub app: Router,
    /// Names of the gateways that may ask; none: everybody with a certificate.
    pub clients: Arc<[ServerName<'static>]>,
    /// Their limits.
    pub limits: ConnectionLimits,
    /// Room left.
    pub room: Arc<Semaphore>,
    /// There was none the last time.
    pub full: Arc<AtomicBool>,
    /// Certificates; those that are replaced end the connections that were made with them.
    pub tls: watch::Receiver<Arc<ServerConfig>>,
    /// `true`: the relay is stopping.
    pub closing: watch::Receiver<bool>,
    /// Counters.
    pub metrics: Arc<Metrics>,
}

/// Serves one connection until its end. `slot` bounds handshakes and is given back after it.
pub async fn serve(stream: TcpStream, slot: OwnedSemaphorePermit, mut terms: Terms) {
    // A verify is one small packet each way.
    let _ = stream.set_nodelay(true);
    let acceptor = TlsAcceptor::from(Arc::clone(&terms.tls.borrow_and_update()));
    let shaken = tokio::select! {
        shaken = timeout(HANDSHAKE, acceptor.accept(stream)) => shaken,
        () = closed(&mut terms.closing) => return,
    };
    let stream = match shaken {
        Ok(Ok(stream)) if known(&stream, &terms.clients) => stream,
        failed => {
            terms.metrics.handshakes_failed.inc();
            debug!("handshake: {:?}", failed.map(Result::err));
            return;
        }
    };
    drop(slot);
    let Ok(_room) = Arc::clone(&terms.room).try_acquire_owned() else {
        terms.metrics.connections_refused.inc();
        if !terms.full.swap(true, Ordering::Relaxed) {
            let max = terms.limits.max;
            warn!(max, "there is no room for more connections: new ones are closed");
        }
        return;
    };
    terms.full.store(false, Ordering::Relaxed);
    let _counted = Gauged::new(&terms.metrics.connections);
    answer(stream, terms).await;
}

async fn answer(stream: TlsStream<TcpStream>, mut terms: Terms) {
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(terms.limits.idle)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(terms.app));
    tokio::pin!(served);
    let ended = tokio::select! {
        ended = &mut served => Some(ended),
        () = closed(&mut terms.closing) => None,
        // An error is the sender's end: the relay's as well.
        _ = terms.tls.changed() => None,
        () = sleep(terms.limits.age) => None,
    };
    let ended = if let Some(ended) = ended {
        Ok(ended)
    } else {
        served.as_mut().graceful_shutdown();
        timeout(LAST_ANSWER, served).await
    };
    if !matches!(ended, Ok(Ok(()))) {
        debug!("connection: {ended:?}");
    }
}

/// Whether the client's certificate is for one of the names.
fn known(stream: &TlsStream<TcpStream>, names: &[ServerName<'static>]) -> bool {
    let certificate = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
    let parsed = certificate.and_then(|c| ParsedCertificate::try_from(c).ok());
    names.is_empty()
        || parsed.is_some_and(|c| names.iter().any(|name| verify_server_name(&c, name).is_ok()))
}

async fn closed(closing: &mut watch::Receiver<bool>) {
    // An error is the sender's end: closing as well.
    let _ = closing.wait_for(|closing| *closing).await;
}
