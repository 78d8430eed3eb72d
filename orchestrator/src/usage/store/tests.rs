use std::collections::BTreeMap;
use std::process::{Command, Stdio};

use proptest::prelude::*;
use protocol::calendar::Month;
use protocol::time::{DAY_S, HOUR_S};
use protocol::usage::UsageRow;
use protocol::{Counters, Limits, TierName};
use tempfile::TempDir;

use super::*;

const NOW: u64 = 1_800_000_000;
const HOUR: u64 = NOW / HOUR_S;

fn tenant(n: usize) -> TenantId {
    TenantId::parse(&format!("t{n}")).unwrap()
}

fn row(n: usize, hour: u64, reads: u64) -> UsageRow {
    let refused = BTreeMap::from([("rate-limited".to_owned(), reads / 2)]);
    let counters = Counters { reads, bytes_out: 10 * reads, refused, ..Counters::default() };
    UsageRow {
        tenant: tenant(n),
        tier: TierName::parse("free").unwrap(),
        limits: Limits::default(),
        hour,
        counters,
    }
}

fn report(source: &str, rows: Vec<UsageRow>) -> UsageReport {
    let gateway = GatewayId::parse("gw").unwrap();
    UsageReport { gateway, source: source.to_owned(), sequence: 1, rows }
}

fn open(dir: &TempDir) -> Store {
    Store::open(&dir.path().join("ledger.sqlite")).unwrap()
}

fn total(store: &Store) -> u64 {
    store.lines(0..NOW * 2).unwrap().iter().map(|line| line.sums.reads).sum()
}

#[test]
fn a_repeated_report_adds_nothing_and_a_newer_one_its_difference() {
    let dir = TempDir::new().unwrap();
    let mut store = open(&dir);
    let first = store.commit(&[report("a", vec![row(1, HOUR, 4)])], NOW).unwrap();
    assert_eq!(first.added.len(), 1);
    assert_eq!(store.commit(&[report("a", vec![row(1, HOUR, 4)])], NOW).unwrap().added, []);
    let second = store.commit(&[report("a", vec![row(1, HOUR, 9)])], NOW).unwrap();
    assert_eq!((second.added[0].reads, second.sums.bytes_out), (5, 50));
    assert_eq!(second.sums.reasons["rate-limited"], 2);
}

#[test]
fn sources_are_kept_apart_and_summed() {
    let dir = TempDir::new().unwrap();
    let mut store = open(&dir);
    let rows = |reads| vec![row(1, HOUR, reads)];
    store.commit(&[report("a", rows(4)), report("b", rows(6)), report("a", rows(3))], NOW).unwrap();
    assert_eq!(total(&store), 10);
    let sums = store.tenant(&tenant(1), 0..2 * NOW).unwrap();
    assert_eq!((sums.reads, sums.reasons["rate-limited"]), (10, 5));
}

#[test]
fn the_newest_tier_and_limits_of_a_tenant_are_known_after_a_restart() {
    let dir = TempDir::new().unwrap();
    let mut paid = row(1, HOUR, 1);
    paid.limits.price_cents_month = 1_900;
    paid.tier = TierName::parse("pro").unwrap();
    open(&dir).commit(&[report("a", vec![row(1, HOUR, 1), paid.clone()])], NOW).unwrap();
    let store = open(&dir);
    let record = store.record(&tenant(1)).unwrap().unwrap();
    assert_eq!((record.tier, record.limits), (paid.tier, paid.limits));
    assert_eq!(store.lines(0..2 * NOW).unwrap()[0].price_cents_month, 1_900);
}

#[test]
fn a_past_month_keeps_the_tier_and_price_that_it_had() {
    let dir = TempDir::new().unwrap();
    let mut store = open(&dir);
    let of = |tier: &str, cents: u32, at_s: u64| {
        let mut row = row(1, at_s / HOUR_S, 1);
        row.limits.price_cents_month = cents;
        row.tier = TierName::parse(tier).unwrap();
        row
    };
    let first = Month::of(NOW);
    let (second, third) = (first.next(), first.next().next());
    let said = [
        of("pro", 1_900, first.start_s()),
        of("pro", 2_900, second.start_s()),
        of("team", 9_900, second.start_s() + DAY_S),
        of("team", 9_900, third.start_s()),
    ];
    for row in said {
        let now_s = row.hour * HOUR_S;
        store.commit(&[report("a", vec![row])], now_s).unwrap();
    }
    // First heard of in the second month, with a row of the first that came late.
    let late = [row(2, second.start_s() / HOUR_S, 1), row(2, first.start_s() / HOUR_S, 1)];
    store.commit(&[report("b", late.to_vec())], third.start_s()).unwrap();
    let of_month = |month: Month| {
        let lines = store.lines(month.start_s()..month.next().start_s()).unwrap();
        lines.into_iter().map(|l| (l.tier.to_string(), l.price_cents_month)).collect::<Vec<_>>()
    };
    let free = || ("free".to_owned(), 0);
    assert_eq!(of_month(first), [("pro".to_owned(), 1_900), free()]);
    assert_eq!(of_month(second), [("team".to_owned(), 9_900), free()], "the last of the month");
    assert_eq!(of_month(third), [("team".to_owned(), 9_900)]);
}

#[test]
fn an_envoys_life_is_summed_by_when_its_sources_began() {
    let dir = TempDir::new().unwrap();
    let mut store = open(&dir);
    let source = |born_s: u64| protocol::usage::source(born_s * 1_000_000_000, 1);
    let (before, after) = (source(NOW), source(NOW + 60));
    store.commit(&[report(&after, vec![row(1, HOUR, 6)])], NOW + 61).unwrap();
    // Killed before, heard for the first time after.
    store.commit(&[report(&before, vec![row(1, HOUR, 5)])], NOW + 62).unwrap();
    let gateway = GatewayId::parse("gw").unwrap();
    assert_eq!(store.gateway(&gateway, NOW + 30).unwrap().reads, 6);
    assert_eq!(store.gateway(&gateway, NOW).unwrap().reads, 11);
    assert_eq!(store.gateway(&GatewayId::parse("other").unwrap(), NOW).unwrap().reads, 0);
}

#[test]
fn an_envoy_that_is_older_than_the_hours_kept_is_summed_whole() {
    let dir = TempDir::new().unwrap();
    let mut store = open(&dir);
    let gateway = GatewayId::parse("gw").unwrap();
    for day in 0..40 {
        let rows = (0..3).map(|n| row(n, HOUR + day * 24, 2 + day)).collect();
        store.commit(&[report("a", rows)], NOW + day * DAY_S).unwrap();
        store.commit(&[report("b", vec![row(1, HOUR, 1)])], NOW + day * DAY_S).unwrap();
    }
    let before = store.gateway(&gateway, NOW).unwrap();
    while store.prune(NOW + 40 * DAY_S).unwrap() {}
    assert!(store.rows().unwrap() < 3 * 16);
    assert_eq!(store.gateway(&gateway, NOW).unwrap(), before);
    assert_eq!(before.reads, total(&store));
}

#[test]
fn a_clock_that_is_far_ahead_makes_no_hour_old() {
    let dir = TempDir::new().unwrap();
    let mut store = open(&dir);
    store.commit(&[report("a", vec![row(1, HOUR, 4)])], NOW).unwrap();
    let ahead = NOW + 100 * DAY_S;
    while store.prune(ahead).unwrap() {}
    let same_hour = store.commit(&[report("a", vec![row(1, HOUR, 9)])], ahead).unwrap();
    assert_eq!((same_hour.refused_rows, total(&store)), (0, 9));
    assert_eq!(store.pruning_s(ahead).unwrap(), (HOUR + 1) * HOUR_S);
    assert_eq!(store.pruning_s(NOW).unwrap(), NOW, "a row of a clock ahead makes nothing old");
}

#[test]
fn a_ledger_of_the_first_schema_becomes_one_of_the_newest_and_keeps_every_sum() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("ledger.sqlite");
    let first = Connection::open(&path).unwrap();
    first.execute_batch(include_str!("first_ledger.sql")).unwrap();
    drop(first);
    let mut store = Store::open(&path).unwrap();
    let lines = store.lines(0..2 * NOW).unwrap();
    let shown: Vec<_> =
        lines.iter().map(|l| (l.tenant.as_str(), l.price_cents_month, l.sums.reads)).collect();
    assert_eq!(shown, [("alice", 1_900, 109), ("bob", 0, 1_001)]);
    let alice = TenantId::parse("alice").unwrap();
    let newer = UsageRow { tenant: alice.clone(), ..row(1, 500_000, 8) };
    store.commit(&[report("b", vec![newer])], NOW).unwrap();
    assert_eq!(store.tenant(&alice, 0..2 * NOW).unwrap().reads, 113, "4 became 8");
    let gateway = GatewayId::parse("gw").unwrap();
    assert_eq!(store.gateway(&gateway, NOW - DAY_S).unwrap().reads, 14);
    drop(store);
    assert_eq!(total(&Store::open(&path).unwrap()), 1_114, "and opens again");
}

#[test]
fn old_hours_become_days_and_old_days_months_without_changing_a_sum() {
    let dir = TempDir::new().unwrap();
    let mut store = open(&dir);
    for day in 0..40 {
        let rows = (0..3).map(|n| row(n, HOUR + day * 24, 2 + day)).collect();
        store.commit(&[report("a", rows)], NOW + day * DAY_S).unwrap();
    }
    let (before, month) = (total(&store), Month::of(NOW + 10 * DAY_S));
    let span = month.start_s()..month.next().start_s();
    let of_month = |store: &Store| {
        let line = store.lines(span.clone()).unwrap()[1].clone();
        let sums = store.tenant(&line.tenant, span.clone()).unwrap();
        assert_eq!(Sums { reasons: BTreeMap::new(), ..sums.clone() }, line.sums);
        sums
    };
    let used = of_month(&store);
    while store.prune(NOW + 40 * DAY_S).unwrap() {}
    let rows = store.rows().unwrap();
    assert!(rows < 3 * 16, "{rows} hours are left");
    assert_eq!((total(&store), of_month(&store)), (before, used.clone()));
    let later = NOW + (40 + DAYS_KEPT) * DAY_S;
    store.commit(&[report("a", vec![row(9, later / HOUR_S, 1)])], later).unwrap();
    while store.prune(later).unwrap() {}
    assert_eq!((store.rows().unwrap(), total(&store)), (1, before + 1));
    assert_eq!(of_month(&store), used);
}

#[test]
fn rows_of_hours_that_became_days_or_are_far_ahead_are_refused_and_told() {
    let dir = TempDir::new().unwrap();
    let mut store = open(&dir);
    store.commit(&[report("a", vec![row(1, HOUR, 4)])], NOW).unwrap();
    let later = NOW + 20 * DAY_S;
    store.commit(&[report("a", vec![row(2, later / HOUR_S, 1)])], later).unwrap();
    while store.prune(later).unwrap() {}
    let late = store.commit(&[report("a", vec![row(1, HOUR, 5), row(1, HOUR + 9_999, 5)])], later);
    assert_eq!((late.unwrap().refused_rows, total(&store)), (2, 5));
}

#[test]
fn quotas_are_right_after_a_restart_also_when_hours_became_days() {
    let dir = TempDir::new().unwrap();
    let month = Month::of(NOW).next();
    let (first, last) = (month.start_s(), month.next().start_s() - 1);
    let mut store = open(&dir);
    store.commit(&[report("a", vec![row(1, first / HOUR_S, 7)])], first).unwrap();
    store.commit(&[report("a", vec![row(1, last / HOUR_S, 5)])], last).unwrap();
    while store.prune(last).unwrap() {}
    drop(store);
    let mut tally = crate::usage::sums::Tally::default();
    open(&dir).recent(last).unwrap().iter().for_each(|added| tally.count(added));
    let notice = tally.notice(&tenant(1), last);
    assert_eq!((notice.requests_day, notice.requests_month), (5, 12));
    assert_eq!(notice.month_ends_s, last + 1);
}

#[test]
fn a_damaged_ledger_is_refused_with_what_to_do() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("ledger.sqlite");
    {
        let mut store = open(&dir);
        let rows = (0..2_000).map(|n| row(n, HOUR, 1)).collect();
        store.commit(&[report("a", rows)], NOW).unwrap();
    }
    let mut bytes = std::fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle..middle + 8_192].fill(0x5a);
    std::fs::write(&path, bytes).unwrap();
    let fault = Store::open(&path).unwrap_err().to_string();
    assert!(fault.contains("is damaged") && fault.contains("backup"), "{fault}");
    std::fs::write(&path, "this is no database, whatever its name says".repeat(100)).unwrap();
    assert!(matches!(Store::open(&path), Err(StoreError::Damaged { .. })));
}

#[test]
fn a_ledger_of_a_newer_release_is_not_touched() {
    let dir = TempDir::new().unwrap();
    open(&dir).db.pragma_update(None, "user_version", 99).unwrap();
    let fault = Store::open(&dir.path().join("ledger.sqlite")).unwrap_err();
    assert!(matches!(fault, StoreError::Newer { found: 99, .. }), "{fault}");
}

#[test]
fn a_backup_is_whole_and_taken_beside_the_writer() {
    let dir = TempDir::new().unwrap();
    let mut store = open(&dir);
    store.commit(&[report("a", vec![row(1, HOUR, 4)])], NOW).unwrap();
    let reader = Store::open_to_read(&dir.path().join("ledger.sqlite")).unwrap();
    let copy = dir.path().join("copy.sqlite");
    reader.backup(&copy).unwrap();
    store.commit(&[report("a", vec![row(1, HOUR, 9)])], NOW).unwrap();
    assert_eq!(total(&Store::open(&copy).unwrap()), 4);
    assert_eq!(total(&store), 9);
}

/// The child of the next test: commits reports for ever, and says after each what is committed.
#[test]
fn child_that_is_killed() {
    let Ok(dir) = std::env::var("SQ_LEDGER_TEST_DIR") else { return };
    let mut store = Store::open(&Path::new(&dir).join("ledger.sqlite")).unwrap();
    for reads in total(&store) + 1.. {
        store.commit(&[report("a", vec![row(1, HOUR, reads)])], NOW).unwrap();
        println!("committed {reads}");
    }
}

#[test]
fn what_was_answered_survives_kill_9_of_the_process() {
    use std::io::{BufRead, BufReader};
    let dir = TempDir::new().unwrap();
    let mut answered = 0;
    for round in 0..10 {
        // The harness names a test by its path within the crate.
        let (_, module) = module_path!().split_once("::").unwrap();
        let child = format!("{module}::child_that_is_killed");
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", &child, "--nocapture"])
            .env("SQ_LEDGER_TEST_DIR", dir.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
        let mut seen = 0;
        let mut killed = false;
        for line in lines {
            // The harness puts its own words before the first one.
            let Some((_, number)) = line.rsplit_once("committed ") else { continue };
            answered = number.parse().unwrap();
            seen += 1;
            if seen > 3 * round && !killed {
                child.kill().unwrap();
                killed = true;
            }
        }
        child.wait().unwrap();
        assert!(killed, "the child ended by itself");
        let store = open(&dir);
        let kept = total(&store);
        // One more may have been committed and not yet said.
        assert!(kept == answered || kept == answered + 1, "{kept} kept, {answered} answered");
        answered = kept;
    }
    assert!(answered > 10);
}

#[derive(Debug, Clone)]
struct Sent {
    source: usize,
    tenant: usize,
    hour: u64,
    /// Index in the source's history, so that counters of one source only grow.
    age: u64,
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    /// Any order, any loss, any repetition, any batches: the sum over sources of the newest seen.
    #[test]
    fn the_ledger_is_the_sum_over_sources_of_their_maximum(
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
        let mut tally = crate::usage::sums::Tally::default();
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
            committed.added.iter().for_each(|added| tally.count(added));
        }
        prop_assert_eq!(total(&store), model.values().sum::<u64>());
        let mut anew = crate::usage::sums::Tally::default();
        store.recent(NOW).unwrap().iter().for_each(|added| anew.count(added));
        for n in 0..4 {
            let of = |(s, t, h): &(usize, usize, u64)| {
                let _ = s;
                *t == n && (HOUR - h) / 24 == HOUR / 24
            };
            let today: u64 = model.iter().filter(|(key, _)| of(key)).map(|(_, n)| n).sum();
            prop_assert_eq!(tally.notice(&tenant(n), NOW).requests_day, today);
            prop_assert_eq!(anew.notice(&tenant(n), NOW), tally.notice(&tenant(n), NOW));
        }
    }
}

#[test]
fn plans_that_nobody_has_are_dropped_and_the_others_stay() {
    let dir = TempDir::new().unwrap();
    let mut store = open(&dir);
    for burst in 0..=u32::try_from(plans::PLANS_MAX).unwrap() {
        let limits = Limits { burst, ..Limits::default() };
        store.commit(&[report("a", vec![UsageRow { limits, ..row(1, HOUR, 1) }])], NOW).unwrap();
    }
    store.prune(NOW).unwrap();
    assert_eq!(store.plans.len(), 1);
    let limits = store.record(&tenant(1)).unwrap().unwrap().limits;
    assert_eq!(limits.burst as usize, plans::PLANS_MAX);
    let again = UsageRow { limits, ..row(1, HOUR, 9) };
    store.commit(&[report("a", vec![again, row(2, HOUR, 1)])], NOW).unwrap();
    assert_eq!(store.plans.len(), 2);
}

#[test]
fn an_hour_of_many_rows_becomes_a_part_of_its_day_in_bounded_steps() {
    let dir = TempDir::new().unwrap();
    let mut store = open(&dir);
    let tenants = usize::try_from(PRUNE_ROWS).unwrap() + 10;
    for source in ["a", "b"] {
        let rows = (0..tenants).map(|n| row(n, HOUR, 3)).collect();
        store.commit(&[report(source, rows)], NOW).unwrap();
    }
    let later = NOW + 20 * DAY_S;
    store.commit(&[report("a", vec![row(tenants, later / HOUR_S, 3)])], later).unwrap();
    let mut left = store.rows().unwrap();
    let sum = total(&store);
    while store.prune(later).unwrap() {
        let rows = store.rows().unwrap();
        assert!(left - rows <= PRUNE_ROWS + 1, "{} rows in one step", left - rows);
        assert_eq!(total(&store), sum);
        let late = store.commit(&[report("a", vec![row(tenants - 1, HOUR, 9)])], later).unwrap();
        assert_eq!(late.refused_rows, 1, "an hour that is being summed up takes nothing");
        left = rows;
    }
    assert_eq!((left, total(&store)), (1, sum));
}
