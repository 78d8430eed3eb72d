//! The registry in a file.
//!
//! A new version is read only when two polls in a row have found it, so that a writer at work is not
//! read half-way. A stalled writer still can be; `registry/truncation.rs` guards against that.
//!
//! Polls run on a blocking thread: on a network folder whose server is gone, one may never return. The
//! source then counts as unreadable, and the pending poll is awaited instead of starting another.

use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::task::{JoinError, JoinHandle, spawn_blocking};
use tokio::time::timeout;

use super::Reading;
use super::settling::{FileVersion, Settling};
use crate::registry::scroll::REGISTRY_MAX_BYTES;

/// A file that is polled for changes.
#[derive(Debug)]
pub(crate) struct FileSource {
    path: PathBuf,
    timeout: Duration,
    settling: Settling,
    /// The poll that is running on a blocking thread.
    pending: Option<JoinHandle<PollResult>>,
    /// True if the pending poll has exceeded its time-out and was reported as unreadable.
    timed_out: bool,
}

/// The outcome of a poll with the updated [`Settling`], which the blocking thread works on.
type PollResult = (Settling, io::Result<Reading>);

/// Time-out of a poll. The largest registry is read from a slow disk in a fraction of a second.
const POLL_TIMEOUT: Duration = Duration::from_secs(5);

impl FileSource {
    /// Creates a source for `path`, which need not exist yet.
    pub(crate) fn new(path: PathBuf) -> Self {
        Self {
            path,
            timeout: POLL_TIMEOUT,
            settling: Settling::default(),
            pending: None,
            timed_out: false,
        }
    }

    /// Polls the source once.
    pub(crate) async fn poll(&mut self) -> Result<Reading, JoinError> {
        let path = self.path.clone();
        let settling = self.settling.clone();
        self.poll_with(move || poll_file(&path, settling)).await
    }

    async fn poll_with(
        &mut self,
        poll: impl FnOnce() -> PollResult + Send + 'static,
    ) -> Result<Reading, JoinError> {
        let pending = self.pending.get_or_insert_with(|| spawn_blocking(poll));
        let Ok(finished) = timeout(self.timeout, pending).await else {
            self.timed_out = true;
            let path = self.path.display();
            return Ok(Reading::Unreadable(format!("{path}: no response in {:?}", self.timeout)));
        };
        self.pending = None;
        let (settling, result) = finished?;
        self.settling = settling;
        let timed_out = std::mem::take(&mut self.timed_out);
        match result {
            Ok(reading) => {
                if timed_out && reading == Reading::Unchanged {
                    // The source was reported as unreadable: deliver the text again.
                    self.settling.reset();
                }
                Ok(reading)
            }
            Err(error) => {
                self.settling.reset();
                Ok(Reading::Unreadable(format!("{}: {error}", self.path.display())))
            }
        }
    }
}

fn poll_file(path: &Path, mut settling: Settling) -> PollResult {
    let result = read_if_settled(path, &mut settling);
    (settling, result)
}

fn read_if_settled(path: &Path, settling: &mut Settling) -> io::Result<Reading> {
    let before = FileVersion::of(path)?;
    if !settling.observe(before) {
        let is_changing = settling.is_changing();
        return Ok(if is_changing { Reading::Changing } else { Reading::Unchanged });
    }
    let bytes = read_bounded(path)?;
    // The file may have been changed while it was read.
    if FileVersion::of(path)? != before {
        return Ok(Reading::Changing);
    }
    settling.take(before);
    Ok(Reading::New(bytes))
}

/// Reads a registry's file: at most one byte more than a registry may have, for its parser to refuse.
pub(crate) fn read_bounded(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let max = u64::try_from(REGISTRY_MAX_BYTES).unwrap_or(u64::MAX);
    std::fs::File::open(path)?.take(max + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn poll(source: &mut FileSource) -> Reading {
        source.poll().await.unwrap()
    }

    #[tokio::test]
    async fn renames_rewrites_and_absence_are_seen() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("registry.phext");
        let mut source = FileSource::new(path.clone());
        assert!(matches!(poll(&mut source).await, Reading::Unreadable(_)));
        std::fs::write(&path, "one").unwrap();
        assert_eq!(poll(&mut source).await, Reading::Changing, "it might still be written");
        assert_eq!(poll(&mut source).await, Reading::New(b"one".to_vec()));
        assert_eq!(poll(&mut source).await, Reading::Unchanged);
        let other = dir.path().join("other");
        std::fs::write(&other, "two").unwrap();
        std::fs::rename(&other, &path).unwrap();
        poll(&mut source).await;
        assert_eq!(poll(&mut source).await, Reading::New(b"two".to_vec()));
        std::fs::remove_file(&path).unwrap();
        assert!(matches!(poll(&mut source).await, Reading::Unreadable(_)));
    }

    /// Simulates a network folder whose server stops responding and comes back.
    #[tokio::test]
    async fn a_hanging_folder_makes_the_source_unreadable() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("registry.phext");
        std::fs::write(&path, "one").unwrap();
        let mut source = FileSource::new(path.clone());
        poll(&mut source).await;
        assert_eq!(poll(&mut source).await, Reading::New(b"one".to_vec()));
        source.timeout = Duration::from_millis(5);
        let (respond, response) = std::sync::mpsc::channel::<()>();
        let settling = source.settling.clone();
        let hanging_poll = move || {
            let _ = response.recv();
            poll_file(&path, settling)
        };
        assert!(matches!(source.poll_with(hanging_poll).await.unwrap(), Reading::Unreadable(_)));
        for _ in 0..3 {
            assert!(matches!(poll(&mut source).await, Reading::Unreadable(_)), "no second poll");
        }
        drop(respond);
        source.timeout = POLL_TIMEOUT;
        let mut readings = Vec::new();
        while readings.last() != Some(&Reading::New(b"one".to_vec())) {
            assert!(readings.len() < 10, "{readings:?}");
            readings.push(poll(&mut source).await);
        }
    }
}
