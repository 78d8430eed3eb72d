//! The vault: keeps copies of tenants' phexts out of the tenants' reach, and repairs what a crash
//! damaged.
//!
//! ```text
//! <vault>/<tenant>/running            exists from before a start until an orderly stop is complete;
//!                                     holds the boot id of the host
//! <vault>/<tenant>/good/a.phext       last good copy; replaced, never written, so it can be linked
//! <vault>/<tenant>/snapshots/1767225600/a.phext   hard links to the good copies of that second
//! <vault>/<tenant>/damaged/1767225600-a.phext     quarantine: files that were repaired
//! <vault>/<tenant>/replaced/1767225600-a.phext    quarantine: good copies whose place was taken by a
//!                                                 file that looks truncated, or by none
//! ```
//!
//! - While SQ runs ([`running`]), a phext is copied once it has not been written for [`QUIET`], and at
//!   the latest [`COPY_AFTER`] after its oldest write that has no copy. Checks are half a second apart.
//!   So the *window* in which an acknowledged write can be lost is 5 s and the time of one copy, and a
//!   write is lost only if SQ dies during a write of that same phext.
//! - A phext is read under a *file lease* ([`file_lease`]): no process has it open for writing, and
//!   the next writer waits as long as reading takes, once per window.
//! - A file that looks truncated beside its copy becomes a good copy only if its write is known to
//!   have been finished ([`copy_phext`]).
//! - Before SQ starts after anything but an orderly stop, every phext is examined ([`examine`]) and,
//!   where it is damaged, repaired ([`start`]). While SQ starts, changed files are copied.
//!
//! docs/copies.md states the promises, docs/decisions the reason for each rule.
//!
//! Every call blocks on files; the caller runs it on a thread that may block. Calls for one tenant
//! take turns, those of different tenants don't wait for each other.
//!
//! Files beyond twice the tier's limits are neither read nor copied ([`bounds`]). So the space per
//! tenant, if the file system shares nothing, is at most 2 · (1 + hourly + daily) times the tier's
//! storage, and 16 files of each kind of quarantine. A phext that has not changed costs nothing per
//! snapshot. A phext is in memory while it is read; of large ones, one at a time.

mod bounds;
mod copy;
mod copy_phext;
pub mod examine;
mod file_lease;
mod quarantine;
mod retention;
mod running;
pub mod snapshots;
mod start;
#[cfg(test)]
mod tests;
mod track;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard};
use protocol::{Limits, TenantId};

use super::atomic_file::remove_if_exists;
use super::private::{PRIVATE_FOLDER, create_private_folder, restrict};
use super::tenant_file::{self, phext_files};
use crate::host;
use bounds::Bounds;
use copy_phext::CopyOutcome;
pub use examine::Damage;
pub use start::PrepareError;
use track::Track;

/// Time without a write after which a phext is copied.
const QUIET: Duration = Duration::from_secs(1);

/// Time after which a phext that is written all the time is copied nevertheless: the window of 5 s,
/// less half a second between looks and one second for copies of other phexts.
const COPY_AFTER: Duration = Duration::from_millis(3_500);

/// Length from which a file is read while no other large one is in memory.
const LARGE_BYTES: u64 = 32 << 20;

/// Copies of the phexts of one data root.
#[derive(Debug)]
pub struct Vault {
    root: PathBuf,
    data_root: PathBuf,
    /// Id of the host's present boot.
    boot: String,
    /// Tenants started since this process began.
    tenants: Mutex<BTreeMap<TenantId, Arc<Tenant>>>,
    /// Locked while a large file is in memory.
    large: Mutex<()>,
}

/// The vault's memory of one tenant.
#[derive(Debug, Default)]
struct Tenant {
    /// A thread that uses the tenant's files has locked this.
    track: Mutex<Track>,
    /// Number of files repaired since this process began.
    repaired: AtomicU64,
    /// Reason why the last round of copies failed.
    failing: Mutex<Option<String>>,
    /// Bounds on the files that are copied.
    bounds: Mutex<Bounds>,
}

/// A phext file that was repaired.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Repair {
    /// Name of the file.
    pub file: String,
    /// Evidence that it was damaged.
    pub damage: Damage,
    /// Length of the damaged file.
    pub found_bytes: u64,
    /// Length of the repaired file.
    pub repaired_bytes: u64,
}

/// Result of a round of copies.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Round {
    /// Number of files copied.
    pub copied: u32,
    /// Number of files that a full disk may have truncated. They must be examined once SQ is stopped.
    pub doubtful: u32,
    /// Name of the last file that could not be copied, and the reason. The others were.
    pub failed: Option<String>,
    /// No write without a copy is older than this; `None` if every write has one.
    pub uncopied_since: Option<Instant>,
    /// Time that the slowest copy took.
    pub slowest: Duration,
}

impl Round {
    fn count(&mut self, name: &str, began: Instant, outcome: io::Result<CopyOutcome>) {
        match outcome {
            Ok(CopyOutcome::Copied) => {
                self.copied += 1;
                self.slowest = self.slowest.max(began.elapsed());
            }
            Ok(CopyOutcome::Waiting) => {}
            Ok(CopyOutcome::Doubtful) => self.doubtful += 1,
            Err(error) => self.failed = Some(format!("{name}: {error}")),
        }
    }
}

impl Vault {
    /// Opens the vault in the folder `root` for the tenants in `data_root`.
    pub fn open(root: &Path, data_root: &Path) -> io::Result<Self> {
        create_private_folder(root)?;
        // A vault of an earlier release may be readable by others.
        restrict(root, PRIVATE_FOLDER)?;
        Ok(Self {
            root: root.into(),
            data_root: data_root.into(),
            boot: host::boot()?,
            tenants: Mutex::default(),
            large: Mutex::default(),
        })
    }

    /// Bounds the copies of a tenant's files by its tier's limits.
    pub fn set_limits(&self, tenant: &TenantId, limits: &Limits) {
        *self.tenant(tenant).bounds.lock() = Bounds::of(limits);
    }

    fn bounds(&self, tenant: &TenantId) -> Bounds {
        *self.tenant(tenant).bounds.lock()
    }

    /// Waits until no other large file is in memory, if this one is large. A file that cannot be
    /// looked at is not read either.
    fn alone_if_large(&self, path: &Path) -> Option<MutexGuard<'_, ()>> {
        let bytes = fs::symlink_metadata(path).map_or(0, |metadata| metadata.len());
        (bytes >= LARGE_BYTES).then(|| self.large.lock())
    }

    /// Fails with `NotFound` unless the tenant has data or copies here.
    pub fn require(&self, tenant: &TenantId) -> io::Result<()> {
        let folders = [self.data_root.join(tenant.as_str()), self.root.join(tenant.as_str())];
        if folders.iter().any(|folder| folder.is_dir()) {
            return Ok(());
        }
        let text = format!("no tenant {tenant} has data on this host: check the name");
        Err(io::Error::new(io::ErrorKind::NotFound, text))
    }

    /// Returns how many of the tenant's files were repaired since this process began.
    pub fn repaired(&self, tenant: &TenantId) -> u64 {
        self.tenant(tenant).repaired.load(Ordering::Relaxed)
    }

    /// Returns the reason why the tenant's last round of copies failed; `None` if it did not.
    pub fn failing(&self, tenant: &TenantId) -> Option<String> {
        self.tenant(tenant).failing.lock().clone()
    }

    /// To be called after an orderly stop. Copies what changed, takes the snapshots that are due and
    /// removes empty phexts, which SQ creates for every name that is read. If a file can't be copied,
    /// the marker stays, and the next start examines.
    pub fn after_stop(&self, tenant: &TenantId, hourly: u32, daily: u32) -> io::Result<Round> {
        self.exclusive(tenant, |track| {
            // 1. Copy what changed.
            let round = self.round(tenant, track, None)?;
            if round.uncopied_since.is_some() {
                return Ok(round);
            }
            // 2. Remove empty files, and flush the others: SQ flushes nothing, and without the marker
            //    they are not examined after a crash of the host.
            for (name, stamp) in phext_files(&self.data(tenant))? {
                if stamp.bytes == 0 {
                    // Its copy is empty as well by now.
                    remove_if_exists(&self.data(tenant).join(&name))?;
                    remove_if_exists(&self.good(tenant).join(&name))?;
                } else {
                    tenant_file::open(&self.data(tenant).join(&name))?.0.sync_all()?;
                }
            }
            self.take_due(tenant, hourly, daily)?;
            // 3. Only now was the stop orderly.
            remove_if_exists(&self.marker(tenant))?;
            // Tenants that sleep take no memory for their files.
            *track = Track::default();
            Ok(round)
        })
    }

    /// Runs `work` alone on a tenant's files, when their present user is done.
    fn exclusive<T>(&self, tenant: &TenantId, work: impl FnOnce(&mut Track) -> T) -> T {
        work(&mut self.tenant(tenant).track.lock())
    }

    /// Runs `work` alone on a tenant's files; `None` if they are in use.
    fn exclusive_if_free<T>(
        &self,
        tenant: &TenantId,
        work: impl FnOnce(&mut Track) -> T,
    ) -> Option<T> {
        self.tenant(tenant).track.try_lock().map(|mut track| work(&mut track))
    }

    fn tenant(&self, tenant: &TenantId) -> Arc<Tenant> {
        self.tenants.lock().entry(tenant.clone()).or_default().clone()
    }

    fn home(&self, tenant: &TenantId) -> PathBuf {
        self.root.join(tenant.as_str())
    }

    fn marker(&self, tenant: &TenantId) -> PathBuf {
        self.home(tenant).join("running")
    }

    fn good(&self, tenant: &TenantId) -> PathBuf {
        self.home(tenant).join("good")
    }

    fn data(&self, tenant: &TenantId) -> PathBuf {
        self.data_root.join(tenant.as_str())
    }
}
