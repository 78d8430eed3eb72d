//! What the driver has done elsewhere: calls of the runtime and the vault, each ending in one event.

use std::time::{Duration, Instant};

use protocol::{Limits, TenantId};
use tokio::time::timeout;
use tracing::{error, info, warn};

use super::Parts;
use crate::runtime::{Endpoint, RuntimeError, Spec, Started, Stopped};
use crate::storage::vault::Vault;
use crate::tenants::lifecycle::Event;

/// The longest a start may take with everything the runtime waits for; a slow daemon under a herd
/// took 4 s.
const START_LIMIT: Duration = Duration::from_mins(1);
/// The longest any other call may take.
const CALL_LIMIT: Duration = Duration::from_secs(30);

/// How a job ended.
#[derive(Debug)]
pub(super) struct Done {
    pub(super) tenant: TenantId,
    /// `None`: nobody waits for it.
    pub(super) event: Option<Event>,
    pub(super) endpoint: Option<Endpoint>,
    /// What the runtime's call took.
    pub(super) took: Duration,
}

impl Done {
    fn new(tenant: TenantId, event: Event, began: Instant) -> Self {
        Self { tenant, event: Some(event), endpoint: None, took: began.elapsed() }
    }
}

async fn limited<T>(
    call: impl Future<Output = Result<T, RuntimeError>>,
    limit: Duration,
) -> Result<T, String> {
    match timeout(limit, call).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(e)) => Err(e.to_string()),
        Err(_) => Err(format!("it took longer than {} s", limit.as_secs())),
    }
}

pub(super) async fn start(parts: Parts, spec: Spec) -> Done {
    let began = Instant::now();
    let tenant = spec.tenant.clone();
    let failed = |damaged, reason: String| {
        error!(%tenant, damaged, reason, "start failed");
        let event = Event::StartFailed { tenant: tenant.clone(), damaged, reason };
        Done::new(tenant.clone(), event, began)
    };
    if let Err((damaged, reason)) = look_at_data(&parts, &tenant).await {
        return failed(damaged, reason);
    }
    let call = async {
        let called = Instant::now();
        let started = limited(parts.runtime.start(spec), START_LIMIT).await;
        (started.map_err(|reason| (false, reason)), called.elapsed())
    };
    let ((started, took), settled) = tokio::join!(call, settle_data(&parts, &tenant));
    match started.and_then(|started| settled.map(|()| started)) {
        Ok(Started { endpoint, kind }) => {
            let event = Event::Started(tenant.clone(), endpoint.instance.clone(), kind);
            Done { tenant, event: Some(event), endpoint: Some(endpoint), took }
        }
        Err((damaged, reason)) => {
            // A call given up half-way may have left something running.
            if let Err(reason) = limited(parts.runtime.stop(&tenant), CALL_LIMIT).await {
                warn!(%tenant, reason, "what is left of the start can't be stopped");
            }
            failed(damaged, reason)
        }
    }
}

/// Puts back what an abnormal death cut. An error says whether the data need the operator: only
/// where something that is no phext stands in a phext's place. All else, a full disk or one that
/// fails to read for a moment, is tried again after the back-off.
async fn look_at_data(parts: &Parts, tenant: &TenantId) -> Result<(), (bool, String)> {
    for repair in of_vault(parts, tenant, Vault::before_start).await?.unwrap_or_default() {
        warn!(%tenant, ?repair, "phext repaired");
        parts.metrics.count_restored(repair.damage.as_str());
    }
    Ok(())
}

/// What need not be over before SQ runs, but before anybody asks it for anything.
async fn settle_data(parts: &Parts, tenant: &TenantId) -> Result<(), (bool, String)> {
    of_vault(parts, tenant, Vault::while_starting).await.map(drop)
}

async fn of_vault<T: Send + 'static>(
    parts: &Parts,
    tenant: &TenantId,
    call: fn(&Vault, &TenantId) -> std::io::Result<T>,
) -> Result<Option<T>, (bool, String)> {
    let Some(vault) = parts.vault.clone() else { return Ok(None) };
    let id = tenant.clone();
    match tokio::task::spawn_blocking(move || call(&vault, &id)).await {
        Ok(Ok(done)) => Ok(Some(done)),
        Ok(Err(e)) => {
            let lasting = e.kind() == std::io::ErrorKind::InvalidData;
            Err((lasting, format!("its data can't be examined: {e}")))
        }
        Err(e) => Err((false, format!("examining its data failed: {e}"))),
    }
}

pub(super) async fn pause(parts: Parts, tenant: TenantId) -> Done {
    let began = Instant::now();
    let result = limited(parts.runtime.pause(&tenant), CALL_LIMIT).await;
    let ok = told(&tenant, "pause", &result);
    Done::new(tenant.clone(), Event::Paused(tenant, ok), began)
}

/// What can't be given now counts from the next start on.
pub(super) async fn resize(parts: Parts, tenant: TenantId, memory_bytes: u64) -> Done {
    let began = Instant::now();
    match limited(parts.runtime.resize(&tenant, memory_bytes), CALL_LIMIT).await {
        Ok(()) => info!(%tenant, memory_bytes, "its memory is another now"),
        Err(reason) => warn!(%tenant, memory_bytes, reason, "its memory stays as it is"),
    }
    Done { tenant, event: None, endpoint: None, took: began.elapsed() }
}

/// After a pause: what the tenant holds is of more use elsewhere.
pub(super) async fn reclaim(parts: Parts, tenant: TenantId) -> Done {
    let began = Instant::now();
    match limited(parts.runtime.reclaim(&tenant), CALL_LIMIT).await {
        Ok(Some(bytes)) => info!(%tenant, bytes, "memory handed back"),
        Ok(None) => {}
        Err(reason) => warn!(%tenant, reason, "its memory can't be handed back"),
    }
    Done { tenant, event: None, endpoint: None, took: began.elapsed() }
}

pub(super) async fn resume(parts: Parts, tenant: TenantId) -> Done {
    let began = Instant::now();
    let result = limited(parts.runtime.resume(&tenant), CALL_LIMIT).await;
    let ok = told(&tenant, "resume", &result);
    Done::new(tenant.clone(), Event::Resumed(tenant, ok), began)
}

/// Stops, and keeps copies of what was written when nothing was in flight. An instance that had died
/// unnoticed may have died within a write: its files are left for the next start to examine.
pub(super) async fn stop(parts: Parts, tenant: TenantId, limits: Limits, orderly: bool) -> Done {
    let began = Instant::now();
    let result = limited(parts.runtime.stop(&tenant), CALL_LIMIT).await;
    let ok = told(&tenant, "stop", &result);
    let whole = orderly && result == Ok(Stopped::Alive);
    if let (true, Some(vault)) = (whole, parts.vault) {
        let id = tenant.clone();
        let (hourly, daily) = (limits.snapshots_hourly, limits.snapshots_daily);
        let kept = tokio::task::spawn_blocking(move || vault.after_stop(&id, hourly, daily)).await;
        match kept {
            Ok(Ok(round)) => match round.failed {
                None => info!(%tenant, copied = round.copied, "kept copies"),
                Some(error) => {
                    parts.metrics.count_failed_copy();
                    warn!(%tenant, error, "copies can't be kept; the next start examines");
                }
            },
            Ok(Err(error)) => warn!(%tenant, %error, "copies can't be kept"),
            Err(error) => warn!(%tenant, %error, "keeping copies failed"),
        }
    }
    Done::new(tenant.clone(), Event::Stopped(tenant, ok), began)
}

fn told<T>(tenant: &TenantId, what: &str, result: &Result<T, String>) -> bool {
    if let Err(reason) = result {
        error!(%tenant, reason, "{what} failed");
    }
    result.is_ok()
}
