//! Point-in-time copies: taken, listed, put back, taken out.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use protocol::TenantId;
use serde::{Deserialize, Serialize};

use super::keep::{Kept, While};
use super::track::Track;
use super::{STAGED, Vault, copy, files, phext_files, private_folder, retain};
use crate::host;

/// A snapshot is due when the newest is older than this.
const EVERY_S: u64 = 3_600;
/// How long what stood there before a restore is kept, whatever else is taken meanwhile.
const BEFORE_S: u64 = 24 * 3_600;
/// Of so many restores at most.
const BEFORE_MAX: usize = 16;
/// In a snapshot that a restore has taken.
const BEFORE: &str = ".before";

/// One point-in-time copy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// When it was taken, seconds since 1970 UTC; its name as well.
    pub taken_s: u64,
    /// Number of phexts in it.
    pub phexts: u32,
    /// Their sum.
    pub bytes: u64,
}

/// Writes the phexts of such a folder into the new folder `to`, which is for the caller alone; with
/// the caller's rights, which must suffice to read the vault.
pub fn export(from: &Path, to: &Path) -> io::Result<u32> {
    use std::os::unix::fs::DirBuilderExt;
    let names = phext_files(from)?;
    fs::DirBuilder::new().mode(0o700).create(to)?;
    let mut count = 0;
    for name in names.into_keys() {
        let mut file = files::create(&to.join(&name))?;
        io::copy(&mut fs::File::open(from.join(&name))?, &mut file)?;
        count += 1;
    }
    Ok(count)
}

impl Vault {
    /// The tenant's snapshots, oldest first.
    pub fn snapshots(&self, tenant: &TenantId) -> io::Result<Vec<Snapshot>> {
        let mut all = Vec::new();
        for taken_s in self.taken(tenant)? {
            let files = phext_files(&self.snapshot_folder(tenant, taken_s))?;
            all.push(Snapshot {
                taken_s,
                phexts: u32::try_from(files.len()).unwrap_or(u32::MAX),
                bytes: files.values().map(|f| f.bytes).sum(),
            });
        }
        Ok(all)
    }

    /// Takes a snapshot of the good copies if one is due, and removes those that are superfluous.
    pub fn snapshot(&self, tenant: &TenantId, hourly: u32, daily: u32) -> io::Result<()> {
        self.turn(tenant, |_| self.take_due(tenant, hourly, daily))
    }

    pub(super) fn take_due(&self, tenant: &TenantId, hourly: u32, daily: u32) -> io::Result<()> {
        let now_s = host::now_s();
        let newest = self.taken(tenant)?.last().copied();
        let wanted = hourly + daily > 0 && newest.is_none_or(|n| now_s >= n + EVERY_S);
        if wanted && !phext_files(&self.good(tenant))?.is_empty() {
            self.take(tenant, now_s, false)?;
        }
        let mut taken = self.taken(tenant)?;
        let mut spared = 0;
        taken.reverse();
        taken.retain(|at| {
            let before = now_s < at + BEFORE_S && self.is_before(tenant, *at);
            spared += usize::from(before);
            !(before && spared <= BEFORE_MAX)
        });
        for old in retain::superfluous(&taken, hourly, daily) {
            fs::remove_dir_all(self.snapshot_folder(tenant, old))?;
        }
        Ok(())
    }

    /// Whether a restore took it.
    fn is_before(&self, tenant: &TenantId, taken_s: u64) -> bool {
        self.snapshot_folder(tenant, taken_s).join(BEFORE).exists()
    }

    /// Whether there is such a snapshot, as an error if not.
    pub fn find_snapshot(&self, tenant: &TenantId, taken_s: u64) -> io::Result<()> {
        self.existing(tenant, taken_s).map(drop)
    }

    /// Puts the tenant's phexts back to what they were at `taken_s`. What stands there now is kept
    /// as a snapshot of this second, for a day at least, whose name is returned. The caller keeps the
    /// tenant asleep. An error before the exchange, for want of room say, has changed nothing.
    pub fn restore(&self, tenant: &TenantId, taken_s: u64) -> io::Result<u64> {
        self.turn(tenant, |track| {
            let from = self.existing(tenant, taken_s)?;
            private_folder(&self.good(tenant))?;
            private_folder(&self.data(tenant))?;
            let before_s = self.keep_what_is_there(tenant, track)?;
            let wanted: Vec<String> = phext_files(&from)?.into_keys().collect();
            let staged = |n: usize| self.data(tenant).join(format!("{STAGED}-{n}"));
            if let Err(e) = stage_all(&from, &wanted, &staged) {
                for n in 0..wanted.len() {
                    files::remove_if_there(&staged(n))?;
                }
                return Err(e);
            }
            for (n, name) in wanted.iter().enumerate() {
                fs::rename(staged(n), self.data(tenant).join(name))?;
                // Copies are replaced, never written: a link is a copy.
                let new = self.good(tenant).join(name).with_extension("new");
                files::remove_if_there(&new)?;
                fs::hard_link(from.join(name), &new)?;
                fs::rename(&new, self.good(tenant).join(name))?;
            }
            for folder in [self.data(tenant), self.good(tenant)] {
                for name in phext_files(&folder)?.into_keys().filter(|n| !wanted.contains(n)) {
                    files::remove_if_there(&folder.join(name))?;
                }
                copy::sync_folder(&folder)?;
            }
            *track = Track::default();
            Ok(before_s)
        })
    }

    /// Takes the snapshot of what stands there before a restore. What an abnormal death cut is put
    /// right first, or it would become a good copy.
    fn keep_what_is_there(&self, tenant: &TenantId, track: &mut Track) -> io::Result<u64> {
        if let Some(death) = self.last_end(tenant)? {
            self.examine_all(tenant, track, death)?;
        }
        self.look_for_room(tenant, track)?;
        for name in phext_files(&self.data(tenant))?.into_keys() {
            if self.keep_one(tenant, track, &name, While::Stopped)? != Kept::Copied {
                let text = format!("{name} may be cut by a full disk: make room first");
                return Err(io::Error::other(text));
            }
        }
        let mut before_s = host::now_s();
        while self.snapshot_folder(tenant, before_s).exists() {
            before_s += 1;
        }
        self.take(tenant, before_s, true)?;
        Ok(before_s)
    }

    /// The folder of a snapshot, or of the last good copies, to [`export`] from.
    pub fn folder(&self, tenant: &TenantId, taken_s: Option<u64>) -> io::Result<PathBuf> {
        match taken_s {
            Some(taken_s) => self.existing(tenant, taken_s),
            None => Ok(self.good(tenant)),
        }
    }

    fn take(&self, tenant: &TenantId, now_s: u64, before: bool) -> io::Result<()> {
        let folder = self.snapshot_folder(tenant, now_s);
        let new = folder.with_extension("new");
        if new.exists() {
            fs::remove_dir_all(&new)?;
        }
        private_folder(&new)?;
        for name in phext_files(&self.good(tenant))?.into_keys() {
            // Good copies are replaced, never written: a link is a copy.
            fs::hard_link(self.good(tenant).join(&name), new.join(&name))?;
        }
        if before {
            fs::write(new.join(BEFORE), "")?;
        }
        fs::rename(&new, &folder)?;
        copy::sync_parent(&folder)
    }

    fn existing(&self, tenant: &TenantId, taken_s: u64) -> io::Result<PathBuf> {
        let folder = self.snapshot_folder(tenant, taken_s);
        if folder.is_dir() {
            return Ok(folder);
        }
        let text = format!("{tenant} has no snapshot {taken_s}");
        Err(io::Error::new(io::ErrorKind::NotFound, text))
    }

    fn snapshot_folder(&self, tenant: &TenantId, taken_s: u64) -> PathBuf {
        self.home(tenant).join("snapshots").join(taken_s.to_string())
    }

    /// Names of the snapshots, oldest first.
    fn taken(&self, tenant: &TenantId) -> io::Result<Vec<u64>> {
        let folder = self.home(tenant).join("snapshots");
        private_folder(&folder)?;
        let mut taken = Vec::new();
        for entry in fs::read_dir(folder)? {
            taken.extend(entry?.file_name().to_str().and_then(|n| n.parse::<u64>().ok()));
        }
        taken.sort_unstable();
        Ok(taken)
    }
}

/// Writes all of `names` beside the files they are to replace: if there is no room for one of them,
/// none is exchanged.
fn stage_all(from: &Path, names: &[String], to: &dyn Fn(usize) -> PathBuf) -> io::Result<()> {
    for (n, name) in names.iter().enumerate() {
        copy::stage(&fs::read(from.join(name))?, &to(n))?;
    }
    Ok(())
}
