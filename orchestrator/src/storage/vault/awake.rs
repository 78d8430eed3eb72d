//! Copying while SQ runs.

use std::io;
use std::time::{Duration, Instant};

use protocol::TenantId;

use super::keep::{Kept, While};
use super::track::{Changed, Track};
use super::{Round, Vault, files, phext_files};
use crate::runtime::open_files::Process;

/// So many empty phexts that reads left behind are worth holding SQ for: one that never sleeps would
/// gather them until its names are used up.
pub(super) const EMPTY_MAX: usize = 16;
/// And so many while requests are under way: SQ drops one that it is reading when it is held.
const EMPTY_MAX_IN_USE: usize = 4 * EMPTY_MAX;
/// An empty phext may be about to be written.
pub(super) const EMPTY_FOR: Duration = Duration::from_mins(1);

/// What a running SQ is asked while its files are copied.
pub trait Awake {
    /// Whether it answers now.
    fn alive(&self) -> bool;

    /// Whether no request is under way.
    fn rests(&self) -> bool;

    /// Calls `look` while no write begins or goes on; false: that can't be had. `look` is given SQ's
    /// process, where it can be told.
    fn held(&self, look: &mut dyn FnMut(Option<&Process>)) -> bool;
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
        if let Err(e) = self.clean_up(tenant, track, sq, Instant::now()) {
            round.failed = Some(format!("empty phexts can't be removed: {e}"));
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

    /// Removes empty phexts that nobody has written for a while, once they are many. Held, because
    /// SQ empties a file before it writes it.
    pub(super) fn clean_up(
        &self,
        tenant: &TenantId,
        track: &Track,
        sq: &dyn Awake,
        now: Instant,
    ) -> io::Result<()> {
        let good = phext_files(&self.good(tenant))?;
        let mut empty = phext_files(&self.data(tenant))?;
        empty.retain(|name, stamp| {
            let copied = good.get(name).is_none_or(|copy| copy.bytes == 0);
            stamp.bytes == 0 && copied && track.unchanged_for(name, EMPTY_FOR, now)
        });
        if empty.len() < if sq.rests() { EMPTY_MAX } else { EMPTY_MAX_IN_USE } {
            return Ok(());
        }
        let mut done = Ok(());
        sq.held(&mut |process| {
            let Some(process) = process else { return };
            done = empty.keys().try_for_each(|name| {
                let (file, metadata) = files::open(&self.data(tenant).join(name))?;
                if metadata.len() == 0 && process.writes(&file) == Some(false) {
                    self.remove_empty(tenant, name)?;
                }
                Ok(())
            });
        });
        done
    }

    pub(super) fn note_failing(&self, tenant: &TenantId, why: Option<&String>) {
        let mut failing = self.failing.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        match why {
            Some(why) => drop(failing.insert(tenant.clone(), why.clone())),
            None => drop(failing.remove(tenant)),
        }
    }
}
