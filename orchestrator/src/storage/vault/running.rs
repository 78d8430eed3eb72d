//! Copies while SQ runs.
//!
//! A phext that has no copy yet is copied at the first look, because nothing could repair it. Between
//! two copies, a file whose length is that of a truncated one is looked at more closely: if no process
//! has it open for writing and SQ lives, its write was finished. Should SQ die before the next write,
//! such a file is kept as it is.

use std::fs;
use std::io;
use std::path::Path;
use std::time::Instant;

use protocol::TenantId;

use super::copy_phext::Writer;
use super::examine::is_suspicious_length;
use super::file_lease::FileLease;
use super::track::{Changed, Track};
use super::{Round, Vault};
use crate::storage::private::create_private_folder;
use crate::storage::tenant_file::{self, Stamp, phext_files};

impl Vault {
    /// Call this regularly while the tenant is awake. `sq_is_alive` asks whether this instance of
    /// SQ still responds. Returns `None` if a start or a stop is using the files. A file that can't
    /// be copied does not stop the others from being copied.
    pub fn while_awake(
        &self,
        tenant: &TenantId,
        sq_is_alive: &dyn Fn() -> bool,
    ) -> io::Result<Option<Round>> {
        let sq_is_alive = Some(sq_is_alive);
        self.exclusive_if_free(tenant, |track| self.round(tenant, track, sq_is_alive)).transpose()
    }

    /// Records that nothing can have written the tenant's files until `now`, so that they need no
    /// look.
    pub fn untouched(&self, tenant: &TenantId, now: Instant) {
        self.exclusive_if_free(tenant, |track| track.all_copied(now));
    }

    /// Copies the files that have changed: of a running SQ those that are quiet or overdue or have no
    /// copy, of a stopped one (without `sq_is_alive`) all.
    pub(super) fn round(
        &self,
        tenant: &TenantId,
        track: &mut Track,
        sq_is_alive: Option<&dyn Fn() -> bool>,
    ) -> io::Result<Round> {
        create_private_folder(&self.good(tenant))?;
        self.look_for_space(tenant, track)?;
        let mut round = Round::default();
        let files = self.bounds(tenant).divide(phext_files(&self.data(tenant))?);
        for changed in track.look(&files.within, Instant::now()) {
            let writer = match sq_is_alive {
                None => Writer::Stopped,
                Some(sq_is_alive) if !self.is_due(tenant, &changed) => {
                    self.look_whether_finished(tenant, track, &changed, sq_is_alive)?;
                    continue;
                }
                Some(sq_is_alive) => Writer::Running { sq_is_alive, quiet: changed.quiet },
            };
            let began = Instant::now();
            let outcome = self.copy_phext(tenant, track, &changed.name, writer);
            round.count(&changed.name, began, outcome);
        }
        round.failed = round.failed.or_else(|| files.complaint());
        round.uncopied_since = track.uncopied_since();
        self.tenant(tenant).failing.lock().clone_from(&round.failed);
        Ok(round)
    }

    /// Returns whether a file of a running SQ should be copied now.
    fn is_due(&self, tenant: &TenantId, changed: &Changed) -> bool {
        let has_text = changed.stamp.bytes > 0;
        changed.quiet || changed.overdue || has_text && !self.has_copied_text(tenant, &changed.name)
    }

    fn has_copied_text(&self, tenant: &TenantId, name: &str) -> bool {
        fs::metadata(self.good(tenant).join(name)).is_ok_and(|copy| copy.len() > 0)
    }

    /// Records that the write of a file was finished, if its length raises doubts and it was.
    fn look_whether_finished(
        &self,
        tenant: &TenantId,
        track: &mut Track,
        changed: &Changed,
        sq_is_alive: &dyn Fn() -> bool,
    ) -> io::Result<()> {
        let Changed { name, stamp, .. } = changed;
        let in_doubt = changed.at_rest && is_suspicious_length(stamp.bytes);
        // A full disk ends a write too, and SQ survives that.
        if !in_doubt || track.is_finished(name, stamp) || track.was_short_of_space() {
            return Ok(());
        }
        // SQ is asked last: its death must not have been what ended the write.
        if is_unwritten(&self.data(tenant).join(name), stamp)? && sq_is_alive() {
            track.set_finished(name, *stamp);
        }
        Ok(())
    }
}

/// True if the file still bears this stamp, and no process has it open for writing.
fn is_unwritten(path: &Path, stamp: &Stamp) -> io::Result<bool> {
    let (file, _) = tenant_file::open(path)?;
    // Where there are no leases, nothing is known.
    let Ok(Some(_lease)) = FileLease::take(&file) else { return Ok(false) };
    Ok(Stamp::from_metadata(&file.metadata()?) == *stamp)
}
