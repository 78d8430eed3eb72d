//! A Docker daemon is killed during writes and started again. It runs beside the host's daemon with
//! a separate socket, separate folders and a separate containerd, so that no other container is
//! disturbed.
//!
//! `DOCKER_HOST` selects the daemon for a whole process and all its children. This part therefore
//! runs in a child process: [`run`] starts it, and [`run_kills`] is its work.

use std::env;
use std::fs::{self, File};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use fastrand::Rng;
use rustix::process::Signal;
use tokio::process::Command as AsyncCommand;

use super::loss::LossReport;
use super::series::Writers;
use super::sq_container::SqContainer;
use super::target::Target;
use harness::host::docker;
use harness::host::processes;
use harness::host::tools;
use harness::{Runtime, until};

/// Longest wait for a daemon to respond or to end, and for the tenants after it.
const RECOVERY: Duration = Duration::from_mins(1);
/// Longest time from recovery to the next kill, in milliseconds.
const PAUSE_MS: u64 = 3_000;
/// Size of the phext that is written.
const PHEXT_BYTES: usize = 5_000_000;

/// The daemon's default bridge. If it does not exist, the daemon takes the host's `docker0`; with
/// `--bridge=none` it removes `docker0`.
const BRIDGE: &str = "sq-proof0";
/// The bridge needs an address, although nothing uses it.
const BRIDGE_ADDRESS: &str = "169.254.213.1/30";
/// The pid file of the daemon's containerd.
const CONTAINERD_PID: &str = "exec/containerd/containerd.pid";

/// Runs this part in a child process. Returns whether its promises held; an error means that the
/// part could not be run.
pub(super) async fn run(kills: u64, seed: u64) -> Result<bool> {
    docker::daemon().context("no Docker daemon responds")?;
    let dir = tempfile::Builder::new().prefix("sq-dockerd-").tempdir()?;
    let images = dir.path().join("images.tar");
    let sq = format!("wbic16/sq:{}", tools::SQ_VERSION);
    docker::run(&["save", "--output", &images.display().to_string(), &sq, "sq-gateway/pause:1"])?;
    let status = AsyncCommand::new(env::current_exe()?)
        .args(["proof", "--only", "dockerd", "--seed", &seed.to_string()])
        .args(["--dockerd-kills", &kills.to_string(), "--dockerd-in"])
        .arg(dir.path())
        .env("DOCKER_HOST", Daemon::in_folder(dir.path()).socket())
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .status()
        .await?;
    Ok(status.success())
}

/// The losses of the same series behind the gateway and without it.
pub(super) struct DaemonLosses {
    /// SQ behind the gateway.
    pub(super) gateway: LossReport,
    /// SQ alone in a container that the daemon restarts.
    pub(super) alone: LossReport,
}

/// Starts a daemon in `dir` and kills it `kills` times during writes of a phext of 5 MB: first
/// behind the gateway, then with SQ alone.
pub(super) async fn run_kills(dir: &Path, kills: u64, seed: u64) -> Result<DaemonLosses> {
    let _bridge = Bridge::create()?;
    let daemon = Daemon::in_folder(dir);
    daemon.start().await?;
    docker::run(&["load", "--input", &dir.join("images.tar").display().to_string()])?;
    let stack = super::gateway(Runtime::Docker, 512).start().await?;
    let gateway = daemon.run_series(Target::gateway(Arc::new(stack))?, kills, seed).await?;
    let container = Target::container(SqContainer::start()?);
    let alone = daemon.run_series(container, kills, seed).await?;
    Ok(DaemonLosses { gateway, alone })
}

/// Runs `ip` of iproute2, which changes the host's network.
fn ip(args: &[&str]) -> Result<()> {
    let status = Command::new("ip").args(args).status().context("cannot run ip (iproute2)")?;
    ensure!(status.success(), "ip {}: {status}", args.join(" "));
    Ok(())
}

/// The network bridge [`BRIDGE`], removed on drop.
struct Bridge;

impl Bridge {
    fn create() -> Result<Self> {
        // A run that was killed leaves its bridge behind.
        if !Path::new("/sys/class/net").join(BRIDGE).exists() {
            ip(&["link", "add", BRIDGE, "type", "bridge"])?;
            ip(&["address", "add", BRIDGE_ADDRESS, "dev", BRIDGE])?;
        }
        Ok(Self)
    }
}

impl Drop for Bridge {
    fn drop(&mut self) {
        let _ = ip(&["link", "delete", BRIDGE]);
    }
}

/// A Docker daemon with all its files in one folder, ended on drop.
struct Daemon {
    dir: PathBuf,
}

impl Daemon {
    fn in_folder(dir: &Path) -> Self {
        Self { dir: dir.to_owned() }
    }

    fn socket(&self) -> String {
        format!("unix://{}", self.dir.join("docker.sock").display())
    }

    fn pid(&self) -> Option<i32> {
        self.read_pid("docker.pid")
    }

    fn read_pid(&self, file: &str) -> Option<i32> {
        fs::read_to_string(self.dir.join(file)).ok()?.trim().parse().ok()
    }

    async fn start(&self) -> Result<()> {
        let path = |name: &str| self.dir.join(name).display().to_string();
        // An empty configuration: the host's may name the host daemon's folders.
        fs::write(path("daemon.json"), "{}")?;
        let log = File::options().create(true).append(true).open(path("dockerd.log"))?;
        Command::new("dockerd")
            .args(["--config-file", &path("daemon.json"), "--pidfile", &path("docker.pid")])
            .args(["--data-root", &path("data"), "--exec-root", &path("exec")])
            .args(["--host", &self.socket()])
            // Firewall and default bridge of the host belong to the host's daemon.
            .args(["--bridge", BRIDGE, "--iptables=false", "--ip-masq=false"])
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .process_group(0)
            .spawn()
            .context("cannot start dockerd")?;
        until("the proof's dockerd to respond", RECOVERY, || async { docker::daemon().ok() })
            .await
            .with_context(|| self.log_tail())
            .map(drop)
    }

    fn log_tail(&self) -> String {
        let log = fs::read_to_string(self.dir.join("dockerd.log")).unwrap_or_default();
        log.lines().rev().take(5).collect::<Vec<_>>().join("\n")
    }

    async fn kill_and_restart(&self) -> Result<()> {
        let pid = self.pid().context("the proof's dockerd has no pid")?;
        // Its containerd ends a moment later. The next daemon would take an unreaped one for alive.
        let containerd = self.read_pid(CONTAINERD_PID);
        let pids: Vec<i32> = [Some(pid), containerd].into_iter().flatten().collect();
        processes::kill_all(&pids);
        for file in ["docker.pid", CONTAINERD_PID] {
            fs::remove_file(self.dir.join(file))?;
        }
        self.start().await
    }

    async fn run_series(&self, target: Target, kills: u64, seed: u64) -> Result<LossReport> {
        let writers = Writers::start(Arc::new(target), PHEXT_BYTES, seed).await?;
        let mut report = LossReport::default();
        let mut random = Rng::with_seed(seed);
        for number in 0..kills {
            tokio::time::sleep(Duration::from_millis(random.u64(..PAUSE_MS))).await;
            let died = Instant::now();
            self.kill_and_restart().await?;
            writers.pause().await?;
            writers.check(&mut report, died).await.with_context(|| format!("dockerd {number}"))?;
            writers.resume();
        }
        ensure!(self.pid().is_some(), "the proof's dockerd is gone");
        writers.finish(report).await
    }

    fn stop(&self) {
        let Some(pid) = self.pid() else { return };
        processes::signal(pid, Signal::TERM);
        let deadline = Instant::now() + RECOVERY;
        while processes::is_alive(pid) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Kills the containers of a daemon that could not be started again.
    fn kill_containers(&self) {
        let shims = processes::with_argument_below(&self.dir, &["containerd-shim-runc-v2"]);
        let left: Vec<i32> = shims.iter().flat_map(|shim| processes::children(*shim)).collect();
        processes::kill_all(&[left, shims].concat());
    }

    /// Unmounts everything below the folder, so that it can be removed.
    fn unmount_all(&self) {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let points = mounts.lines().filter_map(|line| line.split(' ').nth(4));
        let mut below: Vec<&str> =
            points.filter(|point| Path::new(point).starts_with(&self.dir)).collect();
        below.sort_unstable();
        // Inner mounts first.
        for point in below.into_iter().rev() {
            let _ = Command::new("umount").args(["-l", point]).status();
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.stop();
        self.kill_containers();
        self.unmount_all();
    }
}
