//! Copies while SQ runs.

use std::io;
use std::time::Instant;

use protocol::TenantId;

use super::copy_phext::{CopyOutcome, Writer};
use super::track::Track;
use super::{Round, Vault};
use crate::storage::private::create_private_folder;
use crate::storage::tenant_file::phext_files;

impl Vault {
    /// To be called regularly while the tenant is awake. `sq_is_alive` asks whether this instance of
    /// SQ still responds. Returns `None` if a start or a stop is using the files. A file that can't
    /// be copied does not keep the others from it.
    pub fn while_awake(
        &self,
        tenant: &TenantId,
        sq_is_alive: &dyn Fn() -> bool,
    ) -> io::Result<Option<Round>> {
        self.exclusive_if_free(tenant, |track| self.round(tenant, track, sq_is_alive)).transpose()
    }

    /// Records that nothing can have written the tenant's files until `now`, so that they need no
    /// look.
    pub fn untouched(&self, tenant: &TenantId, now: Instant) {
        self.exclusive_if_free(tenant, |track| track.untouched(now));
    }

    fn round(
        &self,
        tenant: &TenantId,
        track: &mut Track,
        sq_is_alive: &dyn Fn() -> bool,
    ) -> io::Result<Round> {
        create_private_folder(&self.good(tenant))?;
        self.look_for_space(tenant, track)?;
        let mut round = Round::default();
        for changed in track.look(&phext_files(&self.data(tenant))?, Instant::now()) {
            let began = Instant::now();
            let outcome = if changed.quiet || changed.overdue {
                let writer = Writer::Running { sq_is_alive, quiet: changed.quiet };
                self.copy_phext(tenant, track, &changed.name, writer)
            } else {
                Ok(CopyOutcome::Waiting)
            };
            round.count(&changed.name, began, outcome);
        }
        round.uncopied_since = track.uncopied_since();
        self.set_failing(tenant, round.failed.clone());
        Ok(round)
    }
}
