//! The Docker daemon is killed under load and started again. This disturbs every container of the
//! host, so it is done only on request.

use std::fs;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use rustix::process::Signal;

use super::outcomes::ClientOutcomes;
use super::{Drill, DrillSize, PATIENCE, run_under_load, stack};
use harness::host::docker;
use harness::host::processes;
use harness::{Runtime, until};

const LIVE_RESTORE: &str = "--live-restore";
/// The pid file of the containerd that a dockerd starts.
const CONTAINERD_PID: &str = "/var/run/docker/containerd/containerd.pid";
const DOCKERD_PID: &str = "/var/run/docker.pid";

/// Sets the daemon up for the drill, runs the drill, and restores the daemon's command line.
pub(super) async fn run_drill(drill: Drill, size: DrillSize) -> Result<ClientOutcomes> {
    docker::daemon().context("--dockerd: no Docker daemon responds")?;
    let original = command_line()?;
    // A daemon reads its live-restore setting only at its start.
    restart_dockerd(&command_line_for(drill, &original)).await?;
    let outcomes = run_on_docker(drill, size).await;
    restart_dockerd(&original).await?;
    outcomes
}

async fn run_on_docker(drill: Drill, size: DrillSize) -> Result<ClientOutcomes> {
    let stack = stack(drill, size.tenants).runtime(Runtime::Docker).start().await?;
    run_under_load(drill, &stack, size).await
}

/// Ends the daemon with all containers, and starts it with the same command line.
pub(super) async fn restart() -> Result<()> {
    restart_dockerd(&command_line()?).await
}

/// Injects the fault once: ends the daemon and starts it with the same command line.
pub(super) async fn inject(drill: Drill) -> Result<()> {
    restart_dockerd(&command_line_for(drill, &command_line()?)).await
}

fn command_line_for(drill: Drill, line: &[String]) -> Vec<String> {
    let without_option = line.iter().filter(|arg| !arg.starts_with(LIVE_RESTORE));
    let mut line: Vec<String> = without_option.cloned().collect();
    if drill == Drill::DaemonLiveRestore {
        line.push(LIVE_RESTORE.to_owned());
    }
    line
}

async fn restart_dockerd(line: &[String]) -> Result<()> {
    // SIGTERM where containers must end with the daemon: a killed daemon leaves them running.
    let keeps_containers = line.iter().any(|arg| arg.starts_with(LIVE_RESTORE));
    let old_pid = dockerd_pid()?;
    processes::signal(old_pid, if keeps_containers { Signal::KILL } else { Signal::TERM });
    wait_for_exit("dockerd", old_pid).await?;

    // Its containerd ends a moment later. The next daemon would take an unreaped one for alive.
    let containerd = fs::read_to_string(CONTAINERD_PID).ok();
    if let Some(pid) = containerd.and_then(|pid| pid.trim().parse().ok()) {
        wait_for_exit("containerd", pid).await?;
        let _ = fs::remove_file(CONTAINERD_PID);
    }

    // A service manager may already have started the next daemon.
    if dockerd_pid().is_err() {
        let _ = fs::remove_file(DOCKERD_PID);
        let (program, args) = line.split_first().context("dockerd has an empty command line")?;
        Command::new(program)
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .with_context(|| format!("{program} cannot be started again"))?;
    }
    until("dockerd to respond", PATIENCE, || async { docker::daemon().ok() }).await?;
    Ok(())
}

async fn wait_for_exit(name: &str, pid: i32) -> Result<()> {
    until(format!("{name} to end"), PATIENCE, || async {
        (!processes::is_alive(pid)).then_some(())
    })
    .await
}

fn command_line() -> Result<Vec<String>> {
    let line = fs::read(format!("/proc/{}/cmdline", dockerd_pid()?))?;
    let args = line.split(|b| *b == 0).filter(|arg| !arg.is_empty());
    Ok(args.map(|arg| String::from_utf8_lossy(arg).into_owned()).collect())
}

fn dockerd_pid() -> Result<i32> {
    let is_dockerd = |pid: &i32| {
        let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        name.trim() == "dockerd" && processes::is_alive(*pid)
    };
    let entries = fs::read_dir("/proc")?.flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let pids: Vec<i32> = pids.filter(is_dockerd).collect();
    match pids.as_slice() {
        [pid] => Ok(*pid),
        other => bail!("expected one dockerd process, found {}", other.len()),
    }
}
