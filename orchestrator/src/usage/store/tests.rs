//! Commits and queries; a property test against a small model.

mod file;
mod hostile;
mod prune;
mod repair;

use std::collections::BTreeMap;

use proptest::prelude::*;
use protocol::calendar::Month;
use protocol::time::{DAY_S, HOUR_S};
use protocol::usage::UsageRow;
use protocol::{Counters, Limits, UsageReport};
use tempfile::TempDir;

use super::*;
use crate::usage::tally::Tally;

const NOW: u64 = 1_800_000_000;
const HOUR: u64 = NOW / HOUR_S;

fn tenant(n: usize) -> TenantId {
    TenantId::parse(&format!("t{n}")).unwrap()
}

fn row(n: usize, hour: u64, reads: u64) -> UsageRow {
    let refused = BTreeMap::from([("rate-limited".to_owned(), reads / 2)]);
    let bytes_out = reads.saturating_mul(10);
    let counters = Counters { reads, bytes_out, refused, ..Counters::default() };
    UsageRow {
        tenant: tenant(n),
        tier: TierName::parse("free").unwrap(),
        limits: Limits::default(),
        hour,
        counters,
    }
}

fn report(source: &str, rows: Vec<UsageRow>) -> ReceivedReport {
    let gateway = GatewayId::parse("gw").unwrap();
    UsageReport { gateway, source: source.to_owned(), sequence: 1, rows }.into()
}

/// Everyone exists.
#[derive(Debug)]
struct Everyone;

impl Names for Everyone {
    fn is_tenant(&self, _: &TenantId) -> bool {
        true
    }

    fn is_tier(&self, _: &TierName) -> bool {
        true
    }
}

fn open(dir: &TempDir) -> Store {
    open_at(&dir.path().join("ledger.sqlite")).unwrap()
}

fn open_at(path: &Path) -> Result<Store, StoreError> {
    Store::open(path, Arc::new(Everyone))
}

fn quarantined(committed: &Committed) -> u64 {
    committed.quarantined.values().sum()
}

fn total(store: &Store) -> u64 {
    store.sums_by_tenant(0..NOW * 2).unwrap().iter().map(|tenant| tenant.sums.reads).sum()
}

#[test]
fn ledger_is_readable_by_its_owner_alone() {
    use std::os::unix::fs::PermissionsExt;
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("ledger.sqlite");
    // One of an earlier release.
    std::fs::write(&path, "").unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
    let store = open(&dir);
    store.backup(&dir.path().join("backup.sqlite")).unwrap();
    for file in std::fs::read_dir(dir.path()).unwrap() {
        let file = file.unwrap();
        let mode = file.metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o600, "{}", file.path().display());
    }
    assert!(dir.path().join("ledger.sqlite-wal").exists());
}

#[test]
fn repeated_report_adds_nothing_and_newer_its_difference() {
    let dir = TempDir::new().unwrap();
    let mut store = open(&dir);
    let first = store.commit(&[report("a", vec![row(1, HOUR, 4)])], NOW).unwrap();
    assert_eq!(first.increases.len(), 1);
    assert_eq!(store.commit(&[report("a", vec![row(1, HOUR, 4)])], NOW).unwrap().increases, []);
    let second = store.commit(&[report("a", vec![row(1, HOUR, 9)])], NOW).unwrap();
    assert_eq!((second.increases[0].reads, second.sums.bytes_out), (5, 50));
    assert_eq!(second.sums.reasons["rate-limited"], 2);
}

#[test]
fn sources_are_kept_apart_and_summed() {
    let dir = TempDir::new().unwrap();
    let mut store = open(&dir);
    let rows = |reads| vec![row(1, HOUR, reads)];
    store.commit(&[report("a", rows(4)), report("b", rows(6)), report("a", rows(3))], NOW).unwrap();
    assert_eq!(total(&store), 10);
    let sums = store.tenant_sums(&tenant(1), 0..2 * NOW).unwrap();
    assert_eq!((sums.reads, sums.reasons["rate-limited"]), (10, 5));
}

#[test]
fn newest_plan_is_known_after_restart() {
    let dir = TempDir::new().unwrap();
    let mut paid = row(1, HOUR, 1);
    paid.limits.price_cents_month = 1_900;
    paid.tier = TierName::parse("pro").unwrap();
    open(&dir).commit(&[report("a", vec![row(1, HOUR, 1), paid.clone()])], NOW).unwrap();
    let store = open(&dir);
    let plan = store.tenant_plan(&tenant(1)).unwrap().unwrap();
    assert_eq!((plan.tier, plan.limits), (paid.tier, paid.limits));
    assert_eq!(store.sums_by_tenant(0..2 * NOW).unwrap()[0].price_cents_month, 1_900);
}

#[test]
fn past_month_keeps_its_tier_and_price() {
    let dir = TempDir::new().unwrap();
    let mut store = open(&dir);
    let first = Month::of(NOW);
    let second = first.next();
    let third = second.next();
    let rows = [
        priced_row("pro", 1_900, first.start_s()),
        priced_row("pro", 2_900, second.start_s()),
        priced_row("team", 9_900, second.start_s() + DAY_S),
        priced_row("team", 9_900, third.start_s()),
    ];
    for row in &rows[..3] {
        store.commit(&[report("a", vec![row.clone()])], row.hour * HOUR_S).unwrap();
    }
    // This tenant's first report is in the second month, and has a late row of the first.
    let second_hour = second.start_s() / HOUR_S;
    let late = [row(2, second_hour, 1), row(2, second_hour - 1, 1)];
    store.commit(&[report("b", late.to_vec())], second.start_s() + DAY_S).unwrap();
    store.commit(&[report("a", vec![rows[3].clone()])], third.start_s()).unwrap();
    check_terms(&store, first, &[("pro", 1_900), ("free", 0)]);
    // The last terms of a month count.
    check_terms(&store, second, &[("team", 9_900), ("free", 0)]);
    check_terms(&store, third, &[("team", 9_900)]);
}

fn priced_row(tier: &str, cents: u32, at_s: u64) -> UsageRow {
    let mut row = row(1, at_s / HOUR_S, 1);
    row.limits.price_cents_month = cents;
    row.tier = TierName::parse(tier).unwrap();
    row
}

/// Checks tier and price of each tenant in a month.
fn check_terms(store: &Store, month: Month, expected: &[(&str, u32)]) {
    let tenants = store.sums_by_tenant(month.start_s()..month.next().start_s()).unwrap();
    let terms: Vec<_> =
        tenants.iter().map(|tenant| (tenant.tier.as_str(), tenant.price_cents_month)).collect();
    assert_eq!(terms, expected, "{month}");
}

#[test]
fn envoy_run_is_summed_by_source_start() {
    let dir = TempDir::new().unwrap();
    let mut store = open(&dir);
    let source = |created_s: u64| protocol::usage::source_id(created_s * 1_000_000_000, 1);
    let before = source(NOW);
    let after = source(NOW + 60);
    store.commit(&[report(&after, vec![row(1, HOUR, 6)])], NOW + 61).unwrap();
    // The earlier source is reported for the first time after the later one.
    store.commit(&[report(&before, vec![row(1, HOUR, 5)])], NOW + 62).unwrap();
    let gateway = GatewayId::parse("gw").unwrap();
    assert_eq!(store.gateway_sums(&gateway, NOW + 30).unwrap().reads, 6);
    assert_eq!(store.gateway_sums(&gateway, NOW).unwrap().reads, 11);
    assert_eq!(store.gateway_sums(&GatewayId::parse("other").unwrap(), NOW).unwrap().reads, 0);
}

#[derive(Debug, Clone)]
struct Sent {
    source: usize,
    tenant: usize,
    hour: u64,
    /// Position in the source's history: its counters only grow.
    age: u64,
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    /// For any order, loss, repetition and batches: the sum over sources of the newest report.
    #[test]
    fn ledger_sums_the_maxima_of_sources(
        sent in prop::collection::vec(
            (0..3_usize, 0..4_usize, 0..3_u64, 1..50_u64)
                .prop_map(|(source, tenant, hour, age)| Sent { source, tenant, hour, age }),
            1..120,
        ),
        batch in 1..10_usize,
        reopen_at in 0..10_usize,
    ) {
        let dir = TempDir::new().unwrap();
        let mut store = open(&dir);
        let mut tally = Tally::default();
        let mut model: HashMap<(usize, usize, u64), u64> = HashMap::new();
        for (index, sent) in sent.chunks(batch).enumerate() {
            if index == reopen_at {
                store = open(&dir);
            }
            let reports: Vec<_> = sent
                .iter()
                .map(|s| {
                    let newest = model.entry((s.source, s.tenant, s.hour)).or_default();
                    *newest = (*newest).max(s.age);
                    report(&format!("s{}", s.source), vec![row(s.tenant, HOUR - s.hour, s.age)])
                })
                .collect();
            let committed = store.commit(&reports, NOW).unwrap();
            committed.increases.iter().for_each(|increase| tally.add(increase));
        }
        prop_assert_eq!(total(&store), model.values().sum::<u64>());
        let mut rebuilt = Tally::default();
        store.recent_increases(NOW).unwrap().iter().for_each(|increase| rebuilt.add(increase));
        for n in 0..4 {
            let mut today = 0;
            for ((_, tenant, hour), requests) in &model {
                if *tenant == n && (HOUR - hour) / 24 == HOUR / 24 {
                    today += requests;
                }
            }
            prop_assert_eq!(tally.notice(&tenant(n), NOW).requests_day, today);
            prop_assert_eq!(rebuilt.notice(&tenant(n), NOW), tally.notice(&tenant(n), NOW));
        }
    }
}
