//! The target of the faults: SQ behind the whole gateway, or the same SQ alone, as a process or in
//! a container.

use std::fs;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use tokio::task::spawn_blocking;

use super::model;
use super::sq_container::SqContainer;
use harness::bare_sq::{BareSq, SqResponse};
use harness::host::processes;
use harness::{Client, Stack, until};

/// The phext that is written while SQ dies.
pub(super) const PHEXT: &str = "big";
/// The tenant behind the gateway.
pub const TENANT: &str = "victim";
/// Longest wait until SQ responds again.
const RECOVERY: Duration = Duration::from_secs(30);
/// The promised window, to which the duration of one copy is added.
pub(crate) const WINDOW: Duration = Duration::from_secs(5);
/// Larger than SQ can hold in 64 MiB of memory.
const TOO_LARGE_BYTES: usize = 45_000_000;

/// The way in which SQ dies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    /// SQ receives SIGKILL.
    Kill,
    /// A concurrent request takes all memory.
    OutOfMemory,
}

/// An SQ that writers use and that faults end.
pub(super) enum Target {
    /// SQ behind the gateway, with a client of its tenant.
    Gateway(Arc<Stack>, Box<Client>),
    /// SQ alone as a process. Writers share the lock; a restart holds it exclusively.
    Alone(Box<RwLock<BareSq>>),
    /// SQ alone in a container that Docker restarts.
    Container(Box<SqContainer>),
}

impl Target {
    /// Targets the tenant [`TENANT`] of a gateway.
    pub(super) fn gateway(stack: Arc<Stack>) -> Result<Self> {
        let client = stack.tenant(TENANT)?;
        Ok(Self::Gateway(stack, Box::new(client)))
    }

    /// Targets SQ alone as a process.
    pub(super) fn alone(sq: BareSq) -> Self {
        Self::Alone(Box::new(RwLock::new(sq)))
    }

    /// Targets SQ alone in a container.
    pub(super) fn container(sq: SqContainer) -> Self {
        Self::Container(Box::new(sq))
    }

    fn name(&self) -> &'static str {
        match self {
            Self::Gateway(..) => "gateway",
            Self::Alone(_) | Self::Container(_) => "SQ alone",
        }
    }

    /// Returns the largest permitted age of a lost write: [`WINDOW`] and the longest copy so far.
    pub(super) async fn window(&self) -> Result<Duration> {
        let slowest_copy_s = match self {
            Self::Gateway(stack, _) => {
                stack.orchestrator.metric("sq_orchestrator_vault_slowest_copy_seconds").await?
            }
            Self::Alone(_) | Self::Container(_) => 0.0,
        };
        Ok(WINDOW + Duration::try_from_secs_f64(slowest_copy_s)?)
    }

    /// Returns the path of the phext's file.
    pub(super) fn file(&self) -> PathBuf {
        match self {
            Self::Gateway(stack, _) => {
                stack.orchestrator.data().join(TENANT).join(format!("{PHEXT}.phext"))
            }
            Self::Alone(sq) => sq.read().unwrap_or_else(PoisonError::into_inner).file(PHEXT),
            Self::Container(sq) => sq.file(PHEXT),
        }
    }

    /// Writes a complete file before SQ loads the phext.
    pub(super) fn write_file(&self, bytes: &[u8]) -> Result<()> {
        let file = self.file();
        fs::create_dir_all(file.parent().context("the file has no folder")?)?;
        Ok(fs::write(file, bytes)?)
    }

    /// Updates one scroll. Returns the status of the response.
    pub(super) async fn write(self: &Arc<Self>, scroll: usize, value: u64) -> Result<u16> {
        let path = format!("/api/v2/update?p={PHEXT}&c={}", model::coordinate(scroll));
        self.post(path, model::text(scroll, value).into_bytes()).await
    }

    async fn post(self: &Arc<Self>, path: String, body: Vec<u8>) -> Result<u16> {
        match &**self {
            Self::Gateway(_, client) => Ok(client.post(&path, body).await?.status),
            Self::Alone(_) | Self::Container(_) => {
                let this = self.clone();
                spawn_blocking(move || Ok(this.send("POST", &path, Some(&body))?.status)).await?
            }
        }
    }

    /// Reads the complete phext. Fails while SQ does not respond with it.
    pub(super) async fn read(self: &Arc<Self>) -> Result<Vec<u8>> {
        let path = format!("/api/v2/get?p={PHEXT}");
        let (status, body) = match &**self {
            Self::Gateway(_, client) => {
                let response = client.get(&path).await?;
                (response.status, response.body.to_vec())
            }
            Self::Alone(_) | Self::Container(_) => {
                let this = self.clone();
                let response = spawn_blocking(move || this.send("GET", &path, None)).await??;
                (response.status, response.body)
            }
        };
        ensure!(status == 200, "{status} {}", String::from_utf8_lossy(&body));
        Ok(body)
    }

    /// Sends a request to SQ without the gateway. Blocks the thread.
    fn send(&self, method: &str, path: &str, body: Option<&[u8]>) -> Result<SqResponse> {
        match self {
            Self::Alone(sq) => {
                sq.read().unwrap_or_else(PoisonError::into_inner).send(method, path, body)
            }
            Self::Container(sq) => sq.send(method, path, body),
            Self::Gateway(..) => bail!("requests to the gateway need its HTTPS client"),
        }
    }

    /// Ends SQ. A kill is immediate; out of memory, SQ dies during the request.
    pub(super) async fn inject(self: &Arc<Self>, fault: Fault) -> Result<()> {
        match fault {
            Fault::Kill => self.kill(),
            Fault::OutOfMemory => {
                let path = "/api/v2/update?p=neighbour&c=1.1.1/1.1.1/1.1.1".to_owned();
                // The response does not matter: the caller checks for the death.
                let _ = self.post(path, vec![b'x'; TOO_LARGE_BYTES]).await;
                Ok(())
            }
        }
    }

    fn kill(&self) -> Result<()> {
        match self {
            // An SQ that is just being started is left alone.
            Self::Gateway(stack, _) => stack.kill_sq(TENANT),
            Self::Alone(sq) => {
                processes::kill(sq.read().unwrap_or_else(PoisonError::into_inner).pid());
                Ok(())
            }
            Self::Container(_) => bail!("a container ends only with its Docker daemon"),
        }
    }

    /// Waits until SQ responds with the phext, intact or not. Restarts SQ if it runs as a process.
    pub(super) async fn wait_for_recovery(self: &Arc<Self>) -> Result<Vec<u8>> {
        if let Self::Alone(_) = **self {
            let this = self.clone();
            let restart = move || match &*this {
                Self::Alone(sq) => sq.write().unwrap_or_else(PoisonError::into_inner).restart(),
                Self::Gateway(..) | Self::Container(_) => Ok(()),
            };
            spawn_blocking(restart).await??;
        }
        until(format!("{} to respond", self.name()), RECOVERY, || async { self.read().await.ok() })
            .await
    }

    /// Returns the number of truncated files that the gateway replaced with a good copy.
    pub(super) async fn restored_files(&self) -> Result<u64> {
        match self {
            Self::Gateway(stack, _) => Ok(stack.orchestrator.tenant_status(TENANT).await?.restored),
            Self::Alone(_) | Self::Container(_) => Ok(0),
        }
    }
}
