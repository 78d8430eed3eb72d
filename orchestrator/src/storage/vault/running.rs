//! Copies while SQ runs.

use std::io;
use std::time::Instant;

use protocol::TenantId;

use super::copy_phext::Writer;
use super::track::Track;
use super::{Round, Vault};
use crate::storage::private::create_private_folder;
use crate::storage::tenant_file::phext_files;

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

    /// Copies the files that have changed: of a running SQ those that are quiet or overdue, of a
    /// stopped one (without `sq_is_alive`) all.
    pub(super) fn round(
        &self,
        tenant: &TenantId,
        track: &mut Track,
        sq_is_alive: Option<&dyn Fn() -> bool>,
    ) -> io::Result<Round> {
        create_private_folder(&self.good(tenant))?;
        self.look_for_space(tenant, track)?;
        let mut round = Round::default();
        for changed in track.look(&phext_files(&self.data(tenant))?, Instant::now()) {
            let writer = match sq_is_alive {
                None => Writer::Stopped,
                Some(_) if !changed.quiet && !changed.overdue => continue,
                Some(sq_is_alive) => Writer::Running { sq_is_alive, quiet: changed.quiet },
            };
            let began = Instant::now();
            let outcome = self.copy_phext(tenant, track, &changed.name, writer);
            round.count(&changed.name, began, outcome);
        }
        round.uncopied_since = track.uncopied_since();
        self.tenant(tenant).failing.lock().clone_from(&round.failed);
        Ok(round)
    }
}
