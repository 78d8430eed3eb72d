//! Usage over HTTP: gateways report it, tenants and the operator read it.
//!
//! | request | response |
//! |---|---|
//! | gate: `POST /v1/usage` ([`UsageReport`](protocol::UsageReport)) | 200 [`UsageResponse`] once it is on disk; 503: the gateway keeps it |
//! | gate: `POST /v1/usage/{tenant}` ([`TenantUsageRequest`]) | 200 [`TenantUsage`]; wakes no tenant |
//! | gate: `GET /v1/usage/{tenant}` | the same, with tier and limits as last reported |
//! | admin: `GET /v1/usage[?month=YYYY-MM][&tenant=T]` | 200 [`MonthUsage`] |
//! | admin: `GET /v1/usage/gateways/{id}?since_s=N` | 200 [`Sums`](crate::usage::sums::Sums), for reconciliation |
//! | admin: `GET /v1/usage/ledger` | 200 [`LedgerFile`], for a backup on this host |
//!
//! Until the ledger is open, all but the last respond with 503 and the reason. The routes of
//! [`repair`] are beside these.

use std::collections::{BTreeMap, BTreeSet};

use axum::extract::{DefaultBodyLimit, Path, Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use protocol::calendar::Month;
use protocol::headers::{TENANT_USAGE_PATH, USAGE_PATH};
use protocol::usage::TenantUsageRequest;
use protocol::usage::bounds::is_source;
use protocol::{GatewayId, Limits, TenantId, UsageResponse};
use serde::{Deserialize, Serialize};
use tracing::warn;

use crate::host;
use crate::usage::ledger::QueryError;
use crate::usage::received::{RawReport, ReceivedReport};
use crate::usage::store::Recorded;

mod queries;
mod repair;
#[cfg(test)]
mod tests;
mod types;

pub(crate) use queries::UsageApi;
pub use repair::Quarantine;
pub use types::{LedgerFile, MonthUsage, Quota, Quotas, StorageUsage, TenantUsage};

/// Bound on a report: at most 500 rows of about 1 kB.
const REPORT_MAX_BYTES: usize = 4 << 20;

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct MonthQuery {
    month: Option<String>,
    tenant: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct SinceQuery {
    since_s: u64,
}

/// Builds the routes of the gate API.
pub(crate) fn gate_router(api: UsageApi) -> Router {
    Router::new()
        .route(USAGE_PATH, post(report))
        .layer(DefaultBodyLimit::max(REPORT_MAX_BYTES))
        .route(
            &format!("{TENANT_USAGE_PATH}{{tenant}}"),
            get(tenant_usage).post(tenant_usage_with_limits),
        )
        .with_state(api)
}

/// Builds the routes of the admin API.
pub(crate) fn admin_router(api: UsageApi) -> Router {
    Router::new()
        .route("/v1/usage", get(month_usage))
        .route("/v1/usage/gateways/{gateway}", get(gateway_usage))
        .route("/v1/usage/ledger", get(ledger_file))
        .merge(repair::router())
        .with_state(api)
}

async fn report(State(api): State<UsageApi>, Json(raw): Json<RawReport>) -> Response {
    let received = ReceivedReport::from(raw);
    let report = &received.report;
    if !is_source(&report.source) {
        return bad_request("source: must be 1 to 64 letters, digits and '-'");
    }
    let sequence = report.sequence;
    let mut limits: BTreeMap<TenantId, Limits> = BTreeMap::new();
    for row in &report.rows {
        limits.insert(row.tenant.clone(), row.limits.clone());
    }
    // A report without rows only asks for the notices of tenants with exhausted quotas.
    let mut recorded = Recorded::default();
    if !(report.rows.is_empty() && received.malformed.is_empty()) {
        recorded = match api.ledger.report(received).await {
            Ok(recorded) => recorded,
            Err(error) => {
                let retry_after = [(header::RETRY_AFTER, "1")];
                let text = format!("{error}\n");
                return (StatusCode::SERVICE_UNAVAILABLE, retry_after, text).into_response();
            }
        };
    }
    // No invented tenant gets a notice: each costs a look at its folder.
    limits.retain(|tenant, _| !recorded.unknown.contains(tenant));
    // Notices come after the commit, so that they include this report.
    let mut tenants: BTreeSet<TenantId> = limits.keys().cloned().collect();
    tenants.extend(api.exhausted.announced());
    let notices = api.notices(tenants).await;
    for (tenant, limits) in limits {
        if notices.get(&tenant).is_some_and(|notice| notice.is_over(&limits)) {
            api.exhausted.announce(tenant);
        }
    }
    let quarantined = recorded.quarantined;
    Json(UsageResponse { sequence, quarantined, notices }).into_response()
}

async fn tenant_usage(State(api): State<UsageApi>, Path(tenant): Path<String>) -> Response {
    respond_with_tenant(&api, &tenant, None).await
}

async fn tenant_usage_with_limits(
    State(api): State<UsageApi>,
    Path(tenant): Path<String>,
    Json(request): Json<TenantUsageRequest>,
) -> Response {
    respond_with_tenant(&api, &tenant, Some(request)).await
}

async fn respond_with_tenant(
    api: &UsageApi,
    tenant: &str,
    request: Option<TenantUsageRequest>,
) -> Response {
    match TenantId::parse(tenant) {
        Ok(tenant) => respond(api.tenant(tenant, request).await),
        Err(fault) => bad_request(&format!("tenant: {fault}")),
    }
}

async fn month_usage(State(api): State<UsageApi>, Query(query): Query<MonthQuery>) -> Response {
    let present = Month::of(host::now_s()).to_string();
    let Some(month) = Month::parse(query.month.as_deref().unwrap_or(&present)) else {
        return bad_request("month: must be YYYY-MM, such as 2026-11");
    };
    match query.tenant.as_deref().map(TenantId::parse).transpose() {
        Ok(tenant) => respond(api.month(month, tenant).await),
        Err(fault) => bad_request(&format!("tenant: {fault}")),
    }
}

async fn gateway_usage(
    State(api): State<UsageApi>,
    Path(gateway): Path<String>,
    Query(SinceQuery { since_s }): Query<SinceQuery>,
) -> Response {
    match GatewayId::parse(&gateway) {
        Ok(gateway) => {
            respond(api.ledger.query(move |store| store.gateway_sums(&gateway, since_s)).await)
        }
        Err(fault) => bad_request(&format!("gateway: {fault}")),
    }
}

async fn ledger_file(State(api): State<UsageApi>) -> Response {
    Json(LedgerFile { path: api.ledger.path().to_owned() }).into_response()
}

fn respond<T: Serialize>(result: Result<T, QueryError>) -> Response {
    match result {
        Ok(body) => Json(body).into_response(),
        Err(error) => {
            if let QueryError::Failed(cause) = &error {
                warn!(error = %cause, "ledger query failed");
            }
            // The text is for the operator; the filter does not pass it to its client.
            (StatusCode::SERVICE_UNAVAILABLE, format!("{error}\n")).into_response()
        }
    }
}

fn bad_request(text: &str) -> Response {
    (StatusCode::BAD_REQUEST, format!("{text}\n")).into_response()
}
