//! Connects the configured runtime, and stops what another one left running.
//!
//! Nothing chooses processes unless the configuration names them: they isolate tenants less than
//! containers do, so a missing daemon must not bring them about. Two runtimes must never run on one
//! data root. Containers may keep running while their daemon does not answer, so a daemon that does
//! not answer proves nothing about them.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use tokio::time::sleep;
use tracing::{error, info, warn};

use crate::config::{Config, FirewallMode, RuntimeKind, SeccompProfile};
use crate::runtime::docker::{self, DockerRuntime};
use crate::runtime::process::{self, ProcessRuntime};
use crate::runtime::{Runtime, RuntimeError};

/// Retry interval while tenants may run in Docker and its daemon does not answer.
const RETRY: Duration = Duration::from_secs(1);

/// Decision of [`plan`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Plan {
    UseDocker,
    UseProcesses,
    /// Wait for Docker's daemon: its containers may be running on the tenants' folders.
    WaitForDocker,
    /// Refuse to start for the same reason, because Docker was ruled out by the configuration.
    Refuse,
}

/// Decides without side effects. `previous` is the kind of runtime that ran the tenants last.
fn plan(configured: RuntimeKind, previous: Option<&str>, docker_answers: bool) -> Plan {
    let was_docker = previous == Some(docker::KIND);
    match configured {
        RuntimeKind::Docker if was_docker && !docker_answers => Plan::WaitForDocker,
        RuntimeKind::Docker => Plan::UseDocker,
        RuntimeKind::Process if was_docker && !docker_answers => Plan::Refuse,
        RuntimeKind::Process => Plan::UseProcesses,
    }
}

/// Connects the configured runtime. `previous` is the kind of runtime that the file `run_record`
/// names as the last one; if another is chosen now, all of its instances are stopped first. Waits
/// for Docker's daemon where containers may be running without it.
pub async fn choose(
    config: &Config,
    previous: Option<&str>,
    run_record: &Path,
) -> anyhow::Result<Arc<dyn Runtime>> {
    let was_docker = previous == Some(docker::KIND);
    let docker_matters = config.runtime == RuntimeKind::Docker || was_docker;
    loop {
        let docker = if docker_matters { Some(connect_docker(config).await) } else { None };
        let docker_answers = !matches!(docker, Some(Err(RuntimeError::Unavailable(_))));
        let runtime = match plan(config.runtime, previous, docker_answers) {
            Plan::UseDocker => use_docker(config, previous, docker).await?,
            Plan::UseProcesses => use_processes(config, docker).await?,
            Plan::WaitForDocker => {
                error!("tenants ran in Docker before: waiting for its daemon");
                sleep(RETRY).await;
                continue;
            }
            Plan::Refuse => return Err(refusal(run_record)),
        };
        let description = runtime.describe();
        info!(kind = description.kind, notes = ?description.notes, "runtime connected");
        return Ok(runtime);
    }
}

async fn use_docker(
    config: &Config,
    previous: Option<&str>,
    docker: Option<Result<DockerRuntime, RuntimeError>>,
) -> anyhow::Result<Arc<dyn Runtime>> {
    let Some(docker) = docker else { bail!("Docker was not connected") };
    let docker = docker.map_err(|error| match error {
        RuntimeError::Unavailable(_) => anyhow!(error).context(
            "runtime.kind: Docker can't be used; is its daemon running? `kind = \"process\"` runs \
             tenants as plain processes, for development",
        ),
        other => anyhow!(other),
    })?;
    if previous == Some(process::KIND) {
        stop_all(&process_runtime(config)?).await?;
    }
    Ok(Arc::new(docker))
}

/// `previous` is the Docker runtime if it ran the tenants before.
async fn use_processes(
    config: &Config,
    previous: Option<Result<DockerRuntime, RuntimeError>>,
) -> anyhow::Result<Arc<dyn Runtime>> {
    let processes = checked_process_runtime(config)?.closed_to_other_hosts().await;
    if let Some(docker) = previous {
        stop_all(&docker?).await?;
    }
    Ok(Arc::new(processes))
}

fn refusal(run_record: &Path) -> anyhow::Error {
    anyhow!(
        "runtime.kind: tenants ran in Docker before and its daemon does not answer, so their \
         containers may still be running: start the daemon, or remove {} if there are none",
        run_record.display()
    )
}

/// Stops every instance of a runtime that is no longer used. The next start of each tenant examines
/// its files, as after a crash.
async fn stop_all(runtime: &dyn Runtime) -> anyhow::Result<()> {
    let stopped = async {
        let found = runtime.list().await?;
        let kind = runtime.describe().kind;
        warn!(
            kind,
            tenants = found.len(),
            "runtime changed: stopping the instances of the old one"
        );
        for instance in found {
            runtime.stop(&instance.tenant).await?;
        }
        Ok::<_, RuntimeError>(())
    };
    stopped.await.context("instances of the previous runtime can't be stopped")
}

async fn connect_docker(config: &Config) -> Result<DockerRuntime, RuntimeError> {
    let mut docker = config.docker.clone();
    if config.runtime == RuntimeKind::Process {
        // Its instances are only stopped.
        docker.firewall = FirewallMode::Off;
        docker.network_pool = 0;
        docker.seccomp = SeccompProfile::Docker;
    } else if docker.firewall == FirewallMode::Off {
        warn!("docker.firewall is off: every user of this host reaches tenants, and tenants it");
    }
    let uids = client_uids(config);
    DockerRuntime::connect(&config.data_root, &config.state_dir, config.users, docker, uids).await
}

/// Users of this host who may connect to tenants: root, this process's own and Envoy's.
fn client_uids(config: &Config) -> Vec<u32> {
    let own = rustix::process::geteuid().as_raw();
    let mut uids: Vec<u32> = [0, own].into_iter().chain(config.listen.envoy_uid).collect();
    uids.sort_unstable();
    uids.dedup();
    uids
}

fn checked_process_runtime(config: &Config) -> anyhow::Result<ProcessRuntime> {
    let sq = config.process.sq.replace("{version}", &config.sq_version.to_string());
    if !Path::new(&sq).exists() {
        return Err(anyhow!(
            "process.sq: {sq} does not exist; `scripts/setup.sh` installs it, or name another file"
        ));
    }
    Ok(process_runtime(config)?)
}

fn process_runtime(config: &Config) -> Result<ProcessRuntime, RuntimeError> {
    ProcessRuntime::new(&config.data_root, &config.state_dir, config.users, &config.process)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processes_run_only_if_configured_by_name() {
        use RuntimeKind::{Docker, Process};
        for (configured, previous, docker_answers, expected) in [
            // Never processes, although no daemon answers.
            (Docker, None, false, Plan::UseDocker),
            (Docker, None, true, Plan::UseDocker),
            (Docker, Some("docker"), true, Plan::UseDocker),
            (Docker, Some("docker"), false, Plan::WaitForDocker),
            (Docker, Some("process"), true, Plan::UseDocker),
            (Docker, Some("process"), false, Plan::UseDocker),
            (Process, None, false, Plan::UseProcesses),
            (Process, Some("docker"), true, Plan::UseProcesses),
            (Process, Some("docker"), false, Plan::Refuse),
            (Process, Some("process"), false, Plan::UseProcesses),
        ] {
            let planned = plan(configured, previous, docker_answers);
            assert_eq!(planned, expected, "{configured:?} after {previous:?}, {docker_answers}");
        }
    }
}
