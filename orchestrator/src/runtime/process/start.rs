//! Starting a tenant's process.

use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;

use protocol::WakeKind;
use rustix::process::Signal;
use tokio::process::{Child, Command};
use tokio::sync::watch;

use super::instance::{Instance, Record, wait_for_exit};
use super::{Inner, READY_WITHIN, RESERVED_BYTES, as_user, pidfd};
use crate::runtime::folder::Owner;
use crate::runtime::instance_key::InstanceKey;
use crate::runtime::sq_command::KeySource;
use crate::runtime::{
    ExitKind, RuntimeError, Spec, Started, folder, key_file, probe, proc, sq_command,
};
use crate::storage::atomic_file;

/// Attempts to start with another port: another program may take the port between our choice and
/// SQ's bind.
const PORT_ATTEMPTS: u32 = 3;

/// Shell script that sets the limits and becomes SQ.
///
/// The memory limit is a soft one, so that it can be raised without privileges; SQ never does so
/// itself. `setsid` gives SQ its own session: when a stopped process's parent dies in the same
/// session, the kernel sends SIGHUP, and every dozing tenant would die with the orchestrator.
const LAUNCH_SCRIPT: &str = r#"ulimit -c 0 && ulimit -S -d "$1" && shift && exec setsid "$@""#;

/// Files of one start, and the user of SQ; `None` if it runs as we do.
struct Place {
    binary: PathBuf,
    data_folder: PathBuf,
    owner: Option<Owner>,
}

impl Inner {
    pub(super) async fn start(self: &Arc<Self>, spec: Spec) -> Result<Started, RuntimeError> {
        self.stop(&spec.tenant).await?;
        let binary = PathBuf::from(self.sq.replace("{version}", &spec.sq_version.to_string()));
        if !binary.exists() {
            return Err(RuntimeError::Missing(format!(
                "{} does not exist: run `make setup`",
                binary.display()
            )));
        }
        let data_folder = self.data_root.join(spec.tenant.as_str());
        folder::create(&data_folder)?;
        let owner = self.users.claim(&data_folder)?;
        let place = Place { binary, data_folder, owner };
        let proof = tokio::task::spawn_blocking({
            let data_folder = place.data_folder.clone();
            move || folder::prepare(&data_folder, owner)
        });
        proof.await.map_err(RuntimeError::failed)??;
        let mut started = Err(RuntimeError::DiedAtStart(ExitKind::Gone));
        for _ in 0..PORT_ATTEMPTS {
            started = self.start_once(&spec, &place).await;
            // SQ panics when it can't bind its port.
            if !matches!(started, Err(RuntimeError::DiedAtStart(ExitKind::Crashed(_)))) {
                break;
            }
        }
        started
    }

    async fn start_once(
        self: &Arc<Self>,
        spec: &Spec,
        place: &Place,
    ) -> Result<Started, RuntimeError> {
        // Spawn SQ, and get a pidfd for it. A process that can't be watched must not run.
        let key = InstanceKey::generate().map_err(RuntimeError::failed)?;
        let port = self.free_port()?;
        let mut child = Self::spawn(spec, place, port, &key)?;
        let record = self.record(spec, &child, port, &key)?;
        let pidfd = match pidfd::open(record.pid) {
            Ok(pidfd) => pidfd.map(Arc::new),
            Err(error) => {
                child.kill().await.map_err(RuntimeError::failed)?;
                return Err(error);
            }
        };

        // Enter it into the table and follow it, so that a death during the wait is noticed.
        let (exited, exit) = watch::channel(None);
        let instance =
            Instance { record: record.clone(), pidfd, announced: false, exit: exit.clone() };
        self.instances().insert(spec.tenant.clone(), instance);
        self.watch_exit(record.clone(), exited, reap(child));

        // Write the record before the wait: an orchestrator that is killed now leaves it behind.
        let written = self.write_record(&record);
        let ready = tokio::select! {
            ready = probe::wait_until_ready(record.address(), READY_WITHIN) => ready,
            exit = wait_for_exit(exit.clone()) => Err(RuntimeError::DiedAtStart(exit)),
        };
        if let Some(instance) = self.instances().get_mut(&spec.tenant) {
            instance.announced = true;
        }
        // If our process has died, the response came from another program on the same port.
        let died = *exit.borrow();
        let outcome = match died {
            Some(exit) => Err(RuntimeError::DiedAtStart(exit)),
            None => written.and(ready),
        };
        if let Err(error) = outcome {
            self.stop(&spec.tenant).await?;
            return Err(error);
        }
        let endpoint = record.endpoint().ok_or_else(|| RuntimeError::failed("invalid key"))?;
        Ok(Started { endpoint, kind: WakeKind::Start })
    }

    fn spawn(
        spec: &Spec,
        place: &Place,
        port: u16,
        key: &InstanceKey,
    ) -> Result<Child, RuntimeError> {
        let limit_kib = spec.limits.memory_bytes.saturating_add(RESERVED_BYTES) / 1024;
        let (key_source, stdin) = if spec.sq_version.reads_key_file() {
            let file = key_file::in_memory(key, place.owner).map_err(RuntimeError::failed)?;
            (KeySource::File(key_file::STDIN), Stdio::from(file))
        } else {
            (KeySource::Argument(key), Stdio::null())
        };
        let mut command = Command::new("/bin/sh");
        command
            .args(["-c", LAUNCH_SCRIPT, "sh", &limit_kib.to_string()])
            .arg(&place.binary)
            .args(sq_command::arguments(&port.to_string(), key_source))
            .arg(&place.data_folder)
            .env_clear()
            .envs(sq_command::ENVIRONMENT)
            // SQ creates a folder `.sq` in its working directory, and mistakes a file there that is
            // named like its port for a phext. In `/sys` neither can exist.
            .current_dir("/sys")
            .stdin(stdin)
            // SQ 0.5.0 prints every request's headers, keys included.
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(false);
        as_user(&mut command, place.owner)
            .spawn()
            .map_err(|error| RuntimeError::Failed(format!("{}: {error}", place.binary.display())))
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
            start_ticks: proc::start_ticks(pid).ok_or_else(died)?,
            boot: self.boot.clone(),
            port,
            key: key.expose().to_owned(),
        })
    }

    /// Finds a port that is free now and was not given to another instance.
    fn free_port(&self) -> Result<u16, RuntimeError> {
        let given: Vec<u16> =
            self.instances().values().map(|instance| instance.record.port).collect();
        loop {
            let listener =
                TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).map_err(RuntimeError::failed)?;
            let port = listener.local_addr().map_err(RuntimeError::failed)?.port();
            if !given.contains(&port) {
                return Ok(port);
            }
        }
    }

    /// Writes the record. It need not survive a crash of the host, because no process does.
    fn write_record(&self, record: &Record) -> Result<(), RuntimeError> {
        let path = self.record_path(&record.tenant);
        let json = serde_json::to_vec(record).map_err(RuntimeError::failed)?;
        atomic_file::write_unflushed(&path, &json)
            .map_err(|error| RuntimeError::Failed(format!("{}: {error}", path.display())))
    }
}

async fn reap(mut child: Child) -> ExitKind {
    child.wait().await.map_or(ExitKind::Gone, exit_kind)
}

/// SQ aborts only if an allocation fails, which is the effect of `RLIMIT_DATA`.
fn exit_kind(status: ExitStatus) -> ExitKind {
    match (status.code(), status.signal()) {
        (Some(0), _) => ExitKind::Clean,
        (Some(code), _) => ExitKind::Crashed(code.into()),
        (None, Some(signal)) if signal == Signal::ABORT.as_raw() => ExitKind::OutOfMemory,
        (None, Some(signal)) => ExitKind::Crashed(128 + i64::from(signal)),
        (None, None) => ExitKind::Gone,
    }
}
