//! A file, and when it has changed.
//!
//! ```text
//!           stat differs            the same stat again, read, still the same stat
//! seen ─────────────────► settling ───────────────────────────────────────────────► seen (new text)
//!                             └── stat differs again: settling
//! ```
//!
//! A file is taken only when two looks in a row found the same: a writer that goes on is not read
//! half. One that stalls is (`crate::registry::truncation` is for that).
//!
//! Looks are made apart from the runtime's threads: on a network folder whose server is gone, one may
//! take for ever. Then the source is gone, and the look is waited for instead of making another.

use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::task::{JoinError, JoinHandle, spawn_blocking};
use tokio::time::timeout;

use super::Reading;
use crate::registry::scroll::REGISTRY_MAX_BYTES;

/// The registry in a file.
#[derive(Debug)]
pub struct FileSource {
    path: PathBuf,
    patience: Duration,
    settling: Settling,
    /// The look that is under way.
    look: Option<JoinHandle<Look>>,
    /// It has taken so long that the source was said to be gone.
    late: bool,
}

/// What a look found, and what it makes of what was seen before.
type Look = (Settling, std::io::Result<Reading>);

/// Time for a look before the source is said to be gone: the largest registry is read in a fraction of a second from a slow disk.
const PATIENCE: Duration = Duration::from_secs(5);

/// What tells one state of a file from another: editors that rename change the inode, those that
/// write in place the time or the length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Signature {
    device: u64,
    inode: u64,
    len: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

/// Waits until something has stopped changing.
#[derive(Debug, Clone)]
pub struct Settling<S = Signature> {
    seen: Option<S>,
    pending: Option<S>,
}

impl<S> Default for Settling<S> {
    fn default() -> Self {
        Self { seen: None, pending: None }
    }
}

impl Signature {
    /// Of the file, or of what a link leads to.
    pub fn of(path: &Path) -> std::io::Result<Self> {
        let meta = std::fs::metadata(path)?;
        Ok(Self {
            device: meta.dev(),
            inode: meta.ino(),
            len: meta.len(),
            modified: (meta.mtime(), meta.mtime_nsec()),
            changed: (meta.ctime(), meta.ctime_nsec()),
        })
    }
}

impl<S: Copy + PartialEq> Settling<S> {
    /// Whether `now` differs from what was taken, and has been the same twice.
    pub fn settled(&mut self, now: S) -> bool {
        if self.seen == Some(now) {
            self.pending = None;
            return false;
        }
        self.pending.replace(now) == Some(now)
    }

    /// Whether it was another at the last look.
    pub fn changing(&self) -> bool {
        self.pending.is_some()
    }

    /// Notes that `now` has been taken.
    pub fn take(&mut self, now: S) {
        (self.seen, self.pending) = (Some(now), None);
    }

    /// Forgets everything: whatever comes next is new.
    pub fn forget(&mut self) {
        (self.seen, self.pending) = (None, None);
    }
}

impl FileSource {
    /// The registry in `path`, which need not be there yet.
    pub fn new(path: PathBuf) -> Self {
        Self { path, patience: PATIENCE, settling: Settling::default(), look: None, late: false }
    }

    /// Looks once.
    pub async fn poll(&mut self) -> Result<Reading, JoinError> {
        let (path, settling) = (self.path.clone(), self.settling.clone());
        self.poll_by(move || look(&path, settling)).await
    }

    async fn poll_by(
        &mut self,
        look: impl FnOnce() -> Look + Send + 'static,
    ) -> Result<Reading, JoinError> {
        let under_way = self.look.get_or_insert_with(|| spawn_blocking(look));
        let Ok(looked) = timeout(self.patience, under_way).await else {
            self.late = true;
            return Ok(Reading::Gone(format!("{}: no answer in time", self.path.display())));
        };
        self.look = None;
        let (settling, found) = looked?;
        self.settling = settling;
        let late = std::mem::take(&mut self.late);
        Ok(match found {
            Ok(Reading::Same) if late => {
                // Who was told that it is gone must be told what is there.
                self.settling.forget();
                Reading::Same
            }
            Ok(reading) => reading,
            Err(e) => {
                self.settling.forget();
                Reading::Gone(format!("{}: {e}", self.path.display()))
            }
        })
    }
}

fn look(path: &Path, mut settling: Settling) -> Look {
    let found = (|| {
        let before = Signature::of(path)?;
        if !settling.settled(before) {
            return Ok(if settling.changing() { Reading::Unsettled } else { Reading::Same });
        }
        let bytes = read(path)?;
        if Signature::of(path)? != before {
            return Ok(Reading::Unsettled);
        }
        settling.take(before);
        Ok(Reading::New(bytes))
    })();
    (settling, found)
}

/// Reads a registry's file, at most one byte more than a registry may have.
pub fn read(path: &Path) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let limit = u64::try_from(REGISTRY_MAX_BYTES).unwrap_or(u64::MAX);
    std::fs::File::open(path)?.take(limit + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn poll(source: &mut FileSource) -> Reading {
        source.poll().await.unwrap()
    }

    #[test]
    fn a_state_is_taken_when_it_was_the_same_twice() {
        let mut settling = Settling::default();
        assert!(!settling.settled(1));
        assert!(!settling.settled(2), "it changed again");
        assert!(settling.settled(2));
        settling.take(2);
        assert!(!settling.settled(2), "it was taken");
        assert!(!settling.settled(3));
        assert!(!settling.settled(2), "it went back to what was taken");
        assert!(!settling.settled(3), "and is new again");
    }

    #[tokio::test]
    async fn renames_rewrites_and_absence_are_seen() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("registry.phext");
        let mut source = FileSource::new(path.clone());
        assert!(matches!(poll(&mut source).await, Reading::Gone(_)));
        std::fs::write(&path, "one").unwrap();
        assert_eq!(poll(&mut source).await, Reading::Unsettled, "it might still be written");
        assert_eq!(poll(&mut source).await, Reading::New(b"one".to_vec()));
        assert_eq!(poll(&mut source).await, Reading::Same);
        let other = dir.path().join("other");
        std::fs::write(&other, "two").unwrap();
        std::fs::rename(&other, &path).unwrap();
        poll(&mut source).await;
        assert_eq!(poll(&mut source).await, Reading::New(b"two".to_vec()));
        std::fs::remove_file(&path).unwrap();
        assert!(matches!(poll(&mut source).await, Reading::Gone(_)));
    }

    /// A network folder whose server does not answer, and then does.
    #[tokio::test]
    async fn a_folder_that_does_not_answer_is_a_source_that_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("registry.phext");
        std::fs::write(&path, "one").unwrap();
        let mut source = FileSource::new(path.clone());
        poll(&mut source).await;
        assert_eq!(poll(&mut source).await, Reading::New(b"one".to_vec()));
        source.patience = Duration::from_millis(5);
        let (answer, answered) = std::sync::mpsc::channel::<()>();
        let settling = source.settling.clone();
        let hangs = move || {
            let _ = answered.recv();
            look(&path, settling)
        };
        assert!(matches!(source.poll_by(hangs).await.unwrap(), Reading::Gone(_)));
        for _ in 0..3 {
            assert!(matches!(poll(&mut source).await, Reading::Gone(_)), "no look beside it");
        }
        drop(answer);
        source.patience = PATIENCE;
        let mut readings = Vec::new();
        while readings.last() != Some(&Reading::New(b"one".to_vec())) {
            assert!(readings.len() < 10, "{readings:?}");
            readings.push(poll(&mut source).await);
        }
    }
}
