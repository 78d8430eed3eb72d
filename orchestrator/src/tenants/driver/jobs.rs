//! Jobs: calls of the runtime and the vault, each in a task that ends with at most one event.

use std::io;
use std::time::{Duration, Instant};

use protocol::{Limits, TenantId};
use tokio::task::spawn_blocking;
use tokio::time::timeout;
use tracing::{error, info, warn};

use super::Parts;
use crate::runtime::{Endpoint, RuntimeError, Spec, Started, Stopped};
use crate::storage::vault::{PrepareError, Vault};
use crate::tenants::awake_records::AwakeRecords;
use crate::tenants::lifecycle::{CallError, Event, StartError};

/// Bound on a start, with everything that the runtime waits for. A slow Docker daemon under many
/// concurrent starts took 4 s.
const START_LIMIT: Duration = Duration::from_mins(1);

/// Bound on each other call of the runtime.
const CALL_LIMIT: Duration = Duration::from_secs(30);

/// Result of a job.
#[derive(Debug)]
pub(super) struct Done {
    pub(super) tenant: TenantId,
    /// `None` if no state depends on the job.
    pub(super) event: Option<Event>,
    /// Endpoint of the instance that the job started.
    pub(super) endpoint: Option<Endpoint>,
    /// Duration of the runtime call.
    pub(super) took: Duration,
}

impl Done {
    fn new(tenant: TenantId, event: Event, began: Instant) -> Self {
        Self { tenant, event: Some(event), endpoint: None, took: began.elapsed() }
    }

    fn without_event(tenant: TenantId, began: Instant) -> Self {
        Self { tenant, event: None, endpoint: None, took: began.elapsed() }
    }
}

/// Repairs the tenant's data and starts SQ. Copies are made while SQ starts, because they need not
/// precede its start, only its first request.
pub(super) async fn start(parts: Parts, spec: Spec) -> Done {
    let began = Instant::now();
    let tenant = spec.tenant.clone();
    let record = spec.clone();
    // 1. Repair the data. SQ must not see damaged files.
    if let Some(vault) = &parts.vault {
        vault.set_limits(&tenant, &spec.limits);
    }
    if let Err(error) = repair_data(&parts, &tenant).await {
        return start_failed(tenant, error, began);
    }
    // 2. Start SQ and copy at the same time.
    let sq = async {
        let called = Instant::now();
        let result = limited(parts.runtime.start(spec), START_LIMIT).await;
        (result.map_err(StartError::from), called.elapsed())
    };
    let while_starting = prepare_data(&parts, &tenant, Vault::while_starting);
    let ((started, took), copied) = tokio::join!(sq, while_starting);
    // 3. Both must have succeeded: without copies SQ must not receive a request.
    match started.and_then(|started| copied.map(|_| started)) {
        Ok(Started { endpoint, kind }) => {
            // 4. From now on leases may be granted. Without the record a crash of this process
            //    would make them worthless, which is no reason to refuse them.
            update_record(&parts, &tenant, move |records| records.write(&record)).await;
            let instance = endpoint.instance.clone();
            let event = Event::Started { tenant: tenant.clone(), instance, kind };
            Done { tenant, event: Some(event), endpoint: Some(endpoint), took }
        }
        Err(error) => {
            // A call that was given up may have left an instance.
            if let Err(error) = limited(parts.runtime.stop(&tenant), CALL_LIMIT).await {
                warn!(%tenant, %error, "instance of a failed start can't be stopped");
            }
            start_failed(tenant, error, began)
        }
    }
}

fn start_failed(tenant: TenantId, error: StartError, began: Instant) -> Done {
    let damaged = matches!(error, StartError::Damaged(_));
    error!(%tenant, damaged, %error, "tenant can't be started");
    let event = Event::StartFailed { tenant: tenant.clone(), error };
    Done::new(tenant, event, began)
}

/// Repairs phexts that a crash damaged.
async fn repair_data(parts: &Parts, tenant: &TenantId) -> Result<(), StartError> {
    let repairs = prepare_data(parts, tenant, Vault::before_start).await?;
    for repair in repairs.unwrap_or_default() {
        warn!(%tenant, ?repair, "phext repaired");
        parts.metrics.count_restored(repair.damage.as_str());
    }
    Ok(())
}

/// Calls the vault on a blocking thread; `None` without a vault.
async fn prepare_data<T: Send + 'static>(
    parts: &Parts,
    tenant: &TenantId,
    call: fn(&Vault, &TenantId) -> Result<T, PrepareError>,
) -> Result<Option<T>, StartError> {
    let Some(vault) = parts.vault.clone() else { return Ok(None) };
    let id = tenant.clone();
    match spawn_blocking(move || call(&vault, &id)).await {
        Ok(Ok(prepared)) => Ok(Some(prepared)),
        Ok(Err(error)) => {
            let text = format!("the tenant's data can't be examined: {error}");
            Err(match error {
                PrepareError::NotAPhext(_) => StartError::Damaged(text),
                PrepareError::Io(_) => StartError::Transient(text),
            })
        }
        Err(panic) => {
            let text = format!("examination of the tenant's data panicked: {panic}");
            Err(StartError::Transient(text))
        }
    }
}

pub(super) async fn pause(parts: Parts, tenant: TenantId) -> Done {
    let began = Instant::now();
    let result = limited(parts.runtime.pause(&tenant), CALL_LIMIT).await;
    if let Err(error) = &result {
        error!(%tenant, %error, "tenant can't be paused");
    }
    Done::new(tenant.clone(), Event::Paused { tenant, result }, began)
}

pub(super) async fn resume(parts: Parts, tenant: TenantId) -> Done {
    let began = Instant::now();
    let result = limited(parts.runtime.resume(&tenant), CALL_LIMIT).await;
    if let Err(error) = &result {
        error!(%tenant, %error, "tenant can't be resumed");
    }
    Done::new(tenant.clone(), Event::Resumed { tenant, result }, began)
}

/// Sets the memory limit of a running tenant. If that fails, the limit takes effect with the next
/// start.
pub(super) async fn set_memory(parts: Parts, tenant: TenantId, memory_bytes: u64) -> Done {
    let began = Instant::now();
    match limited(parts.runtime.resize(&tenant, memory_bytes), CALL_LIMIT).await {
        Ok(()) => info!(%tenant, memory_bytes, "memory limit updated"),
        Err(error) => warn!(%tenant, memory_bytes, %error, "memory limit can't be updated"),
    }
    Done::without_event(tenant, began)
}

/// Returns the memory of a paused tenant to the host.
pub(super) async fn reclaim(parts: Parts, tenant: TenantId) -> Done {
    let began = Instant::now();
    match limited(parts.runtime.reclaim(&tenant), CALL_LIMIT).await {
        Ok(Some(bytes)) => info!(%tenant, bytes, "memory reclaimed"),
        Ok(None) => {}
        Err(error) => warn!(%tenant, %error, "memory can't be reclaimed"),
    }
    Done::without_event(tenant, began)
}

/// The way in which a tenant is stopped.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ending {
    /// No request is in flight, so the files are complete.
    pub(super) orderly: bool,
    /// The tenant will be started again, because leases on it are live.
    pub(super) restarts: bool,
}

/// Stops SQ. After an orderly stop, copies the phexts that have changed since the last copies.
pub(super) async fn stop(parts: Parts, tenant: TenantId, limits: Limits, ending: Ending) -> Done {
    let Ending { orderly, restarts } = ending;
    let began = Instant::now();
    let stopped = limited(parts.runtime.stop(&tenant), CALL_LIMIT).await;
    if let Err(error) = &stopped {
        error!(%tenant, %error, "tenant can't be stopped");
    }
    // An instance that had died unnoticed may have died in the middle of a write: its files are
    // left for the next start to examine.
    if orderly && stopped == Ok(Stopped::Alive) {
        copy_after_stop(&parts, &tenant, &limits).await;
    }
    if stopped.is_ok() && !restarts {
        let id = tenant.clone();
        update_record(&parts, &tenant, move |records| records.remove(&id)).await;
    }
    let result = stopped.map(|_| ());
    Done::new(tenant.clone(), Event::Stopped { tenant, result }, began)
}

/// Copies what changed, for the next start. If that fails, the next start examines the files.
async fn copy_after_stop(parts: &Parts, tenant: &TenantId, limits: &Limits) {
    let Some(vault) = parts.vault.clone() else { return };
    vault.set_limits(tenant, limits);
    let id = tenant.clone();
    let hourly = limits.snapshots_hourly;
    let daily = limits.snapshots_daily;
    let round = match spawn_blocking(move || vault.after_stop(&id, hourly, daily)).await {
        Ok(Ok(round)) => round,
        Ok(Err(error)) => {
            warn!(%tenant, %error, "stopped tenant can't be copied");
            return;
        }
        Err(error) => {
            warn!(%tenant, %error, "copying a stopped tenant panicked");
            return;
        }
    };
    match round.failed {
        None => info!(%tenant, copied = round.copied, "stopped tenant copied"),
        Some(error) => {
            parts.metrics.count_failed_copy();
            warn!(%tenant, error, "phext of a stopped tenant can't be copied");
        }
    }
}

/// Changes the tenant's awake record on a blocking thread, and logs a failure.
async fn update_record(
    parts: &Parts,
    tenant: &TenantId,
    update: impl FnOnce(&AwakeRecords) -> io::Result<()> + Send + 'static,
) {
    let Some(records) = parts.awake.clone() else { return };
    let updated = spawn_blocking(move || update(&records)).await;
    if let Err(error) = updated.map_err(io::Error::other).flatten() {
        warn!(%tenant, %error, "record of an awake tenant can't be updated");
    }
}

/// Bounds the time of a runtime call.
async fn limited<T>(
    call: impl Future<Output = Result<T, RuntimeError>>,
    limit: Duration,
) -> Result<T, CallError> {
    match timeout(limit, call).await {
        Ok(result) => Ok(result?),
        Err(_) => Err(CallError::TimedOut { limit_s: limit.as_secs() }),
    }
}
