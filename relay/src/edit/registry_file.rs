//! The registry's file, changed as a whole or not at all.
//!
//! ```text
//! lock the folder ─► read ─► edit ─► write a temporary file ─► is the file still as it was read?
//!                     ▲                                                │ yes: rename, fsync
//!                     └──────────── no: an editor has saved it ────────┘
//! ```
//!
//! A file that looks truncated beside the relay's last good copy is not changed: it may be one half of
//! a file that is being written in place, and the rename would make that half the registry. A file
//! that another command wrote is complete; see `source/written.rs`.
//!
//! The lock keeps two commands from losing each other's edit. It is on the folder, because each rename
//! replaces the file. Editors take no lock: what one saves in the microseconds between the last check
//! and the rename is lost.

use std::fs::{File, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, Gid, Uid, fchown, flock};
use rustix::io::Errno;

use super::{Document, EditError};
use crate::atomic_file::{self, folder_of};
use crate::clock::now_s;
use crate::registry::Registry;
use crate::registry::truncation::Suspicion;
use crate::source::file::read_bounded;
use crate::source::last_good;
use crate::source::settling::FileVersion;
use crate::source::written;

/// Reasons why the file was not read or changed.
#[derive(Debug, thiserror::Error)]
pub enum RegistryFileError {
    /// The file does not exist.
    #[error("{0}: no such file; create a registry with `relay registry init --file {0}`")]
    NotFound(PathBuf),
    /// The file exists, but was to be created.
    #[error("{0}: the file exists; `init` never overwrites a registry")]
    Exists(PathBuf),
    /// The operating system refused an operation on this path.
    #[error("{0}: {1}")]
    Io(PathBuf, io::Error),
    /// The edit was refused.
    #[error(transparent)]
    Edit(#[from] EditError),
    /// The folder can't be locked. NFS locks only files open for writing, which a folder never is.
    #[error(
        "{0}: the folder can't be locked ({1}); on a network folder, run the command on its server"
    )]
    Lock(PathBuf, io::Error),
    /// The file looks truncated; with the path of the last good copy that it was compared with.
    #[error(
        "{0} looks truncated: {1} in comparison with the relay's last good copy {2}. If the file is \
         being written, wait and try again; if the loss is intended, add --allow-loss"
    )]
    Truncated(PathBuf, Suspicion, PathBuf),
    /// The file is a mount point, over which no file can be renamed.
    #[error(
        "{0}: the file is mounted by itself and can't be replaced; mount the folder that it lies in"
    )]
    Mounted(PathBuf),
    /// Another command has held the lock for this long.
    #[error("{0}: locked by another `relay registry` command for {1:?}; try again later")]
    Busy(PathBuf, Duration),
}

/// Time to wait for other commands, each of which takes milliseconds.
const LOCK_TIMEOUT: Duration = Duration::from_secs(30);
const LOCK_RETRY_INTERVAL: Duration = Duration::from_millis(5);
/// Prefix of the temporary files from which a registry is renamed.
const TEMPORARY_PREFIX: &str = ".registry-";

/// Reads the file without locking it.
pub(crate) fn load(path: &Path) -> Result<Document, RegistryFileError> {
    let bytes = read_bounded(path).map_err(|error| io_error(path, error))?;
    Ok(Document::parse(&bytes)?)
}

/// Creates a registry with mode 0600. Fails if the file exists.
pub(crate) fn create(path: &Path, text: &str) -> Result<(), RegistryFileError> {
    let folder = folder_of(path);
    let _lock = lock_folder(folder, path)?;
    let staged = atomic_file::stage(folder, TEMPORARY_PREFIX, text.as_bytes())
        .map_err(|error| io_error(path, error))?;
    atomic_file::create(staged, path).map_err(|error| io_error(path, error))
}

/// Applies `edit` to the file, which is not written if its text stays the same. A file that looks
/// truncated is changed only with `allow_loss`.
pub(crate) fn change(
    path: &Path,
    allow_loss: bool,
    edit: impl Fn(&Document) -> Result<Document, EditError>,
) -> Result<(), RegistryFileError> {
    let to_error = |error| io_error(path, error);
    // A symbolic link stays: its target is changed.
    let target = path.canonicalize().map_err(to_error)?;
    let folder = folder_of(&target);
    let _lock = lock_folder(folder, &target)?;
    // Under the lock no other command has a temporary file here.
    atomic_file::remove_leftovers(folder, TEMPORARY_PREFIX);
    loop {
        let version = FileVersion::of(&target).map_err(to_error)?;
        let document = load(&target)?;
        let is_complete = written::is_last(&target, document.text().as_bytes());
        if !allow_loss && !is_complete {
            // The relay may be configured with either name.
            check_complete(path, document.registry())?;
            check_complete(&target, document.registry())?;
        }
        let edited = edit(&document)?;
        if edited.text() == document.text() {
            return Ok(());
        }
        let staged = atomic_file::stage(folder, TEMPORARY_PREFIX, edited.text().as_bytes())
            .map_err(to_error)?;
        copy_ownership(&target, staged.as_file()).map_err(to_error)?;
        if FileVersion::of(&target).map_err(to_error)? == version {
            record(&target, edited.text()).map_err(to_error)?;
            return atomic_file::replace(staged, &target).map_err(to_error);
        }
    }
}

/// Records the text that is about to replace `target`, for the relay and the next command.
fn record(target: &Path, text: &str) -> io::Result<()> {
    let record = written::record_of(text.as_bytes());
    let staged = atomic_file::stage(folder_of(target), TEMPORARY_PREFIX, record.as_bytes())?;
    copy_ownership(target, staged.as_file())?;
    atomic_file::replace(staged, &written::path_of(target))
}

/// Compares the registry with the relay's last good copy beside `path`, if there is one.
fn check_complete(path: &Path, registry: &Registry) -> Result<(), RegistryFileError> {
    let copy_path = last_good::default_path(path);
    let Ok(Some(copy)) = last_good::load(&copy_path) else { return Ok(()) };
    match Suspicion::between(&copy, registry, now_s()) {
        Some(suspicion) => Err(RegistryFileError::Truncated(path.to_owned(), suspicion, copy_path)),
        None => Ok(()),
    }
}

/// Locks the folder until the result is dropped.
fn lock_folder(folder: &Path, path: &Path) -> Result<File, RegistryFileError> {
    let lock =
        File::open(folder).map_err(|error| RegistryFileError::Io(folder.to_owned(), error))?;
    let start = Instant::now();
    loop {
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(lock),
            Err(Errno::WOULDBLOCK) if start.elapsed() < LOCK_TIMEOUT => {
                std::thread::sleep(LOCK_RETRY_INTERVAL);
            }
            Err(Errno::WOULDBLOCK) => {
                return Err(RegistryFileError::Busy(path.to_owned(), LOCK_TIMEOUT));
            }
            Err(error) => return Err(RegistryFileError::Lock(folder.to_owned(), error.into())),
        }
    }
}

/// Gives the new file the owner, group and mode of the old one.
fn copy_ownership(old: &Path, new: &File) -> io::Result<()> {
    let old = std::fs::metadata(old)?;
    let current = new.metadata()?;
    // Only root may change the owner, so leave it alone where it is right already.
    if (old.uid(), old.gid()) != (current.uid(), current.gid()) {
        fchown(new, Some(Uid::from_raw(old.uid())), Some(Gid::from_raw(old.gid())))?;
    }
    new.set_permissions(Permissions::from_mode(old.mode() & 0o7777))?;
    new.sync_all()
}

fn io_error(path: &Path, error: io::Error) -> RegistryFileError {
    match error.kind() {
        io::ErrorKind::NotFound => RegistryFileError::NotFound(path.to_owned()),
        io::ErrorKind::AlreadyExists => RegistryFileError::Exists(path.to_owned()),
        io::ErrorKind::ResourceBusy => RegistryFileError::Mounted(path.to_owned()),
        _ => RegistryFileError::Io(path.to_owned(), error),
    }
}
