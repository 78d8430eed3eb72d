//! The registry's file, changed as a whole or not at all.
//!
//! ```text
//! lock the folder ─► read ─► edit ─► write beside it ─► fsync ─► still the file that was read?
//!                     ▲                                              │ yes: rename over it, fsync
//!                     └────────────── no: an editor saved meanwhile ─┘
//! ```
//!
//! A file that looks cut beside what a relay last answered is not changed: it may be half of one that
//! is being written in place, and the rename would make it the whole.
//!
//! The lock keeps two commands from losing each other's edit. It is on the folder, because the
//! file is another one after each rename. An editor takes no lock: what it saves in the microseconds
//! between the last look and the rename is lost.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, Gid, Uid, fchown, flock};
use tempfile::NamedTempFile;

use crate::edit::{Document, EditError};
use crate::registry::Registry;
use crate::registry::truncation::Suspicion;
use crate::serve::reload::now_s;
use crate::source::file::{Signature, read};
use crate::source::last_good;

/// Why the file was not changed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Something about the file.
    #[error("{0}: {1}")]
    Io(PathBuf, std::io::Error),
    /// The edit.
    #[error(transparent)]
    Edit(#[from] EditError),
    /// The folder can't be locked. NFS locks only what is open for writing, which no folder is.
    #[error(
        "{0}: the folder can't be locked ({1}); on a network folder, run the command on its server"
    )]
    Lock(PathBuf, std::io::Error),
    /// It looks cut beside what the relay kept: a command would make that the whole registry.
    #[error(
        "{0} looks cut beside what the relay last answered ({2}): {1}. If it is being written, wait; \
         if it is meant so, say --allow-loss"
    )]
    Cut(PathBuf, Suspicion, PathBuf),
    /// Another command holds the lock.
    #[error("{0}: another command has been changing it for {1:?}")]
    Busy(PathBuf, Duration),
}

/// How long to wait for other commands; each takes milliseconds.
const PATIENCE: Duration = Duration::from_secs(30);
/// Between two tries for the lock.
const RETRY: Duration = Duration::from_millis(5);
/// How files begin that are to become a registry.
const TEMPORARY: &str = ".registry-";

/// Reads the file without its lock.
pub fn load(path: &Path) -> Result<Document, StoreError> {
    let bytes = read(path).map_err(|e| StoreError::Io(path.to_owned(), e))?;
    Ok(Document::read(&bytes)?)
}

/// Makes a registry that must not be there yet, readable by its owner only.
pub fn create(path: &Path, text: &str) -> Result<(), StoreError> {
    let io = |e| StoreError::Io(path.to_owned(), e);
    let folder = folder(path);
    let lock = locked(folder, path)?;
    let temp = written(folder, text).map_err(io)?;
    temp.persist_noclobber(path).map_err(|e| io(e.error))?;
    lock.sync_all().map_err(io)
}

/// Changes the file by `edit`; nothing is written when the text stays the same. One that looks cut
/// is changed only when `allow_loss`.
pub fn change(
    path: &Path,
    allow_loss: bool,
    edit: impl Fn(&Document) -> Result<Document, EditError>,
) -> Result<Document, StoreError> {
    let io = |e| StoreError::Io(path.to_owned(), e);
    let named = path;
    // A link stays a link: what it leads to is changed.
    let path = path.canonicalize().map_err(io)?;
    let folder = folder(&path);
    let lock = locked(folder, &path)?;
    sweep(folder);
    loop {
        let before = Signature::of(&path).map_err(io)?;
        let document = load(&path)?;
        if !allow_loss {
            whole(&[named, &path], document.registry())?;
        }
        let edited = edit(&document)?;
        if edited.text() == document.text() {
            return Ok(edited);
        }
        let temp = written(folder, edited.text()).map_err(io)?;
        keep_owner(&path, temp.as_file()).map_err(io)?;
        if Signature::of(&path).map_err(io)? == before {
            temp.persist(&path).map_err(|e| io(e.error))?;
            lock.sync_all().map_err(io)?;
            return Ok(edited);
        }
    }
}

/// Compares the registry with what a relay keeps beside it under one of its names, if one does.
fn whole(names: &[&Path], registry: &Registry) -> Result<(), StoreError> {
    for name in names {
        let kept_at = last_good::default_path(name);
        let kept = last_good::load(&kept_at).ok().flatten();
        if let Some(suspicion) = kept.and_then(|kept| Suspicion::of(&kept, registry, now_s())) {
            return Err(StoreError::Cut(name.to_path_buf(), suspicion, kept_at));
        }
    }
    Ok(())
}

fn folder(path: &Path) -> &Path {
    path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn locked(folder: &Path, path: &Path) -> Result<File, StoreError> {
    let io = |e| StoreError::Io(folder.to_owned(), e);
    let lock = File::open(folder).map_err(io)?;
    let start = Instant::now();
    loop {
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(lock),
            Err(rustix::io::Errno::WOULDBLOCK) if start.elapsed() < PATIENCE => {
                std::thread::sleep(RETRY);
            }
            Err(rustix::io::Errno::WOULDBLOCK) => {
                return Err(StoreError::Busy(path.to_owned(), PATIENCE));
            }
            Err(e) => return Err(StoreError::Lock(folder.to_owned(), e.into())),
        }
    }
}

/// Takes out what a killed command left: under the lock nobody else is writing such a file. They are
/// copies of the registry; what can't be taken out stays, as it does no other harm.
fn sweep(folder: &Path) {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let left =
        entries.filter(|e| e.file_name().as_encoded_bytes().starts_with(TEMPORARY.as_bytes()));
    left.for_each(|e| drop(std::fs::remove_file(e.path())));
}

fn written(folder: &Path, text: &str) -> std::io::Result<NamedTempFile> {
    let mut temp = tempfile::Builder::new().prefix(TEMPORARY).tempfile_in(folder)?;
    temp.write_all(text.as_bytes())?;
    temp.as_file().sync_all()?;
    Ok(temp)
}

/// The new file belongs to whom the old one belonged, and they may do with it what they could.
fn keep_owner(old: &Path, new: &File) -> std::io::Result<()> {
    let (old, mine) = (std::fs::metadata(old)?, new.metadata()?);
    if (old.uid(), old.gid()) != (mine.uid(), mine.gid()) {
        fchown(new, Some(Uid::from_raw(old.uid())), Some(Gid::from_raw(old.gid())))?;
    }
    new.set_permissions(std::fs::Permissions::from_mode(old.mode() & 0o7777))?;
    new.sync_all()
}
