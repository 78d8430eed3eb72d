//! Point-in-time copies over the admin API.
//!
//! | request | response |
//! |---|---|
//! | `GET /v1/tenants/{id}/snapshots` | 200 list of [`crate::storage::vault::snapshots::Snapshot`], oldest first; 404 for a tenant without data |
//! | `POST /v1/tenants/{id}/snapshots/{taken_s}/restore[?sleep=true]` | 200 [`RestoreReport`]; 404; 409 while the tenant is awake or another restore is running |
//! | `GET /v1/tenants/{id}/snapshots/folder[?taken_s=N]` | 200 [`SnapshotFolder`], for an export on this host; 404 |
//!
//! With `sleep=true` the tenant is put to sleep first, without breaking a lease. A restore lock keeps
//! it stopped while its files are replaced; its clients wait.

use std::collections::BTreeSet;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use parking_lot::Mutex;
use protocol::TenantId;
use serde::{Deserialize, Serialize};
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep};

use crate::api::startup::Startup;
use crate::storage::vault::Vault;
use crate::tenants::driver::Handle;
use crate::tenants::lifecycle::State as Lifecycle;

/// Deadline for the tenant to fall asleep before a restore: a lease and its grace.
const SLEEP_DEADLINE: Duration = Duration::from_mins(3);
/// Interval at which its state is polled until then.
const POLL: Duration = Duration::from_millis(50);

/// State of the routes.
#[derive(Clone)]
pub(crate) struct SnapshotsApi {
    startup: Startup,
    vault: Arc<Vault>,
    restores: Restores,
}

/// Tenants with a running restore. The lifecycle's restore lock is not counted, so the first of two
/// restores to end would unlock the files that the second still replaces.
#[derive(Debug, Clone, Default)]
struct Restores(Arc<Mutex<BTreeSet<TenantId>>>);

/// A running restore; dropping it makes way for the next.
struct Restore {
    restores: Restores,
    tenant: TenantId,
}

impl SnapshotsApi {
    /// Combines the vault with access to the driver.
    pub(crate) fn new(startup: Startup, vault: Arc<Vault>) -> Self {
        Self { startup, vault, restores: Restores::default() }
    }
}

impl Restores {
    /// Begins a restore; `None` if the tenant has one running.
    fn begin(&self, tenant: &TenantId) -> Option<Restore> {
        let is_new = self.0.lock().insert(tenant.clone());
        is_new.then(|| Restore { restores: self.clone(), tenant: tenant.clone() })
    }
}

impl Drop for Restore {
    fn drop(&mut self) {
        self.restores.0.lock().remove(&self.tenant);
    }
}

/// Response to a restore.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestoreReport {
    /// The snapshot that was taken of the files before.
    pub before_s: u64,
}

/// Location of a snapshot's files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotFolder {
    /// The folder on the orchestrator's host.
    pub folder: PathBuf,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RestoreQuery {
    sleep: bool,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct FolderQuery {
    taken_s: Option<u64>,
}

/// Builds the routes.
pub(crate) fn router(api: SnapshotsApi) -> Router {
    Router::new()
        .route("/v1/tenants/{id}/snapshots", get(list))
        .route("/v1/tenants/{id}/snapshots/{taken_s}/restore", post(restore))
        .route("/v1/tenants/{id}/snapshots/folder", get(folder))
        .with_state(api)
}

async fn list(State(api): State<SnapshotsApi>, Path(id): Path<TenantId>) -> Response {
    let snapshots = move || {
        api.vault.require(&id)?;
        api.vault.snapshots(&id)
    };
    respond(blocking(snapshots).await)
}

async fn folder(
    State(api): State<SnapshotsApi>,
    Path(id): Path<TenantId>,
    Query(query): Query<FolderQuery>,
) -> Response {
    let folder = move || {
        api.vault.require(&id)?;
        api.vault.folder(&id, query.taken_s)
    };
    let folder = blocking(folder).await;
    respond(folder.map(|folder| SnapshotFolder { folder }))
}

async fn restore(
    State(api): State<SnapshotsApi>,
    Path((id, taken_s)): Path<(TenantId, u64)>,
    Query(query): Query<RestoreQuery>,
) -> Response {
    let Some(handle) = api.startup.handle() else { return api.startup.not_adopted() };
    // Refuse first what would put the tenant to sleep for nothing.
    let vault = api.vault.clone();
    let tenant = id.clone();
    if let Err(error) = blocking(move || vault.folder(&tenant, Some(taken_s))).await {
        return respond::<()>(Err(error));
    }
    if !query.sleep && !is_at_rest(&handle, &id).await {
        return awake(&id);
    }
    let Some(running) = api.restores.begin(&id) else {
        let text = format!("another restore of {id} is running: wait for its end\n");
        return (StatusCode::CONFLICT, text).into_response();
    };
    // In a separate task: the restore lock is released even if the client leaves.
    let tenant = id.clone();
    let restored = tokio::spawn(async move {
        let _running = running;
        restore_locked(&handle, api.vault, tenant, taken_s).await
    });
    match restored.await.map_err(io::Error::other).flatten() {
        Ok(None) => awake(&id),
        Ok(Some(before_s)) => Json(RestoreReport { before_s }).into_response(),
        Err(error) => respond::<()>(Err(error)),
    }
}

/// Takes the restore lock, waits until the tenant is at rest, replaces its files and releases the
/// lock. Returns the snapshot of the files before; `None` if the tenant did not fall asleep in time.
async fn restore_locked(
    handle: &Handle,
    vault: Arc<Vault>,
    tenant: TenantId,
    taken_s: u64,
) -> io::Result<Option<u64>> {
    handle.lock_for_restore(tenant.clone()).await.map_err(io::Error::other)?;
    let restored = if wait_until_at_rest(handle, &tenant).await {
        let tenant = tenant.clone();
        blocking(move || vault.restore(&tenant, taken_s)).await.map(Some)
    } else {
        Ok(None)
    };
    handle.unlock_after_restore(tenant).await.map_err(io::Error::other)?;
    restored
}

fn awake(tenant: &TenantId) -> Response {
    let text = format!("{tenant} is awake: put it to sleep first, or request sleep=true\n");
    (StatusCode::CONFLICT, text).into_response()
}

async fn wait_until_at_rest(handle: &Handle, tenant: &TenantId) -> bool {
    let deadline = Instant::now() + SLEEP_DEADLINE;
    while !is_at_rest(handle, tenant).await {
        if Instant::now() > deadline {
            return false;
        }
        sleep(POLL).await;
    }
    true
}

/// Returns true if no instance uses the tenant's files.
async fn is_at_rest(handle: &Handle, tenant: &TenantId) -> bool {
    let state = handle.state(tenant.clone()).await.ok().flatten();
    matches!(state, None | Some(Lifecycle::Asleep | Lifecycle::Failing(_) | Lifecycle::Damaged))
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    spawn_blocking(work).await.map_err(io::Error::other)?
}

fn respond<T: Serialize>(result: io::Result<T>) -> Response {
    let error = match result {
        Ok(body) => return Json(body).into_response(),
        Err(error) => error,
    };
    let status = match error.kind() {
        io::ErrorKind::NotFound => StatusCode::NOT_FOUND,
        io::ErrorKind::AlreadyExists => StatusCode::CONFLICT,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    };
    (status, format!("{error}\n")).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_restore_per_tenant_at_a_time() {
        let restores = Restores::default();
        let alice = TenantId::parse("alice").unwrap();
        let first = restores.begin(&alice).unwrap();
        assert!(restores.begin(&alice).is_none());
        assert!(restores.begin(&TenantId::parse("bob").unwrap()).is_some());
        drop(first);
        assert!(restores.begin(&alice).is_some());
    }
}
