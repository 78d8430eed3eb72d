//! Quarantine: keeps files that were replaced, for the operator, in bounded number and for a bounded
//! time.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::Path;
use std::time::SystemTime;

use protocol::TenantId;
use protocol::time::DAY_S;

use super::Vault;
use crate::host;
use crate::storage::atomic_file::{self, entries, remove_if_exists};
use crate::storage::private::create_private_folder;

/// Files kept per tenant and kind.
pub(super) const FILES_MAX: usize = 16;

/// Age at which a file is deleted.
const FILE_AGE_S: u64 = 30 * DAY_S;

/// Age at which a snapshot is deleted although no newer one expired it: the most days that a tier can
/// ask for. It concerns tenants that are never woken again.
const SNAPSHOT_AGE_S: u64 = 1_000 * DAY_S;

/// Folder of files that were repaired.
const DAMAGED: &str = "damaged";

/// Folder of good copies that were replaced by a file that looks truncated, or by none.
const REPLACED: &str = "replaced";

impl Vault {
    /// Keeps the content of a damaged file that is about to be repaired. Returns when it is on disk.
    pub(super) fn quarantine_damaged(
        &self,
        tenant: &TenantId,
        name: &str,
        bytes: &[u8],
    ) -> io::Result<()> {
        let folder = self.home(tenant).join(DAMAGED);
        create_private_folder(&folder)?;
        atomic_file::write(&folder.join(dated(name)), bytes)?;
        delete_oldest(&folder)
    }

    /// Keeps a good copy that is about to be replaced or removed.
    pub(super) fn quarantine_copy(&self, tenant: &TenantId, name: &str) -> io::Result<()> {
        let folder = self.home(tenant).join(REPLACED);
        create_private_folder(&folder)?;
        // A good copy is replaced, never written, so a hard link keeps its content.
        match fs::hard_link(self.good(tenant).join(name), folder.join(dated(name))) {
            Ok(()) => delete_oldest(&folder),
            // There is no copy, or one of this second is kept already.
            Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::AlreadyExists) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Deletes files of all tenants that are too old: those in quarantine, and snapshots
    /// other than a tenant's newest. Costs a few listings per tenant; once an hour is enough.
    pub fn sweep(&self, now: SystemTime) -> io::Result<()> {
        let now_s = host::unix_s(now);
        for tenant in entries(&self.root)? {
            let home = tenant.path();
            for kind in [DAMAGED, REPLACED] {
                for file in entries(&home.join(kind))? {
                    if taken_s(&file).is_some_and(|taken| taken + FILE_AGE_S < now_s) {
                        remove_if_exists(&file.path())?;
                    }
                }
            }
            let mut snapshots: Vec<_> = entries(&home.join("snapshots"))?
                .into_iter()
                .filter_map(|folder| Some((taken_s(&folder)?, folder.path())))
                .collect();
            snapshots.sort_unstable();
            snapshots.pop();
            for (taken, folder) in snapshots {
                if taken + SNAPSHOT_AGE_S < now_s {
                    fs::remove_dir_all(folder)?;
                }
            }
        }
        Ok(())
    }
}

/// Prefixes a file name with the present second.
fn dated(name: &str) -> String {
    format!("{}-{name}", host::now_s())
}

/// Returns the second that an entry's name begins with.
fn taken_s(entry: &fs::DirEntry) -> Option<u64> {
    entry.file_name().to_str()?.split('-').next()?.parse().ok()
}

fn delete_oldest(folder: &Path) -> io::Result<()> {
    let mut files: Vec<_> = entries(folder)?.iter().map(fs::DirEntry::path).collect();
    files.sort_unstable();
    for old in files.iter().rev().skip(FILES_MAX) {
        remove_if_exists(old)?;
    }
    Ok(())
}
