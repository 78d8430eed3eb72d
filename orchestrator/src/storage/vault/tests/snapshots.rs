//! Point-in-time copies, and what was set aside.

use std::os::unix::fs::PermissionsExt;
use std::time::SystemTime;

use super::*;
use crate::storage::vault::snapshots::export;

#[test]
fn a_snapshot_is_put_back_and_what_was_there_can_be_had_again() {
    let s = setup();
    s.start();
    s.write("a.phext", "old");
    s.stop();
    let old = s.vault.snapshots(&s.tenant).unwrap();
    assert_eq!((old.len(), old[0].phexts, old[0].bytes), (1, 1, 3));
    s.start();
    s.write("a.phext", "newer");
    s.write("b.phext", "other");
    s.stop();
    let before = s.vault.restore(&s.tenant, old[0].taken_s).unwrap();
    assert_eq!(s.read("a.phext"), "old");
    assert!(!s.data.join("b.phext").exists());
    // Whatever is taken meanwhile, for a day.
    s.vault.snapshot(&s.tenant, 0, 0).unwrap();
    assert_eq!(s.vault.snapshots(&s.tenant).unwrap().len(), 1);
    s.vault.restore(&s.tenant, before).unwrap();
    assert_eq!((s.read("a.phext"), s.read("b.phext")), ("newer".into(), "other".into()));
}

#[test]
fn a_restore_after_a_death_keeps_what_the_death_left_and_not_what_it_cut() {
    let s = setup();
    s.start();
    s.write("a.phext", "old");
    s.stop();
    let old = s.vault.snapshots(&s.tenant).unwrap()[0].taken_s;
    s.start();
    s.write("a.phext", "newer");
    s.stop();
    s.start();
    s.death_cuts("a.phext");
    let before = s.vault.restore(&s.tenant, old).unwrap();
    assert_eq!(s.read("a.phext"), "old");
    s.vault.restore(&s.tenant, before).unwrap();
    assert_eq!(s.read("a.phext"), "newer");
}

#[test]
fn a_restore_that_can_t_be_written_whole_changes_nothing() {
    let s = setup();
    s.start();
    s.write("a.phext", "old");
    s.write("b.phext", "old");
    s.stop();
    let old = s.vault.snapshots(&s.tenant).unwrap()[0].taken_s;
    s.start();
    s.write("a.phext", "newer");
    s.write("b.phext", "newer");
    s.stop();
    // The second file can't be staged.
    fs::create_dir(s.data.join(format!("{STAGED}-1"))).unwrap();
    assert!(s.vault.restore(&s.tenant, old).is_err());
    assert_eq!((s.read("a.phext"), s.read("b.phext")), ("newer".into(), "newer".into()));
    assert!(!s.data.join(format!("{STAGED}-0")).exists());
}

#[test]
fn what_was_set_aside_goes_in_time_and_the_newest_snapshot_stays() {
    let s = setup();
    s.start();
    s.write("a.phext", "one");
    s.stop();
    s.start();
    s.death_cuts("a.phext");
    s.start();
    let days = |n: u64| SystemTime::now() + Duration::from_secs(n * 24 * 3_600);
    s.vault.sweep(days(29)).unwrap();
    assert_eq!(s.aside("damaged").len(), 1);
    s.vault.sweep(days(2_000)).unwrap();
    assert_eq!(s.aside("damaged").len(), 0);
    assert_eq!(s.vault.snapshots(&s.tenant).unwrap().len(), 1);
}

#[test]
fn an_export_holds_the_files_of_its_snapshot() {
    let s = setup();
    s.start();
    s.write("a.phext", "one");
    s.stop();
    let to = s.data.parent().unwrap().join("out");
    let from = s.vault.folder(&s.tenant, None).unwrap();
    assert_eq!(export(&from, &to).unwrap(), 1);
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&to), mode(&to.join("a.phext"))), (0o700, 0o600), "for us alone");
    assert_eq!(fs::read_to_string(to.join("a.phext")).unwrap(), "one");
    assert!(s.vault.folder(&s.tenant, Some(1)).is_err());
}
