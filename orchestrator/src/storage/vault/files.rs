//! Files in folders that a tenant can write: opened so that nothing a tenant puts there leads
//! elsewhere (links), keeps us waiting (pipes) or fills our memory (sparse files). We are usually
//! root there, so a link that is followed would be any file of the host.
//!
//! The folders themselves stand in one that is ours: only their entries can be exchanged.

use std::fs::{self, File, Metadata};
use std::io::{self, ErrorKind, Read};
use std::path::Path;

use rustix::fs::{Mode, OFlags, open as open_at};
use rustix::io::Errno;

/// A file that is larger is no phext that SQ could serve, and is not read: it would be in our memory
/// whole.
pub const FILE_MAX_BYTES: u64 = 1 << 30;

/// Opens a regular file for reading. `InvalidData`: it is something else.
pub fn open(path: &Path) -> io::Result<(File, Metadata)> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = match open_at(path, flags, Mode::empty()) {
        Ok(file) => File::from(file),
        Err(Errno::LOOP) => return Err(no_phext(path, "a symbolic link")),
        Err(e) => return Err(e.into()),
    };
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(no_phext(path, "not a regular file"));
    }
    Ok((file, metadata))
}

/// All of an open file from its beginning. `InvalidData`: there is more than [`FILE_MAX_BYTES`].
pub fn read_all(file: &File, path: &Path) -> io::Result<Vec<u8>> {
    let bytes = file.metadata()?.len();
    if bytes > FILE_MAX_BYTES {
        return Err(no_phext(path, "larger than any phext"));
    }
    let mut all = Vec::with_capacity(usize::try_from(bytes).unwrap_or(0));
    file.take(FILE_MAX_BYTES).read_to_end(&mut all)?;
    Ok(all)
}

/// The whole file; `None`: there is none.
pub fn read(path: &Path) -> io::Result<Option<Vec<u8>>> {
    match open(path) {
        Ok((file, _)) => read_all(&file, path).map(Some),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

/// A new file of that name for writing, readable by its owner alone; what stood there is removed,
/// never followed.
pub fn create(path: &Path) -> io::Result<File> {
    remove_if_there(path)?;
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(open_at(path, flags, Mode::RUSR | Mode::WUSR)?.into())
}

/// Removes a file or link; none is as well.
pub fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

fn no_phext(path: &Path, what: &str) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, format!("{} is {what}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn what_is_no_regular_file_is_neither_read_nor_written() {
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
            assert_eq!(read(&at(name)).unwrap_err().kind(), ErrorKind::InvalidData, "{name}");
        }
        create(&at("link")).unwrap();
        assert_eq!(fs::read_to_string(at("host")).unwrap(), "the host's");
        assert!(fs::symlink_metadata(at("link")).unwrap().is_file());
        assert_eq!(read(&at("nothing")).unwrap(), None);
    }

    #[test]
    fn a_file_that_claims_to_be_huge_is_not_read_into_memory() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sparse");
        File::create(&path).unwrap().set_len(1 << 40).unwrap();
        assert_eq!(read(&path).unwrap_err().kind(), ErrorKind::InvalidData);
    }
}
