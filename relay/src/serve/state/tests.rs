use std::collections::HashMap;
use std::fmt::Write as _;

use proptest::prelude::*;
use protocol::{TenantStatus, Verdict};

use super::*;

fn hash(n: u8) -> KeyHash {
    KeyHash::of(&[n])
}

/// A registry of keys: number → (suspended, end).
fn registry(keys: &[(u8, bool, Option<u64>)]) -> Registry {
    let mut text = "tiers\ntier: free\n".to_owned();
    let mut seen = Vec::new();
    for (n, suspended, end) in keys {
        if seen.contains(n) {
            continue;
        }
        seen.push(*n);
        let end = end.map(|s| format!("; expires={}", protocol::calendar::rfc3339(s)));
        let status = if *suspended { "suspended" } else { "active" };
        let (key, end) = (hash(*n), end.unwrap_or_default());
        let _ = write!(
            text,
            "\u{17}tenant: t{n}\nkey-sha256: {key}{end}\ntier: free\nstatus: {status}\n"
        );
    }
    Registry::read(text.as_bytes()).unwrap()
}

fn book() -> Book {
    Book::new(Epoch("e".to_owned()))
}

fn changes(book: &Book, since: u64) -> Option<ChangesResponse> {
    book.view().changes(Some(&Epoch("e".to_owned())), since)
}

#[test]
fn only_digests_with_another_verdict_are_changed() {
    let mut book = book();
    book.load(registry(&[(1, false, None), (2, false, None), (3, false, None)]), 0);
    assert_eq!(book.view().revision, 1);
    assert_eq!(book.load(registry(&[(1, false, None), (2, true, None), (4, false, None)]), 0), 3);
    let mut expected = vec![hash(2), hash(3), hash(4)];
    expected.sort_unstable();
    let answer = changes(&book, 1).unwrap();
    assert_eq!((answer.revision, answer.reset, answer.changed), (2, false, expected));
    assert_eq!(changes(&book, 2), None, "nothing is news at the newest revision");
}

#[test]
fn a_load_that_alters_no_verdict_is_no_revision() {
    let mut book = book();
    book.load(registry(&[(1, false, None)]), 0);
    assert_eq!(book.load(registry(&[(1, false, None)]), 5), 0);
    assert_eq!(book.view().revision, 1);
}

#[test]
fn a_key_that_ends_is_a_change_at_that_second() {
    let mut book = book();
    book.load(registry(&[(1, false, Some(100)), (2, false, None)]), 10);
    assert_eq!(book.tick(99), 0);
    assert!(book.view().verify(&hash(1)).unwrap().verdict.is_some());
    assert_eq!(book.tick(100), 1);
    assert_eq!(changes(&book, 1).unwrap().changed, [hash(1)]);
    assert_eq!(book.view().verify(&hash(1)).unwrap().verdict, None);
    assert_eq!(book.tick(50), 1, "the clock was put back");
}

#[test]
fn who_can_not_be_told_what_changed_is_told_to_ask_anew() {
    let mut book = book();
    book.load(registry(&[(1, false, None)]), 0);
    let reset = |book: &Book, epoch: Option<&str>, since| {
        let epoch = epoch.map(|e| Epoch(e.to_owned()));
        book.view().changes(epoch.as_ref(), since).unwrap().reset
    };
    assert!(reset(&book, None, 1), "no epoch");
    assert!(reset(&book, Some("other"), 1), "another life");
    assert!(reset(&book, Some("e"), 2), "a revision that has not been");
    for turn in 0..=HISTORY_MAX {
        book.load(registry(&[(1, turn % 2 == 0, None)]), 0);
    }
    assert!(reset(&book, Some("e"), 1), "too long ago");
    assert!(!reset(&book, Some("e"), 2));
    assert_eq!(book.view().history.changes.len(), HISTORY_MAX);
}

#[test]
fn nothing_is_answered_before_a_registry_was_read() {
    assert_eq!(book().view().verify(&hash(1)), None);
}

type Keys = Vec<(u8, bool, Option<u64>)>;

fn keys() -> impl Strategy<Value = Keys> {
    let end = proptest::option::of(1..40_u64);
    proptest::collection::vec((0..6_u8, any::<bool>(), end), 0..8)
}

proptest! {
    /// The promise of the feed: who drops what it names, and asks anew, is never out of date.
    #[test]
    fn a_follower_that_drops_what_changed_is_never_out_of_date(
        steps in proptest::collection::vec((proptest::option::of(keys()), 0..50_u64, any::<bool>()), 1..30),
    ) {
        let mut book = book();
        let mut followed = 0;
        let mut cache: HashMap<KeyHash, Option<Verdict>> = HashMap::new();
        book.load(registry(&[]), 0);
        for (load, now, looks) in steps {
            match load {
                Some(keys) => book.load(registry(&keys), now),
                None => book.tick(now),
            };
            let view = book.view().clone();
            if !looks {
                continue;
            }
            if let Some(answer) = view.changes(Some(&view.epoch), followed) {
                followed = answer.revision;
                if answer.reset {
                    cache.clear();
                }
                answer.changed.iter().for_each(|hash| drop(cache.remove(hash)));
            }
            for n in 0..6 {
                let truth = view.verify(&hash(n)).unwrap().verdict;
                let known = cache.entry(hash(n)).or_insert_with(|| truth.clone());
                prop_assert_eq!(&*known, &truth);
                prop_assert!(truth.is_none_or(|v| v.expires_s.is_none_or(|end| end > now)
                    && (v.status == TenantStatus::Active || v.status == TenantStatus::Suspended)));
            }
        }
    }
}
