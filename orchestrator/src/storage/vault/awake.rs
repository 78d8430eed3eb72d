//! Copying while SQ runs.

use std::io;
use std::time::Instant;

use protocol::TenantId;

use super::keep::{Kept, While};
use super::track::{Changed, Track};
use super::{Round, Vault, phext_files};

/// A running SQ whose files are being copied.
pub trait Awake {
    /// Asks whether this instance still answers.
    fn alive(&self) -> bool;
}

impl Vault {
    /// To be called regularly while the tenant is awake; `None`: a start or a stop is at its files.
    /// A file that can't be copied does not keep the others from it.
    pub fn while_awake(&self, tenant: &TenantId, sq: &dyn Awake) -> io::Result<Option<Round>> {
        self.turn_if_free(tenant, |track| self.round(tenant, track, sq)).transpose()
    }

    /// Nothing can have written the tenant's files until `now`: no need to look.
    pub fn untouched(&self, tenant: &TenantId, now: Instant) {
        self.turn_if_free(tenant, |track| track.untouched(now));
    }

    fn round(&self, tenant: &TenantId, track: &mut Track, sq: &dyn Awake) -> io::Result<Round> {
        super::private_folder(&self.good(tenant))?;
        self.look_for_room(tenant, track)?;
        let mut round = Round::default();
        for changed in track.look(&phext_files(&self.data(tenant))?, Instant::now()) {
            let began = Instant::now();
            let kept = self.keep_changed(tenant, track, &changed, sq);
            round.count(&changed.name, began, kept);
        }
        round.uncopied_since = track.uncopied_since();
        self.note_failing(tenant, round.failed.as_ref());
        Ok(round)
    }

    fn keep_changed(
        &self,
        tenant: &TenantId,
        track: &mut Track,
        changed: &Changed,
        sq: &dyn Awake,
    ) -> io::Result<Kept> {
        let Changed { name, quiet, overdue } = changed;
        if *quiet || *overdue {
            self.keep_one(tenant, track, name, While::Awake { sq, quiet: *quiet })
        } else {
            Ok(Kept::Waiting)
        }
    }

    pub(super) fn note_failing(&self, tenant: &TenantId, why: Option<&String>) {
        let mut failing = self.failing.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        match why {
            Some(why) => drop(failing.insert(tenant.clone(), why.clone())),
            None => drop(failing.remove(tenant)),
        }
    }
}
