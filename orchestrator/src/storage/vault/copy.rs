//! Reading a file that SQ may be writing, and writing copies of it.

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::{Gid, Uid, fchown, ioctl_ficlone};
use tempfile::NamedTempFile;

use super::file_lease::FileLease;
use crate::storage::atomic_file::{self, parent};
use crate::storage::tenant_file::{self, Stamp};

/// Pause between two attempts to read a file.
const RETRY_AFTER: Duration = Duration::from_millis(1);

/// Bytes compared at a time, so that a phext is in memory once and not twice.
const CHUNK_BYTES: usize = 256 * 1024;

/// The content of a file at one moment.
#[derive(Debug)]
pub(super) struct ConsistentRead {
    file: File,
    /// Content of the file at that moment.
    pub(super) bytes: Vec<u8>,
    /// The file's stamp at that moment.
    pub(super) stamp: Stamp,
    /// Time of the read: the content is not older.
    pub(super) read_at: Instant,
    /// It was read under a lease, so no process had it open for writing.
    pub(super) leased: bool,
}

impl ConsistentRead {
    /// True if the file has not been written since, judged by its stamp.
    pub(super) fn is_current(&self) -> io::Result<bool> {
        Ok(Stamp::from_metadata(&self.file.metadata()?) == self.stamp)
    }
}

/// Reads a file of at most `max_bytes` as it is at one moment, although SQ may be writing it. `None`
/// means that it was being written at every attempt within `patience`. There is at least one attempt.
pub(super) fn read_consistently(
    path: &Path,
    max_bytes: u64,
    patience: Duration,
) -> io::Result<Option<ConsistentRead>> {
    read_with(FileLease::take, path, max_bytes, patience)
}

fn read_with(
    take_lease: impl Fn(&File) -> io::Result<Option<FileLease<'_>>>,
    path: &Path,
    max_bytes: u64,
    patience: Duration,
) -> io::Result<Option<ConsistentRead>> {
    let deadline = Instant::now() + patience;
    loop {
        let (file, _) = tenant_file::open(path)?;
        let lease = take_lease(&file);
        let leased = matches!(lease, Ok(Some(_)));
        // `Ok(None)` means that SQ is writing it now. An error means that there are no leases here,
        // and then only a second look can tell.
        if leased || lease.is_err() {
            let read_at = Instant::now();
            let stamp = Stamp::from_metadata(&file.metadata()?);
            let bytes = tenant_file::read_all(&file, path, max_bytes)?;
            // From here on a waiting writer may go on.
            drop(lease);
            let read = ConsistentRead { file, bytes, stamp, read_at, leased };
            // A write during an unprotected read shows as a difference.
            if leased || has_content(&read.file, &read.bytes)? {
                return Ok(Some(read));
            }
        }
        if Instant::now() >= deadline {
            return Ok(None);
        }
        std::thread::sleep(RETRY_AFTER);
    }
}

/// Replaces the good copy `to` by the content of `source`. The copy shares blocks with the source where the
/// file system can do that. It bears the time of the write that it copies, so that a file which a
/// crash of the host threw back behind its copy can be recognized.
pub(super) fn write_copy(source: &ConsistentRead, to: &Path) -> io::Result<()> {
    write_copy_with(|new, from| Ok(ioctl_ficlone(new, from)?), source, to)
}

fn write_copy_with(
    clone: impl FnOnce(&File, &File) -> io::Result<()>,
    source: &ConsistentRead,
    to: &Path,
) -> io::Result<()> {
    let mut new = atomic_file::stage(parent(to))?;
    let cloned = clone(new.as_file(), &source.file).is_ok();
    // SQ may have written the source after it was read: then the clone holds something else.
    if !(cloned && has_content(new.as_file(), &source.bytes)?) {
        new.as_file().set_len(0)?;
        new.rewind()?;
        new.write_all(&source.bytes)?;
    }
    new.as_file().set_modified(source.stamp.written())?;
    atomic_file::put(new, to)
}

/// Stages `bytes` in a tenant's folder, for the owner of that folder, and flushes them to disk.
pub(super) fn stage_for_tenant(bytes: &[u8], folder: &Path) -> io::Result<NamedTempFile> {
    let mut new = atomic_file::stage(folder)?;
    new.write_all(bytes)?;
    let owner = std::fs::metadata(folder)?;
    let present = new.as_file().metadata()?;
    if (present.uid(), present.gid()) != (owner.uid(), owner.gid()) {
        let uid = Uid::from_raw(owner.uid());
        let gid = Gid::from_raw(owner.gid());
        fchown(new.as_file(), Some(uid), Some(gid))?;
    }
    new.as_file().sync_all()?;
    Ok(new)
}

/// True if the file holds exactly `bytes`.
fn has_content(mut file: &File, bytes: &[u8]) -> io::Result<bool> {
    file.rewind()?;
    let mut chunk = Vec::with_capacity(CHUNK_BYTES);
    let mut rest = bytes;
    loop {
        chunk.clear();
        let read = file.take(CHUNK_BYTES as u64).read_to_end(&mut chunk)?;
        if read == 0 {
            return Ok(rest.is_empty());
        }
        let Some(after) = rest.strip_prefix(chunk.as_slice()) else { return Ok(false) };
        rest = after;
    }
}

#[cfg(test)]
pub(super) fn read_without_lease(path: &Path) -> ConsistentRead {
    let read = read_with(|_| Err(io::ErrorKind::Unsupported.into()), path, 1 << 20, Duration::ZERO);
    read.unwrap().unwrap()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    const PATIENCE: Duration = Duration::from_millis(100);
    const MAX: u64 = 1 << 20;
    /// Length of the text that is written over and over.
    const WHOLE: usize = 300_000;

    #[test]
    fn copy_has_content_and_time_of_its_source() {
        let dir = tempfile::tempdir().unwrap();
        let from = dir.path().join("a.phext");
        let to = dir.path().join("copy.phext");
        fs::write(&from, vec![7; 700_000]).unwrap();
        let source = read_consistently(&from, MAX, PATIENCE).unwrap().unwrap();
        let old = std::time::UNIX_EPOCH + Duration::from_secs(1);
        fs::write(&to, "an older copy").unwrap();
        File::options().write(true).open(&to).unwrap().set_modified(old).unwrap();
        write_copy(&source, &to).unwrap();
        assert_eq!(fs::read(&from).unwrap(), fs::read(&to).unwrap());
        let written = |path: &Path| fs::metadata(path).unwrap().modified().unwrap();
        assert_eq!(written(&from), written(&to));
        assert_eq!(fs::metadata(&to).unwrap().mode() & 0o777, 0o600, "for us alone");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
    }

    #[test]
    fn clone_of_a_later_write_is_not_kept() {
        let dir = tempfile::tempdir().unwrap();
        let from = dir.path().join("a.phext");
        let to = dir.path().join("copy.phext");
        fs::write(&from, "what was read").unwrap();
        let source = read_consistently(&from, MAX, PATIENCE).unwrap().unwrap();
        let clone_later = |mut new: &File, _: &File| new.write_all(b"what was read, and more");
        write_copy_with(clone_later, &source, &to).unwrap();
        assert_eq!(fs::read(&to).unwrap(), b"what was read");
    }

    #[test]
    fn busy_file_is_read_whole_under_a_lease() {
        let lengths = read_under_writes(|path, patience| read_consistently(path, MAX, patience));
        assert!(lengths.iter().all(|length| *length == WHOLE), "it was read within a write");
    }

    #[test]
    fn busy_file_without_lease_ends_at_a_page() {
        let lengths = read_under_writes(|path, patience| {
            read_with(|_| Err(io::ErrorKind::Unsupported.into()), path, MAX, patience)
        });
        // A writer that the kernel interrupts for a while leaves whole pages, which are looked at more
        // closely before they become a copy.
        assert!(lengths.iter().all(|length| *length == WHOLE || length.is_multiple_of(4_096)));
    }

    /// Reads a file that is written over and over, asserts that no content is mixed of two, and returns
    /// the lengths found.
    fn read_under_writes(
        read: impl Fn(&Path, Duration) -> io::Result<Option<ConsistentRead>>,
    ) -> Vec<usize> {
        use std::sync::atomic::{AtomicBool, Ordering};
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.phext");
        let whole = |letter: u8| vec![letter; WHOLE];
        fs::write(&path, whole(b'a')).unwrap();
        let stop = AtomicBool::new(false);
        let mut contents = Vec::new();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for letter in (b'a'..=b'z').cycle() {
                    fs::write(&path, whole(letter)).unwrap();
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                    // SQ composes its text between two writes.
                    std::thread::sleep(Duration::from_millis(3));
                }
            });
            for _ in 0..100 {
                // A panic in here would leave the writer running.
                contents.extend(read(&path, PATIENCE).ok().flatten().map(|read| read.bytes));
            }
            stop.store(true, Ordering::Relaxed);
        });
        assert!(!contents.is_empty(), "never read");
        for bytes in &contents {
            assert!(bytes.iter().all(|byte| Some(byte) == bytes.first()), "mixed of two writes");
        }
        contents.iter().map(Vec::len).collect()
    }

    #[test]
    fn restored_file_belongs_to_the_folders_owner() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("alice");
        let host = dir.path().join("host");
        fs::create_dir(&folder).unwrap();
        fs::write(&host, "the host's").unwrap();
        if rustix::process::geteuid().is_root() {
            std::os::unix::fs::chown(&folder, Some(10_001), Some(10_001)).unwrap();
        }
        let to = folder.join("a.phext");
        std::os::unix::fs::symlink(&host, &to).unwrap();
        atomic_file::put(stage_for_tenant(b"text", &folder).unwrap(), &to).unwrap();
        let owner = |path: &Path| fs::symlink_metadata(path).map(|m| (m.uid(), m.gid())).unwrap();
        assert_eq!(owner(&to), owner(&folder));
        assert_eq!(fs::read(&to).unwrap(), b"text");
        assert_eq!(fs::read(&host).unwrap(), b"the host's", "links are replaced, not followed");
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 1);
    }
}
