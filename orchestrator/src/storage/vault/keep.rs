//! Copying one file, if it can be trusted.

use std::io;
use std::path::Path;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use protocol::TenantId;
use rustix::fs::statvfs;

use super::awake::Awake;
use super::copy;
use super::examine::{Death, Finding, examine, suspicious};
use super::track::Track;
use super::{Vault, files};

/// A disk with less room than this may have cut a write.
const ROOM_BYTES: u64 = 8 << 20;
/// How long a shortage of room is remembered: longer than a tenant's files go unlooked at.
const SHORT_FOR: Duration = Duration::from_mins(1);
/// How long a moment is looked for in which nobody writes the file. A restart of the tenant waits
/// for it.
const PATIENCE: Duration = Duration::from_millis(500);

/// What became of one file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kept {
    Copied,
    Waiting,
    Doubtful,
}

/// What SQ does while the file is read.
#[derive(Clone, Copy)]
pub(super) enum While<'a> {
    /// It was stopped in order.
    Stopped,
    /// It runs; `quiet`: it has not written the file for a while.
    Awake { sq: &'a dyn Awake, quiet: bool },
}

impl Vault {
    /// Copies one file.
    pub(super) fn keep_one(
        &self,
        tenant: &TenantId,
        track: &mut Track,
        name: &str,
        sq: While<'_>,
    ) -> io::Result<Kept> {
        let (from, to) = (self.data(tenant).join(name), self.good(tenant).join(name));
        let Some(source) = copy::settled(&from, PATIENCE)? else { return Ok(Kept::Waiting) };
        if looks_cut(&source.bytes, &to)? {
            let finished = match sq {
                While::Stopped => true,
                // It lives: the write that came before was not cut by its death.
                While::Awake { sq, .. } if source.closed => sq.alive(),
                While::Awake { sq, quiet } => quiet && sq.alive() && source.is_current()?,
            };
            if !finished {
                return Ok(Kept::Waiting);
            }
            if self.was_short(track) {
                return Ok(Kept::Doubtful);
            }
            let bytes = source.bytes.len();
            tracing::warn!(%tenant, name, bytes, "it looks cut and was finished: copied all the same");
            self.set_copy_aside(tenant, name)?;
        }
        copy::keep(&source, &to)?;
        let stopped = matches!(sq, While::Stopped);
        track.copied(name, source.stamp, source.read_at, stopped);
        Ok(Kept::Copied)
    }

    /// Whether there is room to put the tenant's files back.
    pub fn has_room(&self, tenant: &TenantId) -> io::Result<bool> {
        let folder = self.data(tenant);
        // Its own folder: a quota of its own shows there.
        has_room(if folder.exists() { &folder } else { &self.data_root })
    }

    pub(super) fn look_for_room(&self, tenant: &TenantId, track: &mut Track) -> io::Result<()> {
        let seen = |room: bool| if room { None } else { Some(Instant::now()) };
        let lately = |at: &Instant| at.elapsed() < SHORT_FOR;
        track.short = seen(self.has_room(tenant)?).or(track.short.filter(lately));
        let host = seen(has_room(&self.data_root)?);
        let mut short = self.short.lock().unwrap_or_else(PoisonError::into_inner);
        *short = host.or(short.filter(lately));
        Ok(())
    }

    fn was_short(&self, track: &Track) -> bool {
        let host = self.short.lock().unwrap_or_else(PoisonError::into_inner).is_some();
        host || track.short.is_some()
    }
}

/// Whether the file may have been cut, beside its copy.
fn looks_cut(bytes: &[u8], copy: &Path) -> io::Result<bool> {
    if !suspicious(bytes) {
        return Ok(false);
    }
    let good = files::read(copy)?;
    Ok(examine(Some(bytes), good.as_deref(), Death::Process) != Finding::Whole)
}

fn has_room(folder: &Path) -> io::Result<bool> {
    let stat = statvfs(folder)?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize) >= ROOM_BYTES)
}
