//! The composition root: configuration in, running orchestrator out.
//!
//! ```text
//!  lock ─► open (disk, ledger, vault) ─► bind ─► adopt ─► serve ─► drain
//! ```
//!
//! The sockets are bound before adoption, so that an early client waits instead of failing; the
//! gate and xDS are served after it. The ledger is checked beside all that: no lease waits for it,
//! and a damaged one stops no tenant. At the end the gate API stops taking leases, those under way
//! are answered, a round of copies and the runtime's jobs complete, and Envoys' streams close.
//! Tenants are left running, for the next orchestrator to adopt.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use ::audit::AuditLog;
use anyhow::{Context, anyhow};
use axum::Router;
use axum::middleware::from_fn_with_state;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::time::sleep;
use tracing::{info, warn};

use crate::api::admin::{self, AdminApi};
use crate::api::audit;
use crate::api::lease::claims::Claims;
use crate::api::lease::{self, LeaseApi};
use crate::api::metrics;
use crate::api::snapshots::{self, SnapshotsApi};
use crate::api::startup::Startup;
use crate::api::usage::{self as usage_api, UsageApi};
use crate::config::{Config, Listen};
use crate::runtime::{Runtime, select};
use crate::sockets::{Access, Peer, PeerListener};
use crate::storage::disk::Disk;
use crate::storage::lock::Lock;
use crate::storage::private;
use crate::storage::vault::Vault;
use crate::tenants::awake_records::AwakeRecords;
use crate::tenants::backup_task;
use crate::tenants::driver::{Driver, Handle, Parts};
use crate::tenants::metrics::Metrics;
use crate::tenants::pressure;
use crate::tenants::previous_run::RunRecord;
use crate::usage::ledger::Ledger;
use crate::usage::metrics::UsageCollector;
use crate::xds::{self, Publisher, XdsEvent};
use tasks::{Stage, TaskName, Tasks};

mod tasks;

/// Interval at which a runtime that can't list its tenants is asked again.
const ADOPT_RETRY: Duration = Duration::from_secs(1);

/// Runs an orchestrator until `shutdown` resolves or a task fails.
pub(crate) async fn serve(
    config: Config,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> anyhow::Result<()> {
    // Before the sockets: the lock's refusal says more than that of a port.
    let _lock = Lock::take(&config.data_root)?;
    let (app, xds_events) = App::open(config)?;
    let listeners = Listeners::bind(&app.config.listen, &app.metrics).await?;
    let mut tasks = Tasks::new();
    tasks.spawn(TaskName::Shutdown, async move {
        shutdown.await;
        Ok(())
    });
    // Served during adoption, to show how far it is.
    let admin_closed = tasks.reached(Stage::Closing);
    tasks.spawn(TaskName::Admin, serve_peers(listeners.admin, app.admin_routes(), admin_closed));
    let metrics_closed = tasks.reached(Stage::Closing);
    let metrics_routes = metrics::router(app.metrics.clone(), app.startup.clone());
    let metrics_server = serve_metrics(listeners.metrics, metrics_routes, metrics_closed);
    tasks.spawn(TaskName::Metrics, metrics_server);
    let adopted = tokio::select! {
        adopted = app.adopt(xds_events) => adopted?,
        ended = tasks.first_end() => return ended,
    };
    app.spawn_all(&mut tasks, adopted, listeners.gate, listeners.xds);
    let Listen { gate, xds, admin, metrics, .. } = &app.config.listen;
    info!(
        gate = %gate.display(),
        xds = %xds.display(),
        admin = %admin.display(),
        %metrics,
        "orchestrator ready"
    );
    let ended = tasks.first_end().await;
    tasks.drain().await;
    ended
}

/// Bound sockets of the configured paths and addresses.
struct Listeners {
    gate: PeerListener,
    xds: PeerListener,
    admin: PeerListener,
    metrics: TcpListener,
}

impl Listeners {
    async fn bind(listen: &Listen, metrics: &Metrics) -> anyhow::Result<Self> {
        let envoy = listen.envoy_access();
        let operators = listen.operator_access();
        let address = listen.metrics;
        Ok(Self {
            gate: bind("gate", &listen.gate, envoy.clone(), metrics).await?,
            xds: bind("xds", &listen.xds, envoy, metrics).await?,
            admin: bind("admin", &listen.admin, operators, metrics).await?,
            metrics: TcpListener::bind(address)
                .await
                .with_context(|| format!("listen.metrics: {address} can't be bound"))?,
        })
    }
}

async fn bind(
    name: &'static str,
    path: &Path,
    access: Access,
    metrics: &Metrics,
) -> anyhow::Result<PeerListener> {
    PeerListener::bind(name, path, access, metrics.refused_peers(name))
        .await
        .with_context(|| format!("listen.{name}: {} can't be bound", path.display()))
}

/// The parts that exist before the tenants are adopted.
struct App {
    config: Config,
    disk: Disk,
    usage: UsageApi,
    vault: Arc<Vault>,
    awake: Arc<AwakeRecords>,
    metrics: Arc<Metrics>,
    publisher: Publisher,
    startup: Startup,
}

/// The parts that adoption adds.
struct Adopted {
    runtime: Arc<dyn Runtime>,
    driver: Driver,
    handle: Handle,
}

impl App {
    /// Opens disk, ledger and vault; the ledger's thread begins its check.
    fn open(config: Config) -> anyhow::Result<(Self, mpsc::Receiver<XdsEvent>)> {
        let disk = Disk::new(&config.data_root, config.disk_floor_bytes);
        if let Some(warning) = disk.host()?.warning {
            warn!("{warning}");
        }
        let state_dir = &config.state_dir;
        private::open_state_folder(state_dir, &config.data_root)
            .with_context(|| format!("state_dir {} can't be used", state_dir.display()))?;
        let ledger = Ledger::open(&state_dir.join("ledger.sqlite"), &config.data_root)
            .context("the ledger's thread can't be started")?;
        let vault_dir = state_dir.join("vault");
        let vault = Vault::open(&vault_dir, &config.data_root)
            .with_context(|| format!("{} can't be used", vault_dir.display()))?;
        let awake = AwakeRecords::open(state_dir)
            .with_context(|| format!("{} can't be used", state_dir.join("awake").display()))?;
        let metrics = Metrics::new(Some(Box::new(UsageCollector(ledger.clone()))));
        let startup = Startup::default();
        let target_usd = config.revenue_target_usd_month;
        let usage = UsageApi::new(ledger, disk.clone(), startup.clone(), target_usd);
        let (publisher, xds_events) = Publisher::new();
        let app = Self {
            config,
            disk,
            usage,
            vault: Arc::new(vault),
            awake: Arc::new(awake),
            metrics: Arc::new(metrics),
            publisher,
            startup,
        };
        Ok((app, xds_events))
    }

    fn admin_routes(&self) -> Router {
        let log = AuditLog::new(&self.config.state_dir.join("audit.jsonl"));
        let admin = AdminApi {
            startup: self.startup.clone(),
            publisher: self.publisher.clone(),
            disk: self.disk.clone(),
            vault: self.vault.clone(),
            metrics: self.metrics.clone(),
            ledger: self.usage.ledger.clone(),
            sq_version: self.config.sq_version,
        };
        let snapshots = SnapshotsApi::new(self.startup.clone(), self.vault.clone());
        admin::router(admin)
            .merge(snapshots::router(snapshots))
            .merge(usage_api::admin_router(self.usage.clone()))
            .merge(audit::router(log.clone()))
            .layer(from_fn_with_state(log, audit::write_down))
    }

    fn gate_routes(&self, handle: Handle) -> Router {
        let lease = LeaseApi {
            handle,
            usage: self.usage.clone(),
            metrics: self.metrics.clone(),
            claims: Arc::new(Claims::new(
                self.config.data_root.clone(),
                self.config.tenant_memory_max_bytes,
                self.config.new_tenants_per_minute,
            )),
            lease_ms: self.config.lifecycle.lease_ms,
            patience: Duration::from_millis(self.config.lifecycle.patience_ms),
        };
        lease::router(lease).merge(usage_api::gate_router(self.usage.clone()))
    }

    /// Chooses the runtime and takes over the tenants that it runs.
    async fn adopt(&self, xds_events: mpsc::Receiver<XdsEvent>) -> anyhow::Result<Adopted> {
        let (runtime, leases_ms) = choose_runtime(&self.config).await?;
        self.startup.set_adopting();
        let mut found = loop {
            match runtime.list().await {
                Ok(found) => break found,
                Err(error) => warn!(%error, "runtime can't list its tenants; trying again"),
            }
            sleep(ADOPT_RETRY).await;
        };
        self.awake.complete(&mut found).context("the records of awake tenants can't be read")?;
        let parts = Parts {
            runtime: runtime.clone(),
            publisher: self.publisher.clone(),
            vault: Some(self.vault.clone()),
            awake: Some(self.awake.clone()),
            metrics: self.metrics.clone(),
            sq_version: self.config.sq_version,
        };
        let settings = self.config.lifecycle.clone();
        let (driver, handle) = Driver::adopt(settings, parts, found, leases_ms, xds_events);
        self.startup.set_serving(runtime.clone(), handle.clone());
        Ok(Adopted { runtime, driver, handle })
    }

    /// Starts all tasks that need adopted tenants.
    fn spawn_all(
        &self,
        tasks: &mut Tasks,
        adopted: Adopted,
        gate: PeerListener,
        xds: PeerListener,
    ) {
        let Adopted { runtime, driver, handle } = adopted;
        let draining = tasks.reached(Stage::Draining);
        tasks.spawn(TaskName::Gate, serve_peers(gate, self.gate_routes(handle.clone()), draining));

        let closing = tasks.reached(Stage::Closing);
        let xds = xds::serve(xds, self.publisher.clone(), closing);
        tasks.spawn(TaskName::Xds, async { Ok(xds.await?) });

        let driver = driver.run(tasks.reached(Stage::Closing));
        tasks.spawn(TaskName::Driver, async { Ok(driver.await?) });

        let ledger = self.usage.ledger.clone();
        tasks.spawn_until(Stage::Closing, TaskName::Ledger, async move {
            ledger.closed().await;
            Err(anyhow!("its thread has ended"))
        });

        let floor_bytes = self.config.memory_floor_bytes;
        let memory =
            pressure::watch(floor_bytes, handle.clone(), runtime.clone(), self.metrics.clone());
        tasks.spawn_until(Stage::Draining, TaskName::Memory, async { Ok(memory.await?) });

        // Completes its round before it ends: a blocking thread of the round may be asking SQ.
        let draining = tasks.reached(Stage::Draining);
        let vault = self.vault.clone();
        let backup = backup_task::run(vault, runtime, handle, self.metrics.clone(), draining);
        tasks.spawn(TaskName::Backup, async { Ok(backup.await?) });
    }
}

/// Chooses the runtime. Returns with it how long leases of earlier runs may still be live.
async fn choose_runtime(config: &Config) -> anyhow::Result<(Arc<dyn Runtime>, u64)> {
    let state_dir = &config.state_dir;
    let unusable = || format!("{} can't be used", RunRecord::path(state_dir).display());
    let previous = RunRecord::read(state_dir).with_context(unusable)?;
    let kind = previous.as_ref().map(|run| run.runtime.as_str());
    let runtime = select::choose(config, kind, &RunRecord::path(state_dir)).await?;
    let present = RunRecord::new(config.lifecycle.lease_ms, runtime.describe().kind);
    let leases_ms = present.earlier_leases_ms(previous.as_ref());
    present.write(state_dir).with_context(unusable)?;
    Ok((runtime, leases_ms))
}

/// Serves allowed peers; handlers find the peer in an extension, `ConnectInfo<Peer>`.
async fn serve_peers(
    listener: PeerListener,
    routes: Router,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> anyhow::Result<()> {
    let routes = routes.into_make_service_with_connect_info::<Peer>();
    Ok(axum::serve(listener, routes).with_graceful_shutdown(shutdown).await?)
}

async fn serve_metrics(
    listener: TcpListener,
    routes: Router,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> anyhow::Result<()> {
    Ok(axum::serve(listener, routes).with_graceful_shutdown(shutdown).await?)
}
