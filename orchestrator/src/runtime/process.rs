//! Tenants' SQ instances as child processes, for hosts without Docker.
//!
//! Each process has its own session and outlives the orchestrator. A record of it in
//! `<state_dir>/process/<tenant>.json` (mode 0600, because it contains the instance key) is what
//! adoption reads; start time and boot id tell the process from a later one with the same pid.
//! Signals are sent through a pidfd, which can't hit another process.
//!
//! ```text
//!  start ─► kill the old process ─► prove the folder ─► spawn on a free port ─► write the record
//!           ─► SQ answers 401 ─► announced: a death is an event
//! ```
//!
//! Isolation is weaker than with containers, and `describe` says so: SQ listens on all addresses,
//! which only a firewall rule for its users closes to other hosts, and memory is limited by address
//! space (`RLIMIT_DATA`) instead of pages.
//! For a process that an earlier orchestrator started, the exit code is not known, because the kernel
//! reports it to the parent only.

mod adoption;
mod deaths;
mod instance;
mod pidfd;
mod start;

use std::collections::HashMap;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use protocol::{TenantId, containers};
use rustix::process::Signal;
use tokio::process::Command;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use self::deaths::{ExitWatch, follow_exits};
use self::instance::{Instance, Record, wait_for_exit};
use crate::config::ProcessConfig;
use crate::host;
use crate::runtime::firewall::{Firewall, FirewallState, Rules};
use crate::runtime::folder::{self, Owner};
use crate::runtime::proc::{self, ProcessState};
use crate::runtime::users::{UserRange, Users};
use crate::runtime::{
    Capabilities, Description, Died, ExitKind, Found, Runtime, RuntimeError, RuntimeFuture, Spec,
    Started, Stopped, probe,
};

/// Kind of this runtime, in its description and in the record of a run.
pub(super) const KIND: &str = "process";

/// Time-out of readiness. SQ answers 1 ms after exec; on a host where twenty start at once, within a
/// second or two.
const READY_WITHIN: Duration = Duration::from_secs(10);

/// Time-out for the effect of a signal. A process dies or stops within microseconds; on a host in
/// trouble it takes longer.
const SIGNAL_TIMEOUT: Duration = Duration::from_secs(5);

/// Deaths queued for the lifecycle.
const DEATHS_MAX: usize = 1024;

/// Added to a tenant's memory limit, because `RLIMIT_DATA` counts address space that is reserved and
/// not used, such as a stack of 2 MB for each request's thread.
const RESERVED_BYTES: u64 = 32 << 20;

/// Runs SQ in child processes. Dropping it leaves them running.
#[derive(Debug)]
pub struct ProcessRuntime {
    inner: Arc<Inner>,
    deaths: Mutex<Option<mpsc::Receiver<Died>>>,
    /// Verifies the firewall rules, if there are any.
    firewall_watch: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Inner {
    data_root: PathBuf,
    /// Folder of the records.
    records: PathBuf,
    /// Path of SQ, with `{version}` in place of the version.
    sq: String,
    /// Present boot of the host.
    boot: String,
    users: Users,
    firewall: Firewall,
    instances: Mutex<HashMap<TenantId, Instance>>,
    exit_watches: mpsc::UnboundedSender<ExitWatch>,
}

impl Drop for ProcessRuntime {
    fn drop(&mut self) {
        if let Some(watch) = &self.firewall_watch {
            watch.abort();
        }
    }
}

impl ProcessRuntime {
    /// Creates the folder of the records. SQ runs as one of `users` if we are root and they can reach
    /// both the binary and the data. Nothing is adopted before `list`.
    pub fn new(
        data_root: &Path,
        state_dir: &Path,
        users: UserRange,
        config: &ProcessConfig,
    ) -> Result<Self, RuntimeError> {
        let records = state_dir.join("process");
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&records)
            .map_err(|error| RuntimeError::Failed(format!("{}: {error}", records.display())))?;
        let boot = host::boot()
            .map_err(|error| RuntimeError::Failed(format!("/proc is not readable: {error}")))?;
        let (died, deaths) = mpsc::channel(DEATHS_MAX);
        // Unbounded, because there is one watch per process.
        let (exit_watches, new_watches) = mpsc::unbounded_channel();
        // The task ends with the last process after the runtime is gone. If a watch panics, the
        // channel of deaths closes and the orchestrator goes down.
        tokio::spawn(follow_exits(new_watches, died));
        let root = data_root.canonicalize().unwrap_or_else(|_| data_root.to_owned());
        let installation = containers::installation_id(root.as_os_str().as_encoded_bytes());
        let users = Some(users).filter(|_| can_switch_user(data_root, &config.sq));
        let users = Users::open(data_root, users)?;
        let inner = Inner {
            firewall: Firewall::off(&installation),
            data_root: data_root.to_owned(),
            records,
            sq: config.sq.clone(),
            boot,
            users,
            instances: Mutex::default(),
            exit_watches,
        };
        let deaths = Mutex::new(Some(deaths));
        Ok(Self { inner: Arc::new(inner), deaths, firewall_watch: None })
    }

    /// Makes firewall rules for the users of SQ: other hosts do not reach SQ, and SQ opens no
    /// connections. Where that is not possible, the log and the status say so, and SQ runs without:
    /// this runtime is for development.
    #[must_use]
    pub async fn closed_to_other_hosts(mut self) -> Self {
        let installed = match self.inner.users.ids() {
            Some(ids) => self.inner.firewall.install(Rules::Processes { ids }).await,
            None => Err("SQ runs as the orchestrator's user".to_owned()),
        };
        match installed {
            Ok(()) => {
                let inner = self.inner.clone();
                let watch = async move { inner.firewall.watch().await };
                self.firewall_watch = Some(tokio::spawn(watch));
            }
            Err(error) => tracing::warn!(error, "other hosts reach SQ: no firewall rules"),
        }
        self
    }
}

/// True if we are root and other users can reach the binary and the tenants' folders.
fn can_switch_user(data_root: &Path, sq: &str) -> bool {
    // The path contains `{version}`, so check the part of it that exists.
    let binary = Path::new(sq).ancestors().find(|path| path.exists());
    rustix::process::geteuid().is_root()
        && folder::reachable_by_others(data_root)
        && binary.is_some_and(folder::reachable_by_others)
}

impl Runtime for ProcessRuntime {
    fn describe(&self) -> Description {
        let user = self.inner.users.note();
        let firewall = match self.inner.firewall.state() {
            FirewallState::InForce => format!(
                "firewall: other hosts do not reach SQ, and SQ opens no connections (nftables, table \
                 inet {}); every user of this host reaches SQ",
                self.inner.firewall.table()
            ),
            FirewallState::Missing | FirewallState::Off => {
                "firewall: OFF, and SQ listens on all addresses of this host".to_owned()
            }
        };
        let notes = [
            &user,
            &firewall,
            "memory is limited by RLIMIT_DATA, not by a cgroup; weights have no effect",
            "exit codes of processes from an earlier orchestrator are not known",
            "memory of dozing tenants is not returned to the host: not available for processes",
        ];
        Description { kind: KIND, notes: notes.map(str::to_owned).to_vec() }
    }

    fn firewall(&self) -> FirewallState {
        self.inner.firewall.state()
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { can_reclaim: false, max_instances: None }
    }

    fn list(&self) -> RuntimeFuture<'_, Vec<Found>> {
        Box::pin(self.inner.list())
    }

    fn start(&self, spec: Spec) -> RuntimeFuture<'_, Started> {
        Box::pin(self.inner.start(spec))
    }

    fn pause<'a>(&'a self, tenant: &'a TenantId) -> RuntimeFuture<'a, ()> {
        Box::pin(async move {
            let instance = self.inner.live_instance(tenant)?;
            instance.signal(Signal::STOP)?;
            instance.wait_until(ProcessState::Stopped).await
        })
    }

    fn resume<'a>(&'a self, tenant: &'a TenantId) -> RuntimeFuture<'a, ()> {
        Box::pin(async move {
            let instance = self.inner.live_instance(tenant)?;
            instance.signal(Signal::CONT)?;
            tokio::select! {
                ready = probe::wait_until_ready(instance.record.address(), READY_WITHIN) => ready,
                _ = wait_for_exit(instance.exit) => Err(RuntimeError::NoInstance(tenant.clone())),
            }
        })
    }

    fn stop<'a>(&'a self, tenant: &'a TenantId) -> RuntimeFuture<'a, Stopped> {
        Box::pin(self.inner.stop(tenant))
    }

    fn resize<'a>(&'a self, tenant: &'a TenantId, memory_bytes: u64) -> RuntimeFuture<'a, ()> {
        Box::pin(async move {
            let instance = self.inner.live_instance(tenant)?;
            let pid = instance.record.pid.to_string();
            let limit = memory_bytes.saturating_add(RESERVED_BYTES);
            // Runs as SQ's user: for another one's process even root needs CAP_SYS_RESOURCE.
            let owner = proc::owner(instance.record.pid);
            let Some(owner) = owner else { return Err(RuntimeError::NoInstance(tenant.clone())) };
            let mut command = Command::new("prlimit");
            command.args(["--pid", &pid, &format!("--data={limit}:")]);
            let output = as_user(&mut command, Some(owner)).output().await;
            let output = output.map_err(RuntimeError::failed)?;
            if !output.status.success() {
                return Err(RuntimeError::failed(String::from_utf8_lossy(&output.stderr).trim()));
            }
            Ok(())
        })
    }

    fn memory_bytes<'a>(&'a self, tenant: &'a TenantId) -> RuntimeFuture<'a, Option<u64>> {
        Box::pin(async move {
            let instance = self.inner.live_instance(tenant).ok();
            Ok(instance.and_then(|instance| proc::resident_bytes(instance.record.pid)))
        })
    }

    fn pid<'a>(&'a self, tenant: &'a TenantId) -> RuntimeFuture<'a, Option<i32>> {
        Box::pin(async move {
            let instance = self.inner.live_instance(tenant).ok();
            Ok(instance.map(|instance| instance.record.pid))
        })
    }

    fn reclaim<'a>(&'a self, _: &'a TenantId) -> RuntimeFuture<'a, Option<u64>> {
        Box::pin(async { Ok(None) })
    }

    fn events(&self) -> Option<mpsc::Receiver<Died>> {
        self.deaths.lock().take()
    }
}

impl Inner {
    fn instances(&self) -> MutexGuard<'_, HashMap<TenantId, Instance>> {
        self.instances.lock()
    }

    fn live_instance(&self, tenant: &TenantId) -> Result<Instance, RuntimeError> {
        match self.instances().get(tenant) {
            Some(instance) if instance.exit_kind().is_none() => Ok(instance.clone()),
            _ => Err(RuntimeError::NoInstance(tenant.clone())),
        }
    }

    fn record_path(&self, tenant: &TenantId) -> PathBuf {
        self.records.join(format!("{tenant}.json"))
    }

    async fn stop(self: &Arc<Self>, tenant: &TenantId) -> Result<Stopped, RuntimeError> {
        self.adopt(tenant)?;
        // Take it out of the table first, because a requested death is not an event.
        let instance = self.instances().remove(tenant);
        let mut stopped = Stopped::Dead;
        if let Some(instance) = instance
            && instance.exit_kind().is_none()
        {
            // A process that is dead already and only not reaped was not killed by this stop.
            if proc::state(instance.record.pid) != ProcessState::Dead {
                stopped = Stopped::Alive;
            }
            let sent = instance.signal(Signal::KILL);
            let exit = wait_for_exit(instance.exit.clone());
            if tokio::time::timeout(SIGNAL_TIMEOUT, exit).await.is_err() {
                let pid = instance.record.pid;
                self.instances().insert(tenant.clone(), instance);
                return Err(RuntimeError::Failed(format!("pid {pid} survived SIGKILL: {sent:?}")));
            }
        }
        match fs::remove_file(self.record_path(tenant)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(RuntimeError::failed(error))
            }
            _ => Ok(stopped),
        }
    }

    /// Has a process followed to its end: publishes the exit through `exited`, and reports it as a
    /// death unless `start` or `stop` accounts for it.
    fn watch_exit(
        self: &Arc<Self>,
        record: Record,
        exited: watch::Sender<Option<ExitKind>>,
        exit: impl Future<Output = ExitKind> + Send + 'static,
    ) {
        let inner = self.clone();
        let watch = async move {
            let exit = exit.await;
            exited.send_replace(Some(exit));
            let is_event = inner
                .instances()
                .get(&record.tenant)
                .is_some_and(|instance| instance.announced && instance.record == record);
            if !is_event {
                return None;
            }
            let instance = record.instance_id();
            Some(Died { tenant: record.tenant, instance, exit })
        };
        // Fails only if the follower is gone; then the orchestrator is going down.
        let _ = self.exit_watches.send(Box::pin(watch));
    }
}

/// Has a program run as `user` if we are root and SQ does not run as we do.
fn as_user(command: &mut Command, user: Option<Owner>) -> &mut Command {
    match user.filter(|_| rustix::process::geteuid().is_root()) {
        Some(Owner { uid, gid }) => command.uid(uid).gid(gid),
        None => command,
    }
}

/// Address of an instance for this host. SQ itself listens on all addresses.
fn local_address(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}
