//! The task that keeps copies of awake tenants' phexts, so that a death costs at most the window.
//!
//! SQ writes only while a lease is live or within its grace. A tenant that has none and whose files
//! were all copied is not looked at again: idle tenants cost nothing. A few tenants are worked on at
//! the same time, those first whose writes have gone longest without a copy: so a slow one holds up
//! no other, and the window holds for as many busy tenants as the disk can take copies of.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use protocol::TenantId;
use tokio::runtime::Handle as Tokio;
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::{MissedTickBehavior, interval};
use tracing::warn;

use crate::metrics::Metrics;
use crate::runtime::{Runtime, RuntimeError, probe};
use crate::storage::vault::{Awake, Round, Vault};
use crate::tenants::driver::{Closed, Handle, Running};
use crate::tenants::lifecycle::Drain;

/// How often awake tenants are looked at: a look costs one listing of a small folder.
const INTERVAL: Duration = Duration::from_millis(500);
/// How long SQ may take to show that it is alive.
const ALIVE: Duration = Duration::from_secs(1);
/// Tenants worked on at the same time. Each waits for the disk and has one phext in memory.
const AT_ONCE: usize = 4;
/// How often what is too old is removed.
const SWEEP: Duration = Duration::from_hours(1);

/// Copies what changed until the driver is gone or `stopping`; what is begun is ended, for it asks
/// SQ from a thread that blocks.
pub async fn keep(
    vault: Arc<Vault>,
    runtime: Arc<dyn Runtime>,
    handle: Handle,
    metrics: Arc<Metrics>,
    stopping: impl Future<Output = ()>,
) -> Result<(), Closed> {
    tokio::pin!(stopping);
    let mut keeper = Keeper { vault, runtime, handle, metrics, known: BTreeMap::new() };
    let mut work = JoinSet::new();
    let (mut queue, mut busy) = (VecDeque::new(), BTreeSet::new());
    let mut looks = interval(INTERVAL);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut swept: Option<Instant> = None;
    loop {
        tokio::select! {
            // However long the disk takes, the age is told.
            _ = looks.tick() => if queue.is_empty() {
                queue.extend(keeper.worth_a_look().await?);
                if swept.is_none_or(|at| at.elapsed() >= SWEEP) {
                    swept = Some(Instant::now());
                    keeper.sweep().await;
                }
            },
            Some(done) = work.join_next() => keeper.took(&mut busy, done).await?,
            () = &mut stopping => break,
        }
        while work.len() < AT_ONCE
            && let Some(running) = queue.pop_front()
        {
            if busy.insert(running.tenant.clone()) {
                work.spawn_blocking(keeper.look(running));
            }
        }
        keeper.metrics.set_uncopied(keeper.oldest());
    }
    while let Some(done) = work.join_next().await {
        keeper.took(&mut busy, done).await?;
    }
    Ok(())
}

struct Keeper {
    vault: Arc<Vault>,
    runtime: Arc<dyn Runtime>,
    handle: Handle,
    metrics: Arc<Metrics>,
    /// Who is awake, and what the last look found.
    known: BTreeMap<TenantId, Known>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Known {
    /// Until when it wrote, if all of that has copies.
    settled: Option<u64>,
    uncopied_since: Option<Instant>,
    failed: Option<String>,
}

/// A look that is over.
struct Looked {
    tenant: TenantId,
    /// Until when it wrote, if it is quiet.
    written: Option<u64>,
    round: std::io::Result<Option<Round>>,
}

impl Keeper {
    /// The awake tenants whose files may have changed, oldest write first.
    async fn worth_a_look(&mut self) -> Result<Vec<Running>, Closed> {
        let now = Instant::now();
        let all = self.handle.running().await?;
        let mut before = std::mem::take(&mut self.known);
        let mut wanted = Vec::new();
        for running in all {
            let known = before.remove(&running.tenant).unwrap_or_default();
            let written = running.quiet.then_some(running.quiet_at_ms);
            if written.is_some() && known.settled == written {
                self.vault.untouched(&running.tenant, now);
            } else {
                wanted.push((known.uncopied_since, running.clone()));
            }
            self.known.insert(running.tenant, known);
        }
        wanted.sort_by_key(|(since, _)| (since.is_none(), *since));
        Ok(wanted.into_iter().map(|(_, running)| running).collect())
    }

    fn look(&self, running: Running) -> impl FnOnce() -> Looked + Send + 'static {
        let (vault, sq) = (self.vault.clone(), Sq::new(&self.runtime, &running));
        move || {
            let written = running.quiet.then_some(running.quiet_at_ms);
            let round = round(&vault, &running, &sq);
            Looked { tenant: running.tenant, written, round }
        }
    }

    /// Takes in what came of a look.
    async fn took(
        &mut self,
        busy: &mut BTreeSet<TenantId>,
        done: Result<Looked, tokio::task::JoinError>,
    ) -> Result<(), Closed> {
        let Looked { tenant, written, round } = match done {
            Ok(looked) => looked,
            // A panic in there is a fault of ours; whose turn it was is not known.
            Err(error) => {
                warn!(%error, "keeping copies failed");
                busy.clear();
                return Ok(());
            }
        };
        busy.remove(&tenant);
        let round = match round {
            Ok(Some(round)) => round,
            // A start or a stop is at its files.
            Ok(None) => return Ok(()),
            Err(e) => Round { failed: Some(e.to_string()), ..Round::default() },
        };
        self.metrics.count_copies(round.copied);
        self.metrics.observe_copy(round.slowest);
        let known = self.known.entry(tenant.clone()).or_default();
        if let Some(error) = &round.failed {
            self.metrics.count_failed_copy();
            // Said once, not with every look.
            if known.failed.as_ref() != Some(error) {
                warn!(%tenant, error, "a copy can't be kept");
            }
        }
        known.settled = written.filter(|_| round.is_settled());
        known.uncopied_since = round.uncopied_since;
        known.failed = round.failed;
        if round.doubtful > 0 && self.vault.has_room(&tenant).unwrap_or(false) {
            warn!(%tenant, "a full disk may have cut its files: stopped and examined");
            self.handle.sleep(tenant, Drain::Forced).await?;
        }
        Ok(())
    }

    /// How old the oldest write is that may have no copy.
    fn oldest(&self) -> Duration {
        let since = self.known.values().filter_map(|known| known.uncopied_since).min();
        since.map_or(Duration::ZERO, |since| since.elapsed())
    }

    async fn sweep(&self) {
        let vault = self.vault.clone();
        match spawn_blocking(move || vault.sweep(SystemTime::now())).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => warn!(%error, "what is too old can't be removed"),
            Err(error) => warn!(%error, "removing what is too old failed"),
        }
    }
}

fn round(vault: &Vault, running: &Running, sq: &Sq) -> std::io::Result<Option<Round>> {
    let round = vault.while_awake(&running.tenant, sq)?;
    if round.as_ref().is_some_and(|round| round.copied > 0) {
        let limits = &running.limits;
        vault.snapshot(&running.tenant, limits.snapshots_hourly, limits.snapshots_daily)?;
    }
    Ok(round)
}

/// One tenant's SQ, asked from a thread that may block.
struct Sq {
    runtime: Arc<dyn Runtime>,
    tenant: TenantId,
    address: SocketAddr,
    tokio: Tokio,
}

impl Sq {
    fn new(runtime: &Arc<dyn Runtime>, running: &Running) -> Self {
        Self {
            runtime: runtime.clone(),
            tenant: running.tenant.clone(),
            address: running.address,
            tokio: Tokio::current(),
        }
    }
}

impl Awake for Sq {
    fn alive(&self) -> bool {
        let pid = async || self.runtime.pid(&self.tenant).await;
        self.tokio.block_on(is_alive(self.address, pid))
    }
}

/// Asks whether the tenant's own SQ answers at `address`. Once it has died, another tenant's SQ may
/// be given its address before its death is reported; so the runtime is asked for the process *after*
/// the response has come.
async fn is_alive(
    address: SocketAddr,
    pid: impl AsyncFnOnce() -> Result<Option<i32>, RuntimeError>,
) -> bool {
    if probe::wait_until_ready(address, ALIVE).await.is_err() {
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
