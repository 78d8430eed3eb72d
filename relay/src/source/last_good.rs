//! The last good registry, kept in a file: what is answered after a restart while the source says
//! nothing good, and what the commands compare the registry with before they change it.
//!
//! It has digests where the registry may have keys, is readable by its owner only, and is replaced
//! as a whole. To keep it is tried once per registry: what fails is logged, shown in the metrics, and
//! no reason to answer less.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::sync::watch;
use tokio::task::{JoinError, spawn_blocking};
use tracing::warn;

use crate::registry::Registry;
use crate::registry::redact::redact;
use crate::serve::metrics::Metrics;
use crate::source::file::read;

/// The text to keep, as it was read; `None`: nothing yet.
pub type Kept = Option<Arc<Vec<u8>>>;

/// Reads what is kept; `None` when there is nothing.
pub fn load(path: &Path) -> Result<Option<Registry>, String> {
    let bytes = match read(path) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(format!("{}: {e}", path.display())),
    };
    match Registry::read(&bytes) {
        Ok(registry) => Ok(Some(registry)),
        Err(faults) => Err(format!("{}: {faults}", path.display())),
    }
}

/// Default place of the last good copy: beside `registry`, with `.last-good` appended to its name.
pub fn default_path(registry: &Path) -> PathBuf {
    let mut name = registry.as_os_str().to_owned();
    name.push(".last-good");
    name.into()
}

/// Keeps each registry that is taken over, apart from what answers and follows: the disk may be slow.
#[derive(Debug)]
pub struct Keeper {
    path: PathBuf,
    texts: watch::Receiver<Kept>,
    metrics: Arc<Metrics>,
}

impl Keeper {
    /// Keeps `texts` in `path`.
    pub fn new(path: PathBuf, texts: watch::Receiver<Kept>, metrics: Arc<Metrics>) -> Self {
        Self { path, texts, metrics }
    }

    /// Keeps until dropped.
    pub async fn run(mut self) -> Result<(), JoinError> {
        while self.texts.changed().await.is_ok() {
            let Some(text) = self.texts.borrow_and_update().clone() else { continue };
            let path = self.path.clone();
            let kept = spawn_blocking(move || keep(&path, &text)).await?;
            self.metrics.kept.set(i64::from(kept.is_ok()));
            if let Err(e) = kept {
                let path = self.path.display();
                warn!("the registry can't be kept in {path} for the next start: {e}");
            }
        }
        // The feed is gone and with it the process, soon.
        std::future::pending().await
    }
}

fn keep(path: &Path, text: &[u8]) -> std::io::Result<()> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".new");
    let beside = Path::new(&beside);
    // Left by a relay that was killed, or by somebody else with other rights.
    match std::fs::remove_file(beside) {
        Err(e) if e.kind() != ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(beside)?;
    file.write_all(redact(&String::from_utf8_lossy(text)).as_bytes())?;
    file.sync_all()?;
    std::fs::rename(beside, path)?;
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(folder)?.sync_all()
}
