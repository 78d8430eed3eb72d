//! What is known of a tenant's files from one look to the next. Pure: time is an argument, and it is
//! monotonic, so that a step of the wall clock changes nothing.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::copy::Stamp;
use super::{COPY_AFTER, QUIET};

/// Two writes within this may bear the same time (the kernel's clock for files ticks 100 to 1000
/// times a second), so a younger stamp does not prove that a file is unchanged.
const TICK: Duration = Duration::from_millis(50);

/// One tenant's files; bounded by what a tenant may have on disk.
#[derive(Debug, Default)]
pub(super) struct Track {
    /// When they were last looked at; `None`: never in this life of ours.
    looked: Option<Instant>,
    files: BTreeMap<String, Seen>,
    /// SQ is being started after a stop in order.
    pub(super) in_order: bool,
    /// When its folder was last seen short of room.
    pub(super) short: Option<Instant>,
}

#[derive(Debug)]
struct Seen {
    stamp: Stamp,
    /// Since when it has had this stamp, no later than it was seen.
    since: Instant,
    /// Its stamp when it was copied, where that proves that it is the same.
    copied: Option<Stamp>,
    /// No write that has no copy is older.
    uncopied: Option<Instant>,
}

/// A file that is not what was copied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Changed {
    pub(super) name: String,
    /// Nothing has written it for [`QUIET`].
    pub(super) quiet: bool,
    /// A write may be without a copy for [`COPY_AFTER`].
    pub(super) overdue: bool,
}

impl Track {
    /// Takes in what stands in the folder; gives what changed.
    pub(super) fn look(&mut self, files: &BTreeMap<String, Stamp>, now: Instant) -> Vec<Changed> {
        // Whatever is new was written after the look before; without one, nobody knows when.
        let before = self.looked.replace(now);
        let unknown = before.or_else(|| now.checked_sub(COPY_AFTER)).unwrap_or(now);
        self.files.retain(|name, _| files.contains_key(name));
        let mut changed = Vec::new();
        for (name, stamp) in files {
            let seen = self.files.entry(name.clone()).or_insert(Seen {
                stamp: *stamp,
                since: now,
                copied: None,
                uncopied: None,
            });
            if seen.stamp != *stamp {
                (seen.stamp, seen.since) = (*stamp, now);
            }
            if seen.copied == Some(*stamp) {
                seen.uncopied = None;
                continue;
            }
            let uncopied = *seen.uncopied.get_or_insert(unknown);
            changed.push(Changed {
                name: name.clone(),
                quiet: now.saturating_duration_since(seen.since) >= QUIET,
                overdue: now.saturating_duration_since(uncopied) >= COPY_AFTER,
            });
        }
        changed
    }

    /// The file was copied as `stamp` says; it was read from `read_at` on. `stopped`: nobody can
    /// have written it since.
    pub(super) fn copied(&mut self, name: &str, stamp: Stamp, read_at: Instant, stopped: bool) {
        let new = Seen { stamp, since: read_at, copied: None, uncopied: None };
        let seen = self.files.entry(name.to_owned()).or_insert(new);
        let old = seen.stamp == stamp && read_at.saturating_duration_since(seen.since) >= TICK;
        let proven = stopped || old;
        seen.copied = proven.then_some(stamp);
        // A later write with the same time and length would go unseen: copied again, then.
        seen.uncopied = (!proven).then_some(read_at);
    }

    /// Whether the file is what was last copied: a cut shows in its length or time.
    pub(super) fn is_copied(&self, name: &str, stamp: &Stamp) -> bool {
        self.files.get(name).is_some_and(|seen| seen.copied == Some(*stamp))
    }

    /// SQ is about to start: nothing was written before `now` that nobody knows of.
    pub(super) fn starts(&mut self, now: Instant) {
        self.looked = Some(now);
    }

    /// Whether nothing is known.
    pub(super) fn is_empty(&self) -> bool {
        self.looked.is_none() && self.files.is_empty() && self.short.is_none()
    }

    /// SQ has died: whether the file, which bears `stamp` now, holds a write that may have been
    /// without a copy for [`COPY_AFTER`]. How long that is goes on counting.
    pub(super) fn overdue(&mut self, name: &str, stamp: Stamp, now: Instant) -> bool {
        if self.is_copied(name, &stamp) {
            return false;
        }
        let long_ago = now.checked_sub(COPY_AFTER).unwrap_or(now);
        let unknown = self.looked.unwrap_or(long_ago);
        let new = Seen { stamp, since: now, copied: None, uncopied: None };
        let seen = self.files.entry(name.to_owned()).or_insert(new);
        (seen.stamp, seen.since, seen.copied) = (stamp, now, None);
        now.saturating_duration_since(*seen.uncopied.get_or_insert(unknown)) >= COPY_AFTER
    }

    /// Nobody can have written until `now`.
    pub(super) fn untouched(&mut self, now: Instant) {
        if self.looked.is_some() && self.uncopied_since().is_none() {
            self.looked = Some(now);
        }
    }

    /// The oldest write that may have no copy.
    pub(super) fn uncopied_since(&self) -> Option<Instant> {
        self.files.values().filter_map(|seen| seen.uncopied).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(written_ns: i128) -> BTreeMap<String, Stamp> {
        BTreeMap::from([("a".to_owned(), Stamp { bytes: 1, written_ns, inode: 1 })])
    }

    const LOOK: Duration = Duration::from_millis(500);

    #[test]
    fn a_file_that_is_always_written_is_overdue_no_later_than_its_oldest_write_without_a_copy() {
        let (mut track, begin) = (Track::default(), Instant::now());
        track.look(&BTreeMap::new(), begin);
        let mut overdue = None;
        for look in 1..20 {
            let now = begin + look * LOOK;
            let changed = track.look(&files(look.into()), now);
            assert!(!changed[0].quiet);
            overdue = overdue.or(changed[0].overdue.then_some(now - begin));
        }
        assert_eq!(overdue, Some(COPY_AFTER), "the first write was after the first look");
        assert_eq!(track.uncopied_since(), Some(begin));
    }

    #[test]
    fn a_file_is_quiet_when_looks_a_second_apart_find_the_same_whatever_the_clock_says() {
        let (mut track, begin) = (Track::default(), Instant::now());
        // Written in the far future, says its time.
        let far = files(i128::from(u64::MAX));
        assert!(!track.look(&far, begin)[0].quiet);
        assert!(track.look(&far, begin + QUIET)[0].quiet);
    }

    #[test]
    fn a_copy_of_a_file_just_written_is_made_again_when_it_is_quiet() {
        let (mut track, begin) = (Track::default(), Instant::now());
        let stamp = files(5)["a"];
        track.look(&files(5), begin);
        track.copied("a", stamp, begin + TICK / 2, false);
        assert!(!track.is_copied("a", &stamp));
        assert!(track.look(&files(5), begin + QUIET)[0].quiet);
        track.copied("a", stamp, begin + QUIET, false);
        assert!(track.is_copied("a", &stamp));
        assert_eq!(track.look(&files(5), begin + 2 * QUIET), []);
        assert_eq!(track.uncopied_since(), None);
    }

    #[test]
    fn what_is_first_seen_in_this_life_is_overdue_at_once() {
        let later = Instant::now() + 2 * COPY_AFTER;
        assert!(Track::default().look(&files(1), later)[0].overdue);
    }

    #[test]
    fn a_death_makes_no_write_younger() {
        let (mut track, begin) = (Track::default(), Instant::now());
        let stamp = files(5)["a"];
        track.look(&BTreeMap::new(), begin);
        let died = begin + COPY_AFTER / 2;
        assert!(!track.overdue("a", stamp, died));
        track.starts(died);
        assert_eq!(track.uncopied_since(), Some(begin));
        assert!(track.look(&files(6), begin + COPY_AFTER)[0].overdue);
        assert!(track.overdue("a", stamp, begin + COPY_AFTER));
        track.copied("a", stamp, begin + COPY_AFTER, true);
        assert!(!track.overdue("a", stamp, begin + 2 * COPY_AFTER));
        assert!(Track::default().overdue("a", stamp, begin + COPY_AFTER), "nobody knows");
    }

    #[test]
    fn after_an_idle_time_the_first_write_is_not_overdue() {
        let (mut track, begin) = (Track::default(), Instant::now());
        track.look(&BTreeMap::new(), begin);
        track.untouched(begin + 100 * LOOK);
        assert!(!track.look(&files(1), begin + 101 * LOOK)[0].overdue);
    }
}
