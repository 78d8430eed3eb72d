//! Docker's daemon is killed under load and started again. This disturbs every container of the
//! host, so it is done only when asked for.

use std::fs;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use rustix::process::Signal;

use super::tally::Tally;
use super::{Drill, PATIENCE, Scale, stack, under_load};
use harness::host::docker;
use harness::host::processes;
use harness::{Runtime, until};

const LIVE_RESTORE: &str = "--live-restore";

/// Sets the daemon up for the drill, runs it, and leaves the daemon as it was.
pub(super) async fn restarts(drill: Drill, scale: Scale) -> Result<Tally> {
    docker::daemon().context("--dockerd: no Docker daemon answers")?;
    let before = command_line()?;
    // With what it is to be killed with: a daemon learns of live-restore at its start.
    start_again(&wanted(drill, &before)).await?;
    let tally = async {
        let stack = stack(drill, scale.tenants).runtime(Runtime::Docker).start().await?;
        under_load(drill, &stack, scale).await
    }
    .await;
    start_again(&before).await?;
    tally
}

/// One blow: killed without notice, and back with the same command line.
pub(super) async fn restart(drill: Drill) -> Result<()> {
    start_again(&wanted(drill, &command_line()?)).await
}

fn wanted(drill: Drill, line: &[String]) -> Vec<String> {
    let mut line: Vec<String> =
        line.iter().filter(|arg| !arg.starts_with(LIVE_RESTORE)).cloned().collect();
    if drill == Drill::DaemonLiveRestore {
        line.push(LIVE_RESTORE.to_owned());
    }
    line
}

/// Of the containerd that a dockerd starts by itself.
const CONTAINERD_PID: &str = "/var/run/docker/containerd/containerd.pid";

async fn start_again(line: &[String]) -> Result<()> {
    let ending = pid()?;
    // In order where containers are to end with it: a killed daemon leaves them to its next life.
    let kept = line.iter().any(|arg| arg.starts_with(LIVE_RESTORE));
    processes::signal(ending, if kept { Signal::KILL } else { Signal::TERM });
    until("dockerd to end", PATIENCE, || async { (!processes::is_alive(ending)).then_some(()) })
        .await?;
    // Its containerd dies a moment later; the next daemon would take one that nobody has waited for
    // yet for alive.
    let containerd =
        fs::read_to_string(CONTAINERD_PID).ok().and_then(|pid| pid.trim().parse().ok());
    if let Some(pid) = containerd {
        until("containerd to end", PATIENCE, || async {
            (!processes::is_alive(pid)).then_some(())
        })
        .await?;
        let _ = fs::remove_file(CONTAINERD_PID);
    }
    // A service manager may be quicker than we are.
    if pid().is_err() {
        let _ = fs::remove_file("/var/run/docker.pid");
        let (program, args) = line.split_first().context("dockerd has no command line")?;
        Command::new(program)
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .with_context(|| format!("{program} does not start again"))?;
    }
    until("dockerd to answer", PATIENCE, || async { docker::daemon().ok() }).await?;
    Ok(())
}

fn command_line() -> Result<Vec<String>> {
    let line = fs::read(format!("/proc/{}/cmdline", pid()?))?;
    let args = line.split(|b| *b == 0).filter(|arg| !arg.is_empty());
    Ok(args.map(|arg| String::from_utf8_lossy(arg).into_owned()).collect())
}

fn pid() -> Result<i32> {
    let named = |pid: &i32| {
        let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        name.trim() == "dockerd" && processes::is_alive(*pid)
    };
    let all = fs::read_dir("/proc")?.flatten();
    let pids: Vec<i32> =
        all.filter_map(|e| e.file_name().to_str()?.parse().ok()).filter(named).collect();
    match pids.as_slice() {
        [pid] => Ok(*pid),
        other => bail!("{} processes are called dockerd; one was expected", other.len()),
    }
}
