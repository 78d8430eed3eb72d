//! Copies one phext, if it can be trusted.
//!
//! A file that looks truncated beside its copy may be the remains of an unfinished write. As a good
//! copy it would destroy the last whole version. So it is copied only once its write is known to have
//! been finished:
//!
//! - it was read under a file lease, so the write had ended, *and* SQ was alive after that, so it was
//!   not SQ's death that ended it; or
//! - without leases, it has been quiet, SQ was alive, and it is still the same.
//!
//! SQ survives a full disk, though, and answers 200. So a file that looks truncated while the disk is
//! or was just short of space is *doubtful*: it is not copied, the tenant is stopped as soon as there
//! is space, and the next start examines the file as after a crash. A shortage may come and go unseen
//! (looks are half a second apart, and `statvfs` knows nothing of a btrfs qgroup); therefore the copy
//! that is replaced by a file that looks truncated always goes to quarantine.

use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use protocol::TenantId;
use rustix::fs::statvfs;

use super::Vault;
use super::copy::{self, ConsistentRead, read_consistently};
use super::examine::{Crash, Finding, examine, may_be_truncated};
use super::track::Track;
use crate::storage::tenant_file::{self, FILE_MAX_BYTES};

/// Free space below which a disk may have truncated a write.
const SPACE_BYTES: u64 = 8 << 20;

/// Time for which a moment without a writer is awaited. A restart of the tenant waits as long.
const PATIENCE: Duration = Duration::from_millis(500);

/// Result of an attempt to copy a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum CopyOutcome {
    Copied,
    /// It is being written.
    Waiting,
    /// A full disk may have truncated it.
    Doubtful,
}

/// State of SQ while a file is read.
#[derive(Clone, Copy)]
pub(super) enum Writer<'a> {
    /// It is not running, and did not die during a write.
    Stopped,
    /// It is running; `quiet` if it has not written the file for a second.
    Running { sq_is_alive: &'a dyn Fn() -> bool, quiet: bool },
}

impl Vault {
    /// Makes the good copy of one file.
    pub(super) fn copy_phext(
        &self,
        tenant: &TenantId,
        track: &mut Track,
        name: &str,
        writer: Writer<'_>,
    ) -> io::Result<CopyOutcome> {
        let copy = self.good(tenant).join(name);
        let path = self.data(tenant).join(name);
        // 1. Read the file as it is at one moment. It may have grown beyond the tenant's bounds since
        //    they were applied.
        let max_bytes = self.bounds(tenant).file_bytes;
        let _alone = self.alone_if_large(&path);
        let Some(source) = read_consistently(&path, max_bytes, PATIENCE)? else {
            return Ok(CopyOutcome::Waiting);
        };
        // 2. If it looks truncated, find out whether that write was finished.
        if looks_truncated(&source.bytes, &copy)? {
            if !write_was_finished(&source, writer)? {
                return Ok(CopyOutcome::Waiting);
            }
            if track.was_short_of_space() {
                return Ok(CopyOutcome::Doubtful);
            }
            let bytes = source.bytes.len();
            tracing::warn!(%tenant, name, bytes, "phext looks truncated but was finished: copied");
            self.quarantine_copy(tenant, name)?;
        }
        // 3. Replace the copy, and remember which version it is.
        copy::write_copy(&source, &copy)?;
        match writer {
            Writer::Stopped => track.copied_while_stopped(name, source.stamp, source.read_at),
            Writer::Running { .. } => {
                track.copied_while_running(name, source.stamp, source.read_at);
            }
        }
        Ok(CopyOutcome::Copied)
    }

    /// Returns whether there is space to write the tenant's files.
    pub fn has_space(&self, tenant: &TenantId) -> io::Result<bool> {
        // Both matter: a project quota shows in the tenant's folder only, and may hide there that the
        // host's disk is full.
        let folder = self.data(tenant);
        Ok(has_free_space(&self.data_root)? && (!folder.exists() || has_free_space(&folder)?))
    }

    pub(super) fn look_for_space(&self, tenant: &TenantId, track: &mut Track) -> io::Result<()> {
        track.set_space(self.has_space(tenant)?, Instant::now());
        Ok(())
    }
}

fn has_free_space(path: &Path) -> io::Result<bool> {
    let stat = statvfs(path)?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize) >= SPACE_BYTES)
}

fn looks_truncated(found: &[u8], copy: &Path) -> io::Result<bool> {
    if !may_be_truncated(found) {
        return Ok(false);
    }
    let good = tenant_file::read(copy, FILE_MAX_BYTES)?.map(|(bytes, _)| bytes);
    Ok(examine(Some(found), good.as_deref(), Crash::Process) != Finding::Whole)
}

fn write_was_finished(source: &ConsistentRead, writer: Writer<'_>) -> io::Result<bool> {
    let Writer::Running { sq_is_alive, quiet } = writer else { return Ok(true) };
    if source.leased {
        return Ok(sq_is_alive());
    }
    Ok(quiet && sq_is_alive() && source.is_current()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn space_counts_on_the_host_and_in_the_folder() {
        let dir = tempfile::tempdir().unwrap();
        let has_space = |data_root: &Path, tenant: &str| {
            let vault = Vault::open(&dir.path().join("vault"), data_root).unwrap();
            vault.has_space(&TenantId::parse(tenant).unwrap()).unwrap()
        };
        fs::create_dir_all(dir.path().join("alice")).unwrap();
        assert!(has_space(dir.path(), "alice"));
        // The proc file system has no free space. Its link `root` leads to one that has.
        assert!(!has_space(Path::new("/proc/self"), "root"), "the host's disk is full");
        std::os::unix::fs::symlink("/proc", dir.path().join("bob")).unwrap();
        assert!(!has_space(dir.path(), "bob"), "the tenant's folder is full");
    }

    #[test]
    fn unleased_file_counts_as_finished_when_quiet() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.phext");
        fs::write(&path, "").unwrap();
        let source = copy::read_without_lease(&path);
        let finished = |sq_is_alive: &dyn Fn() -> bool, quiet| {
            write_was_finished(&source, Writer::Running { sq_is_alive, quiet }).unwrap()
        };
        assert!(finished(&|| true, true));
        assert!(!finished(&|| true, false), "it may be in the middle of a write");
        assert!(!finished(&|| false, true), "SQ may have died in the middle of a write");
        let writes_on = || fs::write(&path, "the rest").is_ok();
        assert!(!finished(&writes_on, true), "the write was still going on");
    }
}
