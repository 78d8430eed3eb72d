//! What was replaced and may be wanted again: kept for a while, in a bounded number.

use std::fs;
use std::io::{self, ErrorKind, Write};
use std::path::Path;
use std::time::SystemTime;

use protocol::TenantId;

use super::{Vault, copy, entries, files, private_folder};
use crate::host;

/// Files kept per tenant and kind, newest first: enough to see what happened, bounded.
const ASIDE_MAX: usize = 16;
/// And so long.
const ASIDE_S: u64 = 30 * 24 * 3_600;
/// Snapshots of who takes no new ones go after the longest that a tier can ask for.
const SNAPSHOT_S: u64 = 1_000 * 24 * 3_600;

impl Vault {
    /// Keeps the bytes of a cut file that is about to be replaced. They are on disk first.
    pub(super) fn set_damaged_aside(
        &self,
        tenant: &TenantId,
        name: &str,
        bytes: &[u8],
    ) -> io::Result<()> {
        let folder = self.home(tenant).join("damaged");
        private_folder(&folder)?;
        let to = folder.join(dated(name));
        let mut file = files::create(&to)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        copy::sync_parent(&to)?;
        drop_oldest(&folder)
    }

    /// Keeps a good copy that a doubtful file, or none, is about to take the place of.
    pub(super) fn set_copy_aside(&self, tenant: &TenantId, name: &str) -> io::Result<()> {
        let folder = self.home(tenant).join("replaced");
        private_folder(&folder)?;
        // Good copies are replaced, never written: a link is a copy.
        match fs::hard_link(self.good(tenant).join(name), folder.join(dated(name))) {
            // There is no copy, or one of this second is kept already.
            Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::AlreadyExists) => Ok(()),
            Err(e) => Err(e),
            Ok(()) => drop_oldest(&folder),
        }
    }

    /// Removes what is too old, of all tenants. Blocks on a few listings per tenant; once an hour is
    /// often enough.
    pub fn sweep(&self, now: SystemTime) -> io::Result<()> {
        let now_s = host::unix_s(now);
        for tenant in entries(&self.root)? {
            let home = tenant.path();
            for kind in ["damaged", "replaced"] {
                for file in entries(&home.join(kind))? {
                    if taken_s(&file).is_some_and(|at| at + ASIDE_S < now_s) {
                        files::remove_if_there(&file.path())?;
                    }
                }
            }
            let mut snapshots: Vec<_> = entries(&home.join("snapshots"))?
                .into_iter()
                .filter_map(|folder| Some((taken_s(&folder)?, folder.path())))
                .collect();
            snapshots.sort_unstable();
            snapshots.pop();
            for (_, folder) in snapshots.into_iter().filter(|(at, _)| at + SNAPSHOT_S < now_s) {
                fs::remove_dir_all(folder)?;
            }
        }
        Ok(())
    }
}

fn dated(name: &str) -> String {
    format!("{}-{name}", host::now_s())
}

/// The seconds that a name begins with.
fn taken_s(entry: &fs::DirEntry) -> Option<u64> {
    entry.file_name().to_str()?.split('-').next()?.parse().ok()
}

fn drop_oldest(folder: &Path) -> io::Result<()> {
    let mut kept: Vec<_> = entries(folder)?.iter().map(fs::DirEntry::path).collect();
    kept.sort_unstable();
    for old in kept.iter().rev().skip(ASIDE_MAX) {
        files::remove_if_there(old)?;
    }
    Ok(())
}
