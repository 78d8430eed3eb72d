//! Snapshots, restores, exports, and the deletion of old files.

use std::time::SystemTime;

use super::*;
use crate::storage::tenant_file::FILE_MAX_BYTES;
use crate::storage::vault::snapshots::{BEFORE_RESTORE_MAX, export};

impl Setup {
    pub(super) fn snapshot_times(&self) -> Vec<u64> {
        self.vault.snapshots(&self.tenant).unwrap().iter().map(|s| s.taken_s).collect()
    }

    /// Adds an empty snapshot of that second; its folder is returned.
    fn add_snapshot(&self, taken_s: u64) -> PathBuf {
        let folder = self.vault.home(&self.tenant).join("snapshots").join(taken_s.to_string());
        fs::create_dir_all(&folder).unwrap();
        folder
    }
}

/// A stopped tenant whose phext is "newer", with a snapshot in which it is "old".
fn with_snapshot() -> (Setup, u64) {
    let setup = Setup::stopped_with("old");
    let taken_s = setup.snapshot_times()[0];
    setup.start();
    setup.write(NAME, "newer");
    setup.stop();
    (setup, taken_s)
}

#[test]
fn stop_takes_the_snapshot_that_is_due() {
    let setup = Setup::stopped_with("old");
    let snapshots = setup.vault.snapshots(&setup.tenant).unwrap();
    assert_eq!((snapshots.len(), snapshots[0].phexts, snapshots[0].bytes), (1, 1, 3));
    setup.start();
    setup.stop();
    assert_eq!(setup.snapshot_times().len(), 1, "the next one is due in an hour");
}

#[test]
fn restore_can_be_undone() {
    let (setup, taken_s) = with_snapshot();
    setup.start();
    setup.write("b.phext", "other");
    setup.stop();
    let before = setup.vault.restore(&setup.tenant, taken_s).unwrap();
    assert_eq!(setup.phexts(), [NAME]);
    assert_eq!(setup.read(NAME), "old");
    assert_eq!(setup.copy(NAME), "old");
    setup.vault.restore(&setup.tenant, before).unwrap();
    assert_eq!((setup.read(NAME), setup.read("b.phext")), ("newer".into(), "other".into()));
}

#[test]
fn snapshot_of_a_restore_outlives_the_tiers_limits() {
    let (setup, taken_s) = with_snapshot();
    let before = setup.vault.restore(&setup.tenant, taken_s).unwrap();
    setup.vault.snapshot(&setup.tenant, 0, 0).unwrap();
    assert_eq!(setup.snapshot_times(), [before]);
}

#[test]
fn snapshot_of_a_restore_expires_after_a_day() {
    let setup = Setup::stopped_with("old");
    let yesterday = setup.snapshot_times()[0] - protocol::time::DAY_S - 1;
    fs::write(setup.add_snapshot(yesterday).join(".before"), "").unwrap();
    setup.vault.snapshot(&setup.tenant, 0, 0).unwrap();
    assert_eq!(setup.snapshot_times(), [0; 0]);
}

#[test]
fn tenant_without_phexts_gets_no_snapshot() {
    let setup = Setup::new();
    setup.start();
    setup.stop();
    assert_eq!(setup.snapshot_times(), [0; 0]);
}

#[test]
fn snapshots_of_restores_are_bounded() {
    let setup = Setup::stopped_with("old");
    let now_s = setup.snapshot_times()[0];
    for age in 1..=BEFORE_RESTORE_MAX as u64 + 3 {
        fs::write(setup.add_snapshot(now_s - age).join(".before"), "").unwrap();
    }
    setup.vault.snapshot(&setup.tenant, 0, 0).unwrap();
    let kept = setup.snapshot_times();
    assert_eq!((kept.len(), kept.last()), (BEFORE_RESTORE_MAX, Some(&(now_s - 1))));
}

#[test]
fn restore_after_a_crash_repairs_first() {
    let (setup, taken_s) = with_snapshot();
    setup.start();
    setup.write(NAME, "");
    let before = setup.vault.restore(&setup.tenant, taken_s).unwrap();
    assert_eq!(setup.read(NAME), "old");
    setup.vault.restore(&setup.tenant, before).unwrap();
    assert_eq!(setup.read(NAME), "newer");
}

#[test]
fn restore_refuses_to_replace_a_doubtful_phext() {
    let (setup, taken_s) = with_snapshot();
    setup.write(NAME, "");
    setup.set_short_of_space();
    let refused = setup.vault.restore(&setup.tenant, taken_s).unwrap_err().to_string();
    assert!(refused.contains("free some space"), "{refused}");
    assert_eq!(setup.read(NAME), "");
}

#[test]
fn restore_that_fails_changes_nothing() {
    let (setup, taken_s) = with_snapshot();
    // Its second file can't be read.
    let unreadable = fs::File::create(setup.add_snapshot(taken_s).join("b.phext")).unwrap();
    unreadable.set_len(FILE_MAX_BYTES + 1).unwrap();
    assert!(setup.vault.restore(&setup.tenant, taken_s).is_err());
    assert_eq!(setup.read(NAME), "newer");
    assert_eq!(entries(&setup.data).unwrap().len(), 1, "temporary files are gone");
}

#[test]
fn old_files_of_the_quarantine_are_deleted() {
    let setup = Setup::running_with("one");
    setup.write(NAME, "");
    setup.start();
    setup.vault.sweep(days_from_now(29)).unwrap();
    assert_eq!(setup.quarantine("damaged").len(), 1);
    setup.vault.sweep(days_from_now(31)).unwrap();
    assert_eq!(setup.quarantine("damaged").len(), 0);
}

#[test]
fn only_the_newest_snapshot_outlives_1000_days() {
    let setup = Setup::stopped_with("one");
    let newest = setup.snapshot_times()[0];
    setup.add_snapshot(newest - 1);
    setup.vault.sweep(days_from_now(999)).unwrap();
    assert_eq!(setup.snapshot_times(), [newest - 1, newest]);
    setup.vault.sweep(days_from_now(1_001)).unwrap();
    assert_eq!(setup.snapshot_times(), [newest]);
}

fn days_from_now(days: u64) -> SystemTime {
    SystemTime::now() + Duration::from_secs(days * protocol::time::DAY_S)
}

#[test]
fn export_is_private_and_complete() {
    let setup = Setup::stopped_with("one");
    let to = setup.data.parent().unwrap().join("out");
    let from = setup.vault.folder(&setup.tenant, None).unwrap();
    assert_eq!(export(&from, &to).unwrap(), 1);
    assert_eq!((mode(&to), mode(&to.join(NAME))), (0o700, 0o600));
    assert_eq!(fs::read_to_string(to.join(NAME)).unwrap(), "one");
    assert!(setup.vault.folder(&setup.tenant, Some(1)).is_err());
}
