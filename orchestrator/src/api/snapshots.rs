//! Point-in-time copies over the admin HTTP.
//!
//! | request | answer |
//! |---|---|
//! | `GET /v1/tenants/{id}/snapshots` | list of [`crate::storage::vault::snapshots::Snapshot`], oldest first |
//! | `POST /v1/tenants/{id}/snapshots/{taken_s}/restore[?sleep=true]` | 200 and [`RestoreReport`]; 404; 409 while the tenant is awake or another restore goes on |
//! | `GET /v1/tenants/{id}/snapshots/folder[?taken_s=N]` | 200 [`SnapshotFolder`]: for an export on this host; 404 |
//!
//! With `sleep=true` the tenant is put to sleep first, without breaking a lease. While its files are
//! exchanged it is held: its clients wait.

use std::collections::BTreeSet;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use protocol::TenantId;
use serde::{Deserialize, Serialize};
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep};

use crate::storage::vault::Vault;
use crate::tenants::driver::Handle;
use crate::tenants::lifecycle::State as Life;

/// How long a restore waits for the tenant to fall asleep: a lease and its grace.
const SLEEP_LIMIT: Duration = Duration::from_mins(3);
/// How often it looks.
const POLL: Duration = Duration::from_millis(50);

/// What the routes need.
#[derive(Clone)]
pub struct Snapshots {
    /// The driver; filled in when tenants are adopted.
    pub handle: Arc<std::sync::OnceLock<Handle>>,
    /// The copies.
    pub vault: Arc<Vault>,
    /// Whose files are being exchanged.
    pub restoring: Restoring,
}

/// Tenants that a restore holds: the first to end would let go what the second still works on.
#[derive(Debug, Clone, Default)]
pub struct Restoring(Arc<Mutex<BTreeSet<TenantId>>>);

/// Ends with its restore.
struct Turn {
    all: Restoring,
    tenant: TenantId,
}

impl Restoring {
    fn begin(&self, tenant: &TenantId) -> Option<Turn> {
        let new = self.set().insert(tenant.clone());
        new.then(|| Turn { all: self.clone(), tenant: tenant.clone() })
    }

    fn set(&self) -> MutexGuard<'_, BTreeSet<TenantId>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.all.set().remove(&self.tenant);
    }
}

/// Answer to a restore.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestoreReport {
    /// The snapshot of what stood there before.
    pub before_s: u64,
}

/// Where a snapshot's files are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotFolder {
    /// On the orchestrator's host.
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

/// The routes.
pub fn router(snapshots: Snapshots) -> Router {
    Router::new()
        .route("/v1/tenants/{id}/snapshots", get(list))
        .route("/v1/tenants/{id}/snapshots/{taken_s}/restore", post(restore))
        .route("/v1/tenants/{id}/snapshots/folder", get(folder))
        .with_state(snapshots)
}

async fn list(State(s): State<Snapshots>, Path(id): Path<TenantId>) -> Response {
    answer(blocking(move || s.vault.snapshots(&id)).await)
}

async fn folder(
    State(s): State<Snapshots>,
    Path(id): Path<TenantId>,
    Query(query): Query<FolderQuery>,
) -> Response {
    let folder = blocking(move || s.vault.folder(&id, query.taken_s)).await;
    answer(folder.map(|folder| SnapshotFolder { folder }))
}

async fn restore(
    State(s): State<Snapshots>,
    Path((id, taken_s)): Path<(TenantId, u64)>,
    Query(query): Query<RestoreQuery>,
) -> Response {
    let Some(handle) = s.handle.get().cloned() else {
        return (StatusCode::SERVICE_UNAVAILABLE, "tenants are not adopted yet\n").into_response();
    };
    let (vault, tenant) = (s.vault.clone(), id.clone());
    if let Err(error) = blocking(move || vault.find_snapshot(&tenant, taken_s)).await {
        return answer::<()>(Err(error));
    }
    if !query.sleep && !at_rest(&handle, &id).await {
        return awake();
    }
    let Some(turn) = s.restoring.begin(&id) else {
        return (StatusCode::CONFLICT, "another restore of the tenant goes on\n").into_response();
    };
    // A task of its own: what is held is let go also when the asker leaves.
    let restored = tokio::spawn(async move {
        let _turn = turn;
        handle.hold(id.clone(), true).await.map_err(io::Error::other)?;
        let rests = until_at_rest(&handle, &id).await;
        let tenant = id.clone();
        let restored = if rests {
            blocking(move || s.vault.restore(&tenant, taken_s)).await.map(Some)
        } else {
            Ok(None)
        };
        let let_go = handle.hold(id, false).await.map_err(io::Error::other);
        let_go.and(restored)
    });
    match restored.await.map_err(io::Error::other).flatten() {
        Ok(None) => awake(),
        Ok(Some(before_s)) => Json(RestoreReport { before_s }).into_response(),
        Err(e) => answer::<()>(Err(e)),
    }
}

fn awake() -> Response {
    let text = "the tenant is awake: put it to sleep first, or ask with sleep=true\n";
    (StatusCode::CONFLICT, text).into_response()
}

async fn until_at_rest(handle: &Handle, tenant: &TenantId) -> bool {
    let deadline = Instant::now() + SLEEP_LIMIT;
    while !at_rest(handle, tenant).await {
        if Instant::now() > deadline {
            return false;
        }
        sleep(POLL).await;
    }
    true
}

/// Nothing runs on its files.
async fn at_rest(handle: &Handle, tenant: &TenantId) -> bool {
    let state = handle.state(tenant.clone()).await.ok().flatten();
    matches!(state, None | Some(Life::Asleep | Life::Failing(_) | Life::Damaged))
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    spawn_blocking(work).await.map_err(io::Error::other)?
}

fn answer<T: Serialize>(result: io::Result<T>) -> Response {
    let error = match result {
        Ok(value) => return Json(value).into_response(),
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
    fn one_restore_at_a_time_holds_a_tenant() {
        let (all, alice) = (Restoring::default(), TenantId::parse("alice").unwrap());
        let first = all.begin(&alice).unwrap();
        assert!(all.begin(&alice).is_none());
        assert!(all.begin(&TenantId::parse("bob").unwrap()).is_some());
        drop(first);
        assert!(all.begin(&alice).is_some());
    }
}
