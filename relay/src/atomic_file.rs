//! Files that are replaced as a whole, so that a reader or a crash never sees half of one.
//!
//! A new version is written to a temporary file in the same folder, flushed to disk, and renamed over
//! the old one; then the folder is flushed, because the rename is durable only with it. Temporary
//! files have mode 0600: they hold customer data.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

use tempfile::NamedTempFile;

/// The folder of `path`, the current one for a bare file name.
pub(crate) fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Writes `bytes` to a temporary file in `folder` and flushes it to disk. The file's name begins with
/// `prefix`; dropping the result deletes it.
pub(crate) fn stage(folder: &Path, prefix: &str, bytes: &[u8]) -> io::Result<NamedTempFile> {
    let mut staged = tempfile::Builder::new().prefix(prefix).tempfile_in(folder)?;
    staged.write_all(bytes)?;
    staged.as_file().sync_all()?;
    Ok(staged)
}

/// Moves a staged file to `path`, over the file that is there.
pub(crate) fn replace(staged: NamedTempFile, path: &Path) -> io::Result<()> {
    staged.persist(path).map_err(|failed| failed.error)?;
    sync_folder(folder_of(path))
}

/// Moves a staged file to `path`, where no file may exist yet.
pub(crate) fn create(staged: NamedTempFile, path: &Path) -> io::Result<()> {
    staged.persist_noclobber(path).map_err(|failed| failed.error)?;
    sync_folder(folder_of(path))
}

/// Deletes the temporary files that a killed process left in `folder`. Only callers that know that no
/// other process is writing with this prefix may do this. A file that can't be deleted stays: it does
/// no further harm.
pub(crate) fn remove_leftovers(folder: &Path, prefix: &str) {
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        if entry.file_name().as_encoded_bytes().starts_with(prefix.as_bytes()) {
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}
