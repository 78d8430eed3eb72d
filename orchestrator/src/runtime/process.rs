//! Tenants' SQs as child processes, where no Docker daemon answers.
//!
//! Each has a session of its own and outlives the orchestrator. What is needed to find it
//! again stands in `<state_dir>/process/<tenant>.json` (mode 0600: it holds the minted key); start
//! time and boot id tell the process from another that got its number later. Signals go through a
//! pidfd, which can't hit the wrong process.
//!
//! Weaker than containers, and `describe` says so: SQ listens on all addresses, tenants share one
//! uid, memory is limited by address space (`RLIMIT_DATA`) and not by pages, and how a process ended
//! that an earlier orchestrator started is not known: the kernel tells that to its parent only.

use std::collections::HashMap;
use std::fs;
use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use protocol::{TenantId, WakeKind};
use rustix::process::Signal;
use tokio::process::{Child, Command};
use tokio::sync::{mpsc, watch};

use self::adoption::pidfd_of;
use self::instance::{Live, Record, exit_of};
use self::proc::{ProcessState, start_ticks, state};
pub(crate) use self::proc::{is_sq_of, rss};
use self::watches::{Watch, follow};
use crate::config::ProcessConfig;
use crate::host;
use crate::runtime::folder::{self, Owner};
use crate::runtime::instance_key::InstanceKey;
use crate::runtime::probe;
use crate::runtime::{
    Capabilities, Description, Died, ExitKind, Found, Runtime, RuntimeError, RuntimeFuture, Spec,
    Started, Stopped,
};

mod adoption;
mod instance;
mod proc;
mod watches;

/// Kind of this runtime, in its description and in the record of a run.
pub(super) const KIND: &str = "process";

/// SQ answers 1 ms after exec; on a host where twenty start at once within a second or two.
const READY_WITHIN: Duration = Duration::from_secs(10);

/// Another program may take the port between our look and SQ's bind.
const PORT_TRIES: u32 = 3;

/// A killed or frozen process changes state within microseconds; a host in trouble takes longer.
const SIGNAL_WITHIN: Duration = Duration::from_secs(5);

/// Deaths not yet taken by the lifecycle.
const DEATHS: usize = 1024;

/// On top of a tenant's memory: `RLIMIT_DATA` counts what is reserved, such as thread stacks of
/// 2 MB for each request at a time, and not what is used.
const RESERVED_BYTES: u64 = 32 << 20;

/// Sets the limits and becomes SQ. The limit of memory is a soft one, so that it may be raised without
/// privileges; SQ itself never does. A session of its own: when the parent of a frozen process dies within the
/// same session, the kernel sends SIGHUP, and every dozing tenant would die with the orchestrator.
const LIMITED: &str = r#"ulimit -c 0 && ulimit -S -d "$1" && shift && exec setsid "$@""#;

/// `malloc` gives memory back and keeps one arena (measured: docs/sq.md).
pub(crate) const MALLOC_ENV: [(&str, &str); 3] = [
    ("MALLOC_ARENA_MAX", "1"),
    ("MALLOC_MMAP_THRESHOLD_", "65536"),
    ("MALLOC_TRIM_THRESHOLD_", "65536"),
];

/// The runtime.
#[derive(Debug)]
pub struct ProcessRuntime {
    inner: Arc<Inner>,
    deaths: Mutex<Option<mpsc::Receiver<Died>>>,
}

#[derive(Debug)]
struct Inner {
    data_root: PathBuf,
    /// Path of the binary, with `{version}` in place of the version.
    sq: String,
    folder: PathBuf,
    boot: String,
    owner: Option<Owner>,
    live: Mutex<HashMap<TenantId, Live>>,
    watches: mpsc::UnboundedSender<Watch>,
}

impl ProcessRuntime {
    /// Creates the state folder. Nothing is adopted before `list`.
    pub fn new(
        data_root: &Path,
        state_dir: &Path,
        owner: Owner,
        config: &ProcessConfig,
    ) -> Result<Self, RuntimeError> {
        let folder = state_dir.join("process");
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&folder)
            .map_err(|e| RuntimeError::Failed(format!("{}: {e}", folder.display())))?;
        let boot = host::boot()
            .map_err(|e| RuntimeError::Failed(format!("/proc is not readable: {e}")))?;
        let may_change = rustix::process::geteuid().is_root();
        let reached = folder::reachable_by_others(&data_root.join("x"))
            || folder::reachable_by_others(data_root);
        let binary = Path::new(&config.sq).ancestors().find(|p| p.exists());
        let binary = binary.is_some_and(folder::reachable_by_others);
        let owner = (may_change && reached && binary).then_some(owner);
        let (died, deaths) = mpsc::channel(DEATHS);
        // One for each process at most.
        let (watches, asked) = mpsc::unbounded_channel();
        // Ends with the last process of a runtime that is gone. Should it end before, so does the
        // channel of deaths: then the orchestrator goes down.
        tokio::spawn(follow(asked, died));
        let inner = Inner {
            data_root: data_root.to_owned(),
            sq: config.sq.clone(),
            folder,
            boot,
            owner,
            live: Mutex::default(),
            watches,
        };
        Ok(Self { inner: Arc::new(inner), deaths: Mutex::new(Some(deaths)) })
    }
}

impl Runtime for ProcessRuntime {
    fn describe(&self) -> Description {
        let user = match self.inner.owner {
            Some(owner) => format!("SQ runs as uid {}, the same for all tenants", owner.uid),
            None => "SQ runs as our own uid: it can read what we can read".to_owned(),
        };
        Description {
            kind: KIND,
            notes: vec![
                user,
                "SQ listens on all addresses of this host: keep it behind a firewall".to_owned(),
                "memory is limited by RLIMIT_DATA, not by a cgroup".to_owned(),
                "of what a tenant died that an earlier orchestrator started can't be told"
                    .to_owned(),
                "memory of dozing tenants is not handed back: not available for processes"
                    .to_owned(),
            ],
        }
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
            let live = self.inner.alive(tenant)?;
            live.signal(Signal::STOP)?;
            live.until(|state| state == ProcessState::Frozen).await
        })
    }

    fn resume<'a>(&'a self, tenant: &'a TenantId) -> RuntimeFuture<'a, ()> {
        Box::pin(async move {
            let live = self.inner.alive(tenant)?;
            live.signal(Signal::CONT)?;
            let address = SocketAddr::from((Ipv4Addr::LOCALHOST, live.record.port));
            tokio::select! {
                ready = probe::wait_until_ready(address, READY_WITHIN) => ready,
                _ = exit_of(live.exit.clone()) => Err(RuntimeError::NoInstance(tenant.clone())),
            }
        })
    }

    fn stop<'a>(&'a self, tenant: &'a TenantId) -> RuntimeFuture<'a, Stopped> {
        Box::pin(self.inner.stop(tenant))
    }

    fn resize<'a>(&'a self, tenant: &'a TenantId, memory_bytes: u64) -> RuntimeFuture<'a, ()> {
        Box::pin(async move {
            let live = self.inner.alive(tenant)?;
            let bytes = memory_bytes.saturating_add(RESERVED_BYTES);
            // As the tenant's own uid: root would need CAP_SYS_RESOURCE for it.
            let mut command = Command::new("prlimit");
            command.args(["--pid", &live.record.pid.to_string(), &format!("--data={bytes}:")]);
            let done = self.inner.as_owner(&mut command).output().await.map_err(failed)?;
            let said = || failed(String::from_utf8_lossy(&done.stderr).trim().to_owned());
            if done.status.success() { Ok(()) } else { Err(said()) }
        })
    }

    fn memory_bytes<'a>(&'a self, tenant: &'a TenantId) -> RuntimeFuture<'a, Option<u64>> {
        Box::pin(async move { Ok(self.inner.alive(tenant).ok().and_then(|l| rss(l.record.pid))) })
    }

    fn pid<'a>(&'a self, tenant: &'a TenantId) -> RuntimeFuture<'a, Option<i32>> {
        Box::pin(async move { Ok(self.inner.alive(tenant).ok().map(|live| live.record.pid)) })
    }

    fn reclaim<'a>(&'a self, _: &'a TenantId) -> RuntimeFuture<'a, Option<u64>> {
        Box::pin(async { Ok(None) })
    }

    fn events(&self) -> Option<mpsc::Receiver<Died>> {
        self.deaths.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl Inner {
    fn live(&self) -> MutexGuard<'_, HashMap<TenantId, Live>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn path(&self, tenant: &TenantId) -> PathBuf {
        self.folder.join(format!("{tenant}.json"))
    }

    fn alive(&self, tenant: &TenantId) -> Result<Live, RuntimeError> {
        let live = self.live().get(tenant).cloned();
        live.filter(|live| live.exit.borrow().is_none())
            .ok_or_else(|| RuntimeError::NoInstance(tenant.clone()))
    }

    async fn start(self: &Arc<Self>, spec: Spec) -> Result<Started, RuntimeError> {
        self.stop(&spec.tenant).await?;
        let binary = PathBuf::from(self.sq.replace("{version}", &spec.sq_version.to_string()));
        if !binary.exists() {
            return Err(RuntimeError::Missing(format!(
                "there is no {}: run `make setup`",
                binary.display()
            )));
        }
        let data_folder = self.data_root.join(spec.tenant.as_str());
        let owner = self.owner;
        let data = data_folder.clone();
        tokio::task::spawn_blocking(move || folder::prepare(&data, owner))
            .await
            .map_err(failed)??;
        let mut outcome = Err(RuntimeError::DiedAtStart(ExitKind::Gone));
        for _ in 0..PORT_TRIES {
            outcome = self.start_once(&spec, &binary, &data_folder).await;
            match outcome {
                Err(RuntimeError::DiedAtStart(ExitKind::Crashed(_))) => {}
                _ => break,
            }
        }
        outcome
    }

    async fn start_once(
        self: &Arc<Self>,
        spec: &Spec,
        binary: &Path,
        folder: &Path,
    ) -> Result<Started, RuntimeError> {
        let key = InstanceKey::generate().map_err(failed)?;
        let port = self.free_port()?;
        let mut child = self.spawn(spec, binary, folder, port, &key)?;
        let record = self.record(spec, &child, port, &key)?;
        let (exited, exit) = watch::channel(None);
        let pidfd = match pidfd_of(record.pid) {
            Ok(pidfd) => pidfd.map(Arc::new),
            Err(e) => {
                // What can't be watched must not run.
                child.kill().await.map_err(failed)?;
                return Err(e);
            }
        };
        let live = Live { record: record.clone(), pidfd, announced: false, exit: exit.clone() };
        self.live().insert(spec.tenant.clone(), live);
        self.watch(record.clone(), exited, reap(child));
        let written = self.write(&record);
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let ready = tokio::select! {
            ready = probe::wait_until_ready(address, READY_WITHIN) => ready,
            exit = exit_of(exit.clone()) => Err(RuntimeError::DiedAtStart(exit)),
        };
        if let Some(live) = self.live().get_mut(&spec.tenant) {
            live.announced = true;
        }
        // Whoever answered, it was not ours when ours is dead.
        let died = *exit.borrow();
        let outcome = match died {
            Some(exit) => Err(RuntimeError::DiedAtStart(exit)),
            None => written.and(ready),
        };
        if let Err(e) = outcome {
            self.stop(&spec.tenant).await?;
            return Err(e);
        }
        let endpoint = record.endpoint().ok_or_else(|| failed("no key"))?;
        Ok(Started { endpoint, kind: WakeKind::Start })
    }

    fn spawn(
        &self,
        spec: &Spec,
        binary: &Path,
        folder: &Path,
        port: u16,
        key: &InstanceKey,
    ) -> Result<Child, RuntimeError> {
        let memory_kib = spec.limits.memory_bytes.saturating_add(RESERVED_BYTES) / 1024;
        let mut command = Command::new("/bin/sh");
        command
            .args(["-c", LIMITED, "sh", &memory_kib.to_string()])
            .arg(binary)
            .args(["host", &port.to_string(), "--key", key.expose(), "--data-dir"])
            .arg(folder)
            .env_clear()
            .envs(MALLOC_ENV)
            // SQ makes a folder `.sq` where it stands, and mistakes a file named like its port for
            // a phext: neither can be here.
            .current_dir("/sys")
            .stdin(Stdio::null())
            // SQ 0.5.0 prints every request's headers.
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(false);
        self.as_owner(&mut command)
            .spawn()
            .map_err(|e| failed(format!("{}: {e}", binary.display())))
    }

    fn as_owner<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        match self.owner {
            Some(Owner { uid, gid }) => command.uid(uid).gid(gid),
            None => command,
        }
    }

    fn record(
        &self,
        spec: &Spec,
        child: &Child,
        port: u16,
        key: &InstanceKey,
    ) -> Result<Record, RuntimeError> {
        let died = || RuntimeError::DiedAtStart(ExitKind::Gone);
        let pid = child.id().and_then(|pid| i32::try_from(pid).ok()).ok_or_else(died)?;
        Ok(Record {
            tenant: spec.tenant.clone(),
            tier: spec.tier.clone(),
            limits: spec.limits.clone(),
            sq_version: spec.sq_version,
            pid,
            start_ticks: start_ticks(pid).ok_or_else(died)?,
            boot: self.boot.clone(),
            port,
            key: key.expose().to_owned(),
        })
    }

    /// A port that is free and that no other of our instances was given.
    fn free_port(&self) -> Result<u16, RuntimeError> {
        let taken: Vec<u16> = self.live().values().map(|live| live.record.port).collect();
        loop {
            let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).map_err(failed)?;
            let port = listener.local_addr().map_err(failed)?.port();
            if !taken.contains(&port) {
                return Ok(port);
            }
        }
    }

    fn write(&self, record: &Record) -> Result<(), RuntimeError> {
        let path = self.path(&record.tenant);
        let new = path.with_extension("new");
        let json = serde_json::to_vec(record).map_err(failed)?;
        let mut options = fs::OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600);
        let written = options
            .open(&new)
            .and_then(|mut file| file.write_all(&json))
            .and_then(|()| fs::rename(&new, &path));
        written.map_err(|e| failed(format!("{}: {e}", path.display())))
    }

    async fn stop(self: &Arc<Self>, tenant: &TenantId) -> Result<Stopped, RuntimeError> {
        self.adopt(tenant)?;
        // Out of the table first: a death that was asked for is no news.
        let live = self.live().remove(tenant);
        let mut was = Stopped::Dead;
        if let Some(live) = live.filter(|live| live.exit.borrow().is_none()) {
            // One that is dead and not yet waited for was not killed by us.
            if state(live.record.pid) != ProcessState::Dead {
                was = Stopped::Alive;
            }
            let sent = live.signal(Signal::KILL);
            let dead = tokio::time::timeout(SIGNAL_WITHIN, exit_of(live.exit.clone())).await;
            if dead.is_err() {
                let what = format!("pid {} does not die: {sent:?}", live.record.pid);
                self.live().insert(tenant.clone(), live);
                return Err(failed(what));
            }
        }
        match fs::remove_file(self.path(tenant)) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(failed(e)),
            _ => Ok(was),
        }
    }

    /// Has one process followed to its end.
    fn watch(
        self: &Arc<Self>,
        record: Record,
        exited: watch::Sender<Option<ExitKind>>,
        end: impl Future<Output = ExitKind> + Send + 'static,
    ) {
        let inner = self.clone();
        let watch = async move {
            let exit = end.await;
            exited.send_replace(Some(exit));
            let is_news = |live: &Live| live.announced && live.record == record;
            let unasked = inner.live().get(&record.tenant).is_some_and(is_news);
            let instance = record.instance();
            unasked.then_some(Died { tenant: record.tenant, instance, exit })
        };
        // Without a follower the orchestrator is going down.
        let _ = self.watches.send(Box::pin(watch));
    }
}

// By value, so that it is what `map_err` takes.
#[allow(clippy::needless_pass_by_value)]
fn failed(e: impl ToString) -> RuntimeError {
    RuntimeError::Failed(e.to_string())
}

async fn reap(mut child: Child) -> ExitKind {
    child.wait().await.map_or(ExitKind::Gone, kind)
}

/// SQ aborts only when an allocation fails, which is what `RLIMIT_DATA` does to it.
fn kind(status: ExitStatus) -> ExitKind {
    match (status.code(), status.signal()) {
        (Some(0), _) => ExitKind::Clean,
        (Some(code), _) => ExitKind::Crashed(code.into()),
        (None, Some(signal)) if signal == Signal::ABORT.as_raw() => ExitKind::OutOfMemory,
        (None, Some(signal)) => ExitKind::Crashed(128 + i64::from(signal)),
        (None, None) => ExitKind::Gone,
    }
}
