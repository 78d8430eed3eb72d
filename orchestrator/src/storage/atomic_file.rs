//! Atomic replacement of a file: a reader, also after a crash, finds the old content or the new one,
//! never a part.
//!
//! The new content goes to a temporary file in the same folder, is flushed to disk and renamed, and
//! then the folder is flushed, because a rename lasts only with its folder. A crash in between leaves
//! the temporary file behind; [`remove_leftovers`] deletes it.
//!
//! The new file is readable by its owner alone, whatever the mode of the old one was.

use std::fs::{self, File, Permissions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use tempfile::{Builder, NamedTempFile};

use super::private::PRIVATE_FILE;

/// Start of the temporary files' names. SQ touches no file that begins with a dot.
const TEMPORARY: &str = ".new-";

/// Replaces the file at `path` and returns when that has reached the disk.
pub(crate) fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = stage(parent(path))?;
    file.write_all(bytes)?;
    put(file, path)
}

/// Replaces the file at `path` without waiting for the disk: for content that a crash of the host
/// makes worthless.
pub(crate) fn write_unflushed(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = stage(parent(path))?;
    file.write_all(bytes)?;
    file.persist(path)?;
    Ok(())
}

/// Creates an empty temporary file in `folder`, for [`put`]. It never follows a link, and is deleted
/// when it is dropped.
pub(crate) fn stage(folder: &Path) -> io::Result<NamedTempFile> {
    Builder::new()
        .prefix(TEMPORARY)
        .permissions(Permissions::from_mode(PRIVATE_FILE))
        .tempfile_in(folder)
}

/// Moves a staged file to `path`, in the same folder, and returns when that has reached the disk.
pub(crate) fn put(file: NamedTempFile, path: &Path) -> io::Result<()> {
    file.as_file().sync_all()?;
    file.persist(path)?;
    sync_folder(parent(path))
}

/// Flushes the entries of a folder: files created in it, renamed and removed.
pub(crate) fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

/// Deletes the temporary files that a crash left in `folder`, if there is one.
pub(crate) fn remove_leftovers(folder: &Path) -> io::Result<()> {
    for entry in entries(folder)? {
        if entry.file_name().to_str().is_some_and(|name| name.starts_with(TEMPORARY)) {
            remove_if_exists(&entry.path())?;
        }
    }
    Ok(())
}

/// Deletes a file or link; succeeds if there is none.
pub(crate) fn remove_if_exists(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Lists a folder; one that does not exist is empty.
pub(crate) fn entries(folder: &Path) -> io::Result<Vec<fs::DirEntry>> {
    match fs::read_dir(folder) {
        Ok(entries) => entries.collect(),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// Returns the folder that `path` is in.
pub(crate) fn parent(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let names = entries(folder).unwrap();
        names.iter().map(|entry| entry.file_name().into_string().unwrap()).collect()
    }

    #[test]
    fn written_file_is_private_and_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        for text in ["one", "two"] {
            write(&path, text.as_bytes()).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
        }
        write_unflushed(&path, b"three").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "three");
        assert_eq!(names(dir.path()), ["file"]);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn failed_replacement_leaves_the_old_content() {
        let dir = tempfile::tempdir().unwrap();
        // A file can't be renamed over a folder.
        let path = dir.path().join("file");
        fs::create_dir(&path).unwrap();
        assert!(write(&path, b"new").is_err());
        assert_eq!(names(dir.path()), ["file"]);
        assert!(path.is_dir());
    }

    #[test]
    fn leftovers_of_a_crash_are_removed() {
        let dir = tempfile::tempdir().unwrap();
        let (_, left) = stage(dir.path()).unwrap().keep().unwrap();
        fs::write(dir.path().join("file"), "kept").unwrap();
        assert!(left.exists());
        remove_leftovers(dir.path()).unwrap();
        assert_eq!(names(dir.path()), ["file"]);
    }
}
