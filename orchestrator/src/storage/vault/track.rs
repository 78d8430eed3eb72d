//! Tracks which files of a tenant have changed since they were copied, and for how long.
//!
//! Pure: time is an argument, and it is monotonic, so that a step of the wall clock changes nothing.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::{COPY_AFTER, QUIET};
use crate::storage::tenant_file::Stamp;

/// Two writes within this time may bear the same stamp (the kernel's clock for files ticks 100 to
/// 1000 times a second), so the stamp of a younger write does not prove that the file is unchanged.
const CLOCK_TICK: Duration = Duration::from_millis(50);

/// Time for which a shortage of disk space is remembered: longer than a tenant's files go without a
/// look.
const SHORTAGE_KEPT: Duration = Duration::from_mins(1);

/// One tenant's files. Bounded by the number of files that a tenant may have.
#[derive(Debug, Default)]
pub(super) struct Track {
    /// Time of the last look at the folder; `None` if this process has not looked yet.
    looked_at: Option<Instant>,
    files: BTreeMap<String, TrackedFile>,
    /// Time when the tenant's folder was last seen short of space.
    short_at: Option<Instant>,
    /// The present start follows a crash.
    after_crash: bool,
}

#[derive(Debug)]
struct TrackedFile {
    stamp: Stamp,
    /// The file has borne this stamp since then, or longer.
    since: Instant,
    /// The stamp of the version that was copied, if it proves that the file is still the same.
    copied: Option<Stamp>,
    /// No write without a copy is older than this.
    uncopied_since: Option<Instant>,
    /// The stamp of a version whose write is known to have been finished.
    finished: Option<Stamp>,
}

/// A file that differs from its last copy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Changed {
    pub(super) name: String,
    pub(super) stamp: Stamp,
    /// No later write can bear this stamp.
    pub(super) at_rest: bool,
    /// It has not been written for [`QUIET`].
    pub(super) quiet: bool,
    /// A write may have been without a copy for [`COPY_AFTER`].
    pub(super) overdue: bool,
}

impl Track {
    /// Compares the folder's present files with the known ones, and returns those to be copied.
    pub(super) fn look(&mut self, files: &BTreeMap<String, Stamp>, now: Instant) -> Vec<Changed> {
        // A change was written after the last look. Without one its age is unknown: overdue.
        let last_look = self.looked_at.replace(now);
        let oldest = last_look.or_else(|| now.checked_sub(COPY_AFTER)).unwrap_or(now);
        self.files.retain(|name, _| files.contains_key(name));
        let mut changed = Vec::new();
        for (name, stamp) in files {
            let file = self.file(name, *stamp, now);
            if file.stamp != *stamp {
                file.stamp = *stamp;
                file.since = now;
            }
            if file.copied == Some(*stamp) {
                file.uncopied_since = None;
                continue;
            }
            let uncopied_since = *file.uncopied_since.get_or_insert(oldest);
            let unwritten_for = now.saturating_duration_since(file.since);
            changed.push(Changed {
                name: name.clone(),
                stamp: *stamp,
                at_rest: unwritten_for >= CLOCK_TICK,
                quiet: unwritten_for >= QUIET,
                overdue: now.saturating_duration_since(uncopied_since) >= COPY_AFTER,
            });
        }
        changed
    }

    /// Records a copy of a file of a running SQ that was read at `read_at`.
    pub(super) fn copied_while_running(&mut self, name: &str, stamp: Stamp, read_at: Instant) {
        let file = self.file(name, stamp, read_at);
        let unwritten_for = read_at.saturating_duration_since(file.since);
        if file.stamp == stamp && unwritten_for >= CLOCK_TICK {
            file.copied = Some(stamp);
            file.uncopied_since = None;
        } else {
            // A later write could bear the same stamp, so the file will be copied once more.
            file.copied = None;
            file.uncopied_since = Some(read_at);
        }
    }

    /// Records a copy of a file that nothing can have written since.
    pub(super) fn copied_while_stopped(&mut self, name: &str, stamp: Stamp, now: Instant) {
        let file = self.file(name, stamp, now);
        file.copied = Some(stamp);
        file.uncopied_since = None;
    }

    fn file(&mut self, name: &str, stamp: Stamp, now: Instant) -> &mut TrackedFile {
        self.files.entry(name.to_owned()).or_insert(TrackedFile {
            stamp,
            since: now,
            copied: None,
            uncopied_since: None,
            finished: None,
        })
    }

    /// Records that the write of the version with this stamp was finished.
    pub(super) fn set_finished(&mut self, name: &str, stamp: Stamp) {
        if let Some(file) = self.files.get_mut(name) {
            file.finished = Some(stamp);
        }
    }

    /// True if the write of the version with this stamp is known to have been finished.
    pub(super) fn is_finished(&self, name: &str, stamp: &Stamp) -> bool {
        self.files.get(name).is_some_and(|file| file.finished.as_ref() == Some(stamp))
    }

    /// Records that every write before `now` has a copy: a change that the next look finds is younger.
    pub(super) fn all_copied(&mut self, now: Instant) {
        self.looked_at = Some(now);
    }

    /// Returns a time that no write without a copy is older than.
    pub(super) fn uncopied_since(&self) -> Option<Instant> {
        self.files.values().filter_map(|file| file.uncopied_since).min()
    }

    /// Records whether the start that begins now follows a crash.
    pub(super) fn set_after_crash(&mut self, after_crash: bool) {
        self.after_crash = after_crash;
    }

    /// True if the last start followed a crash, so that equal stamps do not prove equal content.
    pub(super) fn is_after_crash(&self) -> bool {
        self.after_crash
    }

    /// Records whether the tenant's folder has enough disk space now.
    pub(super) fn set_space(&mut self, enough: bool, now: Instant) {
        if !enough {
            self.short_at = Some(now);
        } else if self.short_at.is_some_and(|at| now.duration_since(at) >= SHORTAGE_KEPT) {
            self.short_at = None;
        }
    }

    /// True if the folder was short of disk space within the last minute: a full disk may have
    /// truncated a file.
    pub(super) fn was_short_of_space(&self) -> bool {
        self.short_at.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Time between two looks.
    const LOOK: Duration = Duration::from_millis(500);

    fn files(written_ns: i128) -> BTreeMap<String, Stamp> {
        BTreeMap::from([("a".to_owned(), Stamp::of_test(1, written_ns))])
    }

    #[test]
    fn busy_file_is_overdue_by_its_oldest_uncopied_write() {
        let mut track = Track::default();
        let begin = Instant::now();
        track.look(&BTreeMap::new(), begin);
        let mut overdue_after = None;
        for look in 1..20 {
            let now = begin + look * LOOK;
            let changed = track.look(&files(look.into()), now);
            assert!(!changed[0].quiet);
            if changed[0].overdue && overdue_after.is_none() {
                overdue_after = Some(now - begin);
            }
        }
        assert_eq!(overdue_after, Some(COPY_AFTER), "the first write was after the first look");
        assert_eq!(track.uncopied_since(), Some(begin));
    }

    #[test]
    fn quiet_is_judged_without_the_wall_clock() {
        let mut track = Track::default();
        let begin = Instant::now();
        let far_future = files(i128::from(u64::MAX));
        assert!(!track.look(&far_future, begin)[0].quiet);
        assert!(track.look(&far_future, begin + QUIET)[0].quiet);
    }

    #[test]
    fn copy_of_a_fresh_write_is_made_again() {
        let mut track = Track::default();
        let begin = Instant::now();
        let stamp = files(5)["a"];
        track.look(&files(5), begin);
        track.copied_while_running("a", stamp, begin + CLOCK_TICK / 2);
        assert_eq!(track.uncopied_since(), Some(begin + CLOCK_TICK / 2));
        assert!(track.look(&files(5), begin + QUIET)[0].quiet);
        track.copied_while_running("a", stamp, begin + QUIET);
        assert_eq!(track.look(&files(5), begin + 2 * QUIET), []);
        assert_eq!(track.uncopied_since(), None);
    }

    #[test]
    fn write_before_the_copy_was_read_is_copied_again() {
        let mut track = Track::default();
        let begin = Instant::now();
        track.look(&files(5), begin);
        // Written between the look and the copy.
        track.copied_while_running("a", files(6)["a"], begin + QUIET);
        assert_eq!(track.look(&files(6), begin + 2 * QUIET).len(), 1);
    }

    #[test]
    fn removed_file_is_not_waited_for() {
        let mut track = Track::default();
        let begin = Instant::now();
        track.look(&files(5), begin);
        track.look(&BTreeMap::new(), begin + LOOK);
        assert_eq!(track.uncopied_since(), None);
    }

    #[test]
    fn file_of_unknown_age_is_overdue_at_once() {
        let later = Instant::now() + 2 * COPY_AFTER;
        assert!(Track::default().look(&files(1), later)[0].overdue);
    }

    #[test]
    fn death_makes_no_write_younger() {
        let mut track = Track::default();
        let begin = Instant::now();
        track.look(&BTreeMap::new(), begin);
        track.look(&files(5), begin + LOOK);
        // SQ dies and is started again, and its files can't be copied in between.
        assert!(!track.look(&files(6), begin + 2 * LOOK)[0].overdue);
        assert_eq!(track.uncopied_since(), Some(begin));
        assert!(track.look(&files(7), begin + COPY_AFTER)[0].overdue);
        track.copied_while_stopped("a", files(7)["a"], begin + COPY_AFTER);
        track.all_copied(begin + COPY_AFTER);
        assert!(!track.look(&files(8), begin + COPY_AFTER + LOOK)[0].overdue);
        assert_eq!(track.uncopied_since(), Some(begin + COPY_AFTER));
    }

    #[test]
    fn first_write_after_rest_is_not_overdue() {
        let mut track = Track::default();
        let begin = Instant::now();
        track.look(&BTreeMap::new(), begin);
        track.all_copied(begin + 100 * LOOK);
        assert!(!track.look(&files(1), begin + 101 * LOOK)[0].overdue);
    }

    #[test]
    fn shortage_of_space_is_remembered_for_a_while() {
        let mut track = Track::default();
        let begin = Instant::now();
        track.set_space(false, begin);
        track.set_space(true, begin + SHORTAGE_KEPT / 2);
        assert!(track.was_short_of_space());
        track.set_space(true, begin + SHORTAGE_KEPT);
        assert!(!track.was_short_of_space());
    }
}
