//! Envoy with the operators' own `envoy/bootstrap.yaml` or `standalone.yaml`, as a process or in a
//! container.

mod files;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::Signal;

use crate::client::Client;
use crate::host::certs::Certs;
use crate::host::docker;
use crate::host::files::create_private_dir;
use crate::host::processes;
use crate::host::sockets;
use crate::host::tools;
use crate::options::{EnvoyHost, Listen};
#[cfg(feature = "containers")]
use crate::parts::container::Container;
use crate::parts::service::Service;
use crate::until;

/// Deadline for readiness: Envoy compiles the filter first, which takes long on a busy machine.
const START_TIMEOUT: Duration = Duration::from_mins(1);

/// Times of a hot restart: the old process drains for two seconds and is shut down after four. It
/// takes the former from its own arguments, the latter from its successor's.
const HOT_RESTART_TIMES: [&str; 4] = ["--drain-time-s", "2", "--parent-shutdown-time-s", "4"];

/// Delay of the access log. Envoy's default is ten seconds; a failed test needs its lines at once.
const LOG_FLUSH_MS: &str = "200";

/// Shared memory of a hot restart, which Envoy does not remove; its base id and a 0 follow.
const SHARED_MEMORY: &str = "/dev/shm/envoy_shared_memory_";

/// Settings of an Envoy.
pub struct EnvoySetup<'a> {
    /// Folder for its files and log.
    pub dir: &'a Path,
    /// `node.id`, which is the gateway's name.
    pub node: &'a str,
    /// Development certificates and keys.
    pub certs: &'a Certs,
    /// Ports of all parts.
    pub listen: Listen,
    /// Folder of the stack's sockets.
    pub sockets: &'a Path,
    /// Number of worker threads.
    pub workers: u32,
    /// Path of `filter.wasm`.
    pub filter: &'a Path,
    /// Additional fields of the filter's JSON config.
    pub filter_config: &'a [(&'static str, String)],
    /// Additional static clusters, appended to the bootstrap.
    pub clusters: &'a str,
    /// Texts of the bootstrap and what stands there instead.
    pub changes: &'a [(&'static str, &'static str)],
    /// Process or container.
    pub host: EnvoyHost,
    /// True if a successor can take over its sockets.
    pub hot_restart: bool,
}

/// An Envoy that can be started, killed and started again.
pub struct Envoy {
    runner: Runner,
    admin: Client,
    admin_socket: PathBuf,
    metrics: Client,
    config: PathBuf,
    /// Number of hot restarts since the last start.
    epochs: AtomicU32,
}

enum Runner {
    Process(Service),
    #[cfg(feature = "containers")]
    Container(Box<Container>),
}

impl Envoy {
    /// Writes the files for `bootstrap.yaml`; nothing runs yet.
    pub fn new(setup: &EnvoySetup<'_>) -> Result<Self> {
        let etc = setup.dir.join("envoy");
        let config = etc.join("bootstrap.yaml");
        files::write_etc(&etc, setup)?;
        fs::write(&config, files::bootstrap(&etc, setup)?)?;
        Self::with_config(setup, config, None)
    }

    /// Writes the files for `standalone.yaml`, which needs no orchestrator: alice's SQ listens on
    /// `sq_port` and accepts `key`.
    pub fn standalone(setup: &EnvoySetup<'_>, sq_port: u16, key: &str) -> Result<Self> {
        let etc = setup.dir.join("envoy");
        let config = etc.join("standalone.yaml");
        files::write_etc(&etc, setup)?;
        fs::write(&config, files::standalone(&etc, setup, sq_port)?)?;
        Self::with_config(setup, config, Some(("SQ_ALICE_KEY", key)))
    }

    fn with_config(
        setup: &EnvoySetup<'_>,
        config: PathBuf,
        env: Option<(&'static str, &str)>,
    ) -> Result<Self> {
        let args = arguments(setup, &config);
        let socket_folder = sockets::envoy(setup.sockets, setup.node);
        create_private_dir(&socket_folder)?;
        let runner = match setup.host {
            EnvoyHost::Process => {
                let logs = setup.dir.join("logs");
                let service = Service::new("envoy", tools::envoy()?, args, &logs);
                Runner::Process(match env {
                    Some((name, value)) => service.env(name, value),
                    None => service,
                })
            }
            #[cfg(feature = "containers")]
            EnvoyHost::Container => {
                let folders = [setup.dir, setup.sockets];
                Runner::Container(Box::new(Container::new(&folders, args)))
            }
            #[cfg(not(feature = "containers"))]
            EnvoyHost::Container => bail!("ENVOY_HOST=container needs the feature `containers`"),
        };
        let admin_socket = socket_folder.join("admin.sock");
        let admin = Client::unix(&admin_socket);
        let metrics = format!("http://127.0.0.1:{}", setup.listen.envoy_metrics);
        let metrics = Client::plaintext(&metrics)?;
        Ok(Self { runner, admin, admin_socket, metrics, config, epochs: AtomicU32::new(0) })
    }

    /// Starts it and waits until it serves.
    pub async fn start(&self) -> Result<()> {
        let is_ready =
            || async { self.admin.get("/ready").await.is_ok_and(|response| response.ok()) };
        match &self.runner {
            Runner::Process(service) => service.start()?.ready(START_TIMEOUT, is_ready).await,
            #[cfg(feature = "containers")]
            Runner::Container(container) => {
                container.start().await?;
                let ready = || async { is_ready().await.then_some(()) };
                until("Envoy in its container", START_TIMEOUT, ready)
                    .await
                    .with_context(|| container.tail())
            }
        }
    }

    /// Performs a hot restart: a new process takes over the sockets, the old one drains and ends.
    pub async fn hot_restart(&self) -> Result<()> {
        let service = match &self.runner {
            Runner::Process(service) => service,
            #[cfg(feature = "containers")]
            Runner::Container(_) => bail!("a container can't be hot-restarted"),
        };
        // The successor finds the shared memory by its base id.
        let base_id = fs::read_to_string(base_id_path(&self.config))?;
        let epoch = self.epochs.fetch_add(1, Ordering::Relaxed) + 1;
        let mut args: Vec<String> = service.args().to_vec();
        let first_only = first_epoch_arguments(&self.config);
        args.retain(|arg| !first_only.contains(arg));
        args.extend(["--base-id".to_owned(), base_id.trim().to_owned()]);
        args.extend(["--restart-epoch".to_owned(), epoch.to_string()]);
        let (new, old) = service.start_successor(&args)?;
        let is_serving = || async {
            let response = self.admin.get("/server_info").await;
            let info = response.map(|response| response.text()).unwrap_or_default();
            info.contains(&format!("\"restart_epoch\": {epoch}")) && info.contains("LIVE")
        };
        new.ready(START_TIMEOUT, is_serving).await?;
        let Some(old) = old else { return Ok(()) };
        until("the old Envoy to end", START_TIMEOUT, || async { old.ended().map(drop) }).await
    }

    /// Sends SIGKILL and waits until it has ended.
    pub fn kill(&self) {
        self.epochs.store(0, Ordering::Relaxed);
        match &self.runner {
            Runner::Process(service) => service.kill(),
            #[cfg(feature = "containers")]
            Runner::Container(container) => container.kill(),
        }
        if let Ok(base_id) = fs::read_to_string(base_id_path(&self.config)) {
            let _ = fs::remove_file(format!("{SHARED_MEMORY}{}0", base_id.trim()));
        }
    }

    /// Sends SIGTERM and waits until it has ended; a container is killed.
    pub fn stop(&self) {
        match &self.runner {
            Runner::Process(service) => service.stop(),
            #[cfg(feature = "containers")]
            Runner::Container(container) => container.kill(),
        }
    }

    /// Fails if the process has ended. A container is not checked.
    pub fn check(&self) -> Result<()> {
        match &self.runner {
            Runner::Process(service) => service.process()?.check(),
            #[cfg(feature = "containers")]
            Runner::Container(_) => Ok(()),
        }
    }

    /// The last lines of its log.
    pub fn tail(&self) -> String {
        match &self.runner {
            Runner::Process(service) => service.tail(),
            #[cfg(feature = "containers")]
            Runner::Container(container) => container.tail(),
        }
    }

    /// The whole log, access log included.
    pub fn log(&self) -> Result<String> {
        match &self.runner {
            Runner::Process(service) => service.log(),
            #[cfg(feature = "containers")]
            Runner::Container(container) => container.log(),
        }
    }

    /// Container id; `None` for a process.
    pub fn container(&self) -> Option<String> {
        match &self.runner {
            Runner::Process(_) => None,
            #[cfg(feature = "containers")]
            Runner::Container(container) => container.id(),
        }
    }

    /// Process id; an error in a container.
    pub fn pid(&self) -> Result<i32> {
        match &self.runner {
            Runner::Process(service) => Ok(service.process()?.pid()),
            #[cfg(feature = "containers")]
            Runner::Container(_) => bail!("Envoy runs in a container"),
        }
    }

    /// Sends a signal to it: SIGSTOP lets it stand still, SIGCONT go on.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        match self.container() {
            None => processes::signal(self.pid()?, signal),
            Some(id) => {
                let number = signal.as_raw().to_string();
                drop(docker::run(&["kill", "--signal", &number, &id])?);
            }
        }
        Ok(())
    }

    /// A client of the admin interface.
    pub fn admin(&self) -> &Client {
        &self.admin
    }

    /// Path of the admin interface's socket.
    pub fn admin_socket(&self) -> &Path {
        &self.admin_socket
    }

    /// A client of the listener for Prometheus.
    pub fn metrics(&self) -> &Client {
        &self.metrics
    }

    /// Path of the config that it is started with.
    pub fn config(&self) -> &Path {
        &self.config
    }

    /// The value of a counter or gauge; 0 if it is absent.
    pub async fn stat(&self, name: &str) -> Result<u64> {
        let text = self.admin.get(&format!("/stats?filter=^{name}$")).await?.text();
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
        Ok(value.map_or(Ok(0), str::parse)?)
    }
}

/// Command-line arguments of the first start.
fn arguments(setup: &EnvoySetup<'_>, config: &Path) -> Vec<String> {
    let config_path = config.display().to_string();
    let workers = setup.workers.to_string();
    let mut args = ["-c", &config_path, "--concurrency", &workers]
        .into_iter()
        .chain(["--log-level", "info", "--file-flush-interval-msec", LOG_FLUSH_MS])
        .map(str::to_owned)
        .collect::<Vec<_>>();
    if setup.hot_restart {
        args.extend(first_epoch_arguments(config));
        args.extend(HOT_RESTART_TIMES.map(str::to_owned));
    } else {
        args.push("--disable-hot-restart".to_owned());
    }
    args
}

/// Arguments of a process that has no predecessor: it picks a base id and writes it to a file.
fn first_epoch_arguments(config: &Path) -> [String; 3] {
    ["--use-dynamic-base-id".to_owned(), "--base-id-path".to_owned(), base_id_path(config)]
}

/// File with the base id of the shared memory, read by the successor.
fn base_id_path(config: &Path) -> String {
    config.with_extension("base-id").display().to_string()
}
