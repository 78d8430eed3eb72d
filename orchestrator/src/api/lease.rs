//! `POST /v1/lease`, for the filter: wakes the tenant and responds once the requesting Envoy can
//! route to it.
//!
//! The response carries a notice, with which the filter judges quotas and storage; it is built after
//! the wake, so that it is fresh. A filter without a lease knows no usage of the tenant: therefore a
//! tenant that has used up its day or month is refused here, before it is woken.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{ConnectInfo, DefaultBodyLimit, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Json, Router};
use protocol::headers::LEASE_PATH;
use protocol::lease::LeaseRefusalKind;
use protocol::{LeaseRefusal, LeaseRequest, LeaseResponse, TenantId, TenantNotice};
use tokio::time::timeout;

use crate::api::usage::UsageApi;
use crate::host;
use crate::sockets::Peer;
use crate::tenants::driver::Handle;
use crate::tenants::lifecycle::LeaseDecision;
use crate::tenants::metrics::Metrics;

pub(crate) mod claims;

use claims::{Claim, Claims};

/// Bound on a request body: a few names and a tier's limits.
const BODY_MAX_BYTES: usize = 64 * 1024;
/// Time beyond the patience, which the lifecycle itself enforces, after which the driver counts as
/// stuck.
const SLACK: Duration = Duration::from_secs(5);
/// Pause of a tenant whose tier has to be corrected first.
const CLAIM_RETRY_S: u32 = 60;

/// State of the route.
#[derive(Clone)]
pub(crate) struct LeaseApi {
    /// The driver of the tenants.
    pub handle: Handle,
    /// Source of notices.
    pub usage: UsageApi,
    /// Counts the requests that the driver does not see.
    pub metrics: Arc<Metrics>,
    /// Judges what requests claim.
    pub claims: Arc<Claims>,
    /// Duration of a lease.
    pub lease_ms: u64,
    /// Longest time that the lifecycle lets a request wait.
    pub patience: Duration,
}

/// Builds the route.
pub(crate) fn router(api: LeaseApi) -> Router {
    Router::new()
        .route(LEASE_PATH, post(lease))
        .layer(DefaultBodyLimit::max(BODY_MAX_BYTES))
        .with_state(api)
}

async fn lease(
    State(api): State<LeaseApi>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    Json(request): Json<LeaseRequest>,
) -> Response {
    if let Err(claim) = api.claims.check(&request).await {
        return refuse_claim(&api, &request.tenant, &claim);
    }
    // Quotas come first: a tenant that may not be served is not woken.
    if let Some(resume_s) = quota_resumes_s(&api, &request) {
        return refuse_for_quota(&api, request.tenant, resume_s).await;
    }
    let tenant = request.tenant.clone();
    let tier = request.tier.clone();
    let outcome = match timeout(api.patience + SLACK, api.handle.lease(peer, request)).await {
        Ok(Ok(outcome)) => outcome,
        Ok(Err(closed)) => return unavailable(&closed.to_string()),
        Err(_) => return unavailable("the driver does not respond"),
    };
    match outcome.decision {
        LeaseDecision::Granted { wake, wake_ms, waker } => {
            api.usage.ledger.leased(&tenant, &tier);
            let cluster = tenant.cluster();
            Json(LeaseResponse {
                cluster,
                lease_ms: api.lease_ms,
                wake,
                wake_ms,
                waker,
                sq_version: outcome.sq_version,
                notice: notice(&api, tenant).await.unwrap_or_default(),
            })
            .into_response()
        }
        LeaseDecision::Refused { kind, retry_after_s, detail } => {
            let detail = detail.to_owned();
            refuse(&LeaseRefusal { kind, retry_after_s, detail, notice: None })
        }
    }
}

/// Refuses a request that claims too much. What the registry can have meant is refused like a host that
/// is busy; the rest is a fault of the gateway.
fn refuse_claim(api: &LeaseApi, tenant: &TenantId, claim: &Claim) -> Response {
    api.metrics.count_refused_claim(claim.kind());
    api.claims.warn(tenant, claim);
    let (kind, retry_after_s) = match claim {
        Claim::Limit(_) => {
            return (StatusCode::BAD_REQUEST, format!("{claim}\n")).into_response();
        }
        Claim::Memory { .. } => (LeaseRefusalKind::Unavailable, CLAIM_RETRY_S),
        Claim::NewTenants { wait } => {
            (LeaseRefusalKind::Queue, u32::try_from(wait.as_secs()).unwrap_or(0).max(1))
        }
    };
    refuse(&LeaseRefusal { kind, retry_after_s, detail: claim.to_string(), notice: None })
}

/// Returns when the tenant's requests are allowed again, in seconds since 1970, if its day or month
/// is used up.
fn quota_resumes_s(api: &LeaseApi, request: &LeaseRequest) -> Option<u64> {
    if !request.within_quotas {
        return None;
    }
    // The usage half alone: unlike the storage half it never blocks.
    api.usage.ledger.notice(&request.tenant).requests_resume_s(&request.limits)
}

async fn refuse_for_quota(api: &LeaseApi, tenant: TenantId, resume_s: u64) -> Response {
    api.metrics.count_lease_request(Some(LeaseRefusalKind::Quota));
    let wait_s = resume_s.saturating_sub(host::now_s()).max(1);
    refuse(&LeaseRefusal {
        kind: LeaseRefusalKind::Quota,
        retry_after_s: u32::try_from(wait_s).unwrap_or(u32::MAX),
        detail: "the requests of the day or month are used up".to_owned(),
        notice: notice(api, tenant).await,
    })
}

/// Builds the whole notice, on the blocking pool because it may list the tenant's folder.
async fn notice(api: &LeaseApi, tenant: TenantId) -> Option<TenantNotice> {
    let usage = api.usage.clone();
    tokio::task::spawn_blocking(move || usage.notice(&tenant)).await.ok()
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
    let retry_after = [(header::RETRY_AFTER, refusal.retry_after_s.to_string())];
    (status, retry_after, Json(refusal)).into_response()
}
