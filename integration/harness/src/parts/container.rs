//! Envoy in a container, started by testcontainers.
//!
//! It has the host's network: from a container on the tenants' bridge it could reach no tenant,
//! because traffic between containers is off there.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use parking_lot::Mutex;
use testcontainers::core::Mount;
use testcontainers::runners::AsyncRunner as _;
use testcontainers::{ContainerAsync, GenericImage, ImageExt as _};

use crate::host::docker;
use crate::parts::process;

/// Image that `scripts/setup.sh images` pulls.
const IMAGE: &str = "envoyproxy/envoy";
/// Tag of the image.
const TAG: &str = "v1.40.0";

/// An Envoy container that can be started again.
pub(crate) struct Container {
    folders: Vec<PathBuf>,
    args: Vec<String>,
    running: Mutex<Option<ContainerAsync<GenericImage>>>,
}

impl Container {
    /// A container that mounts `folders` at the same paths. Nothing runs yet.
    pub(crate) fn new(folders: &[&Path], args: Vec<String>) -> Self {
        let folders = folders.iter().map(|folder| (*folder).to_owned()).collect();
        Self { folders, args, running: Mutex::default() }
    }

    /// Starts it; it need not be ready yet.
    pub(crate) async fn start(&self) -> Result<()> {
        self.kill();
        let mut image = GenericImage::new(IMAGE, TAG)
            .with_cmd(&self.args)
            .with_network("host")
            // Envoy's own image drops to another user unless this says not to, and that user could
            // not read the private keys.
            .with_env_var("ENVOY_UID", "0");
        for folder in &self.folders {
            let folder = folder.display().to_string();
            image = image.with_mount(Mount::bind_mount(folder.clone(), folder));
        }
        let container = image.start().await.context("Envoy's container does not start")?;
        *self.running.lock() = Some(container);
        Ok(())
    }

    /// The container id; `None` while it does not run.
    pub(crate) fn id(&self) -> Option<String> {
        self.running.lock().as_ref().map(|container| container.id().to_owned())
    }

    /// Kills and removes it.
    pub(crate) fn kill(&self) {
        if let Some(id) = self.id() {
            let _ = docker::run(&["rm", "--force", &id]);
        }
        let removed = self.running.lock().take();
        // Its drop would remove the container again, and needs an async runtime.
        std::mem::forget(removed);
    }

    /// The whole log.
    pub(crate) fn log(&self) -> Result<String> {
        let id = self.id().context("Envoy's container does not run")?;
        docker::run_with_stderr(&["logs", &id])
    }

    /// The last lines of the log.
    pub(crate) fn tail(&self) -> String {
        let Some(id) = self.id() else { return "--- envoy: no container".to_owned() };
        let log = self.log().unwrap_or_default();
        format!("--- envoy (container {id})\n{}", process::last_lines(&log))
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        self.kill();
    }
}
