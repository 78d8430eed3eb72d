//! Files beyond the tier's limits. They are sparse: they occupy nothing on the disk, and a copy would.

use protocol::Limits;

use super::*;

const LARGE: &str = "large.phext";

/// A running tenant of the free tier with one phext, its good copy, and a file of `bytes` beside it.
fn beside_a_file_of(bytes: u64) -> Setup {
    let setup = Setup::running_with("one");
    setup.vault.set_limits(&setup.tenant, &Limits::default());
    fs::File::create(setup.data.join(LARGE)).unwrap().set_len(bytes).unwrap();
    setup
}

fn good_copies(setup: &Setup) -> Vec<String> {
    phext_files(&setup.vault.good(&setup.tenant)).unwrap().into_keys().collect()
}

#[test]
fn file_beyond_the_tier_keeps_no_other_uncopied() {
    let setup = beside_a_file_of(1_000_000_000);
    setup.write("b.phext", "two");
    let round = setup.rounds_until(|round| round.uncopied_since.is_none());
    assert!(round.failed.unwrap().starts_with("large.phext: its 1000000000 bytes"));
    assert!(setup.vault.failing(&setup.tenant).is_some(), "status tells it");
    assert_eq!(good_copies(&setup), [NAME, "b.phext"]);
    // The stop is orderly nevertheless, and the next start does not wait for a copy of it.
    assert_eq!(setup.stop().uncopied_since, None);
    assert_eq!(setup.start(), []);
    assert_eq!(good_copies(&setup), [NAME, "b.phext"]);
}

#[test]
fn file_beyond_the_tier_is_not_repaired() {
    let setup = beside_a_file_of(1_000_000_000);
    setup.write(NAME, "");
    let repairs = setup.start();
    assert_eq!(repairs.iter().map(|repair| &*repair.file).collect::<Vec<_>>(), [NAME]);
    assert_eq!(setup.quarantine("damaged").len(), 1);
    assert_eq!(fs::metadata(setup.data.join(LARGE)).unwrap().len(), 1_000_000_000);
}

#[test]
fn copy_of_a_grown_file_is_kept() {
    let setup = Setup::running_with("one");
    setup.vault.set_limits(&setup.tenant, &Limits::default());
    setup.write("b.phext", "two");
    let file = fs::File::options().write(true).open(setup.data.join(NAME)).unwrap();
    file.set_len(1_000_000_000).unwrap();
    setup.rounds_until(|round| round.uncopied_since.is_none());
    setup.start();
    assert_eq!(fs::read(setup.vault.good(&setup.tenant).join(NAME)).unwrap(), b"one");
}

#[test]
fn restore_refuses_to_replace_what_it_cannot_keep() {
    let setup = beside_a_file_of(1_000_000_000);
    setup.stop();
    let taken_s = setup.snapshot_times()[0];
    let refused = setup.vault.restore(&setup.tenant, taken_s).unwrap_err().to_string();
    assert!(refused.contains("raise the tier's limit"), "{refused}");
    assert!(setup.data.join(LARGE).exists());
}

#[test]
fn higher_tier_has_the_file_copied() {
    let setup = beside_a_file_of(9_000_000);
    setup.rounds_until(|round| round.failed.is_some());
    let limits = Limits { phext_bytes: 9_000_000, ..Limits::default() };
    setup.vault.set_limits(&setup.tenant, &limits);
    setup.rounds_until(|round| round.failed.is_none() && round.uncopied_since.is_none());
    assert_eq!(good_copies(&setup), [NAME, LARGE]);
}
