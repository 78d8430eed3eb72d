//! One connection: handshake, admission, requests, end.
//!
//! ```text
//! handshake ─► accepted name? ─► permit? ─► HTTP/1.1 ─► idle for too long, or client gone: closed
//!    │ no certificate of our CA │      │        └── too old, new certificates, relay stops:
//!    └────────────────┴─────────┴► closed           last response (≤ LAST_RESPONSE), then closed
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
use tokio::sync::{Semaphore, watch};
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tracing::{debug, warn};

use super::api::WAIT_MAX;
use super::handshakes::HandshakePermit;
use super::metrics::{GaugeGuard, Metrics};

/// Time-out of a TLS handshake; Envoy itself waits for 1 s.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(3);
/// Time for the response that is due when a connection ends: the longest poll and its transfer.
const LAST_RESPONSE: Duration = WAIT_MAX.saturating_add(Duration::from_secs(5));

/// Bounds on the number and duration of connections.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnectionLimits {
    /// Open connections. HTTP/1.1 has one request in flight per connection, so this bounds the long
    /// polls too.
    pub max: usize,
    /// Time-out of a request's head, including the idle time before it. It must exceed Envoy's
    /// `idle_timeout` for the relay: then Envoy closes first, and no request meets a connection that
    /// is being closed.
    pub idle: Duration,
    /// Age at which a connection ends, so that an expired certificate is noticed. It must exceed
    /// Envoy's `max_connection_duration`, for the same reason.
    pub age: Duration,
}

/// The state that all connections share.
#[derive(Debug, Clone)]
pub(super) struct ConnectionContext {
    pub(super) router: Router,
    /// Names of the accepted gateways; empty to accept every certificate of the CA.
    pub(super) clients: Arc<[ServerName<'static>]>,
    pub(super) limits: ConnectionLimits,
    /// One permit per open connection.
    pub(super) permits: Arc<Semaphore>,
    /// True if the last connection found no permit, so that the warning is logged once.
    pub(super) was_full: Arc<AtomicBool>,
    /// The current certificates. A change ends the connections made with earlier ones.
    pub(super) tls: watch::Receiver<Arc<ServerConfig>>,
    /// True once the relay is stopping.
    pub(super) closing: watch::Receiver<bool>,
    pub(super) metrics: Arc<Metrics>,
}

/// Serves one connection until its end. `permit` is freed after the handshake.
pub(super) async fn serve(
    stream: TcpStream,
    mut permit: HandshakePermit,
    mut context: ConnectionContext,
) {
    // A verify is one small packet each way.
    let _ = stream.set_nodelay(true);
    let acceptor = TlsAcceptor::from(Arc::clone(&context.tls.borrow_and_update()));
    let handshake = tokio::select! {
        handshake = timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)) => handshake,
        () = permit.displaced() => return,
        () = wait_until_closing(&mut context.closing) => return,
    };
    let stream = match handshake {
        Ok(Ok(stream)) if has_accepted_name(&stream, &context.clients) => stream,
        failed => {
            context.metrics.handshakes_failed.inc();
            debug!(error = ?failed.map(Result::err), "handshake failed");
            return;
        }
    };
    drop(permit);
    let Ok(_permit) = Arc::clone(&context.permits).try_acquire_owned() else {
        context.metrics.connections_refused.inc();
        if !context.was_full.swap(true, Ordering::Relaxed) {
            let max = context.limits.max;
            warn!(max, "all connections are in use: new ones are closed");
        }
        return;
    };
    context.was_full.store(false, Ordering::Relaxed);
    let _open = GaugeGuard::new(&context.metrics.connections);
    serve_requests(stream, context).await;
}

async fn serve_requests(stream: TlsStream<TcpStream>, mut context: ConnectionContext) {
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(context.limits.idle)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(context.router));
    tokio::pin!(connection);
    let ended = tokio::select! {
        ended = &mut connection => Some(ended),
        () = wait_until_closing(&mut context.closing) => None,
        // An error means that the sender is gone, because the relay is stopping.
        _ = context.tls.changed() => None,
        () = sleep(context.limits.age) => None,
    };
    let result = if let Some(result) = ended {
        Ok(result)
    } else {
        connection.as_mut().graceful_shutdown();
        timeout(LAST_RESPONSE, connection).await
    };
    if !matches!(result, Ok(Ok(()))) {
        debug!(?result, "connection failed");
    }
}

/// Returns true if the client's certificate carries an accepted name.
fn has_accepted_name(stream: &TlsStream<TcpStream>, accepted: &[ServerName<'static>]) -> bool {
    if accepted.is_empty() {
        return true;
    }
    let certificate = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
    let Some(certificate) = certificate.and_then(|c| ParsedCertificate::try_from(c).ok()) else {
        return false;
    };
    accepted.iter().any(|name| verify_server_name(&certificate, name).is_ok())
}

async fn wait_until_closing(closing: &mut watch::Receiver<bool>) {
    // An error means that the sender is gone, because the relay has stopped.
    let _ = closing.wait_for(|closing| *closing).await;
}
