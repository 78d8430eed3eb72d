//! The HTTP interface. TLS has already decided which clients may use it.
//!
//! | request | response |
//! |---|---|
//! | `POST /v1/verify` | 200 `VerifyResponse`; 503 before the first good registry |
//! | `GET /v1/changes?epoch&since&wait_ms` | 200 `ChangesResponse`, at once or with the next change |
//! | `GET /healthz` | 200 while the process responds |
//! | `GET /readyz` | 200 while keys are verified, also from an older registry; else 503 |
//! | `GET /metrics` | OpenMetrics |

use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::rejection::QueryRejection;
use axum::extract::{DefaultBodyLimit, FromRequest, Query, Request, State};
use axum::http::StatusCode;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE, RETRY_AFTER};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use protocol::verify::ChangesRequest;
use protocol::{ChangesResponse, TenantStatus, VerifyRequest, headers};
use serde::Serialize;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use super::metrics::{GaugeGuard, Metrics, Outcome, count};
use super::state::{SourceHealth, View};

/// The body of a verify has 82 bytes; the rest is room for future fields.
const BODY_MAX_BYTES: usize = 4096;
/// Time-out of a request's body.
const BODY_TIMEOUT: Duration = Duration::from_secs(5);
/// Bound on `wait_ms`: a gateway that is gone is noticed at the end of its poll.
pub(super) const WAIT_MAX: Duration = Duration::from_mins(1);

/// The state that the handlers share.
#[derive(Debug, Clone)]
pub(super) struct Api {
    pub(super) views: watch::Receiver<Arc<View>>,
    /// True once the relay is stopping, which ends all long polls.
    pub(super) closing: watch::Receiver<bool>,
    pub(super) metrics: Arc<Metrics>,
}

pub(super) fn router(api: Api) -> Router {
    Router::new()
        .route(headers::VERIFY_PATH, post(verify))
        .route(headers::CHANGES_PATH, get(changes))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .layer(DefaultBodyLimit::max(BODY_MAX_BYTES))
        .with_state(api)
}

async fn verify(State(api): State<Api>, request: Request) -> Response {
    let body = match timeout(BODY_TIMEOUT, Bytes::from_request(request, &())).await {
        Ok(Ok(body)) => body,
        Ok(Err(rejection)) => return rejection.into_response(),
        Err(_) => return StatusCode::REQUEST_TIMEOUT.into_response(),
    };
    let Ok(request) = serde_json::from_slice::<VerifyRequest>(&body) else {
        let expected = "Invalid body: expected {\"key_sha256\": \"64 hexadecimal digits\"}.\n";
        return (StatusCode::BAD_REQUEST, expected).into_response();
    };
    let Some(response) = api.views.borrow().verify(&request.key_sha256) else {
        count(&api.metrics.verifies, Outcome::unavailable);
        return no_registry();
    };
    let outcome = match response.verdict.as_ref().map(|verdict| verdict.status) {
        Some(TenantStatus::Active) => Outcome::active,
        Some(TenantStatus::Suspended) => Outcome::suspended,
        None => Outcome::unknown,
    };
    count(&api.metrics.verifies, outcome);
    uncached(Json(response))
}

async fn changes(
    State(mut api): State<Api>,
    query: Result<Query<ChangesRequest>, QueryRejection>,
) -> Response {
    let request = match query {
        Ok(Query(request)) => request,
        Err(rejection) => return rejection.into_response(),
    };
    let _waiting = GaugeGuard::new(&api.metrics.long_polls);
    let wait = Duration::from_millis(request.wait_ms.into()).min(WAIT_MAX);
    let changed = tokio::select! {
        // Changes take precedence over a wait of 0, which is over at once.
        biased;
        response = next_changes(&mut api.views, &request) => Some(response),
        () = sleep(wait) => None,
        _ = api.closing.wait_for(|closing| *closing) => None,
    };
    let view = Arc::clone(&api.views.borrow());
    if view.revision == 0 {
        count(&api.metrics.changes, Outcome::unavailable);
        return no_registry();
    }
    let response = changed.unwrap_or_else(|| no_changes(&view, &request));
    let outcome = if response.reset {
        Outcome::reset
    } else if response.changed.is_empty() {
        Outcome::unchanged
    } else {
        Outcome::changed
    };
    count(&api.metrics.changes, outcome);
    uncached(Json(response))
}

/// Waits for a view with changes since the gateway's revision.
async fn next_changes(
    views: &mut watch::Receiver<Arc<View>>,
    request: &ChangesRequest,
) -> ChangesResponse {
    loop {
        let view = Arc::clone(&views.borrow_and_update());
        let changes = view.changes(request.epoch.as_ref(), request.since);
        if let Some(changes) = changes.filter(|_| view.revision > 0) {
            return changes;
        }
        if views.changed().await.is_err() {
            // The sender is gone, so the process is about to end.
            std::future::pending::<()>().await;
        }
    }
}

/// The response of a poll that saw no change. It repeats the gateway's revision: a change that came
/// after the wait is left to the next poll.
fn no_changes(view: &View, request: &ChangesRequest) -> ChangesResponse {
    ChangesResponse {
        epoch: view.epoch.clone(),
        revision: request.since,
        reset: false,
        changed: Vec::new(),
    }
}

/// Body of `GET /readyz`.
#[derive(Serialize)]
struct Readiness<'a> {
    ready: bool,
    source: &'static str,
    revision: u64,
    tenants: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
}

async fn readyz(State(api): State<Api>) -> Response {
    let view = Arc::clone(&api.views.borrow());
    let (source, reason) = match &view.source {
        SourceHealth::Starting => ("starting", None),
        SourceHealth::Good => ("good", None),
        SourceHealth::Gone(reason) => ("gone", Some(reason.as_str())),
        SourceHealth::Refused(reason) => ("refused", Some(reason.as_str())),
        SourceHealth::Suspicious(reason) => ("suspicious", Some(reason.as_str())),
    };
    let ready = view.revision > 0 && !*api.closing.borrow();
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let revision = view.revision;
    let tenants = view.tenants;
    let body = Json(Readiness { ready, source, revision, tenants, reason });
    (status, uncached(body)).into_response()
}

async fn metrics(State(api): State<Api>) -> Response {
    let content_type = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(CONTENT_TYPE, content_type)], api.metrics.encode()).into_response()
}

fn no_registry() -> Response {
    let headers = [(RETRY_AFTER, "1")];
    let body = "No valid registry has been read yet; GET /readyz gives the reason.\n";
    (StatusCode::SERVICE_UNAVAILABLE, headers, body).into_response()
}

fn uncached(body: impl IntoResponse) -> Response {
    ([(CACHE_CONTROL, "no-store")], body).into_response()
}
