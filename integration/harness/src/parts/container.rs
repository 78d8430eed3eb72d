//! Envoy in a container with the host's network, by testcontainers.
//!
//! Host networking, because a container on the tenants' bridge reaches no tenant: traffic between
//! containers is off there.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result};
use testcontainers::core::Mount;
use testcontainers::runners::AsyncRunner as _;
use testcontainers::{ContainerAsync, GenericImage, ImageExt as _};

use crate::host::docker;
use crate::parts::process;

/// Name and tag of the image that `scripts/setup.sh images` pulls or makes from the wheel.
const IMAGE: (&str, &str) = ("envoyproxy/envoy", "v1.40.0");

/// An Envoy container that can be started again.
pub(crate) struct Container {
    dir: PathBuf,
    args: Vec<String>,
    running: Mutex<Option<ContainerAsync<GenericImage>>>,
}

impl Container {
    /// Nothing runs yet. `dir` is seen in the container under its own name.
    pub(crate) fn new(dir: &Path, args: Vec<String>) -> Self {
        Self { dir: dir.to_owned(), args, running: Mutex::default() }
    }

    /// Starts it; it need not be ready yet.
    pub(crate) async fn start(&self) -> Result<()> {
        self.kill();
        let dir = self.dir.display().to_string();
        let container = GenericImage::new(IMAGE.0, IMAGE.1)
            .with_cmd(&self.args)
            .with_network("host")
            // The image of the wheel has no entry point and runs as root. Envoy's own image drops
            // to another user unless it is asked not to, and could not read the private keys.
            .with_env_var("ENVOY_UID", "0")
            .with_mount(Mount::bind_mount(dir.clone(), dir))
            .start()
            .await
            .context("Envoy's container does not start")?;
        *self.running.lock().unwrap_or_else(PoisonError::into_inner) = Some(container);
        Ok(())
    }

    /// Its id while it runs.
    pub(crate) fn id(&self) -> Option<String> {
        let running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        running.as_ref().map(|container| container.id().to_owned())
    }

    /// Removes it.
    pub(crate) fn kill(&self) {
        if let Some(id) = self.id() {
            let _ = docker::run(&["rm", "--force", &id]);
        }
        let gone = self.running.lock().unwrap_or_else(PoisonError::into_inner).take();
        // Its own end would remove it once more, and wants a runtime for that.
        std::mem::forget(gone);
    }

    /// All of its log.
    pub(crate) fn log(&self) -> Result<String> {
        docker::run_with_stderr(&["logs", &self.id().context("Envoy's container does not run")?])
    }

    /// The end of its log.
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
