//! Files in folders that a tenant can write.
//!
//! They are opened so that nothing a tenant puts there leads elsewhere (links), blocks us (pipes) or
//! fills our memory (sparse files). We are usually root there, so a link that is followed could be any
//! file of the host. The tenant's folder itself stands in one of ours: the tenant can exchange only
//! entries of that folder.

use std::collections::BTreeMap;
use std::fs::{File, Metadata};
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::fs::{Mode, OFlags, open as open_at};
use rustix::io::Errno;

use super::atomic_file::entries;

/// Suffix of a phext's file name.
pub(crate) const PHEXT_SUFFIX: &str = ".phext";

/// Largest file that is read of any tenant. SQ could serve no larger phext, and reading takes that much
/// memory. The vault knows the tenant's own bound.
pub(crate) const FILE_MAX_BYTES: u64 = 1 << 30;

/// State of a file that changes with every write, seen without reading it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stamp {
    /// Length of the file.
    pub(crate) bytes: u64,
    /// Time of the last write, nanoseconds since 1970.
    pub(crate) written_ns: i128,
    /// Inode: a file that was renamed into place is another one.
    inode: u64,
}

impl Stamp {
    /// Takes the stamp out of `metadata`.
    pub(crate) fn from_metadata(metadata: &Metadata) -> Self {
        Self {
            bytes: metadata.len(),
            written_ns: i128::from(metadata.mtime()) * 1_000_000_000
                + i128::from(metadata.mtime_nsec()),
            inode: metadata.ino(),
        }
    }

    /// Returns the time of the last write; a time before 1970 becomes 1970.
    pub(crate) fn written(&self) -> SystemTime {
        UNIX_EPOCH + Duration::from_nanos(u64::try_from(self.written_ns).unwrap_or(0))
    }

    /// True if a copy that bears this stamp was made of a file that bears the other.
    pub(crate) fn is_copy_of(&self, original: &Self) -> bool {
        self.bytes == original.bytes && self.written_ns == original.written_ns
    }

    #[cfg(test)]
    pub(crate) fn of_test(bytes: u64, written_ns: i128) -> Self {
        Self { bytes, written_ns, inode: 1 }
    }
}

/// Lists the phext files of a folder; one that does not exist has none.
pub(crate) fn phext_files(folder: &Path) -> io::Result<BTreeMap<String, Stamp>> {
    let mut files = BTreeMap::new();
    for entry in entries(folder)? {
        let Ok(name) = entry.file_name().into_string() else { continue };
        // A file may be removed between the listing and this call.
        let Ok(metadata) = entry.metadata() else { continue };
        if metadata.is_file() && name.ends_with(PHEXT_SUFFIX) && !name.starts_with('.') {
            files.insert(name, Stamp::from_metadata(&metadata));
        }
    }
    Ok(files)
}

/// Opens a regular file for reading. Anything else is an error with the cause [`NotAPhext`].
pub(crate) fn open(path: &Path) -> io::Result<(File, Metadata)> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = match open_at(path, flags, Mode::empty()) {
        Ok(file) => File::from(file),
        Err(Errno::LOOP) => return Err(not_a_phext(path, "a symbolic link")),
        Err(error) => return Err(error.into()),
    };
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(not_a_phext(path, "not a regular file"));
    }
    Ok((file, metadata))
}

/// Reads an open file from its present position. More than `max_bytes` is an error with the cause
/// [`NotAPhext`].
pub(crate) fn read_all(file: &File, path: &Path, max_bytes: u64) -> io::Result<Vec<u8>> {
    let bytes = file.metadata()?.len();
    if bytes > max_bytes {
        return Err(not_a_phext(path, "larger than any phext"));
    }
    let mut content = Vec::with_capacity(usize::try_from(bytes).unwrap_or(0));
    file.take(max_bytes).read_to_end(&mut content)?;
    Ok(content)
}

/// Reads a file of at most `max_bytes` with its stamp; `None` if it does not exist.
pub(crate) fn read(path: &Path, max_bytes: u64) -> io::Result<Option<(Vec<u8>, Stamp)>> {
    match open(path) {
        Ok((file, metadata)) => {
            let content = read_all(&file, path, max_bytes)?;
            Ok(Some((content, Stamp::from_metadata(&metadata))))
        }
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Cause of the [`io::Error`] about a file that can't be a phext. A retry cannot help.
#[derive(Debug, thiserror::Error)]
#[error("{} is {kind}", path.display())]
pub(crate) struct NotAPhext {
    path: PathBuf,
    kind: &'static str,
}

impl NotAPhext {
    /// Returns true if the error was made by [`not_a_phext`].
    pub(crate) fn is_cause_of(error: &io::Error) -> bool {
        error.get_ref().is_some_and(<dyn std::error::Error + Send + Sync>::is::<Self>)
    }
}

/// Makes the error about a file that can't be a phext.
pub(crate) fn not_a_phext(path: &Path, kind: &'static str) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, NotAPhext { path: path.to_owned(), kind })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    #[test]
    fn only_regular_files_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::write(at("host"), "the host's").unwrap();
        symlink(at("host"), at("link")).unwrap();
        fs::create_dir(at("folder")).unwrap();
        rustix::fs::mknodat(
            rustix::fs::CWD,
            at("pipe"),
            rustix::fs::FileType::Fifo,
            Mode::RUSR | Mode::WUSR,
            0,
        )
        .unwrap();
        for name in ["link", "folder", "pipe"] {
            assert!(NotAPhext::is_cause_of(&read(&at(name), 99).unwrap_err()), "{name}");
        }
        assert_eq!(read(&at("host"), 10).unwrap().unwrap().0, b"the host's");
        assert!(NotAPhext::is_cause_of(&read(&at("host"), 9).unwrap_err()), "one byte too many");
        assert_eq!(read(&at("nothing"), 0).unwrap(), None);
    }

    #[test]
    fn file_of_claimed_huge_length_is_not_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sparse");
        File::create(&path).unwrap().set_len(1 << 40).unwrap();
        assert!(NotAPhext::is_cause_of(&read(&path, FILE_MAX_BYTES).unwrap_err()));
    }
}
