use std::collections::HashMap;
use std::fmt::Write as _;

use proptest::prelude::*;
use protocol::{TenantStatus, Verdict};

use super::*;

fn hash(n: u8) -> KeyHash {
    KeyHash::of(&[n])
}

/// A registry with one tenant per key: number of the key, suspended, end.
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
        let key = hash(*n);
        let end = end.unwrap_or_default();
        let _ = write!(
            text,
            "\u{17}tenant: t{n}\nkey-sha256: {key}{end}\ntier: free\nstatus: {status}\n"
        );
    }
    Registry::parse(text.as_bytes()).unwrap()
}

fn new_state() -> RelayState {
    RelayState::new(Epoch("e".to_owned()))
}

fn changes(state: &RelayState, since: u64) -> Option<ChangesResponse> {
    state.view().changes(Some(&Epoch("e".to_owned())), since)
}

#[test]
fn changes_name_digests_with_a_different_verdict() {
    let mut state = new_state();
    state.load(registry(&[(1, false, None), (2, false, None), (3, false, None)]), 0);
    assert_eq!(state.view().revision, 1);
    assert_eq!(state.load(registry(&[(1, false, None), (2, true, None), (4, false, None)]), 0), 3);
    let mut expected = vec![hash(2), hash(3), hash(4)];
    expected.sort_unstable();
    let response = changes(&state, 1).unwrap();
    assert_eq!((response.revision, response.reset, response.changed), (2, false, expected));
    assert_eq!(changes(&state, 2), None, "the newest revision has no changes");
}

#[test]
fn a_load_without_changes_keeps_the_revision() {
    let mut state = new_state();
    state.load(registry(&[(1, false, None)]), 0);
    assert_eq!(state.load(registry(&[(1, false, None)]), 5), 0);
    assert_eq!(state.view().revision, 1);
}

#[test]
fn a_key_changes_when_it_ends() {
    let mut state = new_state();
    state.load(registry(&[(1, false, Some(100)), (2, false, None)]), 10);
    assert_eq!(state.tick(99), 0);
    assert!(state.view().verify(&hash(1)).unwrap().verdict.is_some());
    assert_eq!(state.tick(100), 1);
    assert_eq!(changes(&state, 1).unwrap().changed, [hash(1)]);
    assert_eq!(state.view().verify(&hash(1)).unwrap().verdict, None);
    assert_eq!(state.tick(50), 1, "the clock was set back");
}

#[test]
fn a_gateway_with_unknown_changes_is_reset() {
    let mut state = new_state();
    state.load(registry(&[(1, false, None)]), 0);
    let reset = |state: &RelayState, epoch: Option<&str>, since| {
        let epoch = epoch.map(|e| Epoch(e.to_owned()));
        state.view().changes(epoch.as_ref(), since).unwrap().reset
    };
    assert!(reset(&state, None, 1), "no epoch");
    assert!(reset(&state, Some("other"), 1), "another epoch");
    assert!(reset(&state, Some("e"), 2), "a revision from the future");
    for turn in 0..=HISTORY_MAX {
        state.load(registry(&[(1, turn % 2 == 0, None)]), 0);
    }
    assert!(reset(&state, Some("e"), 1), "forgotten changes");
    assert!(!reset(&state, Some("e"), 2));
    assert_eq!(state.view().history.changes.len(), HISTORY_MAX);
}

#[test]
fn verify_needs_a_registry() {
    assert_eq!(new_state().view().verify(&hash(1)), None);
}

type Keys = Vec<(u8, bool, Option<u64>)>;

fn keys() -> impl Strategy<Value = Keys> {
    let end = proptest::option::of(1..40_u64);
    proptest::collection::vec((0..6_u8, any::<bool>(), end), 0..8)
}

proptest! {
    /// The promise of the changes feed to a gateway that drops the named digests and verifies again.
    #[test]
    fn following_the_changes_keeps_verdicts_current(
        steps in proptest::collection::vec((proptest::option::of(keys()), 0..50_u64, any::<bool>()), 1..30),
    ) {
        let mut state = new_state();
        let mut followed = 0;
        let mut cache: HashMap<KeyHash, Option<Verdict>> = HashMap::new();
        state.load(registry(&[]), 0);
        for (load, now, polls) in steps {
            match load {
                Some(keys) => state.load(registry(&keys), now),
                None => state.tick(now),
            };
            let view = state.view().clone();
            if !polls {
                continue;
            }
            if let Some(response) = view.changes(Some(&view.epoch), followed) {
                followed = response.revision;
                if response.reset {
                    cache.clear();
                }
                response.changed.iter().for_each(|hash| drop(cache.remove(hash)));
            }
            for n in 0..6 {
                let truth = view.verify(&hash(n)).unwrap().verdict;
                let cached = cache.entry(hash(n)).or_insert_with(|| truth.clone());
                prop_assert_eq!(&*cached, &truth);
                prop_assert!(truth.is_none_or(|v| v.expires_s.is_none_or(|end| end > now)
                    && (v.status == TenantStatus::Active || v.status == TenantStatus::Suspended)));
            }
        }
    }
}
