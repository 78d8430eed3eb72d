//! Appending to the log.
//!
//! Nothing is in memory: each line is appended under a lock to what the file ends with, so that the
//! daemon and several commands can write the same log. Actions are rare.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use protocol::calendar::rfc3339;
use rustix::fs::{FlockOperation, Gid, Uid, fchown, flock};

use crate::entry::{Action, Entry, Outcome, bounded};

/// Size at which a file is renamed and the next one begun: some 10,000 actions.
pub const FILE_MAX_BYTES: u64 = 4 << 20;
/// Bound on files; beyond it the oldest is deleted. Together they have some 80,000 actions.
pub const FILES_MAX: usize = 8;
/// Bound on a line: three texts of 512 bytes, of which each may become six by escapes.
const LINE_MAX_BYTES: u64 = 16 * 1024;

/// A log of operators' actions.
#[derive(Debug, Clone)]
pub struct AuditLog {
    path: PathBuf,
    file_max_bytes: u64,
}

/// Reason why an action could not be written down.
#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    /// The file can't be written.
    #[error("the audit log {0} can't be written: {1}")]
    Io(PathBuf, io::Error),
    /// The last line is not one of ours.
    #[error("the audit log {path} is damaged at its end: {fault}. Move it away and keep it")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The fault of its last line.
        fault: &'static str,
    },
}

impl AuditLog {
    /// The log whose newest file is `path`. It is created with the first action.
    pub fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), file_max_bytes: FILE_MAX_BYTES }
    }

    /// Path of the newest file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes down that an action begins. When this returns, it is on disk. Returns the number by
    /// which [`end`](Self::end) names the action.
    pub fn begin(&self, action: &Action, now_s: u64) -> Result<u64, AuditError> {
        self.append(|n, prev| Entry {
            n,
            at: rfc3339(now_s),
            actor: Some(action.actor.clone()),
            action: Some(bounded(&action.name)),
            tenant: action.tenant.as_deref().map(bounded),
            begin: None,
            outcome: None,
            detail: bounded(&action.detail),
            prev,
        })
    }

    /// Writes down how an action ended.
    pub fn end(
        &self,
        begin: u64,
        outcome: Outcome,
        message: &str,
        now_s: u64,
    ) -> Result<(), AuditError> {
        let ended = self.append(|n, prev| Entry {
            n,
            at: rfc3339(now_s),
            actor: None,
            action: None,
            tenant: None,
            begin: Some(begin),
            outcome: Some(outcome),
            detail: bounded(message),
            prev,
        });
        ended.map(|_| ())
    }

    fn append(&self, entry: impl FnOnce(u64, String) -> Entry) -> Result<u64, AuditError> {
        let failed = |error| AuditError::Io(self.path.clone(), error);
        loop {
            let mut file = self.lock().map_err(failed)?;
            let last = self.last(&mut file)?;
            if file.metadata().map_err(failed)?.len() < self.file_max_bytes {
                return self.write(&mut file, last, entry).map_err(failed);
            }
            // Another may be the first to lock the next file, so its last line is read there.
            self.rotate().map_err(failed)?;
        }
    }

    fn write(
        &self,
        file: &mut File,
        last: Option<(u64, String)>,
        entry: impl FnOnce(u64, String) -> Entry,
    ) -> io::Result<u64> {
        let (n, prev) = last.unwrap_or_else(|| (0, Entry::first_prev()));
        let n = n + 1;
        let (line, _) = entry(n, prev).seal().map_err(io::Error::other)?;
        file.write_all(format!("{line}\n").as_bytes())?;
        file.sync_all()?;
        if n == 1 || file.metadata()?.len() <= LINE_MAX_BYTES {
            // A new file is durable only with its folder.
            File::open(folder_of(&self.path))?.sync_all()?;
        }
        Ok(n)
    }

    /// Opens and locks the newest file; the lock ends with the file.
    fn lock(&self) -> io::Result<File> {
        loop {
            let Some(file) = self.create()? else { continue };
            flock(&file, FlockOperation::LockExclusive)?;
            // While this waited, another may have renamed the file.
            let present = fs::metadata(&self.path);
            if present.is_ok_and(|present| is_same(&present, &file)) {
                return Ok(file);
            }
        }
    }

    /// Opens the newest file, which is created for its folder's owner alone; `None` if it was there
    /// and another has renamed it since.
    fn create(&self) -> io::Result<Option<File>> {
        let mut options = OpenOptions::new();
        options.read(true).append(true).mode(0o600);
        match options.clone().create_new(true).open(&self.path) {
            Ok(file) => {
                let owner = fs::metadata(folder_of(&self.path))?;
                // Only root can give a file away; anyone else is the owner or stays it.
                if file.metadata()?.uid() != owner.uid() && rustix::process::geteuid().is_root() {
                    let user = Uid::from_raw(owner.uid());
                    let group = Gid::from_raw(owner.gid());
                    fchown(&file, Some(user), Some(group))?;
                }
                Ok(Some(file))
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                match options.open(&self.path) {
                    Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
                    opened => opened.map(Some),
                }
            }
            Err(error) => Err(error),
        }
    }

    /// Returns number and hash of the last line, in the file or in the one before it. Cuts off a
    /// line without an end: the power was lost in the middle of it, before its action began.
    fn last(&self, file: &mut File) -> Result<Option<(u64, String)>, AuditError> {
        let failed = |error| AuditError::Io(self.path.clone(), error);
        let (line, whole_bytes) = last_line(file).map_err(failed)?;
        if whole_bytes < file.metadata().map_err(failed)?.len() {
            file.set_len(whole_bytes).map_err(failed)?;
        }
        let line = match line {
            Some(line) => line,
            None => match File::open(self.rotated(1)) {
                Ok(mut before) => last_line(&mut before).map_err(failed)?.0.unwrap_or_default(),
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
                Err(error) => return Err(failed(error)),
            },
        };
        match Entry::unseal(&line) {
            Ok((entry, hash)) => Ok(Some((entry.n, hash))),
            Err(fault) => Err(AuditError::Damaged { path: self.path.clone(), fault }),
        }
    }

    /// Renames each file to the next number; the oldest is overwritten.
    fn rotate(&self) -> io::Result<()> {
        for number in (1..FILES_MAX - 1).rev() {
            rename_if_exists(&self.rotated(number), &self.rotated(number + 1))?;
        }
        fs::rename(&self.path, self.rotated(1))
    }

    pub(crate) fn rotated(&self, number: usize) -> PathBuf {
        self.path.with_added_extension(number.to_string())
    }

    /// The files that exist, oldest first.
    pub(crate) fn files(&self) -> Vec<PathBuf> {
        let rotated = (1..FILES_MAX).rev().map(|number| self.rotated(number));
        rotated.chain([self.path.clone()]).filter(|path| path.exists()).collect()
    }
}

fn rename_if_exists(from: &Path, to: &Path) -> io::Result<()> {
    match fs::rename(from, to) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        renamed => renamed,
    }
}

fn is_same(present: &fs::Metadata, file: &File) -> bool {
    file.metadata().is_ok_and(|own| (own.dev(), own.ino()) == (present.dev(), present.ino()))
}

/// Returns the last whole line without its line break, and the size of all whole lines.
fn last_line(file: &mut File) -> io::Result<(Option<String>, u64)> {
    let size = file.metadata()?.len();
    let from = size.saturating_sub(2 * LINE_MAX_BYTES);
    file.seek(SeekFrom::Start(from))?;
    let mut tail = Vec::new();
    file.take(2 * LINE_MAX_BYTES).read_to_end(&mut tail)?;
    let Some(end) = tail.iter().rposition(|b| *b == b'\n') else { return Ok((None, 0)) };
    let whole_bytes = from + end as u64 + 1;
    let start = tail[..end].iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1);
    let line = String::from_utf8_lossy(&tail[start..end]).into_owned();
    Ok((Some(line), whole_bytes))
}

/// The folder of `path`, the current one for a bare file name.
fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

#[cfg(test)]
mod tests;
