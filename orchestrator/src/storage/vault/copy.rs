//! Reads a file that may be written meanwhile as it was at one moment, and puts bytes in a file's
//! place so that they are either wholly there or not at all.

use std::fs::{self, File};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustix::fs::{Gid, Uid, fchown, ioctl_ficlone};

use super::file_lease::Lease;
use super::files;

/// Between two tries.
const PAUSE: Duration = Duration::from_millis(1);
/// Compared at a time: a phext is in memory once, not twice.
const CHUNK_BYTES: usize = 256 * 1024;

/// What tells one state of a file from the next without reading it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    /// Length.
    pub bytes: u64,
    /// Time of the last write, nanoseconds since 1970.
    pub written_ns: i128,
    /// Which file it is.
    pub inode: u64,
}

impl Stamp {
    /// The stamp in `metadata`.
    pub fn from_metadata(metadata: &fs::Metadata) -> Self {
        Self {
            bytes: metadata.len(),
            written_ns: i128::from(metadata.mtime()) * 1_000_000_000
                + i128::from(metadata.mtime_nsec()),
            inode: metadata.ino(),
        }
    }

    /// When it was last written; 1970 for what bears an earlier time.
    pub fn written(&self) -> SystemTime {
        UNIX_EPOCH + Duration::from_nanos(u64::try_from(self.written_ns).unwrap_or(0))
    }
}

/// A file as it was at one moment.
#[derive(Debug)]
pub struct Settled {
    /// What was read.
    pub file: File,
    /// All of it.
    pub bytes: Vec<u8>,
    /// Its state at that moment.
    pub stamp: Stamp,
    /// No later than that moment.
    pub read_at: Instant,
    /// Whether nobody is known to have had it open for writing.
    pub closed: bool,
}

impl Settled {
    /// Whether it is still what was read, by its stamp.
    pub fn is_current(&self) -> io::Result<bool> {
        Ok(Stamp::from_metadata(&self.file.metadata()?) == self.stamp)
    }
}

/// The file as it was at one moment, which others may write; `None`: it kept being written for
/// `patience`. It is tried once at least.
///
/// Read under a lease. Where there are none, it is read and then compared with the file as it is:
/// whatever is written between the two shows as a difference or in the stamp.
pub fn settled(path: &Path, patience: Duration) -> io::Result<Option<Settled>> {
    settled_under(Lease::take, path, patience)
}

fn settled_under(
    take: impl Fn(&File) -> io::Result<Option<Lease<'_>>>,
    path: &Path,
    patience: Duration,
) -> io::Result<Option<Settled>> {
    let end = Instant::now() + patience;
    loop {
        let (file, _) = files::open(path)?;
        let lease = take(&file);
        let closed = matches!(lease, Ok(Some(_)));
        // Where there are no leases, nobody knows whether it is being written.
        if closed || lease.is_err() {
            let read_at = Instant::now();
            let stamp = Stamp::from_metadata(&file.metadata()?);
            let bytes = files::read_all(&file, path)?;
            drop(lease);
            let settled = Settled { file, bytes, stamp, read_at, closed };
            if closed || (holds(&settled.file, &settled.bytes)? && settled.is_current()?) {
                return Ok(Some(settled));
            }
        }
        if Instant::now() >= end {
            return Ok(None);
        }
        std::thread::sleep(PAUSE);
    }
}

/// Makes `to` a copy of what was read: cloned where the file system shares blocks, else written;
/// verified, flushed to disk and renamed. It bears the time of the write it copies, so that a file
/// that a crash of the host threw back behind its copy can be told. `to` stands in a folder of ours.
pub fn keep(from: &Settled, to: &Path) -> io::Result<()> {
    let new = to.with_extension("new");
    let cloned = ioctl_ficlone(&files::create(&new)?, &from.file).is_ok();
    // The source may have changed before it was cloned.
    if !(cloned && holds(&File::open(&new)?, &from.bytes)?) {
        files::create(&new)?.write_all(&from.bytes)?;
    }
    let file = File::options().read(true).write(true).open(&new)?;
    if !holds(&file, &from.bytes)? {
        return Err(io::Error::other(format!("{} reads otherwise than written", new.display())));
    }
    file.set_modified(from.stamp.written())?;
    file.sync_all()?;
    fs::rename(&new, to)?;
    sync_parent(to)
}

/// Writes `bytes` to `to` atomically, owned as its folder is, so that the tenant can write it.
pub fn put(bytes: &[u8], to: &Path) -> io::Result<()> {
    // A leading dot: no phext is named so, SQ never touches it.
    let new = to.with_file_name(".restored");
    stage(bytes, &new)?;
    fs::rename(&new, to)?;
    sync_parent(to)
}

/// Writes `bytes` to the new file `to`, owned as its folder is, and flushes it to disk.
pub fn stage(bytes: &[u8], to: &Path) -> io::Result<()> {
    let folder = fs::metadata(to.parent().unwrap_or(Path::new("/")))?;
    let mut file = files::create(to)?;
    file.write_all(bytes)?;
    let now = file.metadata()?;
    if (now.uid(), now.gid()) != (folder.uid(), folder.gid()) {
        let (uid, gid) = (Uid::from_raw(folder.uid()), Gid::from_raw(folder.gid()));
        fchown(&file, Some(uid), Some(gid))?;
    }
    file.sync_all()
}

/// Makes a rename in the folder of `path` last.
pub fn sync_parent(path: &Path) -> io::Result<()> {
    sync_folder(path.parent().unwrap_or(Path::new("/")))
}

/// Makes what was renamed and removed in the folder last.
pub fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

/// Whether the file holds exactly `bytes`.
fn holds(mut file: &File, bytes: &[u8]) -> io::Result<bool> {
    file.rewind()?;
    let mut chunk = vec![0; CHUNK_BYTES];
    let mut rest = bytes;
    loop {
        let n = read_full(file, &mut chunk)?;
        if n > rest.len() || chunk[..n] != rest[..n] {
            return Ok(false);
        }
        rest = &rest[n..];
        if n == 0 {
            return Ok(rest.is_empty());
        }
    }
}

fn read_full(mut file: &File, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read(&mut buffer[filled..])? {
            0 => break,
            n => filled += n,
        }
    }
    Ok(filled)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_millis(100);

    #[test]
    fn a_copy_is_the_source_with_its_time_and_leaves_nothing_half_done() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("a.phext"), dir.path().join("copy.phext"));
        fs::write(&from, vec![7; 700_000]).unwrap();
        let settled = settled(&from, PATIENCE).unwrap().unwrap();
        keep(&settled, &to).unwrap();
        assert_eq!(fs::read(&from).unwrap(), fs::read(&to).unwrap());
        let written = |path: &Path| fs::metadata(path).unwrap().modified().unwrap();
        assert_eq!(written(&from), written(&to));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
    }

    #[test]
    fn a_file_that_is_written_all_the_time_is_read_whole() {
        let lengths = read_under_writes(settled);
        assert!(lengths.iter().all(|length| *length > 0), "it was read within a write");
    }

    #[test]
    fn where_there_are_no_leases_it_is_read_as_it_was_at_one_moment() {
        read_under_writes(|path, patience| {
            settled_under(|_| Err(io::ErrorKind::Unsupported.into()), path, patience)
        });
    }

    /// The lengths found by reading a file that is written over and over; no reading is torn.
    fn read_under_writes(
        settled: impl Fn(&Path, Duration) -> io::Result<Option<Settled>>,
    ) -> Vec<usize> {
        use std::sync::atomic::{AtomicBool, Ordering};
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.phext");
        let whole = |letter: u8| vec![letter; 300_000];
        fs::write(&path, whole(b'a')).unwrap();
        let stop = AtomicBool::new(false);
        let mut lengths = Vec::new();
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
                if let Some(Settled { bytes, .. }) = settled(&path, PATIENCE).unwrap() {
                    assert!(bytes.is_empty() || bytes == whole(bytes[0]), "torn");
                    lengths.push(bytes.len());
                }
            }
            stop.store(true, Ordering::Relaxed);
        });
        assert!(!lengths.is_empty(), "never read");
        lengths
    }

    #[test]
    fn a_file_put_in_place_belongs_to_its_folder_s_owner_and_never_goes_where_a_link_leads() {
        let dir = tempfile::tempdir().unwrap();
        let (folder, host) = (dir.path().join("alice"), dir.path().join("host"));
        fs::create_dir(&folder).unwrap();
        fs::write(&host, "the host's").unwrap();
        if rustix::process::geteuid().is_root() {
            std::os::unix::fs::chown(&folder, Some(10_001), Some(10_001)).unwrap();
        }
        let to = folder.join("a.phext");
        for name in [".restored", "a.phext"] {
            std::os::unix::fs::symlink(&host, folder.join(name)).unwrap();
        }
        put(b"text", &to).unwrap();
        let owner = |p: &Path| fs::symlink_metadata(p).map(|m| (m.uid(), m.gid())).unwrap();
        assert_eq!(owner(&to), owner(&folder));
        assert_eq!(fs::read(&to).unwrap(), b"text");
        assert_eq!(fs::read(&host).unwrap(), b"the host's");
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 1);
    }
}
