//! Docker's daemon is killed under writes and started again: one of our own, beside the host's, with
//! its own socket, folders and containerd, so that nobody else's containers notice.
//!
//! Which daemon is asked stands in `DOCKER_HOST`, for the whole process and all its parts. So this
//! part runs in a process of its own: [`run`] starts it, [`kills`] is what it does.

use std::env;
use std::fs::{self, File};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use tokio::process::Command as AsyncCommand;

use super::contained::Contained;
use super::kill::{Random, Tally, Writers};
use super::target::Target;
use harness::host::docker;
use harness::host::processes;
use harness::host::tools;
use harness::{Runtime, until};

/// Longest wait for a daemon to come back or to end, and for tenants after it.
const BACK: Duration = Duration::from_mins(1);
/// Size of the phext that is written.
const BYTES: usize = 5_000_000;

/// The daemon's default bridge. Without one that exists, it takes the host's `docker0` for its own:
/// with `--bridge=none` it removes that.
const BRIDGE: &str = "sq-proof0";
/// Its address, which nothing is reached by: it must only have one.
const BRIDGE_ADDRESS: &str = "169.254.213.1/30";

/// A daemon below a folder.
struct Daemon {
    dir: PathBuf,
}

/// Runs the part in a process of its own; whether its promises were kept. An error: it was not tried.
pub async fn run(times: u64, seed: u64) -> Result<bool> {
    docker::daemon().context("no Docker daemon answers")?;
    let dir = tempfile::Builder::new().prefix("sq-dockerd-").tempdir()?;
    let images = dir.path().join("images.tar");
    let sq = format!("wbic16/sq:{}", tools::SQ_VERSION);
    docker::run(&["save", "--output", &images.display().to_string(), &sq, "sq-gateway/pause:1"])?;
    let status = AsyncCommand::new(env::current_exe()?)
        .args(["proof", "--only", "dockerd", "--seed", &seed.to_string()])
        .args(["--dockerd-kills", &times.to_string(), "--dockerd-in"])
        .arg(dir.path())
        .env("DOCKER_HOST", Daemon::at(dir.path()).socket())
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .status()
        .await?;
    Ok(status.success())
}

/// Kills a daemon in `dir` so many times under writes of a phext of 5 MB: behind the gateway, then
/// with SQ alone in a container that the daemon starts again.
pub async fn kills(dir: &Path, times: u64, seed: u64) -> Result<[Tally; 2]> {
    let _bridge = Bridge::add()?;
    let daemon = Daemon::at(dir);
    daemon.start().await?;
    docker::run(&["load", "--input", &dir.join("images.tar").display().to_string()])?;
    let stack = super::gateway(Runtime::Docker, 512).start().await?;
    let gateway = daemon.series(Target::gateway(Arc::new(stack))?, times, seed).await?;
    let alone = daemon.series(Target::contained(Contained::start()?), times, seed).await?;
    Ok([gateway, alone])
}

/// Changes the host's network by iproute2.
fn ip(args: &[&str]) -> Result<()> {
    let status = Command::new("ip").args(args).status().context("ip (iproute2) can't be run")?;
    ensure!(status.success(), "ip {}: {status}", args.join(" "));
    Ok(())
}

/// The bridge [`BRIDGE`], for as long as this lives.
struct Bridge;

impl Bridge {
    fn add() -> Result<Self> {
        // One that was killed has left it.
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

impl Daemon {
    fn at(dir: &Path) -> Self {
        Self { dir: dir.to_owned() }
    }

    fn socket(&self) -> String {
        format!("unix://{}", self.dir.join("docker.sock").display())
    }

    fn pid(&self) -> Option<i32> {
        self.pid_in("docker.pid")
    }

    fn pid_in(&self, file: &str) -> Option<i32> {
        fs::read_to_string(self.dir.join(file)).ok()?.trim().parse().ok()
    }

    async fn start(&self) -> Result<()> {
        let at = |name: &str| self.dir.join(name).display().to_string();
        // Not the host's configuration: it may name folders of its own.
        fs::write(at("daemon.json"), "{}")?;
        let log = File::options().create(true).append(true).open(at("dockerd.log"))?;
        Command::new("dockerd")
            .args(["--config-file", &at("daemon.json"), "--pidfile", &at("docker.pid")])
            .args(["--data-root", &at("data"), "--exec-root", &at("exec")])
            .args(["--host", &self.socket()])
            // The host's firewall and default bridge are the host's daemon's.
            .args(["--bridge", BRIDGE, "--iptables=false", "--ip-masq=false"])
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .process_group(0)
            .spawn()
            .context("dockerd can't be started")?;
        let answers = || async { docker::daemon().ok() };
        until("our dockerd to answer", BACK, answers).await.with_context(|| self.tail()).map(drop)
    }

    fn tail(&self) -> String {
        let log = fs::read_to_string(self.dir.join("dockerd.log")).unwrap_or_default();
        log.lines().rev().take(5).collect::<Vec<_>>().join("\n")
    }

    async fn restart(&self) -> Result<()> {
        let pid = self.pid().context("our dockerd has no pid")?;
        // Its containerd dies with it, a moment later; the next daemon would take one that nobody has
        // waited for yet for alive.
        let containerd = "exec/containerd/containerd.pid";
        let pids: Vec<i32> = [Some(pid), self.pid_in(containerd)].into_iter().flatten().collect();
        processes::kill_all(&pids);
        for file in ["docker.pid", containerd] {
            fs::remove_file(self.dir.join(file))?;
        }
        self.start().await
    }

    async fn series(&self, target: Target, times: u64, seed: u64) -> Result<Tally> {
        let writers = Writers::start(Arc::new(target), BYTES, seed).await?;
        let (mut tally, mut random) = (Tally::default(), Random(seed));
        for number in 0..times {
            tokio::time::sleep(Duration::from_millis(random.draw() % 3_000)).await;
            let died = Instant::now();
            self.restart().await?;
            writers.rest().await?;
            writers.look(&mut tally, died).await.with_context(|| format!("dockerd {number}"))?;
            writers.go_on();
        }
        ensure!(self.pid().is_some(), "our dockerd is gone");
        writers.finish(tally).await
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Some(pid) = self.pid() {
            processes::signal(pid, Signal::TERM);
            let end = Instant::now() + BACK;
            while processes::is_alive(pid) && Instant::now() < end {
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        // One that could not be started again has left its containers.
        let shims = processes::with_argument_below(&self.dir, &["containerd-shim-runc-v2"]);
        let left: Vec<i32> = shims.iter().flat_map(|shim| processes::children(*shim)).collect();
        processes::kill_all(&[left, shims].concat());
        // Without them the folder can be removed.
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let points = mounts.lines().filter_map(|line| line.split(' ').nth(4));
        let mut below: Vec<&str> =
            points.filter(|point| Path::new(point).starts_with(&self.dir)).collect();
        below.sort_unstable();
        for point in below.into_iter().rev() {
            let _ = Command::new("umount").args(["-l", point]).status();
        }
    }
}
