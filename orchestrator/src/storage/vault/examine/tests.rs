//! Truncated files made by hand and by chance.

use std::collections::BTreeMap;

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

fn repaired(found: &[u8], good: &[u8]) -> Option<Vec<u8>> {
    after(Crash::Process, found, good)
}

fn after(crash: Crash, found: &[u8], good: &[u8]) -> Option<Vec<u8>> {
    match examine(Some(found), Some(good), crash) {
        Finding::Whole => None,
        Finding::Damaged { repaired, .. } => Some(repaired),
    }
}

#[test]
fn file_with_a_partial_block_is_whole() {
    let good = file(&[(1, "one"), (2, "two"), (3, "three")]);
    assert_eq!(repaired(&file(&[(1, "one")]), &good), None);
    assert_eq!(repaired(&file(&[(9, "other")]), &good), None);
}

#[test]
fn file_truncated_inside_a_character_is_not_text() {
    let good = file(&[(1, "on"), (2, &"é".repeat(600))]);
    let found = &good[..1_024];
    assert!(std::str::from_utf8(found).is_err());
    assert_eq!(
        examine(Some(found), Some(&good), Crash::Process),
        Finding::Damaged { damage: Damage::NotText, repaired: good.clone() }
    );
    // Damaged even without a copy to repair it with.
    let kept = file(&[(1, "on")]);
    assert_eq!(repaired(found, b""), Some(kept));
}

#[test]
fn emptied_file_is_restored_from_its_copy() {
    let good = file(&[(1, "one")]);
    assert_eq!(repaired(b"", &good), Some(good.clone()));
    assert_eq!(examine(Some(b""), None, Crash::Process), Finding::Whole);
}

#[test]
fn missing_file_is_restored_from_its_copy() {
    let good = file(&[(1, "one")]);
    assert_eq!(
        examine(None, Some(&good), Crash::Process),
        Finding::Damaged { damage: Damage::Missing, repaired: good.clone() }
    );
}

#[test]
fn only_scrolls_after_the_truncation_are_restored() {
    let good = file(&[(1, "old"), (2, "two"), (5, "five")]);
    let new = "n".repeat(600);
    let meant = file(&[(1, &new), (2, &"m".repeat(600)), (5, "five")]);
    let now = &meant[..1024];
    assert_eq!(repaired(now, &good), Some(file(&[(1, &new), (2, "two"), (5, "five")])));
}

#[test]
fn scroll_before_a_final_delimiter_is_kept() {
    let good = file(&[(1, "old"), (2, "two")]);
    let meant = file(&[(1, "new"), (2, "two")]);
    assert_eq!(repaired(&meant[..4], &good), Some(meant));
}

#[test]
fn uploaded_copy_is_restored_byte_for_byte() {
    let good = b"\x17\x17\x18ends so\x17";
    assert_eq!(repaired(b"", good), Some(good.to_vec()));
}

#[test]
fn zero_byte_is_text() {
    let good = file(&[(1, "a\0b"), (2, "two")]);
    assert_eq!(repaired(&good, &good), None);
    assert_eq!(repaired(&file(&[(1, "a\0b"), (2, "two!")]), &good), None);
    assert_eq!(repaired(b"", &good), Some(good.clone()));
    let many = "\0".repeat(3_000);
    assert_eq!(repaired(&file(&[(1, &many), (2, "two")]), &good), None, "no crash of the host");
}

#[test]
fn new_zeros_after_a_host_crash_are_damage() {
    let good = file(&[(1, &"a".repeat(2000)), (2, "two\0")]);
    let host = |now: &[u8]| after(Crash::Host, now, &good);
    let mut now = good.clone();
    now[1024..1536].fill(0);
    assert_eq!(host(&now), Some(good.clone()));
    // The part that was not flushed may be of any length.
    for length in [1025, 1030, 1500] {
        let mut now = good[..length].to_vec();
        now[1024..].fill(0);
        let hidden = longest_run_of_zeros(&now) <= longest_run_of_zeros(&good);
        assert_eq!(host(&now), (!hidden).then(|| good.clone()), "{length}");
    }
    assert_eq!(host(&[0; 3]), Some(good.clone()));
}

#[test]
fn zeros_of_the_copy_hide_no_longer_run() {
    let good = file(&[(1, &"\0".repeat(600)), (2, &"b".repeat(3000))]);
    assert_eq!(after(Crash::Host, &file(&[(1, &"\0".repeat(600)), (2, "n")]), &good), None);
    let mut now = good.clone();
    now[1024..2048].fill(0);
    assert_eq!(after(Crash::Host, &now, &good), Some(good));
}

#[test]
fn half_a_scroll_without_a_copy_is_dropped() {
    let meant = file(&[(1, "one"), (2, &"b".repeat(3_000)), (5, "five")]);
    let found = &meant[..2_048];
    for copy in [None, Some(b"".as_slice())] {
        let expected =
            Finding::Damaged { damage: Damage::TailMissing, repaired: file(&[(1, "one")]) };
        assert_eq!(examine(Some(found), copy, Crash::Process), expected);
    }
}

#[test]
fn finished_file_without_a_copy_is_left_alone() {
    for length in [1, 511, 513, 4_095, 4_097] {
        let found = file(&[(1, &"a".repeat(length))]);
        assert_eq!(examine(Some(&found), None, Crash::Process), Finding::Whole, "{length}");
    }
}

fn file_of(scrolls: &BTreeMap<usize, String>) -> Vec<u8> {
    file(&scrolls.iter().map(|(number, text)| (*number, text.as_str())).collect::<Vec<_>>())
}

proptest! {
    /// Wherever a kernel ends a partial write, every scroll of the copy is there afterwards, in its
    /// old or its new version.
    #[test]
    fn no_older_scroll_is_lost_by_truncation(
        old in prop::collection::btree_map(1usize..40, "[a-z]{1,300}", 1..20),
        (changed, text) in (1usize..40, "[A-Z]{1,900}"),
        blocks in 0usize..12,
        at_the_end: bool,
    ) {
        let changed = if at_the_end { *old.keys().max().unwrap() } else { changed };
        let mut new = old.clone();
        new.insert(changed, text);
        let good = file_of(&old);
        let written = file_of(&new);
        let found = &written[..(blocks * BLOCK_BYTES).min(written.len())];
        let result = repaired(found, &good).unwrap_or_else(|| found.to_vec());
        let after: HashMap<_, _> = scrolls(std::str::from_utf8(&result).unwrap())
            .into_iter()
            .map(|scroll| (scroll.coord, scroll.scroll))
            .collect();
        for (number, text) in &old {
            let scroll = after.get(&at(*number));
            prop_assert!(
                scroll == Some(text) || scroll == new.get(number),
                "scroll {number}: {scroll:?}"
            );
        }
    }

    /// Without a copy, a scroll is whole or absent wherever the write ended.
    #[test]
    fn new_phext_never_keeps_half_a_scroll(
        new in prop::collection::btree_map(1usize..40, "[a-zé]{1,900}", 1..20),
        blocks in 0usize..12,
    ) {
        let written = file_of(&new);
        let found = &written[..(blocks * BLOCK_BYTES).min(written.len())];
        let after = match examine(Some(found), None, Crash::Process) {
            Finding::Whole => found.to_vec(),
            Finding::Damaged { repaired, .. } => repaired,
        };
        for scroll in scrolls(std::str::from_utf8(&after).unwrap()) {
            let whole = new.iter().any(|(number, text)| {
                at(*number) == scroll.coord && *text == scroll.scroll
            });
            prop_assert!(whole, "{scroll:?}");
        }
    }

    /// A finished file is never rolled back, except in the two cases that the module names: empty,
    /// or a multiple of 512 bytes whose last scroll is new.
    #[test]
    fn finished_file_is_left_alone(
        old in prop::collection::btree_map(1usize..40, "[a-z]{1,60}", 0..20),
        new in prop::collection::btree_map(1usize..40, "[a-z]{1,60}", 1..20),
    ) {
        let good = file_of(&old);
        let found = file_of(&new);
        prop_assume!(!found.len().is_multiple_of(BLOCK_BYTES));
        prop_assert_eq!(examine(Some(&found), Some(&good), Crash::Process), Finding::Whole);
    }

    #[test]
    fn every_damaged_file_may_be_truncated(
        found in prop::collection::vec(any::<u8>(), 0..2000),
        good in prop::collection::vec(any::<u8>(), 0..2000),
    ) {
        let whole = examine(Some(&found), Some(&good), Crash::Process) == Finding::Whole;
        prop_assert!(whole || may_be_truncated(&found));
    }

    #[test]
    fn any_bytes_can_be_examined(
        found in prop::collection::vec(any::<u8>(), 0..2000),
        good in prop::collection::vec(any::<u8>(), 0..2000),
    ) {
        for crash in [Crash::Process, Crash::Host] {
            examine(Some(&found), Some(&good), crash);
        }
    }
}
