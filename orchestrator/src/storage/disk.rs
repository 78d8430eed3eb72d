//! Measures tenants' use of the disk, and whether the host still has space.
//!
//! A phext is weighed by what it costs SQ's memory: its bytes, or its scrolls where they are so small
//! that their bookkeeping outweighs their text (docs/decisions/2026-11-23-how-much-a-tenants-memory-holds.md).
//!
//! Used bytes are the lengths of all files that SQ wrote, with delimiters and the second files of
//! `json-export`: what deleting them would give back to the disk. The host's floor protects every
//! tenant's files. SQ answers 200 although a full disk truncates what it writes, so writes must be
//! refused while there is still space.

mod backstop;

use std::collections::{BTreeMap, HashMap};
use std::fs::Metadata;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use libphext::phext;
use parking_lot::Mutex;
use protocol::TenantId;
use protocol::limits::SCROLL_BYTES;
use rustix::fs::{SeekFrom, seek, statvfs};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use self::backstop::Mount;
use crate::storage::atomic_file::entries;
use crate::storage::tenant_file::{self, FILE_MAX_BYTES, PHEXT_SUFFIX, Stamp};

/// Bytes read at a time while scrolls are counted.
const CHUNK_BYTES: usize = 256 * 1024;

/// Files whose number of scrolls is remembered. When it is reached, half of them are forgotten.
const COUNTED_MAX: usize = 65_536;

/// The disk that holds a data root. Clones share the counts of scrolls.
#[derive(Debug, Clone)]
pub struct Disk {
    data_root: PathBuf,
    floor_bytes: u64,
    /// Number of scrolls of files that have not changed since they were counted.
    counted: Arc<Mutex<HashMap<PathBuf, (Stamp, u64)>>>,
}

/// A tenant's use of the disk.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Used {
    /// Length of all files.
    pub bytes: u64,
    /// Weight of each phext, by its name without the suffix.
    pub phexts: BTreeMap<String, u64>,
}

/// State of the host's disk, for status and metrics.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostDisk {
    /// Bytes that can still be written.
    pub free_bytes: u64,
    /// Free space below which all writes of tenants are refused.
    pub floor_bytes: u64,
    /// The hard limit per tenant that the file system offers, or the reason why it offers none.
    pub backstop: String,
    /// A weakness of the file system that the operator should know of.
    #[serde(default)]
    pub warning: Option<String>,
}

impl Disk {
    /// Measures below `data_root`; writes are refused when fewer than `floor_bytes` are free.
    pub fn new(data_root: &Path, floor_bytes: u64) -> Self {
        Self { data_root: data_root.into(), floor_bytes, counted: Arc::default() }
    }

    /// Returns the length of all of a tenant's files. Costs one listing of a folder.
    pub fn used_bytes(&self, tenant: &TenantId) -> io::Result<u64> {
        Ok(self.files(tenant)?.iter().map(|(_, metadata)| metadata.len()).sum())
    }

    /// Returns the capacity of the tenant's folder if it differs from the data root's: a project
    /// quota, or a separate file system. The limit of a btrfs qgroup does not show.
    pub fn hard_bytes(&self, tenant: &TenantId) -> io::Result<Option<u64>> {
        let folder = self.data_root.join(tenant.as_str());
        if !folder.exists() {
            return Ok(None);
        }
        let own = capacity_bytes(&folder)?;
        Ok((own != capacity_bytes(&self.data_root)?).then_some(own))
    }

    /// Measures a tenant. Costs one listing of a folder, and reading the phexts that have changed.
    pub fn used(&self, tenant: &TenantId) -> io::Result<Used> {
        let mut used = Used::default();
        for (path, metadata) in self.files(tenant)? {
            used.bytes += metadata.len();
            let name = path.file_name().and_then(|name| name.to_str());
            if let Some(phext) = name.and_then(|name| name.strip_suffix(PHEXT_SUFFIX)) {
                let weight = self.weight(&path, &metadata);
                used.phexts.insert(phext.to_owned(), weight);
            }
        }
        Ok(used)
    }

    fn files(&self, tenant: &TenantId) -> io::Result<Vec<(PathBuf, Metadata)>> {
        let mut files = Vec::new();
        for entry in entries(&self.data_root.join(tenant.as_str()))? {
            // A file that is removed in between uses nothing, and a link is not a file.
            if let Ok(metadata) = entry.metadata()
                && metadata.is_file()
            {
                files.push((entry.path(), metadata));
            }
        }
        Ok(files)
    }

    /// Returns the length of a phext, or its scrolls times [`SCROLL_BYTES`] if that is more. A file
    /// that can't be read weighs its length.
    fn weight(&self, path: &Path, metadata: &Metadata) -> u64 {
        let stamp = Stamp::from_metadata(metadata);
        let counted = self.counted.lock().get(path).copied();
        let scrolls = match counted {
            Some((counted_at, scrolls)) if counted_at == stamp => scrolls,
            _ => {
                let scrolls = count_scrolls(path).unwrap_or(0);
                self.remember(path, stamp, scrolls);
                scrolls
            }
        };
        metadata.len().max(scrolls.saturating_mul(SCROLL_BYTES))
    }

    fn remember(&self, path: &Path, stamp: Stamp, scrolls: u64) {
        let mut counted = self.counted.lock();
        if counted.len() >= COUNTED_MAX {
            // Half of them: without any, the files of all tenants would be read at once.
            let mut keep = false;
            counted.retain(|_, _| {
                keep = !keep;
                keep
            });
        }
        counted.insert(path.to_owned(), (stamp, scrolls));
    }

    /// Returns the state of the host's disk. Reads the host's table of mounts.
    pub fn host(&self) -> io::Result<HostDisk> {
        let mount = Mount::of(&self.data_root)?;
        Ok(HostDisk {
            free_bytes: self.free_bytes()?,
            floor_bytes: self.floor_bytes,
            backstop: mount.offer(),
            warning: mount.warning(),
        })
    }

    /// True if the host is below its floor, and also if that is unknown: a refused write is better
    /// than a truncated file.
    pub fn is_full(&self) -> bool {
        self.free_bytes().map_or(true, |free| free < self.floor_bytes)
    }

    fn free_bytes(&self) -> io::Result<u64> {
        let stat = statvfs(&self.data_root)?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }
}

fn capacity_bytes(folder: &Path) -> io::Result<u64> {
    let stat = statvfs(folder)?;
    Ok(stat.f_blocks.saturating_mul(stat.f_frsize))
}

/// Counts runs of bytes that are not delimiters. A file that is larger than any phext counts as none,
/// because its length outweighs its scrolls. Holes are not read: a file that occupies nothing on the
/// disk would cost as much time as one that does.
fn count_scrolls(path: &Path) -> io::Result<u64> {
    let (file, metadata) = tenant_file::open(path)?;
    if metadata.len() > FILE_MAX_BYTES {
        return Ok(0);
    }
    let mut counter = ScrollCounter::default();
    let mut chunk = vec![0; CHUNK_BYTES];
    let mut at = 0;
    while at < metadata.len() {
        // 1. A hole is a run of zeros, which are text.
        let data = match seek(&file, SeekFrom::Data(at)) {
            Ok(data) => data,
            // There is no more data.
            Err(Errno::NXIO) => metadata.len(),
            Err(error) => return Err(error.into()),
        };
        if data > at {
            counter.on_bytes(&[0]);
        }
        if data >= metadata.len() {
            break;
        }
        // 2. The bytes up to the next hole.
        let hole = seek(&file, SeekFrom::Hole(data))?;
        seek(&file, SeekFrom::Start(data))?;
        let mut bytes = (&file).take(hole - data);
        loop {
            let read = bytes.read(&mut chunk)?;
            if read == 0 {
                break;
            }
            counter.on_bytes(&chunk[..read]);
        }
        at = hole;
    }
    Ok(counter.scrolls)
}

/// Counts scrolls across pieces of a file.
#[derive(Default)]
struct ScrollCounter {
    scrolls: u64,
    in_scroll: bool,
}

impl ScrollCounter {
    fn on_bytes(&mut self, bytes: &[u8]) {
        for byte in bytes {
            // libphext counts a line break among the delimiters; in SQ it is text.
            let is_text = *byte == phext::LINE_BREAK as u8 || !phext::is_phext_break(*byte);
            self.scrolls += u64::from(is_text && !self.in_scroll);
            self.in_scroll = is_text;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::FileExt as _;

    fn tenant() -> TenantId {
        TenantId::parse("alice").unwrap()
    }

    #[test]
    fn every_file_counts_and_phexts_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let home = dir.path().join("alice");
        fs::create_dir(&home).unwrap();
        fs::write(home.join("a.phext"), "12345".repeat(20)).unwrap();
        fs::write(home.join("a.phext.json"), "123").unwrap();
        let used = Disk::new(dir.path(), 0).used(&tenant()).unwrap();
        assert_eq!((used.bytes, used.phexts), (103, BTreeMap::from([("a".to_owned(), 100)])));
    }

    #[test]
    fn many_small_scrolls_weigh_more_than_their_text() {
        let dir = tempfile::tempdir().unwrap();
        let home = dir.path().join("alice");
        fs::create_dir(&home).unwrap();
        let disk = Disk::new(dir.path(), 0);
        let weight = |text: &str| {
            fs::write(home.join("a.phext"), text).unwrap();
            disk.used(&tenant()).unwrap().phexts["a"]
        };
        assert_eq!(weight(""), 0);
        assert_eq!(weight("\x17\x18one\x17two\nlines\x01\x01three"), 3 * SCROLL_BYTES);
        assert_eq!(weight(&"\x17".repeat(8_000)), 8_000);
    }

    #[test]
    fn hole_is_text_and_takes_no_time() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.phext");
        fs::write(&path, "one\x17").unwrap();
        let file = fs::File::options().write(true).open(&path).unwrap();
        file.set_len(FILE_MAX_BYTES).unwrap();
        file.write_all_at(b"\x17two", FILE_MAX_BYTES - 4).unwrap();
        let began = std::time::Instant::now();
        assert_eq!(count_scrolls(&path).unwrap(), 3);
        // Reading a gigabyte byte by byte takes several seconds in a debug build.
        assert!(began.elapsed() < std::time::Duration::from_secs(1), "{:?}", began.elapsed());
        file.set_len(4_096).unwrap();
        assert_eq!(count_scrolls(&path).unwrap(), 2, "zeros to the end");
    }

    #[test]
    fn target_of_a_link_is_not_counted() {
        let dir = tempfile::tempdir().unwrap();
        let home = dir.path().join("alice");
        fs::create_dir(&home).unwrap();
        fs::write(dir.path().join("host"), "x".repeat(100)).unwrap();
        std::os::unix::fs::symlink("../host", home.join("a.phext")).unwrap();
        let disk = Disk::new(dir.path(), 0);
        assert_eq!(disk.used(&tenant()).unwrap(), Used::default());
        assert_eq!(disk.used_bytes(&tenant()).unwrap(), 0);
        assert!(count_scrolls(&home.join("a.phext")).is_err());
    }

    #[test]
    fn folder_on_the_same_disk_has_no_hard_limit() {
        let dir = tempfile::tempdir().unwrap();
        let disk = Disk::new(dir.path(), 0);
        assert_eq!(disk.hard_bytes(&tenant()).unwrap(), None);
        fs::create_dir(dir.path().join("alice")).unwrap();
        assert_eq!(disk.hard_bytes(&tenant()).unwrap(), None);
    }

    #[test]
    fn tenant_without_a_folder_uses_nothing() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Disk::new(dir.path(), 0).used(&tenant()).unwrap(), Used::default());
    }

    #[test]
    fn below_the_floor_the_host_is_full() {
        let dir = tempfile::tempdir().unwrap();
        let full = |floor| Disk::new(dir.path(), floor).is_full();
        assert_eq!((full(0), full(u64::MAX)), (false, true));
    }

    #[test]
    fn unreadable_data_root_counts_as_full() {
        assert!(Disk::new(Path::new("/nowhere"), 0).is_full());
    }
}
