//! `POST /v1/lease`, for the filter: wakes the tenant and answers when the asking Envoy can route.
//!
//! Loopback only. The answer carries what the filter needs to judge quotas and storage
//! ([`Notices`]), looked up after the wake so that it is fresh. A filter knows no quota of a tenant
//! that it has no lease on, so who has used up the day or month is refused here, and not woken.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{DefaultBodyLimit, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Json, Router};
use protocol::headers::LEASE_PATH;
use protocol::lease::LeaseRefusalKind;
use protocol::{LeaseRefusal, LeaseRequest, LeaseResponse, TenantId, TenantNotice};

use crate::host;
use crate::metrics::Metrics;
use crate::tenants::driver::Handle;
use crate::tenants::lifecycle::Answer;

/// A lease request is a few names and a tier's limits.
const BODY_MAX_BYTES: usize = 64 * 1024;
/// On top of the asker's patience, which the lifecycle keeps: then the driver itself is stuck.
const SLACK: Duration = Duration::from_secs(5);

/// What is told of a tenant with each lease.
pub type Notices = Arc<dyn Fn(&TenantId) -> TenantNotice + Send + Sync>;

/// What the routes need.
#[derive(Clone)]
pub struct Gate {
    /// The driver.
    pub handle: Handle,
    /// Usage and storage; may block on files.
    pub notices: Notices,
    /// Usage alone; never blocks.
    pub used: Notices,
    /// For those whom the driver does not see.
    pub metrics: Arc<Metrics>,
    /// How long a lease holds.
    pub lease_ms: u64,
    /// How long the lifecycle lets an asker wait.
    pub patience: Duration,
}

/// The routes.
pub fn router(gate: Gate) -> Router {
    Router::new()
        .route(LEASE_PATH, post(lease))
        .layer(DefaultBodyLimit::max(BODY_MAX_BYTES))
        .with_state(gate)
}

async fn lease(State(gate): State<Gate>, Json(request): Json<LeaseRequest>) -> Response {
    if let Some(resume_s) = over_quota(&gate, &request) {
        return refuse_over_quota(&gate, request.tenant, resume_s).await;
    }
    let tenant = request.tenant.clone();
    let asked = gate.handle.lease(request);
    let outcome = match tokio::time::timeout(gate.patience + SLACK, asked).await {
        Ok(Ok(outcome)) => outcome,
        Ok(Err(closed)) => return unavailable(&closed.to_string()),
        Err(_) => return unavailable("the driver does not answer"),
    };
    match outcome.answer {
        Answer::Granted { wake, wake_ms, waker } => {
            let cluster = tenant.cluster();
            Json(LeaseResponse {
                cluster,
                lease_ms: gate.lease_ms,
                wake,
                wake_ms,
                waker,
                sq_version: outcome.sq_version,
                notice: notice(&gate, tenant).await.unwrap_or_default(),
            })
            .into_response()
        }
        Answer::Refused { kind, retry_after_s, detail } => {
            let detail = detail.to_owned();
            refuse(&LeaseRefusal { kind, retry_after_s, detail, notice: None })
        }
    }
}

/// When the asker's requests are allowed again, seconds since 1970, if they are used up.
fn over_quota(gate: &Gate, request: &LeaseRequest) -> Option<u64> {
    if !request.within_quotas {
        return None;
    }
    (gate.used)(&request.tenant).requests_resume_s(&request.limits)
}

async fn refuse_over_quota(gate: &Gate, tenant: TenantId, resume_s: u64) -> Response {
    gate.metrics.count_lease_request(Some(LeaseRefusalKind::Quota));
    let wait_s = resume_s.saturating_sub(host::now_s()).max(1);
    refuse(&LeaseRefusal {
        kind: LeaseRefusalKind::Quota,
        retry_after_s: u32::try_from(wait_s).unwrap_or(u32::MAX),
        detail: "the requests of the day or month are used up".to_owned(),
        notice: notice(gate, tenant).await,
    })
}

async fn notice(gate: &Gate, tenant: TenantId) -> Option<TenantNotice> {
    let notices = gate.notices.clone();
    tokio::task::spawn_blocking(move || notices(&tenant)).await.ok()
}

fn unavailable(detail: &str) -> Response {
    let kind = LeaseRefusalKind::Unavailable;
    refuse(&LeaseRefusal { kind, retry_after_s: 1, detail: detail.to_owned(), notice: None })
}

fn refuse(refusal: &LeaseRefusal) -> Response {
    let status = match refusal.kind {
        LeaseRefusalKind::WakeBudget | LeaseRefusalKind::Quota => StatusCode::TOO_MANY_REQUESTS,
        _ => StatusCode::SERVICE_UNAVAILABLE,
    };
    let retry = [(header::RETRY_AFTER, refusal.retry_after_s.to_string())];
    (status, retry, Json(refusal)).into_response()
}
