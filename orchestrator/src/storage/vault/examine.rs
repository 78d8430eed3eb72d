//! Is a phext file whole? Pure: bytes in, finding out.
//!
//! SQ writes a phext by truncating its file and writing the whole text in one call, scrolls in the
//! order of their coordinates. Killed in the middle, or with the disk full, it leaves a *prefix* of
//! what it meant to write. A prefix of a phext reads as a phext that lost its last scrolls, so only
//! knowledge of how files are written and of the last good copy tells the two apart:
//!
//! 1. Not UTF-8: SQ never ends a write so. After a crash of the host also: a block, or what is left
//!    after the last one, of nothing but zeros, where the copy has no run of zeros as long. A file
//!    system may leave such a hole of a write that the crash overtook; no other death does, and a
//!    zero byte is text. **Cut.**
//! 2. Empty although the copy was not: the moment between truncation and write. **Cut.**
//! 3. Ends in a delimiter: SQ writes delimiters only before a scroll's text. **Cut.**
//! 4. The length is no multiple of 512: a kernel cuts a write at a page or a block, never inside
//!    one, so this file was written to its end. **Whole**, whatever the copy says.
//! 5. The length is such a multiple, and the file does not end as the copy does. **Cut.** Without a
//!    copy there is nothing to put in its place, and it stays.
//! 6. Else **whole**.
//!
//! After a crash of the host a file may also be an older one than its copy, which is flushed and the
//! file is not: the vault tells by their times ([`Why::Older`]) before it asks here.
//!
//! Which whole, newer file is rolled back, and how far: rules 1 and 3 hold for no file that SQ
//! finished. Rule 5 is wrong for one finished file in 512, when its *last* scroll was written since
//! the copy: that scroll goes back to the copy's, or goes. So it costs a write that is younger than
//! the window, in one abnormal death of 512, and the file as it was is kept aside. Rule 2 is wrong
//! when a tenant removed its last scroll within the window: an old text comes back then.
//!
//! What replaces a cut file: its scrolls before the cut (they are newer than the copy), and from the
//! cut on those of the copy. The scroll at the cut itself is the copy's or none: a scroll is whole
//! or not there. The cut file is kept aside by the caller.
//!
//! All of this knows local file systems of Linux (ext4, xfs, btrfs, tmpfs and their like). Others
//! (9p, FUSE, NFS) may cut a write anywhere: there only rules 1 to 3 find it.

use std::collections::HashMap;

use libphext::phext::{self, Coordinate, PositionedScroll};

/// No kernel cuts a write inside this many bytes (the smallest block; pages are 4096).
const BLOCK_BYTES: usize = 512;

/// What a file turned out to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Finding {
    /// Written to its end.
    Whole,
    /// Cut, and what should stand there instead.
    Cut {
        /// How it shows.
        why: Why,
        /// The file to put in its place.
        restored: Vec<u8>,
    },
}

/// What ended while the file may have been written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Death {
    /// SQ, or it may have; what it wrote is what the kernel has.
    Process,
    /// The host: what was not flushed may be missing, or be zeros.
    Host,
}

/// How a cut shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// Rule 1.
    NotText,
    /// Rule 2.
    Emptied,
    /// Rule 3.
    EndsInDelimiter,
    /// Rule 5.
    TailMissing,
    /// The file is not there although a copy is.
    Missing,
    /// A crash of the host threw it back behind its copy.
    Older,
}

impl Why {
    /// For logs, metrics and status.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NotText => "not text",
            Self::Emptied => "emptied",
            Self::EndsInDelimiter => "ends in a delimiter",
            Self::TailMissing => "tail missing",
            Self::Missing => "missing",
            Self::Older => "older than its copy",
        }
    }
}

/// Examines the file `now` (`None`: not there) against the last good copy.
pub fn examine(now: Option<&[u8]>, good: Option<&[u8]>, death: Death) -> Finding {
    let good = good.unwrap_or_default();
    let Some(now) = now else {
        return cut(Why::Missing, "", good);
    };
    if now == good {
        return Finding::Whole;
    }
    let hole = if death == Death::Host { hole(now, good) } else { None };
    let text = utf8(&now[..hole.unwrap_or(now.len())]);
    if text.len() < now.len() {
        return cut(Why::NotText, text, good);
    }
    if text.is_empty() {
        return if good.is_empty() { Finding::Whole } else { cut(Why::Emptied, text, good) };
    }
    if ends_in_delimiter(text) {
        return cut(Why::EndsInDelimiter, text, good);
    }
    let block_end = text.len().is_multiple_of(BLOCK_BYTES) && !good.is_empty();
    if block_end && ends_otherwise(text, utf8(good)) {
        return cut(Why::TailMissing, text, good);
    }
    Finding::Whole
}

/// Whether a file of these bytes could be one that was cut, judged without its copy: cheap enough
/// to ask before every copy.
pub fn suspicious(now: &[u8]) -> bool {
    let text = utf8(now);
    text.len() < now.len() || text.len().is_multiple_of(BLOCK_BYTES) || ends_in_delimiter(text)
}

/// The longest prefix that is UTF-8.
fn utf8(bytes: &[u8]) -> &str {
    match std::str::from_utf8(bytes) {
        Ok(text) => text,
        Err(e) => std::str::from_utf8(&bytes[..e.valid_up_to()]).unwrap_or_default(),
    }
}

/// Where the first block of nothing but zeros begins, unless the copy has as many in a row: then
/// they are the tenant's text. What is left after the last whole block counts as one.
fn hole(bytes: &[u8], good: &[u8]) -> Option<usize> {
    let block = bytes.chunks(BLOCK_BYTES).position(|block| block.iter().all(|b| *b == 0))?;
    (zeros(bytes) > zeros(good)).then_some(block * BLOCK_BYTES)
}

/// The longest run of zeros.
fn zeros(bytes: &[u8]) -> usize {
    bytes.split(|b| *b != 0).map(<[u8]>::len).max().unwrap_or(0)
}

fn ends_in_delimiter(text: &str) -> bool {
    text.bytes().last().is_some_and(|b| b != phext::LINE_BREAK as u8 && phext::is_phext_break(b))
}

fn scrolls(text: &str) -> Vec<PositionedScroll> {
    let mut all = phext::phokenize(text);
    all.retain(|s| !s.scroll.is_empty());
    all
}

/// Whether the last scroll of `now` is another than the copy's last.
fn ends_otherwise(now: &str, good: &str) -> bool {
    scrolls(now).pop() != scrolls(good).pop()
}

fn cut(why: Why, prefix: &str, good: &[u8]) -> Finding {
    let copy = scrolls(utf8(good));
    // A copy that SQ did not write itself (uploaded by hand, say) is put back as it is.
    if phext::implode(by_coordinate(&copy)).as_bytes() != good {
        return Finding::Cut { why, restored: good.to_vec() };
    }
    let mut kept = scrolls(prefix);
    let from = match kept.pop() {
        // Ended by its delimiter: this scroll was written whole.
        Some(last) if ends_in_delimiter(prefix) => {
            let at = last.coord;
            kept.push(last);
            Some((at, false))
        }
        Some(last) => Some((last.coord, true)),
        None => None,
    };
    let after = |s: &PositionedScroll| match from {
        None => true,
        Some((at, inclusive)) => s.coord > at || (inclusive && s.coord == at),
    };
    kept.extend(copy.into_iter().filter(after));
    Finding::Cut { why, restored: phext::implode(by_coordinate(&kept)).into_bytes() }
}

fn by_coordinate(scrolls: &[PositionedScroll]) -> HashMap<Coordinate, String> {
    scrolls.iter().map(|s| (s.coord, s.scroll.clone())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn file(scrolls: &[(usize, &str)]) -> Vec<u8> {
        let map = scrolls.iter().map(|(n, text)| (at(*n), (*text).to_owned())).collect();
        phext::implode(map).into_bytes()
    }

    fn at(scroll: usize) -> Coordinate {
        let mut c = phext::default_coordinate();
        c.x.scroll = scroll;
        c
    }

    fn restored(now: &[u8], good: &[u8]) -> Option<Vec<u8>> {
        after(Death::Process, now, good)
    }

    fn after(death: Death, now: &[u8], good: &[u8]) -> Option<Vec<u8>> {
        match examine(Some(now), Some(good), death) {
            Finding::Whole => None,
            Finding::Cut { restored, .. } => Some(restored),
        }
    }

    #[test]
    fn a_file_of_any_odd_length_is_whole_whatever_the_copy_says() {
        let good = file(&[(1, "one"), (2, "two"), (3, "three")]);
        assert_eq!(restored(&file(&[(1, "one")]), &good), None);
        assert_eq!(restored(&file(&[(9, "other")]), &good), None);
    }

    #[test]
    fn an_emptied_file_is_restored_and_one_that_never_held_anything_is_not() {
        let good = file(&[(1, "one")]);
        assert_eq!(restored(b"", &good), Some(good.clone()));
        assert_eq!(examine(Some(b""), None, Death::Process), Finding::Whole);
    }

    #[test]
    fn a_missing_file_comes_back_from_its_copy() {
        let good = file(&[(1, "one")]);
        assert_eq!(
            examine(None, Some(&good), Death::Process),
            Finding::Cut { why: Why::Missing, restored: good.clone() }
        );
    }

    #[test]
    fn scrolls_before_the_cut_stay_new_and_those_after_come_from_the_copy() {
        let good = file(&[(1, "old"), (2, "two"), (5, "five")]);
        let new = "n".repeat(600);
        let meant = file(&[(1, &new), (2, &"m".repeat(600)), (5, "five")]);
        let now = &meant[..1024];
        assert_eq!(restored(now, &good), Some(file(&[(1, &new), (2, "two"), (5, "five")])));
    }

    #[test]
    fn a_file_cut_between_two_scrolls_keeps_the_one_before_the_delimiter() {
        let good = file(&[(1, "old"), (2, "two")]);
        let meant = file(&[(1, "new"), (2, "two")]);
        assert_eq!(restored(&meant[..4], &good), Some(meant));
    }

    #[test]
    fn a_copy_that_sq_did_not_write_is_put_back_byte_for_byte() {
        let good = b"\x17\x17\x18ends so\x17";
        assert_eq!(restored(b"", good), Some(good.to_vec()));
    }

    #[test]
    fn a_zero_byte_in_a_text_is_text() {
        let good = file(&[(1, "a\0b"), (2, "two")]);
        assert_eq!(restored(&good, &good), None);
        assert_eq!(restored(&file(&[(1, "a\0b"), (2, "two!")]), &good), None);
        assert_eq!(restored(b"", &good), Some(good.clone()));
        let many = "\0".repeat(3_000);
        assert_eq!(restored(&file(&[(1, &many), (2, "two")]), &good), None, "nobody's crash");
    }

    #[test]
    fn after_a_crash_of_the_host_zeros_that_the_copy_has_not_are_a_hole() {
        let good = file(&[(1, &"a".repeat(2000)), (2, "two\0")]);
        let host = |now: &[u8]| after(Death::Host, now, &good);
        let mut now = good.clone();
        now[1024..1536].fill(0);
        assert_eq!(host(&now), Some(good.clone()));
        // What was not flushed may be a tail of any length.
        for length in [1025, 1030, 1500] {
            let mut now = good[..length].to_vec();
            now[1024..].fill(0);
            let hidden = zeros(&now) <= zeros(&good);
            assert_eq!(host(&now), (!hidden).then(|| good.clone()), "{length}");
        }
        assert_eq!(host(&[0; 3]), Some(good.clone()));
    }

    #[test]
    fn a_long_run_of_zeros_in_the_copy_hides_no_longer_one() {
        let good = file(&[(1, &"\0".repeat(600)), (2, &"b".repeat(3000))]);
        assert_eq!(after(Death::Host, &file(&[(1, &"\0".repeat(600)), (2, "n")]), &good), None);
        let mut now = good.clone();
        now[1024..2048].fill(0);
        assert_eq!(after(Death::Host, &now, &good), Some(good));
    }

    #[test]
    fn a_file_without_a_copy_is_left_alone_when_it_is_text() {
        let now = file(&[(1, &"a".repeat(512))]);
        assert_eq!(examine(Some(&now), None, Death::Process), Finding::Whole);
    }

    proptest! {
        /// Wherever a kernel cuts a write, every scroll of the copy is there afterwards, new or old.
        #[test]
        fn no_scroll_from_before_is_missing_after_a_cut(
            old in prop::collection::btree_map(1usize..40, "[a-z]{1,300}", 1..20),
            change in (1usize..40, "[A-Z]{1,900}"),
            pages in 0usize..12,
            at_the_end: bool,
        ) {
            let change = if at_the_end { (*old.keys().max().unwrap(), change.1) } else { change };
            let mut new = old.clone();
            new.insert(change.0, change.1.clone());
            let bytes = |m: &std::collections::BTreeMap<usize, String>| {
                file(&m.iter().map(|(n, t)| (*n, t.as_str())).collect::<Vec<_>>())
            };
            let (good, meant) = (bytes(&old), bytes(&new));
            let now = &meant[..(pages * BLOCK_BYTES).min(meant.len())];
            let result = restored(now, &good).unwrap_or_else(|| now.to_vec());
            let after: HashMap<_, _> = scrolls(std::str::from_utf8(&result).unwrap())
                .into_iter().map(|s| (s.coord, s.scroll)).collect();
            for (n, text) in &old {
                let there = after.get(&at(*n));
                let expected = [Some(text), new.get(n)];
                prop_assert!(expected.contains(&there), "scroll {n}: {there:?}");
            }
        }

        /// A file that was written to its end is never rolled back, but for the two cases that the
        /// header names: emptied, or a multiple of 512 whose tail went.
        #[test]
        fn a_whole_file_is_left_alone(
            old in prop::collection::btree_map(1usize..40, "[a-z]{1,60}", 0..20),
            new in prop::collection::btree_map(1usize..40, "[a-z]{1,60}", 1..20),
        ) {
            let bytes = |m: &std::collections::BTreeMap<usize, String>| {
                file(&m.iter().map(|(n, t)| (*n, t.as_str())).collect::<Vec<_>>())
            };
            let (good, now) = (bytes(&old), bytes(&new));
            prop_assume!(!now.len().is_multiple_of(BLOCK_BYTES));
            prop_assert_eq!(examine(Some(&now), Some(&good), Death::Process), Finding::Whole);
        }

        #[test]
        fn any_bytes_are_examined_without_a_panic(
            now in prop::collection::vec(any::<u8>(), 0..2000),
            good in prop::collection::vec(any::<u8>(), 0..2000),
        ) {
            for death in [Death::Process, Death::Host] {
                examine(Some(&now), Some(&good), death);
            }
            suspicious(&now);
        }
    }
}
