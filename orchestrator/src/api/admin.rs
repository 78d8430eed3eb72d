//! The operator's HTTP API: status, sleep, readiness.
//!
//! | request | response |
//! |---|---|
//! | `GET /v1/tenants` | 200 [`Status`] |
//! | `POST /v1/tenants/{id}/sleep[?force=true]` | 202 [`SleepReport`]; 404 |
//! | `POST /v1/tenants/{id}/repaired` | 200 [`SleepReport`]: a damaged or failing tenant may be started again; 404 |
//! | `GET /readyz` | 200 once tenants are adopted and Envoys are served, else 503; names a problem of the ledger, without which tenants are served |
//!
//! Sleep without `force` waits until no lease is live and the grace is over. If the grace is shorter
//! than clients' patience, new leases wait during that time and the tenant is woken again for them;
//! otherwise it sleeps in the first pause of its traffic. With `force`, requests in flight fail, and
//! a tenant in use (a lease is live, or was within the grace) is started again at once.

use std::sync::Arc;

use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use futures_util::StreamExt;
use futures_util::stream;
use protocol::{SqVersion, TenantId};
use serde::{Deserialize, Serialize};

use crate::api::startup::Startup;
use crate::api::status::{HostStatus, LastWake, Status, TenantStatus};
use crate::host;
use crate::runtime::Runtime;
use crate::storage::disk::Disk;
use crate::storage::vault::Vault;
use crate::tenants::lifecycle::{Drain, TenantView};
use crate::tenants::metrics::Metrics;
use crate::usage::ledger::Ledger;
use crate::xds::Publisher;

/// Bound on concurrent requests to the runtime: each may be a round trip to the Docker daemon.
const MEMORY_REQUESTS_MAX: usize = 16;

/// State of the routes.
#[derive(Clone)]
pub(crate) struct AdminApi {
    /// Access to runtime and driver once they exist.
    pub startup: Startup,
    /// Source of the number of connected Envoys.
    pub publisher: Publisher,
    /// Source of storage sizes.
    pub disk: Disk,
    /// Source of each tenant's good copies.
    pub vault: Arc<Vault>,
    /// Says whether adoption has finished.
    pub metrics: Arc<Metrics>,
    /// Source of the ledger's condition.
    pub ledger: Ledger,
    /// Version of SQ that tenants are started with.
    pub sq_version: SqVersion,
}

/// Response to `POST /v1/tenants/{id}/sleep` and `…/repaired`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SleepReport {
    /// The tenant's present state.
    pub state: String,
    /// Least time until the tenant can be stopped.
    pub earliest_ms: u64,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct SleepQuery {
    force: bool,
}

/// Builds the routes.
pub(crate) fn router(api: AdminApi) -> Router {
    Router::new()
        .route("/v1/tenants", get(tenants))
        .route("/v1/tenants/{id}/sleep", post(sleep))
        .route("/v1/tenants/{id}/repaired", post(repaired))
        .route("/readyz", get(readyz))
        .with_state(api)
}

async fn tenants(State(api): State<AdminApi>) -> Response {
    let Some((runtime, handle)) = api.startup.serving() else { return api.startup.not_adopted() };
    let Ok(views) = handle.tenants().await else { return shutting_down() };
    let folders = folder_sizes(&api, &views).await;
    let tenants = stream::iter(views.into_iter().zip(folders))
        .map(|(view, folder)| tenant_status(&api, runtime.as_ref(), view, folder))
        .buffered(MEMORY_REQUESTS_MAX)
        .collect()
        .await;
    let mut description = runtime.describe();
    description.notes.extend(api.ledger.condition().problem());
    let host = HostStatus {
        runtime: description.kind.to_owned(),
        notes: description.notes,
        sq_version: api.sq_version,
        streams: api.publisher.streams(),
        memory_available_bytes: host::memory_available(),
        disk: api.disk.host().ok(),
    };
    Json(Status { host, tenants }).into_response()
}

/// Size and hard limit of a tenant's folder; `None` where they can't be examined.
#[derive(Debug, Clone, Copy, Default)]
struct FolderSize {
    bytes: Option<u64>,
    hard_bytes: Option<u64>,
}

/// Examines the tenants' folders, on the blocking pool.
async fn folder_sizes(api: &AdminApi, views: &[TenantView]) -> Vec<FolderSize> {
    let disk = api.disk.clone();
    let tenants: Vec<TenantId> = views.iter().map(|view| view.tenant.clone()).collect();
    let count = tenants.len();
    let examine = move |tenant: &TenantId| FolderSize {
        bytes: disk.used_bytes(tenant).ok(),
        hard_bytes: disk.hard_bytes(tenant).ok().flatten(),
    };
    let sizes = tokio::task::spawn_blocking(move || tenants.iter().map(examine).collect());
    sizes.await.unwrap_or_else(|_| vec![FolderSize::default(); count])
}

async fn tenant_status(
    api: &AdminApi,
    runtime: &dyn Runtime,
    view: TenantView,
    folder: FolderSize,
) -> TenantStatus {
    let memory_bytes = if matches!(view.state.label(), "awake" | "retiring" | "dozing") {
        runtime.memory_bytes(&view.tenant).await.ok().flatten()
    } else {
        None
    };
    let restored = api.vault.repaired(&view.tenant);
    let copies_failing = api.vault.failing(&view.tenant);
    TenantStatus {
        tenant: view.tenant,
        tier: view.tier,
        state: view.state.label().to_owned(),
        for_ms: view.for_ms,
        since_s: host::now_s().saturating_sub(view.for_ms / 1_000),
        idle_ms: view.idle_ms,
        leased: view.leased,
        waiting: view.waiting,
        memory_bytes,
        storage_bytes: folder.bytes,
        storage_hard_bytes: folder.hard_bytes,
        wakes: view.wakes,
        last_wake: view.last_wake.map(|(kind, ms)| LastWake { kind, ms }),
        deaths: view.deaths,
        last_death: view.last_death,
        restored,
        copies_failing,
    }
}

async fn sleep(
    State(api): State<AdminApi>,
    Path(id): Path<String>,
    Query(query): Query<SleepQuery>,
) -> Response {
    let Some(handle) = api.startup.handle() else { return api.startup.not_adopted() };
    let Ok(tenant) = TenantId::parse(&id) else { return unknown_tenant(&id) };
    let drain = if query.force { Drain::Forced } else { Drain::Gently };
    match handle.sleep(tenant, drain).await {
        Err(_) => shutting_down(),
        Ok(None) => unknown_tenant(&id),
        Ok(Some(outcome)) => {
            let state = outcome.state.label().to_owned();
            let report = SleepReport { state, earliest_ms: outcome.earliest_ms };
            (StatusCode::ACCEPTED, Json(report)).into_response()
        }
    }
}

async fn repaired(State(api): State<AdminApi>, Path(id): Path<String>) -> Response {
    let Some(handle) = api.startup.handle() else { return api.startup.not_adopted() };
    let Ok(tenant) = TenantId::parse(&id) else { return unknown_tenant(&id) };
    match handle.repaired(tenant).await {
        Err(_) => shutting_down(),
        Ok(None) => unknown_tenant(&id),
        Ok(Some(state)) => {
            Json(SleepReport { state: state.label().to_owned(), earliest_ms: 0 }).into_response()
        }
    }
}

async fn readyz(State(api): State<AdminApi>) -> Response {
    if !api.metrics.is_ready() {
        return api.startup.not_adopted();
    }
    // A ledger that is not open is shown, but tenants are served: so this is still 200.
    let mut text = "ready\n".to_owned();
    if let Some(problem) = api.ledger.condition().problem() {
        text += &problem;
        text.push('\n');
    }
    text.into_response()
}

fn shutting_down() -> Response {
    (StatusCode::SERVICE_UNAVAILABLE, "the orchestrator is shutting down\n").into_response()
}

fn unknown_tenant(id: &str) -> Response {
    let text = format!("unknown tenant {id:?}: no request has woken it on this host\n");
    (StatusCode::NOT_FOUND, text).into_response()
}
