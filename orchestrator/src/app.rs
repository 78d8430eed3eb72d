//! The composition root: configuration in, running orchestrator out.
//!
//! Start: lock, runtime, adoption, then gate and xDS are answered (their sockets are bound before,
//! so that an early caller waits instead of failing). The ledger is checked beside all that: no
//! lease waits for it, and a damaged one stops no tenant. End: the gate stops taking leases, those
//! under way are answered, the keeper's round and the runtime's jobs end, Envoys' streams close;
//! tenants stay.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow};
use axum::middleware::from_fn;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::sleep;
use tracing::{info, warn};

use crate::api::admin::{self, Admin};
use crate::api::lease::{self, Gate, Notices};
use crate::api::loopback;
use crate::api::snapshots::{self, Restoring, Snapshots};
use crate::api::usage::{self as usage_api, UsageApi};
use crate::config::{Config, Listen};
use crate::host;
use crate::metrics::Metrics;
use crate::runtime::{Runtime, select};
use crate::storage::backup_task;
use crate::storage::disk::Disk;
use crate::storage::lock::Lock;
use crate::storage::vault::Vault;
use crate::tenants::driver::{Closed, Driver, Handle, Parts};
use crate::tenants::previous_run::Life;
use crate::usage::ledger::Ledger;
use crate::usage::metrics::UsageCollector;
use crate::xds::{self, Publisher};

/// How long until the runtime is asked again for what runs.
const ADOPT_RETRY: Duration = Duration::from_secs(1);
/// How long leases under way may take after the end was asked for: an asker's usual patience.
const GATE_DRAIN: Duration = Duration::from_secs(10);

/// Bound sockets; the caller owns them.
#[derive(Debug)]
pub struct Listeners {
    /// Leases and usage.
    pub gate: TcpListener,
    /// Clusters.
    pub xds: TcpListener,
    /// Status and metrics.
    pub admin: TcpListener,
}

impl Listeners {
    /// Binds the configured addresses.
    pub async fn bind(listen: &Listen) -> anyhow::Result<Self> {
        let bind = |name: &'static str, at: SocketAddr| async move {
            TcpListener::bind(at).await.with_context(|| {
                format!("listen.{name}: {at} can't be bound; is another orchestrator running?")
            })
        };
        Ok(Self {
            gate: bind("gate", listen.gate).await?,
            xds: bind("xds", listen.xds).await?,
            admin: bind("admin", listen.admin).await?,
        })
    }
}

/// Binds the configured addresses and runs. The lock comes first: its refusal says more than that
/// of a port.
pub async fn serve(
    config: Config,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> anyhow::Result<()> {
    let _lock = Lock::take(&config.data_root)?;
    let listeners = Listeners::bind(&config.listen).await?;
    run_locked(config, listeners, shutdown).await
}

/// Runs until `shutdown`, or until a part dies.
pub async fn run(
    config: Config,
    listeners: Listeners,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> anyhow::Result<()> {
    let _lock = Lock::take(&config.data_root)?;
    run_locked(config, listeners, shutdown).await
}

async fn run_locked(
    config: Config,
    listeners: Listeners,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> anyhow::Result<()> {
    let (stop, stopped) = watch::channel(Stage::Serving);
    let (publisher, xds_events) = Publisher::new();
    let disk = Disk::new(&config.data_root, config.disk_floor_bytes);
    if let Some(warning) = disk.host()?.warning {
        warn!("{warning}");
    }
    let usage = usage(&config, disk.clone())?;
    let vault = Arc::new(vault(&config)?);
    let metrics = Arc::new(metrics(&usage));
    let admin = Admin {
        handle: usage.handle.clone(),
        runtime: Arc::default(),
        publisher: publisher.clone(),
        disk,
        vault: vault.clone(),
        metrics: metrics.clone(),
        ledger: usage.ledger.clone(),
        sq_version: config.sq_version,
    };
    let (adopted, chosen) = (admin.handle.clone(), admin.runtime.clone());
    let mut tasks = JoinSet::new();
    let at_drain = |stage| until(stopped.clone(), stage);
    let snapshots = Snapshots {
        handle: admin.handle.clone(),
        vault: vault.clone(),
        restoring: Restoring::default(),
    };
    let routes = admin::router(admin)
        .merge(snapshots::router(snapshots))
        .merge(usage_api::admin_router(usage.clone()))
        .layer(from_fn(loopback::no_pages_by_name));
    tasks.spawn(named("admin", answer(listeners.admin, routes, at_drain(Stage::Closing))));
    tasks.spawn(named("signal", async move {
        shutdown.await;
        Ok(())
    }));

    let adopting = async {
        let (runtime, leases_ms) = choose(&config).await?;
        let _ = chosen.set(runtime.clone());
        let parts = Parts {
            runtime: runtime.clone(),
            publisher: publisher.clone(),
            vault: Some(vault.clone()),
            metrics: metrics.clone(),
            sq_version: config.sq_version,
        };
        let (driver, handle) = adopt(&config, parts, leases_ms, xds_events).await;
        anyhow::Ok((runtime, driver, handle))
    };
    let (runtime, driver, handle) = tokio::select! {
        adopted = adopting => adopted?,
        ended = tasks.join_next() => return ended.map_or(Ok(()), first_end),
    };
    let _ = adopted.set(handle.clone());
    let gate = gate_routes(&config, handle.clone(), usage.clone(), metrics.clone());
    tasks.spawn(named("gate", answer(listeners.gate, gate, at_drain(Stage::Draining))));
    tasks.spawn(named("ledger", ledger_lives(usage, at_drain(Stage::Closing))));
    let xds = xds::serve(listeners.xds, publisher, at_drain(Stage::Closing));
    tasks.spawn(named("xds", async { Ok(xds.await?) }));
    let driver = driver.run(at_drain(Stage::Closing));
    tasks.spawn(named("driver", async { Ok(driver.await?) }));
    let floor = config.memory_floor_bytes;
    let memory = host::watch(floor, handle.clone(), runtime.clone(), metrics.clone());
    tasks.spawn(named("memory", unless(memory, at_drain(Stage::Draining))));
    // Its round is completed, never cut off: it asks SQ from a blocking thread.
    let keeper = backup_task::keep(vault, runtime, handle, metrics, at_drain(Stage::Draining));
    tasks.spawn(named("keeper", async { Ok(keeper.await?) }));
    info!(gate = %config.listen.gate, xds = %config.listen.xds, admin = %config.listen.admin, "ready");
    let ended = tasks.join_next().await.map_or(Ok(()), first_end);
    drain(&stop, tasks).await;
    ended
}

/// How far the end has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    Serving,
    Draining,
    Closing,
}

type Ended = (&'static str, anyhow::Result<()>);

async fn named(name: &'static str, task: impl Future<Output = anyhow::Result<()>>) -> Ended {
    (name, task.await)
}

/// A task that goes on until the end is asked for.
async fn unless(
    task: impl Future<Output = Result<(), Closed>>,
    stopping: impl Future<Output = ()>,
) -> anyhow::Result<()> {
    tokio::select! {
        ended = task => Ok(ended?),
        () = stopping => Ok(()),
    }
}

async fn until(mut stage: watch::Receiver<Stage>, at: Stage) {
    // The sender lives until everything has ended.
    let _ = stage.wait_for(|stage| *stage >= at).await;
}

/// The signal ends the process in order; any other task that ends is a fault.
fn first_end(ended: Result<Ended, tokio::task::JoinError>) -> anyhow::Result<()> {
    match ended {
        Ok(("signal", _)) => Ok(()),
        Ok((name, Ok(()))) => Err(anyhow!("{name} ended by itself")),
        Ok((name, Err(e))) => Err(e.context(format!("{name} failed"))),
        Err(e) => Err(anyhow!("a task panicked: {e}")),
    }
}

async fn drain(stop: &watch::Sender<Stage>, mut tasks: JoinSet<Ended>) {
    info!("draining; tenants stay as they are");
    stop.send_replace(Stage::Draining);
    let gate = async {
        while let Some(ended) = tasks.join_next().await {
            if matches!(ended, Ok(("gate", _))) {
                return;
            }
        }
    };
    if tokio::time::timeout(GATE_DRAIN, gate).await.is_err() {
        warn!("leases were still asked for");
    }
    stop.send_replace(Stage::Closing);
    let rest = async { while tasks.join_next().await.is_some() {} };
    if tokio::time::timeout(GATE_DRAIN, rest).await.is_err() {
        warn!("not everything ended in time");
    }
}

async fn answer(
    listener: TcpListener,
    routes: axum::Router,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> anyhow::Result<()> {
    Ok(axum::serve(listener, routes).with_graceful_shutdown(shutdown).await?)
}

/// The runtime, and how long leases may hold that earlier lives gave.
async fn choose(config: &Config) -> anyhow::Result<(Arc<dyn Runtime>, u64)> {
    let state_dir = &config.state_dir;
    let unusable = || format!("{} can't be used", Life::path(state_dir).display());
    let last = Life::last(state_dir).with_context(unusable)?;
    let previous = last.as_ref().map(|life| life.runtime.as_str());
    let runtime = select::choose(config, previous, &Life::path(state_dir)).await?;
    let life = Life::new(config.lifecycle.lease_ms, runtime.describe().kind);
    let leases_ms = life.leases_ms(last.as_ref());
    life.write(state_dir).with_context(unusable)?;
    Ok((runtime, leases_ms))
}

/// Asks the runtime what runs until it answers.
async fn adopt(
    config: &Config,
    parts: Parts,
    leases_ms: u64,
    xds_events: tokio::sync::mpsc::Receiver<xds::XdsEvent>,
) -> (Driver, Handle) {
    loop {
        match parts.runtime.list().await {
            Ok(found) => {
                let settings = config.lifecycle.clone();
                return Driver::adopt(settings, parts, found, leases_ms, xds_events);
            }
            Err(error) => warn!(%error, "the runtime can't tell what runs; trying again"),
        }
        sleep(ADOPT_RETRY).await;
    }
}

fn vault(config: &Config) -> anyhow::Result<Vault> {
    let root = config.state_dir.join("vault");
    std::fs::create_dir_all(&config.state_dir)
        .with_context(|| format!("state_dir {} can't be made", config.state_dir.display()))?;
    Vault::open(&root, &config.data_root)
        .with_context(|| format!("{} can't be used", root.display()))
}

/// The ledger, which is checked from now on, and what is asked of it.
fn usage(config: &Config, disk: Disk) -> anyhow::Result<UsageApi> {
    std::fs::create_dir_all(&config.state_dir)
        .with_context(|| format!("state_dir {} can't be made", config.state_dir.display()))?;
    let ledger = Ledger::open(&config.state_dir.join("ledger.sqlite"))
        .context("the ledger's thread can't be started")?;
    Ok(UsageApi::new(ledger, disk, config.revenue_target_usd_month))
}

fn metrics(usage: &UsageApi) -> Metrics {
    Metrics::new(Some(Box::new(UsageCollector(usage.ledger.clone()))))
}

/// The ledger's thread ends only with the process.
async fn ledger_lives(usage: UsageApi, stopping: impl Future<Output = ()>) -> anyhow::Result<()> {
    tokio::select! {
        () = usage.ledger.closed() => Err(anyhow!("its thread has ended")),
        () = stopping => Ok(()),
    }
}

fn gate_routes(
    config: &Config,
    handle: Handle,
    usage: UsageApi,
    metrics: Arc<Metrics>,
) -> axum::Router {
    let (storage, ledger) = (usage.clone(), usage.ledger.clone());
    let notices: Notices = Arc::new(move |tenant| storage.notice(tenant));
    let used: Notices = Arc::new(move |tenant| ledger.notice(tenant));
    lease::router(Gate {
        handle,
        notices,
        used,
        metrics,
        lease_ms: config.lifecycle.lease_ms,
        patience: Duration::from_millis(config.lifecycle.patience_ms),
    })
    .merge(usage_api::gate_router(usage))
    .layer(from_fn(loopback::no_pages))
}
