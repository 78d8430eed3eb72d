//! Repairs before a start that follows a crash, and copies made while SQ starts.

use super::*;
use crate::storage::vault::quarantine::FILES_MAX;

/// Has SQ die while `found` is in the place of a phext whose good copy is `good`, and compares the
/// repair and the phext after it.
#[track_caller]
fn check(good: &str, found: &str, damage: Option<Damage>, repaired: &str) -> Setup {
    let setup = Setup::running_with(good);
    setup.write(NAME, found);
    let repairs = setup.start();
    assert_eq!(repairs.first().map(|repair| repair.damage), damage);
    assert_eq!(setup.read(NAME), repaired);
    assert_eq!(setup.copy(NAME), repaired, "it has a copy before SQ serves");
    assert_eq!(setup.vault.repaired(&setup.tenant), u64::from(damage.is_some()));
    assert_eq!(setup.start(), [], "one repair is enough");
    setup
}

#[test]
fn truncated_phext_is_repaired_and_quarantined() {
    let setup = check("one", "one two\x17", Some(Damage::EndsInDelimiter), "one two");
    assert_eq!(setup.quarantine("damaged"), ["one two\x17"]);
}

#[test]
fn emptied_phext_is_repaired() {
    check("one", "", Some(Damage::Emptied), "one");
}

/// A running tenant without phexts, whose SQ then leaves `found` as a new phext and dies before the
/// vault has looked. Returns what the next start serves.
fn new_phext_after_death(found: &str) -> (Setup, Vec<Repair>) {
    let setup = Setup::new();
    setup.start();
    setup.write(NAME, found);
    let repairs = setup.start();
    (setup, repairs)
}

#[test]
fn truncated_new_phext_loses_the_half_scroll() {
    let found = format!("one\x17{}", "b".repeat(1_020));
    let (setup, repairs) = new_phext_after_death(&found);
    assert_eq!(repairs[0].damage, Damage::TailMissing);
    assert_eq!(setup.read(NAME), "one");
    assert_eq!(setup.copy(NAME), "one", "the half scroll becomes no good copy");
    assert_eq!(setup.quarantine("damaged"), [found]);
}

#[test]
fn new_phext_of_half_a_scroll_is_empty() {
    let (setup, repairs) = new_phext_after_death(&"b".repeat(4_096));
    assert_eq!(repairs[0].damage, Damage::TailMissing);
    assert_eq!((setup.read(NAME), setup.copy(NAME)), (String::new(), String::new()));
}

#[test]
fn new_phext_emptied_by_a_death_stays_empty() {
    let (setup, repairs) = new_phext_after_death("");
    assert_eq!((repairs, setup.read(NAME)), (vec![], String::new()));
}

#[test]
fn whole_new_phext_survives_a_death() {
    let (setup, repairs) = new_phext_after_death(&"b".repeat(4_097));
    assert_eq!((repairs.len(), setup.copy(NAME).len()), (0, 4_097));
}

#[test]
fn truncated_new_phext_is_not_copied_after_death() {
    let setup = Setup::new();
    setup.start();
    setup.write(NAME, &"b".repeat(4_096));
    let began = Instant::now();
    while began.elapsed() < 2 * QUIET {
        assert_eq!(setup.round_of_sq(false).copied, 0);
    }
    assert_eq!(setup.start()[0].damage, Damage::TailMissing);
}

#[test]
fn finished_write_of_suspicious_length_survives_death() {
    let setup = Setup::running_with("old");
    // A length at which a write may have been interrupted, and another last scroll.
    setup.write(NAME, &"b".repeat(1_024));
    let is_finished = |setup: &Setup| {
        setup.vault.exclusive(&setup.tenant, |track| {
            let files = phext_files(&setup.data).unwrap();
            track.is_finished(NAME, &files[NAME])
        })
    };
    setup.rounds_until(|_| is_finished(&setup));
    assert_eq!(setup.copy(NAME), "old", "before the next copy is due");
    assert_eq!(setup.start(), []);
    assert_eq!(setup.read(NAME).len(), 1_024);
    assert_eq!(setup.quarantine("replaced"), ["old"]);
    // The same length, of a write that was not seen to end.
    setup.write(NAME, &"c".repeat(1_024));
    assert_eq!(setup.start().len(), 1);
    assert_eq!(setup.read(NAME), "b".repeat(1_024));
}

#[test]
fn interrupted_write_is_never_taken_as_finished() {
    let setup = Setup::running_with("old");
    setup.write(NAME, &"b".repeat(1_024));
    let began = Instant::now();
    while began.elapsed() < 2 * QUIET {
        setup.round_of_sq(false);
    }
    assert_eq!(setup.start()[0].damage, Damage::TailMissing);
    assert_eq!(setup.read(NAME), "old");
}

#[test]
fn whole_newer_phext_is_kept_and_copied() {
    check("one", "newer", None, "newer");
}

#[test]
fn zero_bytes_of_a_text_survive_crashes() {
    check("a\0b\x17two", "a\0b\x17two", None, "a\0b\x17two");
}

#[test]
fn repair_reports_both_lengths() {
    let setup = Setup::running_with("one");
    setup.write(NAME, "one two\x17");
    let repair = setup.start().remove(0);
    assert_eq!((repair.file.as_str(), repair.found_bytes, repair.repaired_bytes), (NAME, 8, 7));
}

#[test]
fn phext_lost_by_a_crash_is_restored() {
    let setup = Setup::running_with("one");
    setup.remove(NAME);
    assert_eq!(setup.start()[0].damage, Damage::Missing);
    assert_eq!(setup.read(NAME), "one");
}

#[test]
fn nothing_is_examined_after_an_orderly_stop() {
    let setup = Setup::stopped_with("one");
    setup.write(NAME, "by hand\x17");
    assert_eq!(setup.start(), []);
    assert_eq!(setup.read(NAME), "by hand\x17");
}

#[test]
fn phext_that_a_host_crash_made_older_is_repaired() {
    let setup = Setup::new();
    setup.start();
    setup.write(NAME, "flushed long ago");
    setup.backdate(NAME);
    setup.rounds_until(is_settled);
    setup.write(NAME, "acknowledged and copied");
    setup.rounds_until(|_| setup.copy(NAME).starts_with("ack"));
    // What the disk held when the power failed.
    setup.write(NAME, "flushed long ago");
    setup.backdate(NAME);
    setup.crash_host();
    let repairs = setup.start();
    assert_eq!((repairs.len(), repairs[0].damage), (1, Damage::Older));
    assert_eq!(setup.read(NAME), "acknowledged and copied");
    assert_eq!(setup.quarantine("damaged"), ["flushed long ago"]);
}

#[test]
fn second_write_in_a_tick_is_copied_after_crash() {
    let setup = Setup::running_with("first");
    let stamp = fs::metadata(setup.data.join(NAME)).unwrap().modified().unwrap();
    setup.write(NAME, "later");
    let file = fs::File::options().write(true).open(setup.data.join(NAME)).unwrap();
    file.set_modified(stamp).unwrap();
    // An open writer would keep the file from being read.
    drop(file);
    assert_eq!(setup.start(), []);
    assert_eq!(setup.copy(NAME), "later");
}

#[test]
fn older_phext_is_kept_if_the_host_lives() {
    let setup = Setup::running_with("newer");
    setup.write(NAME, "restored by hand");
    setup.backdate(NAME);
    assert_eq!(setup.start(), []);
    assert_eq!(setup.read(NAME), "restored by hand");
}

#[test]
fn phext_removed_by_hand_stays_removed() {
    let setup = Setup::running_with("one");
    setup.write("b.phext", "two");
    setup.stop();
    setup.remove(NAME);
    setup.start();
    assert_eq!(setup.start(), [], "nor does a crash bring it back");
    assert_eq!(setup.phexts(), ["b.phext"]);
    assert_eq!(setup.quarantine("replaced"), ["one"]);
}

#[test]
fn empty_folder_costs_no_good_copy() {
    let setup = Setup::stopped_with("one");
    setup.remove(NAME);
    setup.start();
    assert_eq!(setup.copy(NAME), "one");
}

#[test]
fn phext_put_there_by_hand_is_copied_before_sq_serves() {
    let setup = Setup::new();
    setup.write(NAME, "one");
    setup.start();
    assert_eq!(setup.copy(NAME), "one");
}

#[test]
fn failing_first_copy_prevents_the_start() {
    let setup = Setup::new();
    setup.write(NAME, "one");
    // A folder in the copy's place.
    fs::create_dir_all(setup.vault.good(&setup.tenant).join(NAME)).unwrap();
    setup.vault.before_start(&setup.tenant).unwrap();
    assert!(setup.vault.while_starting(&setup.tenant).is_err());
}

#[test]
fn phext_with_an_older_copy_starts_without_a_newer() {
    let setup = Setup::running_with("one");
    setup.vault.before_start(&setup.tenant).unwrap();
    // It may be truncated, and the copy that would tell can't be read.
    setup.write(NAME, &"x".repeat(512));
    setup.make_copy_unreadable(NAME);
    let started = Instant::now();
    setup.vault.while_starting(&setup.tenant).unwrap();
    let uncopied_since = setup.rounds_until(|round| round.failed.is_some()).uncopied_since;
    assert!(uncopied_since.unwrap() < started, "its age goes on counting through the crash");
}

#[test]
fn folder_in_a_phexts_place_needs_the_operator() {
    let setup = Setup::new();
    fs::create_dir(setup.data.join(NAME)).unwrap();
    let refused = setup.vault.before_start(&setup.tenant).unwrap_err();
    assert!(matches!(refused, PrepareError::NotAPhext(_)), "{refused:?}");
    assert!(refused.to_string().contains(NAME), "{refused}");
}

#[test]
fn remains_of_an_interrupted_restore_are_removed() {
    let setup = Setup::stopped_with("one");
    for folder in [&setup.data, &setup.vault.good(&setup.tenant)] {
        fs::write(folder.join(".new-1"), "half a phext").unwrap();
    }
    setup.start();
    for folder in [&setup.data, &setup.vault.good(&setup.tenant)] {
        assert_eq!(entries(folder).unwrap().len(), 1, "{}", folder.display());
    }
}

#[test]
fn quarantine_is_bounded_and_keeps_the_newest() {
    let setup = Setup::running_with("precious");
    let damaged = setup.vault.home(&setup.tenant).join("damaged");
    fs::create_dir_all(&damaged).unwrap();
    for second in 1_000_000_000..1_000_000_000 + FILES_MAX {
        fs::write(damaged.join(format!("{second}-{NAME}")), "older").unwrap();
    }
    setup.write(NAME, "newest\x17");
    setup.start();
    let kept = setup.quarantine("damaged");
    assert_eq!((kept.len(), kept.last().unwrap().as_str()), (FILES_MAX, "newest\x17"));
}
