//! The HTTP interface. Who may use it has been decided by TLS.
//!
//! | request | answer |
//! |---|---|
//! | `POST /v1/verify` | 200 `VerifyResponse`; 503 before the first good registry |
//! | `GET /v1/changes?epoch&since&wait_ms` | 200 `ChangesResponse`, at once or when there is news |
//! | `GET /healthz` | 200: the process answers |
//! | `GET /readyz` | 200: keys are answered (the body says if from an older registry); else 503 |
//! | `GET /metrics` | OpenMetrics |

use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::rejection::{BytesRejection, QueryRejection};
use axum::extract::{DefaultBodyLimit, Query, State};
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

use crate::serve::metrics::{Gauged, Metrics, Outcome, count};
use crate::serve::state::{SourceStatus, View};

/// A verify has 82 bytes; the rest is room for fields to come.
const BODY_MAX_BYTES: usize = 4096;
/// Time for a request's body to arrive.
const BODY_TIMEOUT: Duration = Duration::from_secs(5);
/// The longest a poll waits, whatever it asks for: dead gateways are noticed by then.
pub const WAIT_MAX: Duration = Duration::from_mins(1);

/// What the handlers share.
#[derive(Debug, Clone)]
pub struct Api {
    /// The newest view.
    pub views: watch::Receiver<Arc<View>>,
    /// `true`: the relay is stopping, nothing waits any more.
    pub closing: watch::Receiver<bool>,
    /// Counters.
    pub metrics: Arc<Metrics>,
}

/// All routes.
pub fn router(api: Api) -> Router {
    Router::new()
        .route(headers::VERIFY_PATH, post(verify))
        .route(headers::CHANGES_PATH, get(changes))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .layer(DefaultBodyLimit::max(BODY_MAX_BYTES))
        .with_state(api)
}

async fn verify(State(api): State<Api>, request: axum::extract::Request) -> Response {
    use axum::extract::FromRequest;
    let Ok(body) = timeout(BODY_TIMEOUT, Bytes::from_request(request, &())).await else {
        return StatusCode::REQUEST_TIMEOUT.into_response();
    };
    let body: Result<Bytes, BytesRejection> = body;
    let body = match body {
        Ok(body) => body,
        Err(rejection) => return rejection.into_response(),
    };
    let Ok(question) = serde_json::from_slice::<VerifyRequest>(&body) else {
        let expected = "expected {\"key_sha256\": \"64 hexadecimal digits\"}\n";
        return (StatusCode::BAD_REQUEST, expected).into_response();
    };
    let answer = api.views.borrow().verify(&question.key_sha256);
    let Some(answer) = answer else {
        count(&api.metrics.verifies, Outcome::unavailable);
        return no_registry();
    };
    let outcome = match answer.verdict.as_ref().map(|v| v.status) {
        Some(TenantStatus::Active) => Outcome::active,
        Some(TenantStatus::Suspended) => Outcome::suspended,
        None => Outcome::unknown,
    };
    count(&api.metrics.verifies, outcome);
    uncached(Json(answer))
}

async fn changes(
    State(mut api): State<Api>,
    query: Result<Query<ChangesRequest>, QueryRejection>,
) -> Response {
    let request = match query {
        Ok(Query(request)) => request,
        Err(rejection) => return rejection.into_response(),
    };
    let _waiting = Gauged::new(&api.metrics.polls);
    let wait = Duration::from_millis(request.wait_ms.into()).min(WAIT_MAX);
    let answer = tokio::select! {
        // News goes before a wait of 0 that is over at once.
        biased;
        answer = news(&mut api.views, &request) => Some(answer),
        () = sleep(wait) => None,
        _ = api.closing.wait_for(|closing| *closing) => None,
    };
    let view = Arc::clone(&api.views.borrow());
    if view.revision == 0 {
        count(&api.metrics.changes, Outcome::unavailable);
        return no_registry();
    }
    let answer = answer.unwrap_or_else(|| unchanged(&view, &request));
    let outcome = match &answer {
        ChangesResponse { reset: true, .. } => Outcome::reset,
        ChangesResponse { changed, .. } if changed.is_empty() => Outcome::unchanged,
        _ => Outcome::changed,
    };
    count(&api.metrics.changes, outcome);
    uncached(Json(answer))
}

/// Waits until there is something to tell.
async fn news(views: &mut watch::Receiver<Arc<View>>, request: &ChangesRequest) -> ChangesResponse {
    loop {
        let view = Arc::clone(&views.borrow_and_update());
        let answer = view.changes(request.epoch.as_ref(), request.since);
        if let (Some(answer), true) = (answer, view.revision > 0) {
            return answer;
        }
        if views.changed().await.is_err() {
            // The feed is gone and with it the process, soon.
            std::future::pending::<()>().await;
        }
    }
}

/// Nothing happened while waiting; what happened since then is left to the next poll.
fn unchanged(view: &View, request: &ChangesRequest) -> ChangesResponse {
    let (epoch, revision) = (view.epoch.clone(), request.since);
    ChangesResponse { epoch, revision, reset: false, changed: Vec::new() }
}

/// What `/readyz` says.
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
        SourceStatus::Starting => ("starting", None),
        SourceStatus::Good => ("good", None),
        SourceStatus::Gone(why) => ("gone", Some(why.as_str())),
        SourceStatus::Refused(why) => ("refused", Some(why.as_str())),
        SourceStatus::Suspicious(why) => ("suspicious", Some(why.as_str())),
    };
    let ready = view.revision > 0 && !*api.closing.borrow();
    let (revision, tenants) = (view.revision, view.tenants);
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, uncached(Json(Readiness { ready, source, revision, tenants, reason }))).into_response()
}

async fn metrics(State(api): State<Api>) -> Response {
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(CONTENT_TYPE, kind)], api.metrics.encode()).into_response()
}

fn no_registry() -> Response {
    let retry = [(RETRY_AFTER, "1")];
    (StatusCode::SERVICE_UNAVAILABLE, retry, "no registry has been read yet\n").into_response()
}

fn uncached(body: impl IntoResponse) -> Response {
    ([(CACHE_CONTROL, "no-store")], body).into_response()
}
