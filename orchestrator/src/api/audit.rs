//! Writes every change that an operator asks for into the audit log, whichever route it takes.
//!
//! The action begins once its line is on disk; if that fails, it is refused with 503. It runs to its
//! end, and the outcome is written down, also if the operator's command has gone.
//!
//! | request | response |
//! |---|---|
//! | `GET /v1/audit` | 200 [`AuditFile`], for a command on this host |

use std::path::PathBuf;

use ::audit::{Action, Actor, AuditLog, Outcome};
use axum::body::{Body, to_bytes};
use axum::extract::{ConnectInfo, Request, State};
use axum::http::uri::Uri;
use axum::http::{Method, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use tokio::task::spawn_blocking;
use tracing::error;

use crate::host;
use crate::sockets::Peer;

/// Bound on the text of a failed action: longer ones are not written down.
const TEXT_MAX_BYTES: usize = 64 * 1024;

/// Location of the audit log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditFile {
    /// The newest file on the orchestrator's host.
    pub path: PathBuf,
}

/// Builds the route that names the log.
pub(crate) fn router(log: AuditLog) -> Router {
    Router::new().route("/v1/audit", get(audit_file)).with_state(log)
}

async fn audit_file(State(log): State<AuditLog>) -> Response {
    Json(AuditFile { path: log.path().to_owned() }).into_response()
}

/// Passes on requests that only read; writes all others down.
pub(crate) async fn write_down(
    State(log): State<AuditLog>,
    request: Request,
    next: Next,
) -> Response {
    if matches!(*request.method(), Method::GET | Method::HEAD) {
        return next.run(request).await;
    }
    let peer = request.extensions().get::<ConnectInfo<Peer>>().map(|ConnectInfo(peer)| *peer);
    let action = action(request.method(), request.uri(), peer);
    // In a separate task, which no disconnect ends.
    let done = tokio::spawn(async move {
        let begin_log = log.clone();
        let first_line = blocking(move || begin_log.begin(&action, host::now_s())).await;
        let begin = match first_line {
            Ok(begin) => begin,
            Err(fault) => {
                error!(error = %fault, "operator's action refused");
                let text = format!("nothing was done: {fault}\n");
                return (StatusCode::SERVICE_UNAVAILABLE, text).into_response();
            }
        };
        let (outcome, message, response) = outcome(next.run(request).await).await;
        let ended = blocking(move || log.end(begin, outcome, &message, host::now_s()));
        if let Err(fault) = ended.await {
            error!(error = %fault, begin, "outcome of an operator's action can't be written down");
        }
        response
    });
    done.await.unwrap_or_else(|_| StatusCode::INTERNAL_SERVER_ERROR.into_response())
}

async fn blocking<T: Send + 'static>(
    write: impl FnOnce() -> Result<T, ::audit::AuditError> + Send + 'static,
) -> Result<T, String> {
    let written = spawn_blocking(write).await;
    written
        .map_err(|_| "the process is about to end".to_owned())?
        .map_err(|fault| fault.to_string())
}

/// Describes a request: its last segment names the action.
fn action(method: &Method, uri: &Uri, peer: Option<Peer>) -> Action {
    let segments: Vec<&str> = uri.path().split('/').filter(|part| !part.is_empty()).collect();
    let tenant = match segments.as_slice() {
        [_, "tenants", tenant, ..] => Some(*tenant),
        _ => {
            uri.query().unwrap_or_default().split('&').find_map(|pair| pair.strip_prefix("tenant="))
        }
    };
    let actor = Actor {
        uid: peer.map(|peer| peer.uid),
        pid: peer.and_then(|peer| peer.pid),
        sudo_uid: None,
    };
    Action {
        actor,
        name: segments.last().copied().unwrap_or("/").to_owned(),
        tenant: tenant.map(str::to_owned),
        detail: format!("{method} {uri}"),
    }
}

/// Reads the outcome from the status, and the text of a refusal from the body.
async fn outcome(response: Response) -> (Outcome, String, Response) {
    let status = response.status();
    let outcome = match status.as_u16() {
        0..400 => return (Outcome::Done, status.as_u16().to_string(), response),
        400..500 => Outcome::Refused,
        _ => Outcome::Failed,
    };
    let (parts, body) = response.into_parts();
    let bytes = to_bytes(body, TEXT_MAX_BYTES).await.unwrap_or_default();
    let message = format!("{} {}", status.as_u16(), String::from_utf8_lossy(&bytes));
    (outcome, message, Response::from_parts(parts, Body::from(bytes)))
}

#[cfg(test)]
mod tests {
    use ::audit::reports;
    use axum::middleware::from_fn_with_state;
    use axum::routing::post;
    use tokio::net::UnixListener;

    use super::*;
    use crate::cli::client::AdminClient;

    /// Serves routes of each outcome behind the log.
    fn serve(log: &AuditLog, dir: &std::path::Path) -> AdminClient {
        let refuse = || async { (StatusCode::CONFLICT, "alice is awake\n") };
        let routes = Router::new()
            .route("/v1/tenants/{id}/sleep", post(|| async { Json("asleep") }))
            .route("/v1/tenants/{id}/snapshots/{taken_s}/restore", post(refuse))
            .route("/v1/tenants", get(|| async { Json("list") }))
            .layer(from_fn_with_state(log.clone(), write_down));
        let socket = dir.join("admin.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        tokio::spawn(async move { axum::serve(listener, routes).await });
        AdminClient::orchestrator(&socket).unwrap()
    }

    #[tokio::test]
    async fn changes_are_written_down_and_reads_are_not() {
        let dir = tempfile::tempdir().unwrap();
        let log = AuditLog::new(&dir.path().join("audit.jsonl"));
        let client = serve(&log, dir.path());
        client.get::<String>("/v1/tenants").await.unwrap();
        client.post::<String>("/v1/tenants/alice/sleep?force=true").await.unwrap();
        client.post::<String>("/v1/tenants/alice/snapshots/7/restore").await.unwrap_err();
        let reports = reports(&log.verify(None).unwrap().entries);
        let shown: Vec<_> = reports
            .iter()
            .map(|report| (report.action.as_str(), report.tenant.as_deref(), report.outcome))
            .collect();
        let alice = Some("alice");
        let expected =
            [("sleep", alice, Some(Outcome::Done)), ("restore", alice, Some(Outcome::Refused))];
        assert_eq!(shown, expected);
        assert_eq!(reports[0].detail, "POST /v1/tenants/alice/sleep?force=true");
        assert_eq!(reports[1].message, "409 alice is awake");
    }

    #[tokio::test]
    async fn action_without_a_line_does_not_happen() {
        let dir = tempfile::tempdir().unwrap();
        let log = AuditLog::new(&dir.path().join("missing/audit.jsonl"));
        let client = serve(&log, dir.path());
        let refused = client.post::<String>("/v1/tenants/alice/sleep").await.unwrap_err();
        assert!(refused.to_string().contains("nothing was done"), "{refused}");
    }

    #[test]
    fn peer_and_query_name_who_and_whom() {
        let uri: Uri = "/v1/usage/rows/remove?tenant=bob&apply=true".parse().unwrap();
        let action = action(&Method::POST, &uri, Some(Peer { uid: 7, pid: Some(9) }));
        assert_eq!((action.name.as_str(), action.tenant.as_deref()), ("remove", Some("bob")));
        assert_eq!(action.actor.to_string(), "uid 7, pid 9");
    }
}
