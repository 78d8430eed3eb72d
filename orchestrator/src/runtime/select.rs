//! Chooses the runtime: by configuration, by what ran the tenants before, and by whether Docker's
//! daemon answers.
//!
//! Two runtimes must never run on one data root. Containers may keep running while their daemon does
//! not answer, so a daemon that does not answer proves nothing about them.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow};
use tokio::time::sleep;
use tracing::{error, info, warn};

use crate::config::{Config, RuntimeKind};
use crate::runtime::docker::{self, DockerRuntime};
use crate::runtime::folder::Owner;
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
    let was_process = previous == Some(process::KIND);
    match configured {
        RuntimeKind::Docker => Plan::UseDocker,
        RuntimeKind::Process if was_docker && !docker_answers => Plan::Refuse,
        RuntimeKind::Auto if docker_answers && !was_process => Plan::UseDocker,
        RuntimeKind::Auto if was_docker && !docker_answers => Plan::WaitForDocker,
        RuntimeKind::Process | RuntimeKind::Auto => Plan::UseProcesses,
    }
}

/// Chooses and connects the runtime. `previous` is the kind of runtime that the file `run_record`
/// names as the last one; if another is chosen now, all of its instances are stopped first. Waits
/// for Docker's daemon where containers may be running without it.
pub async fn choose(
    config: &Config,
    previous: Option<&str>,
    run_record: &Path,
) -> anyhow::Result<Arc<dyn Runtime>> {
    let docker_matters = config.runtime != RuntimeKind::Process || previous == Some(docker::KIND);
    loop {
        let docker = if docker_matters {
            connect_docker(config).await
        } else {
            Err(anyhow!("Docker is not needed"))
        };
        let runtime: Arc<dyn Runtime> = match plan(config.runtime, previous, docker.is_ok()) {
            Plan::UseDocker => {
                let docker = docker?;
                if previous == Some(process::KIND) {
                    stop_all(&process_runtime(config)?).await?;
                }
                Arc::new(docker)
            }
            Plan::UseProcesses => {
                let processes = checked_process_runtime(config)?;
                match docker {
                    Ok(docker) if previous == Some(docker::KIND) => stop_all(&docker).await?,
                    Err(error) if config.runtime == RuntimeKind::Auto => {
                        let error = format!("{error:#}");
                        warn!(error, "Docker is not available: tenants run as processes");
                    }
                    _ => {}
                }
                Arc::new(processes)
            }
            Plan::WaitForDocker => {
                let error = docker.err().map(|error| format!("{error:#}"));
                error!(error, "tenants ran in Docker before: waiting for its daemon");
                sleep(RETRY).await;
                continue;
            }
            Plan::Refuse => return Err(refusal(run_record)),
        };
        let description = runtime.describe();
        info!(kind = description.kind, notes = ?description.notes, "runtime chosen");
        return Ok(runtime);
    }
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

async fn connect_docker(config: &Config) -> anyhow::Result<DockerRuntime> {
    DockerRuntime::connect(
        &config.data_root,
        &config.state_dir,
        owner(config),
        config.docker.clone(),
    )
    .await
    .context("runtime.kind: Docker can't be used; is its daemon running?")
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
    ProcessRuntime::new(&config.data_root, &config.state_dir, owner(config), &config.process)
}

fn owner(config: &Config) -> Owner {
    Owner { uid: config.uid, gid: config.uid }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tenants_stay_until_another_runtime_is_configured() {
        use RuntimeKind::{Auto, Docker, Process};
        for (configured, previous, docker_answers, expected) in [
            (Auto, None, true, Plan::UseDocker),
            (Auto, None, false, Plan::UseProcesses),
            (Auto, Some("docker"), true, Plan::UseDocker),
            (Auto, Some("docker"), false, Plan::WaitForDocker),
            (Auto, Some("process"), true, Plan::UseProcesses),
            (Auto, Some("process"), false, Plan::UseProcesses),
            (Docker, Some("process"), true, Plan::UseDocker),
            (Process, Some("docker"), true, Plan::UseProcesses),
            (Process, Some("docker"), false, Plan::Refuse),
            (Process, Some("process"), false, Plan::UseProcesses),
        ] {
            let planned = plan(configured, previous, docker_answers);
            assert_eq!(planned, expected, "{configured:?} after {previous:?}, {docker_answers}");
        }
    }
}
