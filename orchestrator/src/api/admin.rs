//! The operator's HTTP, on loopback: status, sleep, health, metrics. For programs only: what a web
//! page asks is 403 ([`crate::api::loopback`]).
//!
//! | request | answer |
//! |---|---|
//! | `GET /v1/tenants` | [`Status`] |
//! | `POST /v1/tenants/{id}/sleep[?force=true]` | 202 and [`SleepReport`]; 404 |
//! | `POST /v1/tenants/{id}/repaired` | 200; 404: a damaged or failing tenant may be tried again |
//! | `GET /healthz` | 200 while the process lives |
//! | `GET /readyz` | 200 when tenants are adopted and Envoys are answered, else 503; says what is wrong with the ledger, without which tenants are served |
//! | `GET /metrics` | `OpenMetrics` |
//!
//! Sleep without `force` waits until no lease is live and the grace is over. Where the grace is
//! shorter than the askers' patience, new leases wait meanwhile and the tenant is woken again for
//! them; elsewhere it sleeps in the first pause of its traffic. With `force` requests in flight
//! fail, and who is in use (a lease is live, or was within the grace) is started again at once.

use std::sync::{Arc, OnceLock};

use axum::extract::{Path, Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use futures_util::StreamExt;
use futures_util::stream;
use protocol::{SqVersion, TenantId};
use serde::{Deserialize, Serialize};

use crate::api::status::{HostStatus, LastWake, Status, TenantStatus};
use crate::host;
use crate::metrics::Metrics;
use crate::runtime::Runtime;
use crate::storage::disk::Disk;
use crate::storage::vault::Vault;
use crate::tenants::driver::Handle;
use crate::tenants::lifecycle::{Drain, TenantView};
use crate::usage::ledger::Ledger;
use crate::xds::Publisher;

/// Questions to the runtime at once: each may be a round trip to the Docker daemon.
const MEMORY_QUESTIONS: usize = 16;

/// What the routes need.
#[derive(Clone)]
pub struct Admin {
    /// The driver; filled in when tenants are adopted.
    pub handle: Arc<OnceLock<Handle>>,
    /// Asked for memory; filled in when it is found.
    pub runtime: Arc<OnceLock<Arc<dyn Runtime>>>,
    /// Asked for Envoys.
    pub publisher: Publisher,
    /// Asked for storage.
    pub disk: Disk,
    /// Asked for phexts put back.
    pub vault: Arc<Vault>,
    /// Shown.
    pub metrics: Arc<Metrics>,
    /// Shown when it can't be used.
    pub ledger: Ledger,
    /// Shown.
    pub sq_version: SqVersion,
}

/// Answer to `POST /v1/tenants/{id}/sleep`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SleepReport {
    /// Where it is now.
    pub state: String,
    /// No sooner than this it can be stopped.
    pub earliest_ms: u64,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct SleepQuery {
    force: bool,
}

/// The routes.
pub fn router(admin: Admin) -> Router {
    Router::new()
        .route("/v1/tenants", get(tenants))
        .route("/v1/tenants/{id}/sleep", post(sleep))
        .route("/v1/tenants/{id}/repaired", post(repaired))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .with_state(admin)
}

async fn tenants(State(admin): State<Admin>) -> Response {
    let (Some(handle), Some(runtime)) = (admin.handle.get(), admin.runtime.get()) else {
        return not_adopted(&admin);
    };
    let Ok(views) = handle.tenants().await else { return gone() };
    let sizes = storage(&admin, &views).await;
    let rows = stream::iter(views.into_iter().zip(sizes))
        .map(|(view, folder)| row(&admin, runtime.as_ref(), view, folder))
        .buffered(MEMORY_QUESTIONS)
        .collect()
        .await;
    let mut description = runtime.describe();
    description.notes.extend(admin.ledger.condition().problem());
    let host = HostStatus {
        runtime: description.kind.to_owned(),
        notes: description.notes,
        sq_version: admin.sq_version,
        streams: admin.publisher.streams(),
        memory_available_bytes: host::memory_available(),
        disk: admin.disk.host().ok(),
    };
    Json(Status { host, tenants: rows }).into_response()
}

/// What a tenant's folder holds and can hold.
#[derive(Debug, Clone, Copy, Default)]
struct Folder {
    bytes: Option<u64>,
    hard_bytes: Option<u64>,
}

/// The tenants' folders, looked at off the async threads.
async fn storage(admin: &Admin, views: &[TenantView]) -> Vec<Folder> {
    let disk = admin.disk.clone();
    let ids: Vec<TenantId> = views.iter().map(|v| v.tenant.clone()).collect();
    let count = ids.len();
    let look = move |id: &TenantId| Folder {
        bytes: disk.used_bytes(id).ok(),
        hard_bytes: disk.hard_bytes(id).ok().flatten(),
    };
    let looks = tokio::task::spawn_blocking(move || ids.iter().map(look).collect());
    looks.await.unwrap_or_else(|_| vec![Folder::default(); count])
}

async fn row(
    admin: &Admin,
    runtime: &dyn Runtime,
    view: TenantView,
    folder: Folder,
) -> TenantStatus {
    let memory_bytes = if matches!(view.state.label(), "awake" | "retiring" | "dozing") {
        runtime.memory_bytes(&view.tenant).await.ok().flatten()
    } else {
        None
    };
    let restored = admin.vault.restored(&view.tenant);
    let copies_failing = admin.vault.failing(&view.tenant);
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
    State(admin): State<Admin>,
    Path(id): Path<String>,
    Query(query): Query<SleepQuery>,
) -> Response {
    let Some(handle) = admin.handle.get() else { return not_adopted(&admin) };
    let Ok(tenant) = TenantId::parse(&id) else { return unknown(&id) };
    let drain = if query.force { Drain::Forced } else { Drain::Gently };
    match handle.sleep(tenant, drain).await {
        Err(_) => gone(),
        Ok(None) => unknown(&id),
        Ok(Some(answer)) => {
            let state = answer.state.label().to_owned();
            let report = SleepReport { state, earliest_ms: answer.earliest_ms };
            (StatusCode::ACCEPTED, Json(report)).into_response()
        }
    }
}

async fn repaired(State(admin): State<Admin>, Path(id): Path<String>) -> Response {
    let Some(handle) = admin.handle.get() else { return not_adopted(&admin) };
    let Ok(tenant) = TenantId::parse(&id) else { return unknown(&id) };
    match handle.repaired(tenant).await {
        Err(_) => gone(),
        Ok(None) => unknown(&id),
        Ok(Some(state)) => {
            Json(SleepReport { state: state.label().to_owned(), earliest_ms: 0 }).into_response()
        }
    }
}

async fn readyz(State(admin): State<Admin>) -> Response {
    if !admin.metrics.is_ready() {
        return not_adopted(&admin);
    }
    // Tenants are served: whoever asks whether to send them here is told yes.
    let trouble = admin.ledger.condition().problem();
    format!("ready\n{}", trouble.map(|trouble| trouble + "\n").unwrap_or_default()).into_response()
}

async fn metrics(State(admin): State<Admin>) -> Response {
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], admin.metrics.encode()).into_response()
}

fn not_adopted(admin: &Admin) -> Response {
    let text = match admin.runtime.get() {
        Some(_) => "tenants are not adopted yet: the runtime has not listed them\n",
        None => "no runtime yet: where tenants ran in Docker its daemon is waited for\n",
    };
    (StatusCode::SERVICE_UNAVAILABLE, text).into_response()
}

fn gone() -> Response {
    (StatusCode::SERVICE_UNAVAILABLE, "the orchestrator is shutting down\n").into_response()
}

fn unknown(id: &str) -> Response {
    let text = format!("{id:?} is no tenant that has ever been woken here\n");
    (StatusCode::NOT_FOUND, text).into_response()
}
