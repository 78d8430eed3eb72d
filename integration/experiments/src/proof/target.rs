//! What is struck: SQ behind the whole gateway, and the same SQ alone, as a process or in a container.

use std::fs;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tokio::task::spawn_blocking;

use super::contained::Contained;
use super::model;
use harness::bare_sq::{BareSq, Response};
use harness::host::docker;
use harness::host::processes;
use harness::{Client, Runtime, Stack, until};

/// The phext that is written while SQ dies.
pub const PHEXT: &str = "big";
/// The tenant, behind the gateway.
pub const TENANT: &str = "victim";
/// Longest wait until SQ answers again.
const BACK: Duration = Duration::from_secs(30);
/// Within it an acknowledged write may have no copy, and the time of one copy more.
pub const WINDOW: Duration = Duration::from_secs(5);
/// More than 64 MiB of memory can bear.
const TOO_LARGE_BYTES: usize = 45_000_000;

/// How SQ dies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Blow {
    /// SIGKILL.
    Kill,
    /// Another request takes all memory.
    Memory,
}

/// One of them.
pub enum Target {
    /// The gateway, with a client of the tenant.
    Gateway(Arc<Stack>, Box<Client>),
    /// SQ alone. Writers share it; whoever restarts it has it alone.
    Alone(Box<RwLock<BareSq>>),
    /// SQ alone in a container that Docker starts again.
    Contained(Box<Contained>),
}

impl Target {
    /// The gateway; the tenant is [`TENANT`].
    pub fn gateway(stack: Arc<Stack>) -> Result<Self> {
        let client = stack.tenant(TENANT)?;
        Ok(Self::Gateway(stack, Box::new(client)))
    }

    /// SQ alone.
    pub fn alone(sq: BareSq) -> Self {
        Self::Alone(Box::new(RwLock::new(sq)))
    }

    /// SQ alone in a container.
    pub fn contained(sq: Contained) -> Self {
        Self::Contained(Box::new(sq))
    }

    /// What the table calls it.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Gateway(..) => "gateway",
            Self::Alone(_) | Self::Contained(_) => "SQ alone",
        }
    }

    /// How old an acknowledged write may be that is lost: [`WINDOW`] and the longest copy so far.
    pub async fn window(&self) -> Result<Duration> {
        let slowest = match self {
            Self::Gateway(stack, _) => {
                stack.orchestrator.metric("sq_orchestrator_vault_slowest_copy_seconds").await?
            }
            Self::Alone(_) | Self::Contained(_) => 0.0,
        };
        Ok(WINDOW + Duration::try_from_secs_f64(slowest)?)
    }

    /// The phext's file.
    pub fn file(&self) -> PathBuf {
        match self {
            Self::Gateway(stack, _) => {
                stack.orchestrator.data().join(TENANT).join(format!("{PHEXT}.phext"))
            }
            Self::Alone(sq) => sq.read().unwrap_or_else(PoisonError::into_inner).file(PHEXT),
            Self::Contained(sq) => sq.file(PHEXT),
        }
    }

    /// Puts a whole file in place, before SQ has seen the phext.
    pub fn lay(&self, bytes: &[u8]) -> Result<()> {
        let file = self.file();
        fs::create_dir_all(file.parent().context("no folder")?)?;
        Ok(fs::write(file, bytes)?)
    }

    /// One update; the status.
    pub async fn write(self: &Arc<Self>, n: usize, value: u64) -> Result<u16> {
        let path = format!("/api/v2/update?p={PHEXT}&c={}", model::coordinate(n));
        self.post(path, model::text(n, value).into_bytes()).await
    }

    async fn post(self: &Arc<Self>, path: String, body: Vec<u8>) -> Result<u16> {
        match &**self {
            Self::Gateway(_, client) => Ok(client.post(&path, body).await?.status),
            Self::Alone(_) | Self::Contained(_) => {
                let this = self.clone();
                spawn_blocking(move || Ok(this.send("POST", &path, Some(&body))?.status)).await?
            }
        }
    }

    /// The whole phext; an error as long as SQ does not answer with it.
    pub async fn read(self: &Arc<Self>) -> Result<Vec<u8>> {
        let path = format!("/api/v2/get?p={PHEXT}");
        let (status, body) = match &**self {
            Self::Gateway(_, client) => {
                let answer = client.get(&path).await?;
                (answer.status, answer.body.to_vec())
            }
            Self::Alone(_) | Self::Contained(_) => {
                let this = self.clone();
                let answer = spawn_blocking(move || this.send("GET", &path, None)).await??;
                (answer.status, answer.body)
            }
        };
        ensure!(status == 200, "{status} {}", String::from_utf8_lossy(&body));
        Ok(body)
    }

    fn send(&self, method: &str, path: &str, body: Option<&[u8]>) -> Result<Response> {
        match self {
            Self::Alone(sq) => {
                sq.read().unwrap_or_else(PoisonError::into_inner).send(method, path, body)
            }
            Self::Contained(sq) => sq.send(method, path, body),
            Self::Gateway(..) => anyhow::bail!("the gateway is asked over HTTPS"),
        }
    }

    /// Has SQ die. Out of memory it dies within the request that is sent.
    pub async fn strike(self: &Arc<Self>, blow: Blow) -> Result<()> {
        match blow {
            Blow::Kill => match &**self {
                Self::Gateway(stack, _) => kill_tenant(stack),
                Self::Alone(sq) => {
                    let pid = sq.read().unwrap_or_else(PoisonError::into_inner).pid();
                    processes::kill(pid);
                    Ok(())
                }
                Self::Contained(_) => anyhow::bail!("it dies with its daemon"),
            },
            Blow::Memory => {
                let path = "/api/v2/update?p=neighbour&c=1.1.1/1.1.1/1.1.1".to_owned();
                // Whatever is answered: the death is what counts, and the caller looks for it.
                let _ = self.post(path, vec![b'x'; TOO_LARGE_BYTES]).await;
                Ok(())
            }
        }
    }

    /// Waits until SQ answers again with the phext, whatever is in it.
    pub async fn back(self: &Arc<Self>) -> Result<Vec<u8>> {
        if let Self::Alone(_) = **self {
            let this = self.clone();
            let restart = move || match &*this {
                Self::Alone(sq) => sq.write().unwrap_or_else(PoisonError::into_inner).restart(),
                Self::Gateway(..) | Self::Contained(_) => Ok(()),
            };
            spawn_blocking(restart).await??;
        }
        let what = format!("{} to answer", self.name());
        until(what, BACK, || async { self.read().await.ok() }).await
    }

    /// Deaths that the gateway has seen.
    pub async fn deaths(&self) -> Result<u64> {
        match self {
            Self::Gateway(stack, _) => {
                let tenant = stack.orchestrator.tenant_status(TENANT).await?;
                Ok(tenant.deaths)
            }
            Self::Alone(_) | Self::Contained(_) => Ok(0),
        }
    }

    /// Cut files that the gateway has put back.
    pub async fn restored(&self) -> Result<u64> {
        match self {
            Self::Gateway(stack, _) => {
                let tenant = stack.orchestrator.tenant_status(TENANT).await?;
                Ok(tenant.restored)
            }
            Self::Alone(_) | Self::Contained(_) => Ok(0),
        }
    }
}

/// SIGKILL for the tenant's SQ; one that is just being started again is left alone.
fn kill_tenant(stack: &Stack) -> Result<()> {
    match stack.runtime {
        Runtime::Process => {
            let folder = stack.orchestrator.data().join(TENANT);
            processes::with_argument(&folder, &["sq"]).into_iter().for_each(processes::kill);
        }
        Runtime::Docker => {
            for id in docker::containers(&stack.tenant_labels(TENANT))? {
                let _ = docker::run(&["kill", &id]);
            }
        }
    }
    Ok(())
}
