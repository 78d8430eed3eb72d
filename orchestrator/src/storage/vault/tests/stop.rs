//! Orderly stops.

use super::*;

#[test]
fn empty_phexts_are_gone_after_a_stop() {
    let setup = Setup::new();
    setup.start();
    setup.write("looked-at.phext", "");
    setup.write(NAME, "one");
    setup.stop();
    assert_eq!(setup.phexts(), [NAME]);
    assert_eq!(entries(&setup.vault.good(&setup.tenant)).unwrap().len(), 1, "nor has it a copy");
}

#[test]
fn emptied_phext_leaves_its_last_copy_in_quarantine() {
    let setup = Setup::running_with("precious");
    setup.write(NAME, "");
    setup.stop();
    assert_eq!(setup.phexts(), [""; 0]);
    assert_eq!(setup.quarantine("replaced"), ["precious"]);
}

#[test]
fn incomplete_stop_is_followed_by_an_examination() {
    let setup = Setup::running_with("one");
    // A writer that outlives the stop.
    let writer = fs::File::create(setup.data.join(NAME)).unwrap();
    assert_eq!(setup.stop().copied, 0);
    drop(writer);
    assert_eq!(setup.start()[0].damage, Damage::Emptied);
    assert_eq!(setup.read(NAME), "one");
}
