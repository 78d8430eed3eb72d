//! Which runtime runs the tenants, as configured and as the host allows.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow};
use tokio::time::sleep;
use tracing::{error, info, warn};

use crate::config::{Config, RuntimeKind};
use crate::runtime::docker::{DockerConfig, DockerRuntime};
use crate::runtime::process::{ProcessConfig, ProcessRuntime};
use crate::runtime::readiness::Owner;
use crate::runtime::{Runtime, RuntimeError};
use crate::tenants::previous_run::Life;

/// How long until Docker is tried again where tenants run in it.
const RETRY: Duration = Duration::from_secs(1);

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Plan {
    Docker,
    Process,
    /// For Docker's daemon: its containers may run without it, on the folders of our tenants.
    Wait,
    Refuse,
}

/// Two runtimes must never run on one data root. `last`: what ran the tenants before; `docker`:
/// whether its daemon answers.
fn plan(asked: RuntimeKind, last: Option<&str>, docker: bool) -> Plan {
    match (asked, last) {
        (RuntimeKind::Docker, _) => Plan::Docker,
        (RuntimeKind::Process, Some("docker")) if !docker => Plan::Refuse,
        (RuntimeKind::Process, _) | (RuntimeKind::Auto, Some("process")) => Plan::Process,
        (RuntimeKind::Auto, _) if docker => Plan::Docker,
        (RuntimeKind::Auto, Some("docker")) => Plan::Wait,
        (RuntimeKind::Auto, _) => Plan::Process,
    }
}

/// The runtime; says which it found. `last`: what ran the tenants in the last life. Where that is
/// another one, everything of it is stopped first. Waits for a Docker daemon that does not answer
/// where containers may run.
pub async fn choose(config: &Config, last: Option<&str>) -> anyhow::Result<Arc<dyn Runtime>> {
    let of_interest = config.runtime != RuntimeKind::Process || last == Some("docker");
    loop {
        let docker = if of_interest { docker(config).await } else { Err(anyhow!("not asked")) };
        let (runtime, other): (Arc<dyn Runtime>, Option<Arc<dyn Runtime>>) =
            match (plan(config.runtime, last, docker.is_ok()), docker) {
                (Plan::Docker, docker) => {
                    let other = last == Some("process");
                    (
                        Arc::new(docker?),
                        if other { Some(Arc::new(processes(config)?)) } else { None },
                    )
                }
                (Plan::Process, Err(error)) => {
                    if config.runtime == RuntimeKind::Auto {
                        let error = format!("{error:#}");
                        warn!(error, "no Docker: tenants run as processes");
                    }
                    (Arc::new(process(config)?), None)
                }
                (Plan::Process, Ok(docker)) => {
                    let other = last == Some("docker");
                    (Arc::new(process(config)?), other.then(|| Arc::new(docker) as _))
                }
                (Plan::Wait, docker) => {
                    let error = docker.err().map(|error| format!("{error:#}"));
                    error!(error, "tenants ran in Docker before: waiting for its daemon");
                    sleep(RETRY).await;
                    continue;
                }
                (Plan::Refuse, _) => return Err(refusal(config)),
            };
        if let Some(other) = other {
            stop_all(other.as_ref()).await.context("what ran the tenants before")?;
        }
        let description = runtime.describe();
        info!(kind = description.kind, notes = ?description.notes, "runtime");
        return Ok(runtime);
    }
}

fn refusal(config: &Config) -> anyhow::Error {
    anyhow!(
        "runtime.kind: tenants ran in Docker before and its daemon does not answer, so nobody knows \
         whether their containers still run: start it, or remove {} when none does",
        Life::path(&config.state_dir).display()
    )
}

/// Their next start examines their files, as after any death.
async fn stop_all(other: &dyn Runtime) -> Result<(), RuntimeError> {
    let found = other.list().await?;
    warn!(kind = other.describe().kind, tenants = found.len(), "another runtime now: stopping");
    for one in found {
        other.stop(&one.tenant).await?;
    }
    Ok(())
}

async fn docker(config: &Config) -> anyhow::Result<DockerRuntime> {
    let subnet = &config.docker.subnet;
    let docker = DockerRuntime::connect(DockerConfig {
        data_root: config.data_root.clone(),
        image: config.docker.image.clone(),
        network: config.docker.network.clone(),
        subnet: (!subnet.is_empty()).then(|| subnet.clone()),
        owner: owner(config),
        slots: config.docker.slots,
        pause_image: config.docker.pause_image.clone(),
    });
    docker.await.context("runtime.kind: Docker can't be used; is its daemon running?")
}

fn process(config: &Config) -> anyhow::Result<ProcessRuntime> {
    let sq = config.process.sq.replace("{version}", &config.sq_version);
    if !Path::new(&sq).exists() {
        return Err(anyhow!(
            "process.sq: there is no {sq}; `scripts/setup.sh` installs it, or name another one"
        ));
    }
    Ok(processes(config)?)
}

fn processes(config: &Config) -> Result<ProcessRuntime, RuntimeError> {
    ProcessRuntime::new(ProcessConfig {
        data_root: config.data_root.clone(),
        state_dir: config.state_dir.clone(),
        sq: config.process.sq.clone(),
        owner: owner(config),
    })
}

fn owner(config: &Config) -> Owner {
    Owner { uid: config.uid, gid: config.uid }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tenants_stay_where_they_ran_until_another_runtime_is_named() {
        use RuntimeKind::{Auto, Docker, Process};
        for (asked, last, docker, wanted) in [
            (Auto, None, true, Plan::Docker),
            (Auto, None, false, Plan::Process),
            (Auto, Some("docker"), true, Plan::Docker),
            (Auto, Some("docker"), false, Plan::Wait),
            (Auto, Some("process"), true, Plan::Process),
            (Auto, Some("process"), false, Plan::Process),
            (Docker, Some("process"), true, Plan::Docker),
            (Process, Some("docker"), true, Plan::Process),
            (Process, Some("docker"), false, Plan::Refuse),
            (Process, Some("process"), false, Plan::Process),
        ] {
            assert_eq!(plan(asked, last, docker), wanted, "{asked:?} after {last:?}, {docker}");
        }
    }
}
