//! Snapshots: taken, listed, restored and exported.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use protocol::TenantId;
use protocol::time::{DAY_S, HOUR_S};
use serde::{Deserialize, Serialize};
use tempfile::TempPath;

use super::copy::stage_for_tenant;
use super::copy_phext::{CopyOutcome, Writer};
use super::track::Track;
use super::{Vault, retention};
use crate::host;
use crate::storage::atomic_file::{entries, remove_if_exists, sync_folder};
use crate::storage::private::{PRIVATE_FILE, create_private_folder};
use crate::storage::tenant_file::{self, FILE_MAX_BYTES, phext_files};

/// Age of the newest snapshot from which the next one is due.
const INTERVAL_S: u64 = HOUR_S;

/// Time for which the snapshot taken by a restore is kept, whatever the tier's limits are.
const BEFORE_RESTORE_S: u64 = DAY_S;

/// Snapshots kept for that reason.
pub(super) const BEFORE_RESTORE_MAX: usize = 16;

/// Temporary name of a good copy; among the names that `remove_leftovers` deletes.
const RESTORED: &str = ".new-restored";

/// Marks a snapshot that was taken by a restore.
const BEFORE_RESTORE: &str = ".before";

/// Reason for a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reason {
    /// One was due.
    Due,
    /// A restore keeps what it is about to replace.
    Restore,
}

/// A point-in-time copy of all phexts of a tenant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// Time when it was taken, seconds since 1970 UTC. It is also its name.
    pub taken_s: u64,
    /// Number of phexts.
    pub phexts: u32,
    /// Sum of their lengths.
    pub bytes: u64,
}

/// Copies the phexts of a snapshot's folder into the new folder `to`, for the caller alone, and
/// returns their number. It needs the right to read the vault.
pub fn export(from: &Path, to: &Path) -> io::Result<u32> {
    let names = phext_files(from)?;
    fs::DirBuilder::new().mode(0o700).create(to)?;
    let mut count = 0;
    for name in names.into_keys() {
        let mut options = OpenOptions::new();
        let mut file =
            options.write(true).create_new(true).mode(PRIVATE_FILE).open(to.join(&name))?;
        io::copy(&mut fs::File::open(from.join(&name))?, &mut file)?;
        count += 1;
    }
    Ok(count)
}

impl Vault {
    /// Lists the tenant's snapshots, oldest first.
    pub fn snapshots(&self, tenant: &TenantId) -> io::Result<Vec<Snapshot>> {
        let mut snapshots = Vec::new();
        for taken_s in self.snapshot_times(tenant)? {
            let files = phext_files(&self.snapshot_folder(tenant, taken_s))?;
            snapshots.push(Snapshot {
                taken_s,
                phexts: u32::try_from(files.len()).unwrap_or(u32::MAX),
                bytes: files.values().map(|stamp| stamp.bytes).sum(),
            });
        }
        Ok(snapshots)
    }

    /// Takes a snapshot of the good copies if one is due, and deletes those that have expired.
    pub fn snapshot(&self, tenant: &TenantId, hourly: u32, daily: u32) -> io::Result<()> {
        self.exclusive(tenant, |_| self.take_due(tenant, hourly, daily))
    }

    pub(super) fn take_due(&self, tenant: &TenantId, hourly: u32, daily: u32) -> io::Result<()> {
        let now_s = host::now_s();
        let newest = self.snapshot_times(tenant)?.last().copied();
        let due = hourly + daily > 0 && newest.is_none_or(|newest| now_s >= newest + INTERVAL_S);
        if due && !phext_files(&self.good(tenant))?.is_empty() {
            self.take(tenant, now_s, Reason::Due)?;
        }
        // The newest snapshots taken by restores don't count for the tier's limits.
        let mut newest_first = self.snapshot_times(tenant)?;
        newest_first.reverse();
        let mut spared = 0;
        newest_first.retain(|taken| {
            let spare = spared < BEFORE_RESTORE_MAX
                && now_s < taken + BEFORE_RESTORE_S
                && self.snapshot_folder(tenant, *taken).join(BEFORE_RESTORE).exists();
            spared += usize::from(spare);
            !spare
        });
        for taken in retention::expired(&newest_first, hourly, daily) {
            fs::remove_dir_all(self.snapshot_folder(tenant, taken))?;
        }
        Ok(())
    }

    /// Restores the tenant's phexts to their state at `taken_s`. The present state is kept as a
    /// snapshot of this second, for a day at least, whose name is returned. The caller keeps the
    /// tenant asleep. An error before the exchange, such as a full disk, has changed nothing.
    pub fn restore(&self, tenant: &TenantId, taken_s: u64) -> io::Result<u64> {
        self.exclusive(tenant, |track| {
            let data = self.data(tenant);
            let good = self.good(tenant);
            let from = self.existing(tenant, taken_s)?;
            create_private_folder(&good)?;
            create_private_folder(&data)?;
            // 1. Keep the present state.
            let before_s = self.keep_present_state(tenant, track)?;
            // 2. Write all files before the first is exchanged.
            let names: Vec<String> = phext_files(&from)?.into_keys().collect();
            let staged = stage_all(&from, &names, &data)?;
            // 3. Exchange file and copy.
            for (name, file) in names.iter().zip(staged) {
                file.persist(data.join(name))?;
                // A good copy is replaced, never written, so a hard link keeps its content.
                let new = good.join(RESTORED);
                remove_if_exists(&new)?;
                fs::hard_link(from.join(name), &new)?;
                fs::rename(&new, good.join(name))?;
            }
            // 4. Remove phexts that the snapshot does not have.
            for folder in [&data, &good] {
                for name in phext_files(folder)?.into_keys().filter(|name| !names.contains(name)) {
                    remove_if_exists(&folder.join(name))?;
                }
                sync_folder(folder)?;
            }
            Ok(before_s)
        })
    }

    /// Takes a snapshot of the present state and returns its name.
    fn keep_present_state(&self, tenant: &TenantId, track: &mut Track) -> io::Result<u64> {
        // A damaged file must be repaired first, or it would become a good copy.
        if let Some(crash) = self.last_crash(tenant)? {
            self.examine_all(tenant, track, crash)?;
        }
        self.look_for_space(tenant, track)?;
        let files = self.bounds(tenant).divide(phext_files(&self.data(tenant))?);
        if let Some(complaint) = files.complaint() {
            let remedy = "remove it or raise the tier's limit first";
            return Err(io::Error::other(format!("{complaint}: {remedy}")));
        }
        for name in files.within.into_keys() {
            let outcome = self.copy_phext(tenant, track, &name, Writer::Stopped)?;
            if outcome != CopyOutcome::Copied {
                return Err(io::Error::other(format!(
                    "{name} may have been truncated by a full disk: free some space first"
                )));
            }
        }
        let mut now_s = host::now_s();
        while self.snapshot_folder(tenant, now_s).exists() {
            now_s += 1;
        }
        self.take(tenant, now_s, Reason::Restore)?;
        Ok(now_s)
    }

    /// Returns the folder of a snapshot, or without `taken_s` that of the good copies, to [`export`]
    /// from. A snapshot that does not exist is an error of the kind `NotFound`.
    pub fn folder(&self, tenant: &TenantId, taken_s: Option<u64>) -> io::Result<PathBuf> {
        match taken_s {
            Some(taken_s) => self.existing(tenant, taken_s),
            None => Ok(self.good(tenant)),
        }
    }

    fn take(&self, tenant: &TenantId, now_s: u64, reason: Reason) -> io::Result<()> {
        let folder = self.snapshot_folder(tenant, now_s);
        let new = folder.with_extension("new");
        if new.exists() {
            fs::remove_dir_all(&new)?;
        }
        create_private_folder(&new)?;
        for name in phext_files(&self.good(tenant))?.into_keys() {
            // A good copy is replaced, never written, so a hard link keeps its content.
            fs::hard_link(self.good(tenant).join(&name), new.join(&name))?;
        }
        if reason == Reason::Restore {
            fs::write(new.join(BEFORE_RESTORE), "")?;
        }
        fs::rename(&new, &folder)?;
        sync_folder(&self.snapshots_folder(tenant))
    }

    fn existing(&self, tenant: &TenantId, taken_s: u64) -> io::Result<PathBuf> {
        let folder = self.snapshot_folder(tenant, taken_s);
        if folder.is_dir() {
            return Ok(folder);
        }
        let text = format!("{tenant} has no snapshot {taken_s}");
        Err(io::Error::new(io::ErrorKind::NotFound, text))
    }

    fn snapshots_folder(&self, tenant: &TenantId) -> PathBuf {
        self.home(tenant).join("snapshots")
    }

    fn snapshot_folder(&self, tenant: &TenantId, taken_s: u64) -> PathBuf {
        self.snapshots_folder(tenant).join(taken_s.to_string())
    }

    /// Returns the names of the snapshots, oldest first.
    fn snapshot_times(&self, tenant: &TenantId) -> io::Result<Vec<u64>> {
        let folders = entries(&self.snapshots_folder(tenant))?;
        let names = folders.iter().map(fs::DirEntry::file_name);
        let mut times: Vec<u64> = names.filter_map(|name| name.to_str()?.parse().ok()).collect();
        times.sort_unstable();
        Ok(times)
    }
}

/// Writes the named files of a snapshot as temporary files in a tenant's folder. On an error all of
/// them are deleted again.
fn stage_all(from: &Path, names: &[String], folder: &Path) -> io::Result<Vec<TempPath>> {
    let stage = |name: &String| {
        let missing = || io::Error::from(io::ErrorKind::NotFound);
        let (bytes, _) =
            tenant_file::read(&from.join(name), FILE_MAX_BYTES)?.ok_or_else(missing)?;
        // Its descriptor is closed: there may be thousands of files.
        Ok(stage_for_tenant(&bytes, folder)?.into_temp_path())
    };
    names.iter().map(stage).collect()
}
