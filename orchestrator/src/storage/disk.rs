//! What tenants use of the disk, and whether the host still has room.
//!
//! A phext counts by what it costs SQ's memory: its bytes, or its scrolls where they are so small that
//! their bookkeeping weighs more than their text (docs/decisions, "What a tenant's memory bears").
//!
//! Used bytes are the sizes of the files SQ wrote, delimiters and `json-export`'s second files
//! included: what the disk would have to give back. The host's floor protects everyone's files: SQ
//! answers 200 while a full disk cuts what it writes, so mutations stop while there is still room.

mod backstop;

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use libphext::phext;

use protocol::TenantId;
use protocol::limits::SCROLL_BYTES;
use rustix::fs::statvfs;
use serde::{Deserialize, Serialize};

use self::backstop::Mount;
use crate::storage::vault::PHEXT_SUFFIX;
use crate::storage::vault::copy::Stamp;
use crate::storage::vault::files::{self, FILE_MAX_BYTES};

/// Read at a time while scrolls are counted.
const CHUNK_BYTES: usize = 256 * 1024;
/// Files whose scrolls are remembered; past this half of them are counted anew.
const COUNTED_MAX: usize = 65_536;

/// The disk below a data root. Clones share what they have counted.
#[derive(Debug, Clone)]
pub struct Disk {
    data_root: PathBuf,
    floor_bytes: u64,
    /// Scrolls of files that have not changed since.
    counted: Arc<Mutex<HashMap<PathBuf, (Stamp, u64)>>>,
}

/// What one tenant uses.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Used {
    /// All files.
    pub bytes: u64,
    /// What each phext weighs, by its name without the suffix.
    pub phexts: BTreeMap<String, u64>,
}

/// The host's side, for status and metrics.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostDisk {
    /// Bytes that can still be written.
    pub free_bytes: u64,
    /// Below this nobody may write.
    pub floor_bytes: u64,
    /// Which hard limit per tenant the file system offers, or why none.
    pub backstop: String,
    /// What must be known of the file system.
    #[serde(default)]
    pub warning: Option<String>,
}

impl Disk {
    /// The disk of `data_root`; mutations stop when fewer than `floor_bytes` are free.
    pub fn new(data_root: &Path, floor_bytes: u64) -> Self {
        Self { data_root: data_root.into(), floor_bytes, counted: Arc::default() }
    }

    /// Sum of the tenant's files. Blocks on one folder's listing.
    pub fn used_bytes(&self, tenant: &TenantId) -> io::Result<u64> {
        Ok(self.files(tenant)?.iter().map(|(_, metadata)| metadata.len()).sum())
    }

    /// How much the tenant's folder can hold where that is not what the data root can: a project
    /// quota or a file system of its own. A btrfs qgroup does not show.
    pub fn hard_bytes(&self, tenant: &TenantId) -> io::Result<Option<u64>> {
        let total =
            |folder: &Path| statvfs(folder).map(|stat| stat.f_blocks.saturating_mul(stat.f_frsize));
        let folder = self.data_root.join(tenant.as_str());
        if !folder.exists() {
            return Ok(None);
        }
        let own = total(&folder)?;
        Ok((own != total(&self.data_root)?).then_some(own))
    }

    /// What `tenant` uses now. Blocks on one folder's listing, and on reading phexts that changed.
    pub fn used(&self, tenant: &TenantId) -> io::Result<Used> {
        let mut used = Used::default();
        for (path, metadata) in self.files(tenant)? {
            used.bytes += metadata.len();
            let name = path.file_name().and_then(|name| name.to_str());
            if let Some(phext) = name.and_then(|n| n.strip_suffix(PHEXT_SUFFIX)) {
                let weight = self.weight(&path, &metadata);
                used.phexts.insert(phext.to_owned(), weight);
            }
        }
        Ok(used)
    }

    fn files(&self, tenant: &TenantId) -> io::Result<Vec<(PathBuf, fs::Metadata)>> {
        let entries = match fs::read_dir(self.data_root.join(tenant.as_str())) {
            Ok(entries) => entries,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(e),
        };
        let mut files = Vec::new();
        for entry in entries {
            let entry = entry?;
            // A file that goes while we look uses nothing. A link is none.
            if let Ok(metadata) = entry.metadata()
                && metadata.is_file()
            {
                files.push((entry.path(), metadata));
            }
        }
        Ok(files)
    }

    /// Bytes, or scrolls times [`SCROLL_BYTES`] where that is more. A file that goes while it is read
    /// weighs its bytes.
    fn weight(&self, path: &Path, metadata: &fs::Metadata) -> u64 {
        let stamp = Stamp::from_metadata(metadata);
        let known = {
            let counted = self.counted.lock().unwrap_or_else(PoisonError::into_inner);
            counted.get(path).filter(|(at, _)| *at == stamp).map(|(_, scrolls)| *scrolls)
        };
        let scrolls = known.unwrap_or_else(|| {
            let scrolls = scrolls_in(path).unwrap_or(0);
            let mut counted = self.counted.lock().unwrap_or_else(PoisonError::into_inner);
            if counted.len() >= COUNTED_MAX {
                // Every second one: all at once would be a read of every tenant's files.
                let mut goes = false;
                counted.retain(|_, _| {
                    goes = !goes;
                    goes
                });
            }
            counted.insert(path.to_owned(), (stamp, scrolls));
            scrolls
        });
        metadata.len().max(scrolls.saturating_mul(SCROLL_BYTES))
    }

    /// The host's side. Blocks on a look at its mounts.
    pub fn host(&self) -> io::Result<HostDisk> {
        let mount = Mount::of(&self.data_root)?;
        Ok(HostDisk {
            free_bytes: self.free_bytes()?,
            floor_bytes: self.floor_bytes,
            backstop: mount.offer(),
            warning: mount.warning(),
        })
    }

    /// Whether the host is below its floor. What can't be looked at counts as full: a mutation
    /// refused is better than a file cut.
    pub fn is_full(&self) -> bool {
        self.free_bytes().map_or(true, |free| free < self.floor_bytes)
    }

    fn free_bytes(&self) -> io::Result<u64> {
        let stat = statvfs(&self.data_root)?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }
}

/// Runs of anything but delimiters. Of a file that is larger than any phext none are counted: its
/// bytes weigh more.
fn scrolls_in(path: &Path) -> io::Result<u64> {
    let (mut file, metadata) = files::open(path)?;
    if metadata.len() > FILE_MAX_BYTES {
        return Ok(0);
    }
    let mut chunk = vec![0; CHUNK_BYTES];
    let (mut scrolls, mut inside) = (0, false);
    loop {
        let n = file.read(&mut chunk)?;
        if n == 0 {
            return Ok(scrolls);
        }
        for byte in &chunk[..n] {
            // A line break is text, as it is for SQ.
            let text = *byte == phext::LINE_BREAK as u8 || !phext::is_phext_break(*byte);
            scrolls += u64::from(text && !inside);
            inside = text;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tenant() -> TenantId {
        TenantId::parse("alice").unwrap()
    }

    #[test]
    fn every_file_counts_and_phexts_are_told_by_name() {
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
    fn a_file_that_a_link_leads_to_is_neither_counted_nor_read() {
        let dir = tempfile::tempdir().unwrap();
        let home = dir.path().join("alice");
        fs::create_dir(&home).unwrap();
        fs::write(dir.path().join("host"), "x".repeat(100)).unwrap();
        std::os::unix::fs::symlink("../host", home.join("a.phext")).unwrap();
        let disk = Disk::new(dir.path(), 0);
        assert_eq!(disk.used(&tenant()).unwrap(), Used::default());
        assert_eq!(disk.used_bytes(&tenant()).unwrap(), 0);
        assert!(scrolls_in(&home.join("a.phext")).is_err());
    }

    #[test]
    fn a_folder_on_the_same_disk_has_no_hard_limit() {
        let dir = tempfile::tempdir().unwrap();
        let disk = Disk::new(dir.path(), 0);
        assert_eq!(disk.hard_bytes(&tenant()).unwrap(), None);
        fs::create_dir(dir.path().join("alice")).unwrap();
        assert_eq!(disk.hard_bytes(&tenant()).unwrap(), None);
    }

    #[test]
    fn a_tenant_without_a_folder_uses_nothing() {
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
    fn a_data_root_that_can_t_be_looked_at_counts_as_full() {
        assert!(Disk::new(Path::new("/nowhere"), 0).is_full());
    }
}
