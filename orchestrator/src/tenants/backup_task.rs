//! Task that has the vault copy the phexts of awake tenants, so that a crash costs at most the
//! window.
//!
//! SQ writes only while a lease is live or within its grace. A tenant that has no lease and whose
//! files all have copies is not looked at again, so idle tenants cost nothing. A few tenants are
//! worked on at the same time, first those whose writes have been without a copy for longest. So a
//! slow one delays no other, and the window holds for as many busy tenants as the disk can copy.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use protocol::TenantId;
use tokio::runtime::Handle as Tokio;
use tokio::task::{JoinError, JoinSet, spawn_blocking};
use tokio::time::{MissedTickBehavior, interval};
use tracing::warn;

use crate::runtime::{Runtime, RuntimeError, probe};
use crate::storage::vault::{Round, Vault};
use crate::tenants::driver::{Closed, Handle, Running};
use crate::tenants::lifecycle::Drain;
use crate::tenants::metrics::Metrics;

/// Interval between two checks of the awake tenants. A check costs one listing of a small folder.
const INTERVAL: Duration = Duration::from_millis(500);

/// Time in which SQ must respond to count as alive.
const ALIVE_WITHIN: Duration = Duration::from_secs(1);

/// Tenants worked on at the same time. Each waits for the disk and has one phext in memory.
const CONCURRENT_ROUNDS: usize = 4;

/// Time between two deletions of expired copies.
const SWEEP_INTERVAL: Duration = Duration::from_hours(1);

/// Copies what changes until the driver has ended or `stopping` is ready. A round that has begun is
/// completed, because it asks SQ from a blocking thread and needs the async runtime for that.
pub(crate) async fn run(
    vault: Arc<Vault>,
    runtime: Arc<dyn Runtime>,
    handle: Handle,
    metrics: Arc<Metrics>,
    stopping: impl Future<Output = ()>,
) -> Result<(), Closed> {
    tokio::pin!(stopping);
    let mut task = BackupTask {
        vault,
        runtime,
        handle,
        metrics,
        tenants: BTreeMap::new(),
        queue: VecDeque::new(),
        busy: BTreeSet::new(),
        rounds: JoinSet::new(),
        swept_at: None,
    };
    let mut ticks = interval(INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = ticks.tick() => task.tick().await?,
            Some(done) = task.rounds.join_next() => task.finish(done).await?,
            () = &mut stopping => break,
        }
        task.start_rounds();
        task.publish_age();
    }
    while let Some(done) = task.rounds.join_next().await {
        task.finish(done).await?;
    }
    Ok(())
}

struct BackupTask {
    vault: Arc<Vault>,
    runtime: Arc<dyn Runtime>,
    handle: Handle,
    metrics: Arc<Metrics>,
    /// The awake tenants.
    tenants: BTreeMap<TenantId, TenantState>,
    /// Tenants whose round has not started.
    queue: VecDeque<Running>,
    /// Tenants whose round is under way.
    busy: BTreeSet<TenantId>,
    rounds: JoinSet<RoundResult>,
    swept_at: Option<Instant>,
}

/// Findings of a tenant's last round.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct TenantState {
    /// Time of the last write that was possible, if everything up to then has a copy.
    settled_at_ms: Option<u64>,
    uncopied_since: Option<Instant>,
    failed: Option<String>,
}

struct RoundResult {
    tenant: TenantId,
    /// Time of the last write that was possible, if the tenant had no lease.
    quiet_at_ms: Option<u64>,
    /// `None` if a start or a stop was using the files.
    round: io::Result<Option<Round>>,
}

impl BackupTask {
    /// Queues the tenants whose files may have changed, and deletes expired copies.
    async fn tick(&mut self) -> Result<(), Closed> {
        // Rounds of the last tick still wait for the disk: more of them would not help.
        if !self.queue.is_empty() {
            return Ok(());
        }
        let tenants = self.tenants_to_look_at().await?;
        self.queue.extend(tenants);
        if self.swept_at.is_none_or(|at| at.elapsed() >= SWEEP_INTERVAL) {
            self.swept_at = Some(Instant::now());
            self.sweep().await;
        }
        Ok(())
    }

    /// Returns the awake tenants whose files may have changed, first the one whose oldest write
    /// without a copy is oldest.
    async fn tenants_to_look_at(&mut self) -> Result<Vec<Running>, Closed> {
        let now = Instant::now();
        let running = self.handle.running().await?;
        // Tenants that are not awake any more are forgotten.
        let mut states = std::mem::take(&mut self.tenants);
        let mut to_look_at = Vec::new();
        for tenant in running {
            let state = states.remove(&tenant.tenant).unwrap_or_default();
            if tenant.quiet && state.settled_at_ms == Some(tenant.quiet_at_ms) {
                self.vault.untouched(&tenant.tenant, now);
            } else {
                to_look_at.push((state.uncopied_since, tenant.clone()));
            }
            self.tenants.insert(tenant.tenant, state);
        }
        to_look_at.sort_by_key(|(uncopied_since, _)| (uncopied_since.is_none(), *uncopied_since));
        Ok(to_look_at.into_iter().map(|(_, tenant)| tenant).collect())
    }

    fn start_rounds(&mut self) {
        while self.rounds.len() < CONCURRENT_ROUNDS {
            let Some(running) = self.queue.pop_front() else { return };
            if self.busy.insert(running.tenant.clone()) {
                let vault = self.vault.clone();
                let runtime = self.runtime.clone();
                let tokio = Tokio::current();
                self.rounds.spawn_blocking(move || RoundResult {
                    tenant: running.tenant.clone(),
                    quiet_at_ms: running.quiet.then_some(running.quiet_at_ms),
                    round: round(&vault, runtime.as_ref(), &tokio, &running),
                });
            }
        }
    }

    /// Takes in the result of a round.
    async fn finish(&mut self, done: Result<RoundResult, JoinError>) -> Result<(), Closed> {
        let RoundResult { tenant, quiet_at_ms, round } = match done {
            Ok(result) => result,
            Err(error) => {
                // A panic does not say whose round it was. The vault itself lets one round at a
                // time work on a tenant's files.
                warn!(%error, "round of copies panicked");
                self.busy.clear();
                return Ok(());
            }
        };
        self.busy.remove(&tenant);
        let round = match round {
            Ok(Some(round)) => round,
            Ok(None) => return Ok(()),
            Err(error) => Round { failed: Some(error.to_string()), ..Round::default() },
        };
        self.metrics.count_copies(round.copied);
        self.metrics.observe_copy(round.slowest);
        let state = self.tenants.entry(tenant.clone()).or_default();
        if let Some(error) = &round.failed {
            self.metrics.count_failed_copy();
            // Logged once, not at every look.
            if state.failed.as_ref() != Some(error) {
                warn!(%tenant, error, "phext can't be copied");
            }
        }
        state.settled_at_ms = if round.uncopied_since.is_none() { quiet_at_ms } else { None };
        state.uncopied_since = round.uncopied_since;
        state.failed = round.failed;
        if round.doubtful > 0 && self.vault.has_space(&tenant).unwrap_or(false) {
            warn!(%tenant, "full disk may have truncated phexts: tenant is stopped for repair");
            self.handle.sleep(tenant, Drain::Forced).await?;
        }
        Ok(())
    }

    /// Publishes the age of the oldest write that may have no copy, also while copies are slow.
    fn publish_age(&self) {
        let since = self.tenants.values().filter_map(|state| state.uncopied_since).min();
        self.metrics.set_uncopied(since.map_or(Duration::ZERO, |since| since.elapsed()));
    }

    async fn sweep(&self) {
        let vault = self.vault.clone();
        match spawn_blocking(move || vault.sweep(SystemTime::now())).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => warn!(%error, "old copies can't be deleted"),
            Err(error) => warn!(%error, "deletion of old copies panicked"),
        }
    }
}

/// Copies what one tenant has changed, and takes a snapshot if one is due. Blocks.
fn round(
    vault: &Vault,
    runtime: &dyn Runtime,
    tokio: &Tokio,
    running: &Running,
) -> io::Result<Option<Round>> {
    let tenant = &running.tenant;
    vault.set_limits(tenant, &running.limits);
    let pid = || runtime.pid(tenant);
    let sq_is_alive = || tokio.block_on(is_alive(running.address, pid));
    let round = vault.while_awake(tenant, &sq_is_alive)?;
    if round.as_ref().is_some_and(|round| round.copied > 0) {
        let limits = &running.limits;
        vault.snapshot(tenant, limits.snapshots_hourly, limits.snapshots_daily)?;
    }
    Ok(round)
}

/// Asks whether the tenant's own SQ answers at `address`. Once it has died, another tenant's SQ may
/// be given its address before its death is reported; so the runtime is asked for the process
/// *after* the response has come.
async fn is_alive(
    address: SocketAddr,
    pid: impl AsyncFnOnce() -> Result<Option<i32>, RuntimeError>,
) -> bool {
    if probe::wait_until_ready(address, ALIVE_WITHIN).await.is_err() {
        return false;
    }
    matches!(pid().await, Ok(Some(_)))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn another_tenants_response_is_no_sign_of_life() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let runs = AtomicBool::new(true);
        let pid = async || Ok(runs.load(Ordering::SeqCst).then_some(1));
        let respond = async |dies: bool| {
            let (mut stream, _) = listener.accept().await.unwrap();
            // A request that is left unread would reset the connection.
            let mut request = [0; 1024];
            assert!(stream.read(&mut request).await.unwrap() > 0);
            runs.store(!dies, Ordering::SeqCst);
            stream.write_all(b"HTTP/1.1 401 Unauthorized\r\n\r\n").await.unwrap();
        };
        let (alive, ()) = tokio::join!(is_alive(address, pid), respond(false));
        assert!(alive);
        let (alive, ()) = tokio::join!(is_alive(address, pid), respond(true));
        assert!(!alive, "the tenant's own SQ died before the response");
    }
}
