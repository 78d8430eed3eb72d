//! The registry in a file.
//!
//! A new version is read only when two polls in a row have found it, so that a writer at work is not
//! read half-way. A stalled writer still can be; `registry/truncation.rs` guards against that.
//!
//! Polls run on a blocking thread: on a network folder whose server is gone, one may never return. The
//! source then counts as unreadable, and the pending poll is awaited. After [`ABANDONED_AFTER`] another
//! one is started, because the folder may have been mounted again.

use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::OFlags;
use tokio::task::{JoinError, JoinHandle, spawn_blocking};
use tokio::time::timeout;

use super::settling::{FileVersion, Settling};
use super::{Reading, Text, written};
use crate::registry::scroll::REGISTRY_MAX_BYTES;

/// A file that is polled for changes.
#[derive(Debug)]
pub(crate) struct FileSource {
    path: PathBuf,
    timeout: Duration,
    abandoned_after: Duration,
    settling: Settling,
    /// The poll that is running on a blocking thread.
    pending: Option<Pending>,
    /// Earlier polls that have not returned.
    abandoned: Vec<JoinHandle<PollResult>>,
    /// True if the pending poll has exceeded its time-out and was reported as unreadable.
    timed_out: bool,
}

#[derive(Debug)]
struct Pending {
    poll: JoinHandle<PollResult>,
    since: Instant,
}

/// The outcome of a poll with the updated [`Settling`], which the blocking thread works on.
type PollResult = (Settling, io::Result<Reading>);

/// Time-out of a poll. The largest registry is read from a slow disk in a fraction of a second.
const POLL_TIMEOUT: Duration = Duration::from_secs(5);

/// Time after which a poll that does not return is abandoned for another one.
const ABANDONED_AFTER: Duration = Duration::from_mins(1);
/// Polls that may hang at once, each on a separate thread.
const ABANDONED_MAX: usize = 8;

impl FileSource {
    /// Creates a source for `path`, which need not exist yet.
    pub(crate) fn new(path: PathBuf) -> Self {
        Self {
            path,
            timeout: POLL_TIMEOUT,
            abandoned_after: ABANDONED_AFTER,
            settling: Settling::default(),
            pending: None,
            abandoned: Vec::new(),
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
        let pending = self
            .pending
            .get_or_insert_with(|| Pending { poll: spawn_blocking(poll), since: Instant::now() });
        let Ok(finished) = timeout(self.timeout, &mut pending.poll).await else {
            self.timed_out = true;
            self.abandon_old_poll();
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

    /// Makes room for another poll if the pending one is old and not too many hang.
    fn abandon_old_poll(&mut self) {
        self.abandoned.retain(|poll| !poll.is_finished());
        let is_old = |pending: &mut Pending| pending.since.elapsed() >= self.abandoned_after;
        if self.abandoned.len() < ABANDONED_MAX
            && let Some(old) = self.pending.take_if(is_old)
        {
            self.abandoned.push(old.poll);
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
    let by_command = written::is_last(path, &bytes);
    Ok(Reading::New(Text { bytes, by_command }))
}

/// Reads a registry's file: at most one byte more than a registry may have, for its parser to refuse.
pub(crate) fn read_bounded(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let max = u64::try_from(REGISTRY_MAX_BYTES).unwrap_or(u64::MAX);
    // Opening a FIFO would wait for a writer.
    let flags = OFlags::NONBLOCK.bits().cast_signed();
    let file = std::fs::File::options().read(true).custom_flags(flags).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("not a regular file"));
    }
    file.take(max + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn new(text: &str) -> Reading {
        Reading::New(Text { bytes: text.into(), by_command: false })
    }

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
        assert_eq!(poll(&mut source).await, new("one"));
        assert_eq!(poll(&mut source).await, Reading::Unchanged);
        let other = dir.path().join("other");
        std::fs::write(&other, "two").unwrap();
        std::fs::rename(&other, &path).unwrap();
        poll(&mut source).await;
        assert_eq!(poll(&mut source).await, new("two"));
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
        assert_eq!(poll(&mut source).await, new("one"));
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
        while readings.last() != Some(&new("one")) {
            assert!(readings.len() < 10, "{readings:?}");
            readings.push(poll(&mut source).await);
        }
    }
    /// Simulates a network folder that is mounted again while a poll hangs in the old one.
    #[tokio::test]
    async fn a_poll_that_never_returns_is_abandoned() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("registry.phext");
        std::fs::write(&path, "one").unwrap();
        let mut source = FileSource::new(path);
        source.timeout = Duration::from_millis(5);
        source.abandoned_after = Duration::ZERO;
        let (_respond, response) = std::sync::mpsc::channel::<()>();
        let hanging_poll = move || {
            let _ = response.recv();
            (Settling::default(), Err(io::Error::other("late")))
        };
        assert!(matches!(source.poll_with(hanging_poll).await.unwrap(), Reading::Unreadable(_)));
        source.timeout = POLL_TIMEOUT;
        assert_eq!(poll(&mut source).await, Reading::Changing);
        assert_eq!(poll(&mut source).await, new("one"));
    }

    #[tokio::test]
    async fn a_fifo_is_unreadable_until_a_file_replaces_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("registry.phext");
        let fifo = rustix::fs::Mode::from_raw_mode(0o600);
        rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, fifo, 0).unwrap();
        let mut source = FileSource::new(path.clone());
        poll(&mut source).await;
        let reading = poll(&mut source).await;
        assert!(matches!(&reading, Reading::Unreadable(why) if why.contains("not a regular file")));
        let other = dir.path().join("other");
        std::fs::write(&other, "one").unwrap();
        std::fs::rename(&other, &path).unwrap();
        poll(&mut source).await;
        assert_eq!(poll(&mut source).await, new("one"));
    }
}
