//! Repairs by the operator.

use super::*;
use crate::usage::store::quarantine::Selection;
use crate::usage::store::repair::{Correction, HourSelection, LedgerRepair};

fn of_tenant(n: usize) -> Selection {
    Selection { tenant: Some(tenant(n).to_string()), ..Selection::default() }
}

fn hours_of(source: &str) -> HourSelection {
    HourSelection {
        source: Some(source.to_owned()),
        from_hour: HOUR,
        to_hour: HOUR + 1,
        ..HourSelection::default()
    }
}

#[test]
fn dry_run_reports_the_same_and_changes_nothing() {
    let dir = TempDir::new().unwrap();
    let mut store = open(&dir);
    store.commit(&[report("a", vec![row(1, HOUR, 4)])], NOW).unwrap();
    store.commit(&[report("a", vec![row(1, HOUR - 5_000, 9)])], NOW).unwrap();
    for repair in [
        LedgerRepair::Remove(hours_of("a")),
        LedgerRepair::Set(hours_of("a"), Correction { reads: Some(1), ..Correction::default() }),
        LedgerRepair::Release(of_tenant(1)),
        LedgerRepair::Drop(of_tenant(1)),
    ] {
        let dry = store.repair(&repair, false, NOW).unwrap();
        assert_eq!((dry.applied, dry.rows), (false, 1), "{repair:?}");
        assert_eq!((total(&store), store.quarantine_count), (4, 1), "{repair:?}");
    }
}

#[test]
fn removed_rows_leave_sums_and_can_return() {
    let dir = TempDir::new().unwrap();
    let mut store = open(&dir);
    store.commit(&[report("good", vec![row(1, HOUR, 4)])], NOW).unwrap();
    let forged = vec![row(1, HOUR, 10_000), row(2, HOUR, 3), row(1, HOUR - 1, 8)];
    store.commit(&[report("forged", forged)], NOW).unwrap();
    let removed = store.repair(&LedgerRepair::Remove(hours_of("forged")), true, NOW).unwrap();
    assert_eq!((removed.rows, removed.before.reads), (2, 10_003));
    assert_eq!(total(&store), 12, "another source and another hour stay");
    assert_eq!(store.recent_increases(NOW).unwrap().len(), 1);
    assert!(!store.tenants.contains_key(&tenant(2)), "nothing is left of it");
    let selection = Selection { reason: Some(Suspicion::Removed), ..of_tenant(1) };
    let back = store.repair(&LedgerRepair::Release(selection), true, NOW).unwrap();
    assert_eq!((back.rows, total(&store)), (1, 10_012));
}

#[test]
fn corrected_row_has_the_given_counters() {
    let dir = TempDir::new().unwrap();
    let mut store = open(&dir);
    store.commit(&[report("a", vec![row(1, HOUR, 10_000)])], NOW).unwrap();
    let correction = Correction { reads: Some(7), refused: Some(1), ..Correction::default() };
    let set = store.repair(&LedgerRepair::Set(hours_of("a"), correction), true, NOW).unwrap();
    assert_eq!((set.rows, set.before.reads, set.after.reads), (1, 10_000, 7));
    let sums = store.tenant_sums(&tenant(1), 0..2 * NOW).unwrap();
    assert_eq!((sums.reads, sums.refused, sums.bytes_out), (7, 1, 100_000));
    let old = store.quarantined(&of_tenant(1), 9).unwrap();
    assert_eq!(
        (old[0].reason, old[0].usage().unwrap().counters.reads),
        (Suspicion::Replaced, 10_000)
    );
}

#[test]
fn release_refuses_what_would_poison_the_sums() {
    let dir = TempDir::new().unwrap();
    let mut store = open(&dir);
    let mut dear = row(1, HOUR - 1, 1);
    dear.limits.price_cents_month = u32::MAX;
    let rows = vec![row(1, HOUR, u64::MAX), row(1, HOUR + 500, 1), dear, row(1, 5, 2)];
    let mut received = report("a", rows);
    received.malformed.push(r#"{"tenant":"t1"}"#.to_owned());
    store.commit(&[received], NOW).unwrap();
    let released = store.repair(&LedgerRepair::Release(of_tenant(1)), true, NOW).unwrap();
    assert_eq!((released.rows, released.skipped.len()), (1, 4), "{:?}", released.skipped);
    assert_eq!((total(&store), store.quarantine_count), (2, 4));
    let dropped = store.repair(&LedgerRepair::Drop(of_tenant(1)), true, NOW).unwrap();
    assert_eq!((dropped.rows, store.quarantine_count), (4, 0));
}
