//! Rows that no honest gate sends: whatever arrives, the ledger responds, its sums of honest tenants
//! are exact, and its file is bounded.

use std::collections::HashSet;

use parking_lot::Mutex;
use protocol::WakeKind;
use protocol::limits::PRICE_CENTS_MAX;
use protocol::usage::bounds::{REPORT_ROWS_MAX, REQUESTS_MAX};

use super::*;
use crate::usage::store::quarantine::{QUARANTINE_MAX, Selection};

/// Only these tenants exist, and the tiers `free` and `pro`.
#[derive(Debug, Clone, Default)]
struct Existing(Arc<Mutex<HashSet<TenantId>>>);

impl Existing {
    fn with(tenants: impl IntoIterator<Item = usize>) -> Self {
        Self(Arc::new(Mutex::new(tenants.into_iter().map(tenant).collect())))
    }
}

impl Names for Existing {
    fn is_tenant(&self, tenant: &TenantId) -> bool {
        self.0.lock().contains(tenant)
    }

    fn is_tier(&self, tier: &TierName) -> bool {
        ["free", "pro"].contains(&tier.as_str())
    }
}

fn open_with(dir: &TempDir, names: &Existing) -> Store {
    Store::open(&dir.path().join("ledger.sqlite"), Arc::new(names.clone())).unwrap()
}

fn reasons(committed: &Committed) -> Vec<(Suspicion, u64)> {
    committed.quarantined.iter().map(|(reason, rows)| (*reason, *rows)).collect()
}

#[test]
fn two_largest_counters_change_no_sum() {
    let dir = TempDir::new().unwrap();
    let mut store = open(&dir);
    store.commit(&[report("honest", vec![row(1, HOUR, 4)])], NOW).unwrap();
    for source in ["a-1", "b-1"] {
        let forged = report(source, vec![row(1, HOUR, u64::MAX), row(2, HOUR, u64::MAX)]);
        let committed = store.commit(&[forged], NOW).unwrap();
        assert_eq!(reasons(&committed), [(Suspicion::CounterTooLarge, 2)]);
    }
    for _ in 0..2 {
        assert_eq!(total(&store), 4);
        assert_eq!(store.recent_increases(NOW).unwrap().len(), 1);
        assert_eq!(store.tenant_sums(&tenant(1), 0..2 * NOW).unwrap().reads, 4);
        store = open(&dir);
    }
    assert_eq!(store.quarantined(&Selection::default(), 100).unwrap().len(), 4);
}

#[test]
fn each_bound_has_its_reason() {
    let dir = TempDir::new().unwrap();
    let names = Existing::with([1]);
    let mut store = open_with(&dir, &names);
    store.commit(&[report("a", vec![row(1, HOUR - 1, 1)])], NOW).unwrap();
    let mut dear = row(1, HOUR, 1);
    dear.limits.price_cents_month = PRICE_CENTS_MAX + 1;
    let mut gold = row(1, HOUR, 1);
    gold.tier = TierName::parse("gold").unwrap();
    let rows = [
        (row(1, 0, 1), Suspicion::HourTooOld),
        (row(1, u64::MAX, 1), Suspicion::HourAhead),
        (row(1, HOUR, REQUESTS_MAX + 1), Suspicion::CounterTooLarge),
        (row(1, HOUR, REQUESTS_MAX), Suspicion::Jump),
        (dear, Suspicion::Price),
        (gold, Suspicion::UnknownTier),
        (row(2, HOUR, 1), Suspicion::UnknownTenant),
    ];
    for (row, reason) in rows {
        let committed = store.commit(&[report("a", vec![row])], NOW).unwrap();
        assert_eq!(reasons(&committed), [(reason, 1)]);
        assert_eq!(total(&store), 1, "{reason:?}");
    }
    let many = (0..=REPORT_ROWS_MAX).map(|_| row(1, HOUR, 3)).collect();
    let committed = store.commit(&[report("a", many)], NOW).unwrap();
    assert_eq!((reasons(&committed), total(&store)), (vec![(Suspicion::TooManyRows, 1)], 4));
}

#[test]
fn unreadable_row_keeps_no_other_out() {
    let dir = TempDir::new().unwrap();
    let mut store = open(&dir);
    let mut received = report("a", vec![row(1, HOUR, 4)]);
    received.malformed = vec![r#"{"tenant":"No Name"}"#.to_owned(), "[[[".to_owned()];
    let committed = store.commit(&[received], NOW).unwrap();
    assert_eq!((reasons(&committed), total(&store)), (vec![(Suspicion::Malformed, 2)], 4));
    let selection = Selection { tenant: Some("No Name".to_owned()), ..Selection::default() };
    assert_eq!(store.quarantined(&selection, 9).unwrap().len(), 1);
}

#[test]
fn jump_is_believed_once_there_was_time() {
    let dir = TempDir::new().unwrap();
    let mut store = open(&dir);
    store.commit(&[report("a", vec![row(1, HOUR, 1)])], NOW).unwrap();
    let jump = || [report("a", vec![row(1, HOUR, REQUESTS_MAX / 2)])];
    let committed = store.commit(&jump(), NOW + 1).unwrap();
    assert_eq!((reasons(&committed), total(&store)), (vec![(Suspicion::Jump, 1)], 1));
    let committed = store.commit(&jump(), NOW + HOUR_S).unwrap();
    assert_eq!((reasons(&committed), total(&store)), (vec![], REQUESTS_MAX / 2));
    assert_eq!(store.quarantined(&Selection::default(), 9).unwrap(), [], "it is in the ledger");
}

#[test]
fn rows_refused_before_the_first_lease_count_later() {
    let dir = TempDir::new().unwrap();
    let names = Existing::with([]);
    let mut store = open_with(&dir, &names);
    for reads in [2, 6, 4] {
        let committed = store.commit(&[report("a", vec![row(1, HOUR, reads)])], NOW).unwrap();
        assert_eq!(reasons(&committed), [(Suspicion::UnknownTenant, 1)]);
        assert_eq!(committed.reports[0].unknown, BTreeSet::from([tenant(1)]));
    }
    store.commit(&[report("b", vec![row(1, HOUR, 1)])], NOW).unwrap();
    let gateway = GatewayId::parse("gw").unwrap();
    assert_eq!(store.gateway_sums(&gateway, NOW).unwrap().reads, 7, "waiting is not lost");
    assert_eq!(store.release_known(Some(&tenant(1)), None, NOW).unwrap().released, 0);
    names.0.lock().insert(tenant(1));
    let released = store.release_known(Some(&tenant(1)), None, NOW).unwrap();
    assert_eq!((released.released, total(&store)), (2, 7));
    assert_eq!(released.sums.reasons["rate-limited"], 3);
    // A folder made without a lease is found too, by the next report or the next search.
    store.commit(&[report("a", vec![row(2, HOUR, 5)])], NOW).unwrap();
    names.0.lock().insert(tenant(2));
    store.commit(&[report("b", vec![row(2, HOUR, 1)])], NOW).unwrap();
    assert_eq!(total(&store), 13);
    store.commit(&[report("a", vec![row(3, HOUR, 5)])], NOW).unwrap();
    names.0.lock().insert(tenant(3));
    assert_eq!(store.release_all_known(NOW).unwrap().released, 1);
    assert_eq!((total(&store), store.quarantine_count), (18, 0));
}

#[test]
fn flood_of_invented_names_displaces_only_itself() {
    let dir = TempDir::new().unwrap();
    let names = Existing::with([1]);
    let mut store = open_with(&dir, &names);
    store.commit(&[report("honest", vec![row(900_000, HOUR, 7)])], NOW).unwrap();
    let reports = usize::try_from(QUARANTINE_MAX).unwrap() / REPORT_ROWS_MAX + 3;
    for part in 0..reports {
        let first = part * REPORT_ROWS_MAX;
        let rows = (first..first + REPORT_ROWS_MAX).map(|n| row(n + 2, HOUR, 1)).collect();
        store.commit(&[report("flood", rows)], NOW).unwrap();
    }
    assert_eq!(store.quarantine_count, QUARANTINE_MAX);
    assert_eq!((store.tenants.len(), store.source_count), (0, 0));
    let bytes = std::fs::metadata(dir.path().join("ledger.sqlite")).unwrap().len();
    assert!(bytes < 3_000 * QUARANTINE_MAX, "{bytes} bytes");
    names.0.lock().insert(tenant(900_000));
    store.release_known(Some(&tenant(900_000)), None, NOW).unwrap();
    assert_eq!(total(&store), 7, "the honest row is still there");
}

#[test]
fn flood_of_invented_limits_leaves_few_plans() {
    let dir = TempDir::new().unwrap();
    let mut store = open(&dir);
    for part in 0..5 {
        let invent = |n: usize| {
            let mut row = row(1, HOUR, 1);
            row.limits.burst = u32::try_from(part * REPORT_ROWS_MAX + n).unwrap();
            row
        };
        let rows = (0..REPORT_ROWS_MAX).map(invent).collect();
        store.commit(&[report("a", rows)], NOW).unwrap();
    }
    assert!(store.plans.len() <= plans::PLANS_MAX + REPORT_ROWS_MAX + 2, "{}", store.plans.len());
    assert_eq!(total(&store), 1);
}

#[test]
fn sources_are_bounded_and_honest_ones_wait() {
    let dir = TempDir::new().unwrap();
    let mut store = open(&dir);
    store.commit(&[report("old", vec![row(1, HOUR, 1)])], NOW).unwrap();
    store.source_count = SOURCES_STORED_MAX;
    let committed = store.commit(&[report("new", vec![row(1, HOUR, 5)])], NOW).unwrap();
    assert_eq!(reasons(&committed), [(Suspicion::TooManySources, 1)]);
    store.commit(&[report("old", vec![row(1, HOUR, 2)])], NOW).unwrap();
    assert_eq!(total(&store), 2, "one that is stored goes on");
}

#[test]
fn poisoned_ledger_of_earlier_release_is_repaired() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("ledger.sqlite");
    let first = Connection::open(&path).unwrap();
    first.execute_batch(include_str!("first_ledger.sql")).unwrap();
    let max = i64::MAX;
    let zeros = "0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, NULL";
    first
        .execute_batch(&format!(
            "INSERT INTO plans VALUES (90, 'gold', 4294967295, '{{\"price_cents_month\":4294967295}}');
             INSERT INTO tenants VALUES (90, 'evil', 90);
             INSERT INTO sources VALUES (90, 'gw', 'a-1', 1, 1), (91, 'gw', 'b-1', 1, 1);
             INSERT INTO hours VALUES (500000, 90, 90, {max}, {zeros}), (500000, 90, 91, {max}, {zeros}),
               (0, 90, 90, 5, {zeros});
             INSERT INTO days VALUES (20000, 90, {max}, {zeros});
             INSERT INTO months VALUES (24300, 90, {max}, {zeros});"
        ))
        .unwrap();
    drop(first);
    for _ in 0..2 {
        let store = open_at(&path).unwrap();
        let tenants = store.sums_by_tenant(0..2 * NOW).unwrap();
        let shown: Vec<_> = tenants.iter().map(|t| (t.tenant.as_str(), t.sums.reads)).collect();
        assert_eq!(shown, [("alice", 109), ("bob", 1_001)]);
        assert!(store.recent_increases(NOW).is_ok());
        let moved = store.quarantined(&Selection::default(), 100).unwrap();
        assert_eq!(moved.len(), 5);
        assert!(moved.iter().all(|row| row.reason == Suspicion::Stored && row.usage().is_some()));
    }
}

/// A number as an attacker would choose it.
fn number() -> impl Strategy<Value = u64> {
    prop_oneof![
        Just(0),
        0..100_u64,
        Just(REQUESTS_MAX),
        Just(i64::MAX as u64),
        Just(i64::MAX as u64 + 1),
        Just(u64::MAX),
        any::<u64>(),
    ]
}

prop_compose! {
    fn hostile_row()(
        n in 1..40_usize,
        hour in prop_oneof![HOUR - 2..HOUR + 3, number()],
        [reads, writes, other, status, bytes_in, bytes_out, service_ms, wakes]
            in prop::array::uniform8(number()),
        price in any::<u32>(),
        tier in prop_oneof![Just("free"), Just("pro"), Just("gold")],
    ) -> UsageRow {
        UsageRow {
            tenant: tenant(n),
            tier: TierName::parse(tier).unwrap(),
            limits: Limits { price_cents_month: price, ..Limits::default() },
            hour,
            counters: Counters {
                reads,
                writes,
                refused: BTreeMap::from([("evil".to_owned(), other), ("internal".to_owned(), wakes)]),
                status: [0, 0, status, 0, reads, 0],
                bytes_in,
                bytes_out,
                service_ms,
                wakes: BTreeMap::from([(WakeKind::Start, wakes)]),
            },
        }
    }
}

/// An event of an hour in which an honest source reports, and others lie.
#[derive(Debug, Clone)]
enum Sent {
    Honest { age: u64 },
    Hostile { source: usize, rows: Vec<UsageRow> },
    Replay { index: usize },
    Reopen,
    Prune,
}

fn sent() -> impl Strategy<Value = Sent> {
    prop_oneof![
        (1..500_u64).prop_map(|age| Sent::Honest { age }),
        (0..5_usize, prop::collection::vec(hostile_row(), 1..20))
            .prop_map(|(source, rows)| Sent::Hostile { source, rows }),
        any::<usize>().prop_map(|index| Sent::Replay { index }),
        Just(Sent::Reopen),
        Just(Sent::Prune),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    /// For any rows in any order, with replays, restarts and summing up: no error, the honest
    /// tenant's sums are exact, and all that is stored is bounded.
    #[test]
    fn hostile_rows_never_disturb_honest_sums(events in prop::collection::vec(sent(), 1..40)) {
        let dir = TempDir::new().unwrap();
        // Tenant 0 is honest; of those that hostile rows name, half exist.
        let names = Existing::with(0..20);
        let mut store = open_with(&dir, &names);
        let mut honest = 0;
        let mut history: Vec<ReceivedReport> = Vec::new();
        for event in events {
            let next = match event {
                Sent::Honest { age } => {
                    honest = honest.max(age);
                    report("honest", vec![row(0, HOUR, age)])
                }
                Sent::Hostile { source, rows } => report(&format!("evil-{source}"), rows),
                Sent::Replay { .. } if history.is_empty() => continue,
                Sent::Replay { index } => history[index % history.len()].clone(),
                Sent::Reopen => {
                    store = open_with(&dir, &names);
                    continue;
                }
                Sent::Prune => {
                    while store.prune(NOW).unwrap() {}
                    continue;
                }
            };
            store.commit(std::slice::from_ref(&next), NOW).unwrap();
            history.push(next);
            let sums = store.tenant_sums(&tenant(0), 0..2 * NOW).unwrap();
            prop_assert_eq!((sums.reads, sums.bytes_out), (honest, 10 * honest));
            let months = store.sums_by_tenant(0..2 * NOW).unwrap();
            prop_assert!(months.iter().all(|sums| sums.price_cents_month <= PRICE_CENTS_MAX));
            let existing = months.iter().all(|sums| names.is_tenant(&sums.tenant));
            prop_assert!(existing, "an invented tenant is in the month");
            let mut tally = Tally::default();
            store.recent_increases(NOW).unwrap().iter().for_each(|increase| tally.add(increase));
            prop_assert_eq!(tally.notice(&tenant(0), NOW).requests_day, honest);
        }
        prop_assert!(store.tenants.len() <= 20 && store.source_count <= 6);
        prop_assert!(store.quarantine_count <= QUARANTINE_MAX);
    }
}
