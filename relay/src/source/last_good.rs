//! The last good copy of the registry.
//!
//! The relay answers from it after a restart while the source has no good registry, and the commands
//! compare the registry with it before a change. It has digests where the registry may have plain
//! keys, mode 0600, and is replaced atomically. Writing is tried once per registry; a failure is
//! logged and shown in the metrics, and verdicts are served regardless.

use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::sync::watch;
use tokio::task::{JoinError, spawn_blocking};
use tracing::warn;

use super::file::read_bounded;
use crate::atomic_file::{self, folder_of};
use crate::registry::Registry;
use crate::registry::redact::redact;
use crate::serve::metrics::Metrics;

/// The registry's bytes as they were read; `None` before the first good registry.
pub(crate) type GoodText = Option<Arc<Vec<u8>>>;

/// Default path of the copy: beside `registry`, with `.last-good` appended to its name.
pub(crate) fn default_path(registry: &Path) -> PathBuf {
    let mut path = registry.as_os_str().to_owned();
    path.push(".last-good");
    path.into()
}

/// Reads the copy; `None` if there is none.
pub(crate) fn load(path: &Path) -> Result<Option<Registry>, String> {
    let bytes = match read_bounded(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(format!("{}: {error}", path.display())),
    };
    let registry = Registry::parse(&bytes);
    registry.map(Some).map_err(|faults| format!("{}: {faults}", path.display()))
}

/// Writes the copy whenever a registry is accepted. It is a separate task, because the disk may be
/// slow.
#[derive(Debug)]
pub(crate) struct LastGoodWriter {
    path: PathBuf,
    texts: watch::Receiver<GoodText>,
    metrics: Arc<Metrics>,
}

impl LastGoodWriter {
    pub(crate) fn new(
        path: PathBuf,
        texts: watch::Receiver<GoodText>,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self { path, texts, metrics }
    }

    /// Writes until dropped.
    pub(crate) async fn run(mut self) -> Result<(), JoinError> {
        while self.texts.changed().await.is_ok() {
            let Some(text) = self.texts.borrow_and_update().clone() else { continue };
            let path = self.path.clone();
            let written = spawn_blocking(move || write(&path, &text)).await?;
            self.metrics.last_good_written.set(i64::from(written.is_ok()));
            if let Err(error) = written {
                let path = self.path.display();
                warn!(%error, %path, "last good copy can't be written: a restart may need it");
            }
        }
        // The sender is gone, so the process is about to end.
        std::future::pending().await
    }
}

fn write(path: &Path, text: &[u8]) -> io::Result<()> {
    let redacted = redact(&String::from_utf8_lossy(text));
    let folder = folder_of(path);
    let prefix = temporary_prefix(path);
    // Only this relay writes this copy.
    atomic_file::remove_leftovers(folder, &prefix);
    let staged = atomic_file::stage(folder, &prefix, redacted.as_bytes())?;
    atomic_file::replace(staged, path)
}

fn temporary_prefix(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    format!("{name}.new-")
}
