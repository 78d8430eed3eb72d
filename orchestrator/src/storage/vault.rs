//! Keeps what SQ may lose: a last good copy of every phext and point-in-time copies, out of the
//! tenant's reach, and puts back what an abnormal death cut.
//!
//! ```text
//! <vault>/<tenant>/running            there from before a start until an orderly stop is complete;
//!                                     names the boot of the host
//! <vault>/<tenant>/good/a.phext       last good copy; never written in place, so it can be linked
//! <vault>/<tenant>/snapshots/1767225600/a.phext   hard links to good copies of that second
//! <vault>/<tenant>/damaged/1767225600-a.phext     cut files that were replaced, newest 16
//! <vault>/<tenant>/replaced/1767225600-a.phext    good copies that a doubtful file or none at all
//!                                                 took the place of, newest 16
//! ```
//!
//! - While the tenant is awake, a phext is copied once nothing has written it for [`QUIET`], and at
//!   the latest [`COPY_AFTER`] after the oldest write that has no copy yet. Looks are half a second
//!   apart: so the *window* in which an acknowledged write can be lost is [`WINDOW`] plus the copy's
//!   own time, and only when SQ dies within a write of that same phext.
//! - It is read under a *lease*: nobody has it open for writing, and who would write it waits as long
//!   as reading takes, once per window.
//! - A file that looks cut beside its copy becomes a good copy only if its write was finished: nobody
//!   has it open and SQ is alive after it was read, for a cut comes from a death. Or from a full
//!   disk, of which SQ does not die: while the
//!   disk is or was just short of room, such a file is *doubtful*. It is not copied, the keeper has
//!   the tenant stopped once there is room again, and the next start examines it as after a death.
//!   Even so, the copy it takes the place of is set aside: nobody sees a disk that was full for a
//!   moment, and `statvfs` knows no limit of a btrfs qgroup.
//! - Before a start that follows no orderly stop (`running` is there), each phext is examined.
//!
//! Every call blocks on files; the caller runs them off its async threads. Calls for one tenant
//! follow one another, those of different tenants don't wait for each other.
//! Space: at most (1 + hourly + daily) × the tenant's storage + 16 damaged and 16 replaced files,
//! where the file system shares nothing; unchanged phexts cost nothing per snapshot. Age: what was
//! set aside goes after 30 days, a snapshot after the 1,000 days that a tier can ask for at most, but
//! for the newest; a good copy stays as long as its phext.

mod awake;
pub mod copy;
pub mod examine;
mod file_lease;
pub mod files;
mod keep;
mod quarantine;
mod retain;
pub mod snapshots;
mod start;
mod track;

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use protocol::TenantId;

pub use awake::Awake;
use copy::Stamp;
use examine::Why;
use keep::{Kept, While};
use track::Track;

/// How long a phext is left alone before it is copied.
pub const QUIET: Duration = Duration::from_secs(1);
/// When a phext that never rests is copied all the same: the window less a look, and a second for
/// the copies of others that come first.
const COPY_AFTER: Duration = Duration::from_millis(3_500);
/// The longest an acknowledged write goes without a copy, but for the time that copying takes.
pub const WINDOW: Duration = Duration::from_secs(5);
/// What a phext's file ends in.
pub const PHEXT_SUFFIX: &str = ".phext";
/// What files begin with that a restore has not put in place yet; SQ never touches them.
const STAGED: &str = ".restored";

/// The vault of one data root.
#[derive(Debug)]
pub struct Vault {
    root: PathBuf,
    data_root: PathBuf,
    /// The present boot of the host.
    boot: String,
    /// Tenants started and not yet stopped in order, and those at work. Whoever works on a tenant's
    /// files has its lock.
    tracks: Mutex<BTreeMap<TenantId, Arc<Mutex<Track>>>>,
    /// Files put back since this process began, by tenant; as many as had a cut file.
    restored: Mutex<BTreeMap<TenantId, u64>>,
    /// Tenants whose last round failed, and why.
    failing: Mutex<BTreeMap<TenantId, String>>,
    /// When the data root's disk was last seen short of room.
    short: Mutex<Option<Instant>>,
}

/// One phext that was put back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Restored {
    /// Name of the file.
    pub file: String,
    /// How the damage showed.
    pub why: Why,
    /// Length of what was found.
    pub found_bytes: u64,
    /// Length of what stands there now.
    pub restored_bytes: u64,
}

/// What a round of copying did.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Round {
    /// Files copied.
    pub copied: u32,
    /// Files that changed and wait for quiet, kept changing, or could not be trusted.
    pub waiting: u32,
    /// Files that a full disk may have cut; to be examined once SQ is stopped.
    pub doubtful: u32,
    /// The last file that could not be copied, and why. The others were.
    pub failed: Option<String>,
    /// No write that has no copy is older than this.
    pub uncopied_since: Option<Instant>,
    /// What the slowest copy took.
    pub slowest: Duration,
}

impl Round {
    /// Everything there is has a copy.
    pub fn is_settled(&self) -> bool {
        self.copied + self.waiting + self.doubtful == 0 && self.failed.is_none()
    }

    fn count(&mut self, name: &str, began: Instant, kept: io::Result<Kept>) {
        match kept {
            Ok(Kept::Copied) => {
                self.copied += 1;
                self.slowest = self.slowest.max(began.elapsed());
            }
            Ok(Kept::Waiting) => self.waiting += 1,
            Ok(Kept::Doubtful) => self.doubtful += 1,
            Err(e) => self.failed = Some(format!("{name}: {e}")),
        }
    }
}

impl Vault {
    /// The vault in `root` for the tenants in `data_root`.
    pub fn open(root: &Path, data_root: &Path) -> io::Result<Self> {
        private_folder(root)?;
        Ok(Self {
            root: root.into(),
            data_root: data_root.into(),
            boot: crate::host::boot()?,
            tracks: Mutex::default(),
            restored: Mutex::default(),
            failing: Mutex::default(),
            short: Mutex::default(),
        })
    }

    /// Files of the tenant put back since this process began.
    pub fn restored(&self, tenant: &TenantId) -> u64 {
        self.restored.lock().map_or(0, |r| r.get(tenant).copied().unwrap_or(0))
    }

    /// Why the tenant's last round of copies was not complete; `None`: it was.
    pub fn failing(&self, tenant: &TenantId) -> Option<String> {
        self.failing.lock().unwrap_or_else(PoisonError::into_inner).get(tenant).cloned()
    }

    /// Works on a tenant's files, alone. A poisoned lock is taken all the same: the files are
    /// replaced whole, so a panic leaves nothing half done.
    fn turn<T>(&self, tenant: &TenantId, work: impl FnOnce(&mut Track) -> T) -> T {
        let track = self.track(tenant);
        let done = work(&mut track.lock().unwrap_or_else(PoisonError::into_inner));
        self.let_go(tenant, &track);
        done
    }

    /// The same; `None`: somebody else is at it.
    fn turn_if_free<T>(&self, tenant: &TenantId, work: impl FnOnce(&mut Track) -> T) -> Option<T> {
        let track = self.track(tenant);
        let done = match track.try_lock() {
            Ok(mut track) => Some(work(&mut track)),
            Err(TryLockError::Poisoned(track)) => Some(work(&mut track.into_inner())),
            Err(TryLockError::WouldBlock) => None,
        };
        self.let_go(tenant, &track);
        done
    }

    fn track(&self, tenant: &TenantId) -> Arc<Mutex<Track>> {
        let mut tracks = self.tracks.lock().unwrap_or_else(PoisonError::into_inner);
        tracks.entry(tenant.clone()).or_default().clone()
    }

    /// Forgets a tenant of which nothing is worth knowing, unless somebody waits for it.
    fn let_go(&self, tenant: &TenantId, track: &Arc<Mutex<Track>>) {
        let mut tracks = self.tracks.lock().unwrap_or_else(PoisonError::into_inner);
        let ours_alone = Arc::strong_count(track) == 2;
        if ours_alone && track.lock().unwrap_or_else(PoisonError::into_inner).is_empty() {
            tracks.remove(tenant);
        }
    }

    /// To be called when the tenant was stopped in order: copies what changed, takes the snapshots
    /// that are due, removes empty phexts that reads left behind. What can't be done is left to the
    /// next start, which examines.
    pub fn after_stop(&self, tenant: &TenantId, hourly: u32, daily: u32) -> io::Result<Round> {
        self.turn(tenant, |track| {
            let mut round = Round::default();
            private_folder(&self.good(tenant))?;
            self.look_for_room(tenant, track)?;
            for changed in track.look(&phext_files(&self.data(tenant))?, Instant::now()) {
                let began = Instant::now();
                let kept = self.keep_one(tenant, track, &changed.name, While::Stopped);
                round.count(&changed.name, began, kept);
            }
            self.note_failing(tenant, round.failed.as_ref());
            if round.waiting + round.doubtful > 0 || round.failed.is_some() {
                return Ok(round);
            }
            for (name, stamp) in phext_files(&self.data(tenant))? {
                if stamp.bytes == 0 {
                    // The copy is empty as well by now.
                    files::remove_if_there(&self.data(tenant).join(&name))?;
                    files::remove_if_there(&self.good(tenant).join(&name))?;
                } else {
                    // SQ flushes nothing; without the marker nobody would look after a crash.
                    files::open(&self.data(tenant).join(&name))?.0.sync_all()?;
                }
            }
            self.take_due(tenant, hourly, daily)?;
            files::remove_if_there(&self.marker(tenant))?;
            *track = Track::default();
            Ok(round)
        })
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

/// The phext files of a folder; none when the folder is not there.
pub fn phext_files(folder: &Path) -> io::Result<BTreeMap<String, Stamp>> {
    let mut files = BTreeMap::new();
    for entry in entries(folder)? {
        let Ok(name) = entry.file_name().into_string() else { continue };
        // A file may go between the listing and the look at it; then it is not there.
        let Ok(metadata) = entry.metadata() else { continue };
        if metadata.is_file() && name.ends_with(PHEXT_SUFFIX) && !name.starts_with('.') {
            files.insert(name, Stamp::from_metadata(&metadata));
        }
    }
    Ok(files)
}

fn entries(folder: &Path) -> io::Result<Vec<fs::DirEntry>> {
    match fs::read_dir(folder) {
        Ok(entries) => entries.collect(),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(Vec::new()),
        Err(e) => Err(e),
    }
}

fn private_folder(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}

#[cfg(test)]
mod tests;
